//! `Record`: what a log holds. `Message`: a batch of records, a watermark or a barrier between tasks.

use crate::ids::{CheckpointId, EventTime, Offset};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A record on its way into the log.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NewRecord {
    /// What the log's readers may group by; the producer of a keyed topic picks the partition by it.
    pub key: Option<Bytes>,
    /// The payload.
    pub value: Option<Bytes>,
    /// Named extra values, in order.
    pub headers: Vec<(String, Bytes)>,
    /// Milliseconds since 1970, by the producer's wall clock.
    pub timestamp_ms: i64,
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place.
    pub offset: Offset,
    /// See [`NewRecord::key`].
    pub key: Option<Bytes>,
    /// See [`NewRecord::value`].
    pub value: Option<Bytes>,
    /// See [`NewRecord::headers`].
    pub headers: Vec<(String, Bytes)>,
    /// See [`NewRecord::timestamp_ms`].
    pub timestamp_ms: i64,
}

/// A value with the time at which it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed<T> {
    /// When it happened, by its source.
    pub time: EventTime,
    /// What happened.
    pub value: T,
}

/// What goes from task to task. A watermark or a barrier ends a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message<T> {
    /// Records, in order.
    Batch(Vec<T>),
    /// No record that is not later than this follows on this channel.
    Watermark(EventTime),
    /// What came before belongs to this checkpoint, what follows does not.
    Barrier(CheckpointId),
}
