//! What a broker checks of a batch before it keeps it, as Apache Kafka does (its `LogValidator`): a batch that its
//! readers cannot take apart, or that says something else than it holds, would stop all of them.
//!
//! Records are walked over one by one, packed ones as they are unpacked; nothing is kept of them. The walk pauses
//! after a step of 1 MiB, so that whoever sends megabytes does not stop others.

use super::{
    batch::{self, BatchError, BatchHeader, HEADER_BYTES},
    compression,
    cursor::{invalid, unreadable, Cursor},
};
use bytes::{buf::Reader, Buf, Bytes, BytesMut};
use std::io::BufRead;

/// A batch is refused if it unpacks to more than this: as much as a whole frame may hold, and far less than our
/// consumer takes. (Kafka has no such limit, and its consumers run out of memory.)
pub const UNPACKED_BYTES_MAX: usize = 16 << 20;

/// How many unpacked bytes are checked at a time.
const STEP_BYTES: usize = 1 << 20;

/// A batch that was checked: it may be kept.
#[derive(Clone, Debug)]
pub struct Checked {
    bytes: Bytes,
    header: BatchHeader,
}

/// Why a batch must not be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is damaged; sent again, it may be whole.
    #[error(transparent)]
    Corrupt(BatchError),
    /// It says what cannot be, or something else than it holds.
    #[error("record batch: {0}")]
    Invalid(String),
    /// Its records do not unpack.
    #[error("record batch that does not unpack: {0}")]
    Packed(String),
    /// Nobody packs like this.
    #[error("record batch with compression {0}, which is not known")]
    Codec(i16),
    /// It unpacks to too much.
    #[error("record batch that unpacks to more than {UNPACKED_BYTES_MAX} bytes")]
    TooLarge,
    /// The time of a record is too far in the future.
    #[error("record with timestamp {timestamp_ms}, the newest that may be is {newest_ms}")]
    Timestamp {
        /// What it says.
        timestamp_ms: i64,
        /// What it may say.
        newest_ms: i64,
    },
    /// A producer without an epoch.
    #[error("record batch of a producer with epoch {0}")]
    Epoch(i16),
}

impl Checked {
    /// A batch that this process has built itself.
    pub fn ours(bytes: Bytes) -> Result<Checked, BatchError> {
        let header = BatchHeader::read(&bytes)?;
        Ok(Checked { bytes, header })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }
}

/// A batch of a client that is being checked.
pub struct Checking {
    bytes: Bytes,
    header: BatchHeader,
    codec: i16,
    source: Source,
    walk: Walk,
}

enum Source {
    Plain(Reader<Bytes>),
    Packed(Box<dyn BufRead + Send>),
}

impl Checking {
    /// Checks the header of a client's batch. The times of its records may not be after `newest_ms`.
    pub fn begin(bytes: Bytes, newest_ms: i64) -> Result<Checking, Refusal> {
        let header = read_header(&bytes)?;
        check_header(&header)?;
        let attributes = batch::attributes(&bytes);
        if batch::is_log_append_time(attributes) && header.max_timestamp_ms > newest_ms {
            // Then that is the time of all of them.
            return Err(Refusal::Timestamp {
                timestamp_ms: header.max_timestamp_ms,
                newest_ms,
            });
        }
        let records = bytes.slice(HEADER_BYTES..);
        let codec = batch::codec(attributes);
        let source = match codec {
            0 => Source::Plain(records.reader()),
            1..=4 => {
                let unpacker = compression::unpacker(records, attributes, UNPACKED_BYTES_MAX);
                Source::Packed(unpacker.map_err(unreadable)?)
            }
            other => return Err(Refusal::Codec(other)),
        };
        let walk = Walk {
            next: 0,
            count: header.count,
            first_timestamp_ms: batch::first_timestamp_ms(&bytes),
            newest_ms,
            max_timestamp_ms: -1,
            bytes: 0,
        };
        Ok(Checking {
            bytes,
            header,
            codec,
            source,
            walk,
        })
    }

    /// How its records are packed, as the attributes of a batch say; 0 is not at all.
    pub fn codec(&self) -> i16 {
        self.codec
    }

    /// The memory that checking it takes, about: of what is unpacked, not all is kept.
    pub fn bytes(&self) -> usize {
        let (records, codec) = (&self.bytes[HEADER_BYTES..], self.codec);
        match codec {
            0 => 0,
            _ => compression::kept_bytes(records, codec, UNPACKED_BYTES_MAX),
        }
    }

    /// Whether it belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.header.transactional
    }

    /// Checks some more of its records. Returns `None` while there are more.
    pub fn go_on(&mut self) -> Result<Option<Checked>, Refusal> {
        let at_end = match &mut self.source {
            Source::Plain(records) => self.walk.go_on(records)?,
            Source::Packed(records) => self.walk.go_on(records)?,
        };
        if !at_end {
            return Ok(None);
        }
        let (mut header, mut bytes) = (self.header, self.bytes.clone());
        let is_wrong = header.max_timestamp_ms != self.walk.max_timestamp_ms;
        if is_wrong || batch::is_log_append_time(batch::attributes(&bytes)) {
            // Retention and look-ups by time believe the header: as in Kafka, it is made to say what is so, and that
            // the times are the producer's.
            header.max_timestamp_ms = self.walk.max_timestamp_ms;
            let mut changed = BytesMut::from(&bytes[..]);
            batch::set_create_time(&mut changed, header.max_timestamp_ms);
            bytes = changed.freeze();
        }
        Ok(Some(Checked { bytes, header }))
    }
}

/// The header of the one batch that is there; what was damaged on the way is told from what was never right.
fn read_header(bytes: &[u8]) -> Result<BatchHeader, Refusal> {
    BatchHeader::read(bytes).map_err(|error| match error {
        BatchError::Checksum { .. } => Refusal::Corrupt(error),
        BatchError::Magic(version) if version > 2 => Refusal::Corrupt(error),
        BatchError::Length { claimed, .. } if claimed < HEADER_BYTES as i64 => {
            Refusal::Corrupt(error)
        }
        error => Refusal::Invalid(error.to_string()),
    })
}

fn check_header(header: &BatchHeader) -> Result<(), Refusal> {
    let producer = header.producer.0;
    let wrong = |what: String| Err(Refusal::Invalid(what));
    if header.base_offset.0 != 0 {
        return wrong(format!(
            "base offset {}, where 0 is right",
            header.base_offset
        ));
    }
    if header.records != header.count {
        let (records, count) = (header.records, header.count);
        return wrong(format!("{records} records on {count} offsets"));
    }
    if header.control {
        return wrong("a control batch, which only brokers write".into());
    }
    if producer < -1 {
        return wrong(format!("producer id {producer}"));
    }
    if producer == -1 && header.transactional {
        return wrong("a transaction without a producer id".into());
    }
    if producer >= 0 && header.epoch.0 < 0 {
        return Err(Refusal::Epoch(header.epoch.0));
    }
    if producer >= 0 && header.sequence.0 < 0 {
        let sequence = header.sequence.0;
        return wrong(format!("sequence {sequence} of producer {producer}"));
    }
    Ok(())
}

/// How far a walk over the records has come.
struct Walk {
    /// The offset of the next record, relative to the batch.
    next: i32,
    count: i32,
    first_timestamp_ms: i64,
    newest_ms: i64,
    max_timestamp_ms: i64,
    /// The bytes before it.
    bytes: usize,
}

impl Walk {
    /// Goes on for a step. Returns whether it has come to the end.
    fn go_on(&mut self, source: &mut impl BufRead) -> Result<bool, Refusal> {
        let pause = self.bytes + STEP_BYTES;
        while self.next < self.count {
            if self.bytes >= pause {
                return Ok(false);
            }
            self.record(source)?;
            self.next += 1;
        }
        match source.fill_buf().map_err(unreadable)?.is_empty() {
            true => Ok(true),
            false => Err(invalid("bytes after the last record")),
        }
    }

    /// Layout (Kafka documentation, "Record"): length, attributes 1, timestamp delta, offset delta, key, value,
    /// headers; lengths, deltas and counts are zigzag varints, and a length of -1 is none.
    fn record(&mut self, source: &mut impl BufRead) -> Result<(), Refusal> {
        let mut prefix = Cursor::new(source, usize::MAX);
        let len = prefix.number()?;
        let prefix_bytes = prefix.taken;
        let room = UNPACKED_BYTES_MAX.saturating_sub(self.bytes + prefix_bytes);
        let len = usize::try_from(len).map_err(|_| invalid(format!("a record of {len} bytes")))?;
        if len > room {
            return Err(Refusal::TooLarge);
        }
        let mut record = Cursor::new(source, len);
        record.skip(1)?;
        let time = record.number()?;
        let offset = record.number()?;
        if offset != i64::from(self.next) {
            return Err(invalid(format!(
                "record {offset} where {} is right",
                self.next
            )));
        }
        self.check_time(time)?;
        record.skip_bytes(true)?;
        record.skip_bytes(true)?;
        let headers = record.number()?;
        if headers < 0 || headers > len as i64 {
            return Err(invalid(format!(
                "{headers} headers of a record of {len} bytes"
            )));
        }
        for _ in 0..headers {
            record.skip_bytes(false)?;
            record.skip_bytes(true)?;
        }
        if record.taken != len {
            return Err(invalid("a record that goes on after its end"));
        }
        self.bytes += prefix_bytes + len;
        assert!(self.bytes <= UNPACKED_BYTES_MAX, "{} bytes", self.bytes);
        Ok(())
    }

    /// -1 is no time. Kafka takes any time of the past, and an hour of the future (KIP-1030).
    fn check_time(&mut self, delta: i64) -> Result<(), Refusal> {
        let time = self.first_timestamp_ms.checked_add(delta);
        let time = time.filter(|time| *time <= self.newest_ms);
        let time = time.ok_or(Refusal::Timestamp {
            timestamp_ms: self.first_timestamp_ms.saturating_add(delta),
            newest_ms: self.newest_ms,
        })?;
        self.max_timestamp_ms = self.max_timestamp_ms.max(time);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::NewRecord, wire::batch::Identity};
    use ruzstd::encoding::{compress_to_vec, CompressionLevel};
    use std::io::Write;

    fn check(bytes: Bytes) -> Result<Checked, Refusal> {
        let mut checking = Checking::begin(bytes, i64::MAX)?;
        loop {
            if let Some(checked) = checking.go_on()? {
                return Ok(checked);
            }
        }
    }

    fn plain(value_bytes: usize) -> Bytes {
        let record = NewRecord {
            value: Some(vec![0; value_bytes].into()),
            timestamp_ms: 5,
            ..NewRecord::default()
        };
        batch::encode(&[record.clone(), record], Identity::NOBODY).unwrap()
    }

    /// The same batch, its records packed with each codec.
    fn packed(plain: &[u8]) -> Vec<Bytes> {
        let records = &plain[HEADER_BYTES..];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        gzip.write_all(records).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(records).unwrap();
        let all = [
            (1, gzip.finish().unwrap()),
            (2, snap::raw::Encoder::new().compress_vec(records).unwrap()),
            (3, lz4.finish().unwrap()),
            (4, compress_to_vec(records, CompressionLevel::Fastest)),
        ];
        let batches = all.into_iter();
        batches
            .map(|(codec, records)| with_records(plain, codec, &records))
            .collect()
    }

    /// A batch with these records instead of its own.
    fn with_records(batch: &[u8], codec: u8, records: &[u8]) -> Bytes {
        let mut bytes = [&batch[..HEADER_BYTES], records].concat();
        bytes[22] |= codec;
        let len = bytes.len() as i32 - 12;
        bytes[8..12].copy_from_slice(&len.to_be_bytes());
        let sum = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&sum.to_be_bytes());
        bytes.into()
    }

    #[test]
    fn honest_batches_are_kept_as_they_are() {
        for bytes in [10, 100_000, 3 << 20].map(plain) {
            assert_eq!(*check(bytes.clone()).unwrap().bytes(), bytes);
            for bytes in packed(&bytes) {
                assert_eq!(*check(bytes.clone()).unwrap().bytes(), bytes);
            }
        }
    }

    #[test]
    fn bombs_are_refused() {
        for bomb in packed(&plain(UNPACKED_BYTES_MAX / 2)) {
            assert_eq!(check(bomb).unwrap_err(), Refusal::TooLarge);
        }
        // Five kilobytes that fill a window of 128 MiB. It is refused before the window is full: what leaves it then
        // is not a record.
        let full = repeated(128 << 10, 1100);
        assert!(full.len() < 5000);
        let bomb = with_records(&plain(1), 4, &full);
        assert_eq!(check(bomb).unwrap_err(), Refusal::TooLarge);
    }

    /// The stock encoders claim such windows at their highest levels, however little they pack.
    #[test]
    fn a_large_window_of_little_is_kept() {
        let plain = plain(1000);
        let records = &plain[HEADER_BYTES..];
        // One block, the last one, as it is.
        let block = ((records.len() as u32) << 3 | 1).to_le_bytes();
        let frame = [&WINDOWED, &block[..3], records].concat();
        check(with_records(&plain, 4, &frame)).unwrap();
    }

    /// A frame of zstd with a window of 128 MiB.
    const WINDOWED: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0, 0x88];

    /// Such a frame of so many blocks of so many zeros.
    fn repeated(len: u32, count: usize) -> Vec<u8> {
        let mut frame = WINDOWED.to_vec();
        for number in 1..=count {
            let last = u32::from(number == count);
            frame.extend(&(len << 3 | 1 << 1 | last).to_le_bytes()[..3]);
            frame.push(0);
        }
        frame
    }
}
