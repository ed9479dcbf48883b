//! The records inside a batch, once they are unpacked.
//!
//! `kafka-protocol` reserves room for as many records and headers as a batch claims, and keeps one of several
//! headers of the same name; so they are read here. Layout (Kafka documentation, "Record"): length, attributes 1,
//! timestamp delta, offset delta, key, value, headers; lengths, deltas and counts are zigzag varints, and a length of
//! -1 is none.

use super::batch::BatchError;
use crate::{ids::Offset, record::Record};
use bytes::{Buf, Bytes};
use integer_encoding::VarInt;

/// What the records of a batch are relative to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// How many records there are.
    pub count: i32,
    /// How many offsets they are spread over.
    pub offsets: i32,
    pub base_offset: Offset,
    pub first_timestamp_ms: i64,
    /// The time of all of them, if the log gives it.
    pub timestamp_ms: Option<i64>,
}

/// Reads all records. Takes no more memory than there are bytes to fill it.
pub(super) fn read(mut bytes: Bytes, frame: &Frame) -> Result<Vec<Record>, BatchError> {
    let mut records = Vec::new();
    let mut before = -1;
    for _ in 0..frame.count {
        let mut body = take(&mut bytes)?.ok_or_else(|| wrong("a record without a length"))?;
        if !body.has_remaining() {
            return Err(wrong("a record of no bytes"));
        }
        body.advance(1);
        let time = number::<i64>(&mut body)?;
        let delta = number::<i32>(&mut body)?;
        if delta <= before || delta >= frame.offsets {
            return Err(wrong(format!("a record {delta} after {before}")));
        }
        before = delta;
        let key = take(&mut body)?;
        let value = take(&mut body)?;
        let mut headers = Vec::new();
        for _ in 0..number::<i32>(&mut body)? {
            let name = take(&mut body)?.ok_or_else(|| wrong("a header without a name"))?;
            // Kafka's clients, too, read a name that is not text as well as they can.
            let name = String::from_utf8_lossy(&name).into_owned();
            headers.push((name, take(&mut body)?.unwrap_or_default()));
        }
        if body.has_remaining() {
            return Err(wrong("a record that goes on after its end"));
        }
        records.push(Record {
            offset: frame.base_offset.plus(i64::from(delta)),
            key,
            value,
            headers,
            timestamp_ms: frame
                .timestamp_ms
                .unwrap_or(frame.first_timestamp_ms.saturating_add(time)),
        });
    }
    match bytes.has_remaining() {
        true => Err(wrong("bytes after the last record")),
        false => Ok(records),
    }
}

/// So many bytes as the length in front of them says; none for -1.
fn take(bytes: &mut Bytes) -> Result<Option<Bytes>, BatchError> {
    match number::<i32>(bytes)? {
        -1 => Ok(None),
        len => match usize::try_from(len) {
            Ok(len) if len <= bytes.len() => Ok(Some(bytes.split_to(len))),
            _ => Err(wrong(format!(
                "{len} bytes claimed, {} are left",
                bytes.len()
            ))),
        },
    }
}

pub(super) fn wrong(what: impl ToString) -> BatchError {
    BatchError::Records(what.to_string())
}

fn number<N: VarInt>(bytes: &mut Bytes) -> Result<N, BatchError> {
    let (number, len) = N::decode_var(bytes).ok_or_else(|| wrong("a number that is cut off"))?;
    bytes.advance(len);
    Ok(number)
}
