//! Record batches, version 2: the unit of producing, storing and fetching.
//!
//! The log keeps a batch as the bytes that its producer sent, and reads only its header. Layout (Kafka
//! documentation, "Record Batch"): base offset 8, length 4, leader epoch 4, magic 1, crc 4, attributes 2,
//! last offset delta 4, first timestamp 8, last timestamp 8, producer id 8, producer epoch 2, base
//! sequence 4, record count 4; big-endian; the crc (Castagnoli) covers all that follows it.

use crate::{
    ids::{Offset, ProducerEpoch, ProducerId, Sequence},
    record::{NewRecord, Record},
};
use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    indexmap::IndexMap,
    protocol::StrBytes,
    records::{
        Compression, Record as WireRecord, RecordBatchDecoder, RecordBatchEncoder,
        RecordEncodeOptions, TimestampType,
    },
};

/// The size of a batch's header.
pub const HEADER_BYTES: usize = 61;

/// The header of a batch, as far as the log needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record.
    pub base_offset: Offset,
    /// The whole batch, in bytes.
    pub bytes: usize,
    /// How many offsets it takes.
    pub count: i32,
    /// Who appends it; -1 if it is not idempotent.
    pub producer: ProducerId,
    /// Which incarnation of it.
    pub epoch: ProducerEpoch,
    /// The sequence of the first record.
    pub sequence: Sequence,
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
    /// No records, or more than the header's range of offsets.
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
        let count = i32::from_be_bytes(field(bytes, 57));
        if count < 1 || last_delta != count - 1 {
            return Err(BatchError::Count(count));
        }
        Ok(BatchHeader {
            base_offset: Offset(i64::from_be_bytes(field(bytes, 0))),
            bytes: claimed as usize,
            count,
            producer: ProducerId(i64::from_be_bytes(field(bytes, 43))),
            epoch: ProducerEpoch(i16::from_be_bytes(field(bytes, 51))),
            sequence: Sequence(i32::from_be_bytes(field(bytes, 53))),
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

/// Builds one batch.
pub fn encode(
    records: &[NewRecord],
    producer: ProducerId,
    epoch: ProducerEpoch,
    sequence: Sequence,
) -> Result<Bytes, BatchError> {
    let wire: Vec<WireRecord> = (records.iter().enumerate())
        .map(|(index, record)| WireRecord {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: producer.0,
            producer_epoch: epoch.0,
            timestamp_type: TimestampType::Creation,
            offset: index as i64,
            sequence: sequence.0.wrapping_add(index as i32),
            timestamp: record.timestamp_ms,
            key: record.key.clone(),
            value: record.value.clone(),
            headers: headers_to_wire(&record.headers),
        })
        .collect();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    let mut bytes = BytesMut::new();
    RecordBatchEncoder::encode(&mut bytes, &wire, &options)
        .map_err(|error| BatchError::Records(error.to_string()))?;
    Ok(bytes.freeze())
}

fn headers_to_wire(headers: &[(String, Bytes)]) -> IndexMap<StrBytes, Option<Bytes>> {
    let headers = headers.iter();
    headers
        .map(|(name, value)| (StrBytes::from_string(name.clone()), Some(value.clone())))
        .collect()
}

/// Reads the records of consecutive batches; a last batch that is cut off is left out, as brokers may
/// send one.
pub fn decode(bytes: &Bytes) -> Result<Vec<Record>, BatchError> {
    let mut records = Vec::new();
    let mut rest = bytes.clone();
    while rest.len() >= HEADER_BYTES {
        let header = BatchHeader::peek(&rest)?;
        if header.bytes > rest.len() {
            break;
        }
        let batch = rest.split_to(header.bytes);
        BatchHeader::read(&batch)?;
        let set = RecordBatchDecoder::decode(&mut batch.clone())
            .map_err(|error| BatchError::Records(error.to_string()))?;
        records.extend(set.records.into_iter().map(|record| {
            Record {
                offset: Offset(record.offset),
                key: record.key,
                value: record.value,
                headers: (record.headers.into_iter())
                    .map(|(name, value)| (name.to_string(), value.unwrap_or_default()))
                    .collect(),
                timestamp_ms: record.timestamp,
            }
        }));
    }
    Ok(records)
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
        encode(
            &records,
            ProducerId(7),
            ProducerEpoch(1),
            Sequence(i32::MAX),
        )
        .unwrap()
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
            let read: Vec<Vec<u8>> = decode(&bytes).unwrap().into_iter()
                .map(|record| record.value.unwrap().to_vec())
                .collect();
            prop_assert_eq!(read, values);
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
