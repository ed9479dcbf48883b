//! Decoding, and event time.

use super::{Reject, Stage};
use crate::{
    ids::EventTime,
    record::{Record, Timed},
};
use std::marker::PhantomData;

/// Turns a record's payload into a value.
pub struct Decode<T, F> {
    decode: F,
    value: PhantomData<fn() -> T>,
}

impl<T, F: Clone> Clone for Decode<T, F> {
    fn clone(&self) -> Self {
        Decode::new(self.decode.clone())
    }
}

impl<T, F> Decode<T, F> {
    /// Decodes with `decode`, which says why it cannot.
    pub fn new(decode: F) -> Self {
        let value = PhantomData;
        Decode { decode, value }
    }
}

impl<T, F> Stage for Decode<T, F>
where
    T: Send + 'static,
    F: Fn(&[u8]) -> Result<T, String> + Clone + Send + Sync + 'static,
{
    type Out = T;
    type State = ();

    fn process(&mut self, record: &Record) -> Result<Option<T>, Reject> {
        let payload = record.value.as_deref().unwrap_or_default();
        (self.decode)(payload)
            .map(Some)
            .map_err(Reject::Undecodable)
    }

    fn watermark(&self) -> EventTime {
        EventTime(i64::MIN)
    }

    fn snapshot(&self) {}

    fn restore(&mut self, (): ()) {}
}

/// Stamps values with their event time, and keeps the watermark of the partition: the latest time seen,
/// less how far events may be out of order. What is not later than the watermark is late.
#[derive(Clone)]
pub struct Stamp<S, F> {
    inner: S,
    time: F,
    out_of_order_ms: i64,
    watermark: EventTime,
}

impl<S, F> Stamp<S, F> {
    /// Stamps with `time`; events may be `out_of_order_ms` behind the latest one.
    pub fn new(inner: S, time: F, out_of_order_ms: i64) -> Self {
        Stamp {
            inner,
            time,
            out_of_order_ms,
            watermark: EventTime(i64::MIN),
        }
    }
}

impl<S, F> Stage for Stamp<S, F>
where
    S: Stage,
    F: Fn(&S::Out) -> EventTime + Clone + Send + Sync + 'static,
{
    type Out = Timed<S::Out>;
    type State = (S::State, EventTime);

    fn process(&mut self, record: &Record) -> Result<Option<Self::Out>, Reject> {
        let Some(value) = self.inner.process(record)? else {
            return Ok(None);
        };
        let time = (self.time)(&value);
        if time <= self.watermark {
            return Err(Reject::Late);
        }
        let behind = EventTime(time.0.saturating_sub(self.out_of_order_ms));
        self.watermark = self.watermark.max(behind);
        Ok(Some(Timed { time, value }))
    }

    fn watermark(&self) -> EventTime {
        self.watermark
    }

    fn snapshot(&self) -> Self::State {
        (self.inner.snapshot(), self.watermark)
    }

    fn restore(&mut self, (inner, watermark): Self::State) {
        self.inner.restore(inner);
        self.watermark = watermark;
    }
}
