//! Pure: the times of the records of a batch that was kept, one after another as they are unpacked. Nothing else is kept
//! of them, and whoever has found a record needs no more of them.

use super::{
    batch::{self, BatchHeader, HEADER_BYTES},
    compression,
    cursor::{invalid, unreadable, Cursor},
    validate::{Refusal, UNPACKED_BYTES_MAX},
};
use crate::ids::Offset;
use bytes::Bytes;
use std::io::BufRead;

/// How many unpacked bytes are looked at before others have their turn.
const STEP_BYTES: usize = 1 << 20;

/// A batch whose records are gone through.
pub struct Times {
    header: BatchHeader,
    first_timestamp_ms: i64,
    /// The time of all of them, if the log has given it.
    append_time_ms: Option<i64>,
    records: Box<dyn BufRead + Send>,
    /// How many of them were read, and how far they are from the first offset.
    read: i32,
    delta: i64,
}

impl Times {
    /// Begins with the first record of the one batch that is there.
    pub fn begin(bytes: Bytes) -> Result<Times, Refusal> {
        let header = BatchHeader::read(&bytes).map_err(Refusal::Corrupt)?;
        if header.control {
            return Err(invalid("a marker, and no records"));
        }
        let attributes = batch::attributes(&bytes);
        let records = bytes.slice(HEADER_BYTES..);
        let records = compression::unpacker(records, attributes, UNPACKED_BYTES_MAX);
        let has_append_time = batch::is_log_append_time(attributes);
        Ok(Times {
            first_timestamp_ms: batch::first_timestamp_ms(&bytes),
            append_time_ms: has_append_time.then_some(header.max_timestamp_ms),
            records: records.map_err(unreadable)?,
            header,
            read: 0,
            delta: -1,
        })
    }

    /// Goes on until it comes to a record for which `is_it`. Returns it with its time, or that there is none; `None` after
    /// a step, if there are more.
    pub fn go_on(
        &mut self,
        mut is_it: impl FnMut(Offset, i64) -> bool,
    ) -> Result<Option<Option<(Offset, i64)>>, Refusal> {
        let mut bytes = 0;
        while self.read < self.header.records {
            if bytes >= STEP_BYTES {
                return Ok(None);
            }
            let (delta, time_ms) = self.record(&mut bytes)?;
            let offset = self.header.base_offset.plus(delta);
            assert!(offset < self.header.end_offset(), "it was checked");
            if is_it(offset, time_ms) {
                return Ok(Some(Some((offset, time_ms))));
            }
        }
        Ok(Some(None))
    }

    /// The next record: how far its offset is from that of the batch, and its time.
    fn record(&mut self, bytes: &mut usize) -> Result<(i64, i64), Refusal> {
        let mut prefix = Cursor::new(&mut self.records, usize::MAX);
        let len = prefix.number()?;
        let len = usize::try_from(len).map_err(|_| invalid(format!("a record of {len} bytes")))?;
        *bytes = bytes.saturating_add(prefix.taken).saturating_add(len);
        let mut record = Cursor::new(&mut self.records, len);
        record.skip(1)?;
        let time = record.number()?;
        let delta = record.number()?;
        record.skip(len - record.taken)?;
        if delta <= self.delta || delta >= i64::from(self.header.count) {
            return Err(invalid(format!("a record {delta} after {}", self.delta)));
        }
        (self.read, self.delta) = (self.read + 1, delta);
        let given = self.first_timestamp_ms.saturating_add(time);
        Ok((delta, self.append_time_ms.unwrap_or(given)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::NewRecord, wire::batch::Identity};

    fn batch_of(times_ms: &[i64], value_bytes: usize) -> Vec<u8> {
        let records: Vec<_> = (times_ms.iter())
            .map(|time| NewRecord {
                value: Some(vec![7; value_bytes].into()),
                timestamp_ms: *time,
                ..NewRecord::default()
            })
            .collect();
        let mut bytes = batch::encode(&records, Identity::NOBODY).unwrap().to_vec();
        batch::set_base_offset(&mut bytes, Offset(100));
        bytes
    }

    fn sealed(mut bytes: Vec<u8>) -> Bytes {
        let len = bytes.len() as i32 - 12;
        bytes[8..12].copy_from_slice(&len.to_be_bytes());
        let sum = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&sum.to_be_bytes());
        bytes.into()
    }

    fn first_since(times: &mut Times, time_ms: i64) -> Result<Option<(i64, i64)>, Refusal> {
        loop {
            if let Some(found) = times.go_on(|_, time| time >= time_ms)? {
                return Ok(found.map(|(offset, time)| (offset.0, time)));
            }
        }
    }

    #[test]
    fn the_first_since_a_time_is_found() {
        let plain = batch_of(&[50, 30, 70, 60], 10);
        let packed = snap::raw::Encoder::new().compress_vec(&plain[HEADER_BYTES..]);
        let mut snappy = [&plain[..HEADER_BYTES], &packed.unwrap()].concat();
        snappy[22] |= 2;
        for bytes in [plain.into(), sealed(snappy)] {
            let since = |time| first_since(&mut Times::begin(bytes.clone()).unwrap(), time);
            assert_eq!(since(0), Ok(Some((100, 50))));
            assert_eq!(since(51), Ok(Some((102, 70))));
            assert_eq!(since(71), Ok(None));
        }
    }

    #[test]
    fn the_log_may_have_given_the_time() {
        let mut bytes = batch_of(&[50, 30], 10);
        batch::set_append_time(&mut bytes, 999);
        let mut times = Times::begin(bytes.into()).unwrap();
        assert_eq!(first_since(&mut times, 60), Ok(Some((100, 999))));
    }

    /// Whatever comes after the record that answers is not even unpacked.
    #[test]
    fn nothing_is_read_after_what_answers() {
        let mut bytes = batch_of(&[50, 60, 70], 2 << 20);
        let end = bytes.len();
        bytes[end - (1 << 20)..].fill(0xff);
        let third = end - (2 << 20) - 20;
        bytes[third..third + 30].fill(0xff);
        let bytes = sealed(bytes);
        let mut times = Times::begin(bytes.clone()).unwrap();
        assert_eq!(
            times.go_on(|_, _| false),
            Ok(None),
            "others have their turn"
        );
        assert_eq!(first_since(&mut times, 60), Ok(Some((101, 60))));
        let mut times = Times::begin(bytes).unwrap();
        assert!(first_since(&mut times, 70).is_err());
    }
}
