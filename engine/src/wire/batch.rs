//! Record batches, version 2: the unit of producing, storing and fetching.
//!
//! The log keeps a batch as the bytes that its producer sent, and reads only its header. Layout (Kafka
//! documentation, "Record Batch"): base offset 8, length 4, leader epoch 4, magic 1, crc 4, attributes 2,
//! last offset delta 4, first timestamp 8, last timestamp 8, producer id 8, producer epoch 2, base
//! sequence 4, record count 4; big-endian; the crc (Castagnoli) covers all that follows it.

use super::{compression, records};
use crate::{
    ids::{Offset, ProducerEpoch, ProducerId, Sequence},
    record::{NewRecord, Record},
};
use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    indexmap::IndexMap,
    protocol::StrBytes,
    records::{
        Compression, Record as WireRecord, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
    },
};
use serde::{Deserialize, Serialize};

/// The size of a batch's header.
pub const HEADER_BYTES: usize = 61;

/// Bits of a batch's attributes.
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
const COMPRESSION: i16 = 7;
const LOG_APPEND_TIME: i16 = 1 << 3;

/// The header of a batch, as far as the log needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record.
    pub base_offset: Offset,
    /// The whole batch, in bytes.
    pub bytes: usize,
    /// How many offsets it takes.
    pub count: i32,
    /// How many records it holds: as many, unless compaction has removed some.
    pub records: i32,
    /// Who appends it; -1 if it is not idempotent.
    pub producer: ProducerId,
    /// Which incarnation of it.
    pub epoch: ProducerEpoch,
    /// The sequence of the first record; -1 if it has none.
    pub sequence: Sequence,
    /// Its records count only once its producer's transaction is committed.
    pub transactional: bool,
    /// It holds a marker, no data: see [`Marker`].
    pub control: bool,
    /// The newest timestamp in it, in milliseconds since 1970.
    pub max_timestamp_ms: i64,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Its records count.
    Commit,
    /// They do not.
    Abort,
}

/// The end of a transaction in one partition: the record of a control batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Whose transaction ends.
    pub producer: ProducerId,
    /// The epoch of that producer from now on: an older one is fenced.
    pub epoch: ProducerEpoch,
    /// How it ends.
    pub outcome: Outcome,
    /// Which transaction of its coordinator's: the coordinator counts those of a transactional id, and
    /// stands the number where Kafka keeps the coordinator's epoch. It only grows for a producer, so a marker that
    /// comes late, or twice, is known.
    pub number: i32,
}

/// Who appends a batch, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its producer; -1 if it is not idempotent.
    pub producer: ProducerId,
    /// Which incarnation of it.
    pub epoch: ProducerEpoch,
    /// The sequence of the first record; -1 if it has none.
    pub sequence: Sequence,
    /// Whether it belongs to the producer's transaction.
    pub transactional: bool,
}

impl Identity {
    /// Who appends without being a producer: neither idempotent nor in a transaction.
    pub const NOBODY: Identity = Identity {
        producer: ProducerId(-1),
        epoch: ProducerEpoch(-1),
        sequence: Sequence(-1),
        transactional: false,
    };
}

/// One batch, taken apart.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Its header.
    pub header: BatchHeader,
    /// What it holds.
    pub body: Body,
}

/// What a batch holds.
#[derive(Clone, Debug)]
pub enum Body {
    /// Records.
    Data(Vec<Record>),
    /// The end of a transaction.
    Control(Marker),
}

/// Why bytes are not a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It ends too early, or goes on after its end.
    #[error("a record batch of {there} bytes claims {claimed}")]
    Length {
        /// What the header says.
        claimed: i64,
        /// What there is.
        there: usize,
    },
    /// Another version than 2.
    #[error("record batch version {0} is not supported, 2 is")]
    Magic(u8),
    /// The checksum does not match.
    #[error("record batch with checksum {found:08x} claims {claimed:08x}")]
    Checksum {
        /// What the header says.
        claimed: u32,
        /// What the bytes give.
        found: u32,
    },
    /// No offsets, or fewer than records.
    #[error("a record batch of {0} records")]
    Count(i32),
    /// The records inside cannot be read.
    #[error("record batch: {0}")]
    Records(String),
}

impl BatchHeader {
    /// Reads the header of the one batch that `bytes` holds, and checks its length and checksum.
    pub fn read(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = BatchHeader::peek(bytes)?;
        if header.bytes != bytes.len() {
            return Err(BatchError::Length {
                claimed: header.bytes as i64,
                there: bytes.len(),
            });
        }
        let claimed = u32::from_be_bytes(field(bytes, 17));
        let found = crc32c::crc32c(&bytes[21..]);
        if claimed != found {
            return Err(BatchError::Checksum { claimed, found });
        }
        Ok(header)
    }

    /// Reads the header of the batch at the start of `bytes`, which need not hold all of it.
    pub fn peek(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let there = bytes.len();
        if there < HEADER_BYTES {
            return Err(BatchError::Length {
                claimed: HEADER_BYTES as i64,
                there,
            });
        }
        if bytes[16] != 2 {
            return Err(BatchError::Magic(bytes[16]));
        }
        let claimed = i64::from(i32::from_be_bytes(field(bytes, 8))) + 12;
        if claimed < HEADER_BYTES as i64 {
            return Err(BatchError::Length { claimed, there });
        }
        let last_delta = i32::from_be_bytes(field(bytes, 23));
        let records = i32::from_be_bytes(field(bytes, 57));
        let Some(count) = last_delta
            .checked_add(1)
            .filter(|count| (0..=*count).contains(&records))
        else {
            return Err(BatchError::Count(records));
        };
        if count == 0 {
            return Err(BatchError::Count(0));
        }
        let attributes = attributes(bytes);
        Ok(BatchHeader {
            base_offset: Offset(i64::from_be_bytes(field(bytes, 0))),
            bytes: claimed as usize,
            count,
            records,
            producer: ProducerId(i64::from_be_bytes(field(bytes, 43))),
            epoch: ProducerEpoch(i16::from_be_bytes(field(bytes, 51))),
            sequence: Sequence(i32::from_be_bytes(field(bytes, 53))),
            transactional: attributes & TRANSACTIONAL != 0,
            control: attributes & CONTROL != 0,
            max_timestamp_ms: i64::from_be_bytes(field(bytes, 35)),
        })
    }

    /// The offset after the last record.
    pub fn end_offset(&self) -> Offset {
        self.base_offset.plus(i64::from(self.count))
    }

    /// The sequence of the last record.
    pub fn last_sequence(&self) -> Sequence {
        self.sequence.plus(self.count - 1)
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("the length was checked")
}

/// Gives a batch its place in the log. The checksum does not cover it.
pub fn set_base_offset(batch: &mut [u8], offset: Offset) {
    batch[..8].copy_from_slice(&offset.0.to_be_bytes());
}

/// Gives all records of a batch the time at which they were appended, in milliseconds since 1970.
pub fn set_append_time(batch: &mut [u8], now_ms: i64) {
    set_times(batch, attributes(batch) | LOG_APPEND_TIME, now_ms);
}

/// Corrects the newest timestamp of a batch, which its producer gave, and with it its checksum.
pub(super) fn set_create_time(batch: &mut [u8], time_ms: i64) {
    set_times(batch, attributes(batch) & !LOG_APPEND_TIME, time_ms);
}

fn set_times(batch: &mut [u8], attributes: i16, time_ms: i64) {
    batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    batch[35..43].copy_from_slice(&time_ms.to_be_bytes());
    set_checksum(batch);
}

fn set_checksum(batch: &mut [u8]) {
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
}

/// The attributes of a batch whose header was read.
pub(super) fn attributes(batch: &[u8]) -> i16 {
    i16::from_be_bytes(field(batch, 21))
}

/// How the records of a batch with these attributes are packed.
pub(super) fn codec(attributes: i16) -> i16 {
    attributes & COMPRESSION
}

/// Whether the broker has given the records of a batch with these attributes their time.
pub(super) fn is_log_append_time(attributes: i16) -> bool {
    attributes & LOG_APPEND_TIME != 0
}

/// What the times of the records of a batch are relative to.
pub(super) fn first_timestamp_ms(batch: &[u8]) -> i64 {
    i64::from_be_bytes(field(batch, 27))
}

/// Builds one batch.
pub fn encode(records: &[NewRecord], by: Identity) -> Result<Bytes, BatchError> {
    let wire: Vec<WireRecord> = (records.iter().enumerate())
        .map(|(index, record)| WireRecord {
            transactional: by.transactional,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: by.producer.0,
            producer_epoch: by.epoch.0,
            timestamp_type: TimestampType::Creation,
            offset: index as i64,
            sequence: by.sequence.0.wrapping_add(index as i32),
            timestamp: record.timestamp_ms,
            key: record.key.clone(),
            value: record.value.clone(),
            headers: headers_to_wire(&record.headers),
        })
        .collect();
    let mut bytes = encode_wire(&wire)?;
    if by.sequence.0 < 0 {
        // The encoder counts sequences on from -1: the batch has none.
        bytes[53..57].copy_from_slice(&(-1i32).to_be_bytes());
        set_checksum(&mut bytes);
    }
    Ok(bytes.freeze())
}

/// The control batch that ends a transaction in a partition.
pub fn encode_marker(marker: Marker, timestamp_ms: i64) -> Bytes {
    let kind: i16 = match marker.outcome {
        Outcome::Abort => 0,
        Outcome::Commit => 1,
    };
    let mut key = BytesMut::new();
    key.put_i16(0);
    key.put_i16(kind);
    let mut value = BytesMut::new();
    value.put_i16(0);
    value.put_i32(marker.number);
    let record = WireRecord {
        transactional: true,
        control: true,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: marker.producer.0,
        producer_epoch: marker.epoch.0,
        timestamp_type: TimestampType::Creation,
        offset: 0,
        sequence: -1,
        timestamp: timestamp_ms,
        key: Some(key.freeze()),
        value: Some(value.freeze()),
        headers: IndexMap::new(),
    };
    let bytes = encode_wire(&[record]).expect("one small record");
    bytes.freeze()
}

fn encode_wire(records: &[WireRecord]) -> Result<BytesMut, BatchError> {
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    let mut bytes = BytesMut::new();
    RecordBatchEncoder::encode(&mut bytes, records, &options)
        .map_err(|error| BatchError::Records(error.to_string()))?;
    Ok(bytes)
}

/// Reads the marker in a control batch.
fn decode_marker(header: &BatchHeader, record: &Record) -> Result<Marker, BatchError> {
    let wrong = || BatchError::Records("a control record that is no marker".into());
    let key = record.key.as_deref().unwrap_or_default();
    let value = record.value.as_deref().unwrap_or_default();
    let outcome = match key.get(2..4).ok_or_else(wrong)? {
        [0, 0] => Outcome::Abort,
        [0, 1] => Outcome::Commit,
        _ => return Err(wrong()),
    };
    let number = value.get(2..6).ok_or_else(wrong)?;
    Ok(Marker {
        producer: header.producer,
        epoch: header.epoch,
        outcome,
        number: i32::from_be_bytes(number.try_into().expect("four bytes")),
    })
}

fn headers_to_wire(headers: &[(String, Bytes)]) -> IndexMap<StrBytes, Option<Bytes>> {
    let headers = headers.iter();
    headers
        .map(|(name, value)| (StrBytes::from_string(name.clone()), Some(value.clone())))
        .collect()
}

/// Takes consecutive batches apart; a last batch that is cut off is left out, as brokers may send one.
pub fn decode(bytes: &Bytes) -> Result<Vec<Batch>, BatchError> {
    let mut batches = Vec::new();
    let mut rest = bytes.clone();
    while rest.len() >= HEADER_BYTES {
        let header = BatchHeader::peek(&rest)?;
        if header.bytes > rest.len() {
            break;
        }
        batches.push(decode_one(rest.split_to(header.bytes))?);
    }
    Ok(batches)
}

fn decode_one(bytes: Bytes) -> Result<Batch, BatchError> {
    let header = BatchHeader::read(&bytes)?;
    let records = read_records(&header, &bytes)?;
    let body = match (header.control, records.first()) {
        (true, Some(record)) => Body::Control(decode_marker(&header, record)?),
        _ => Body::Data(records),
    };
    Ok(Batch { header, body })
}

/// The records of a whole batch that has this header.
fn read_records(header: &BatchHeader, bytes: &Bytes) -> Result<Vec<Record>, BatchError> {
    let attributes = attributes(bytes);
    let frame = records::Frame {
        count: header.records,
        offsets: header.count,
        base_offset: header.base_offset,
        first_timestamp_ms: first_timestamp_ms(bytes),
        timestamp_ms: is_log_append_time(attributes).then_some(header.max_timestamp_ms),
    };
    let plain = compression::unpack(bytes.slice(HEADER_BYTES..), attributes)?;
    records::read(plain, &frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(values: &[Vec<u8>]) -> Bytes {
        let records: Vec<NewRecord> = (values.iter())
            .map(|value| NewRecord {
                value: Some(value.clone().into()),
                headers: vec![("h".into(), Bytes::from_static(b"x"))],
                ..NewRecord::default()
            })
            .collect();
        let by = Identity {
            producer: ProducerId(7),
            epoch: ProducerEpoch(1),
            sequence: Sequence(i32::MAX),
            transactional: true,
        };
        encode(&records, by).unwrap()
    }

    proptest! {
        #[test]
        fn batches_round_trip(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..20)
        ) {
            let bytes = batch(&values);
            let header = BatchHeader::read(&bytes).unwrap();
            prop_assert_eq!(header.count as usize, values.len());
            prop_assert_eq!(header.sequence, Sequence(i32::MAX));
            prop_assert_eq!(header.producer, ProducerId(7));
            prop_assert!(header.transactional && !header.control);
            let [Batch { body: Body::Data(records), .. }] = &decode(&bytes).unwrap()[..] else {
                panic!("one batch of records");
            };
            let read: Vec<Vec<u8>> = records.iter().cloned()
                .map(|record| record.value.unwrap().to_vec())
                .collect();
            prop_assert_eq!(read, values);
        }

        #[test]
        fn markers_round_trip(id in 0i64.., epoch in 0i16.., number in 0i32.., commit in any::<bool>()) {
            let marker = Marker {
                producer: ProducerId(id),
                epoch: ProducerEpoch(epoch),
                outcome: if commit { Outcome::Commit } else { Outcome::Abort },
                number,
            };
            let [Batch { body: Body::Control(read), header }] = decode(&encode_marker(marker, 5)).unwrap()[..] else {
                panic!("one control batch");
            };
            prop_assert_eq!(read, marker);
            prop_assert!(header.control && header.transactional && header.count == 1);
        }

        #[test]
        fn a_flipped_bit_behind_the_checksum_is_found(bit in 0usize..800) {
            let bytes = batch(&[vec![1; 40]]);
            let bit = 21 * 8 + bit % ((bytes.len() - 21) * 8);
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(BatchHeader::read(&damaged).is_err());
        }

        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(BatchHeader::read(&bytes).is_err());
            let _ = decode(&bytes.into());
        }
    }
}
