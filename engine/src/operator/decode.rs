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

    fn follow(&mut self, _: EventTime) {}

    fn snapshot(&self) {}

    fn restore(&mut self, (): ()) {}
}

/// Stamps values with their event time, and keeps the watermark of the partition: the latest time seen, less how
/// far events may be out of order. What is behind the watermark by the allowed lateness or more is late. While the
/// partition is idle its watermark follows the others'.
#[derive(Clone)]
pub struct Stamp<S, F> {
    inner: S,
    time: F,
    out_of_order_ms: i64,
    lateness_ms: i64,
    by_log: EventTime,
    by_others: EventTime,
}

impl<S, F> Stamp<S, F> {
    /// Stamps with `time`; events may be `out_of_order_ms` behind the latest one, and `lateness_ms` more, at the
    /// price of corrections.
    pub fn new(inner: S, time: F, out_of_order_ms: i64, lateness_ms: i64) -> Self {
        assert!(
            out_of_order_ms >= 0 && lateness_ms >= 0,
            "a time cannot be negative: {out_of_order_ms} ms out of order, {lateness_ms} ms late"
        );
        Stamp {
            inner,
            time,
            out_of_order_ms,
            lateness_ms,
            by_log: EventTime(i64::MIN),
            by_others: EventTime(i64::MIN),
        }
    }

    fn is_late(&self, time: EventTime, watermark: EventTime) -> bool {
        time.0.saturating_add(self.lateness_ms) <= watermark.0
    }
}

impl<S, F> Stage for Stamp<S, F>
where
    S: Stage,
    F: Fn(&S::Out) -> EventTime + Clone + Send + Sync + 'static,
{
    type Out = Timed<S::Out>;
    type State = (S::State, EventTime, EventTime);

    fn process(&mut self, record: &Record) -> Result<Option<Self::Out>, Reject> {
        let Some(value) = self.inner.process(record)? else {
            return Ok(None);
        };
        let time = (self.time)(&value);
        if self.is_late(time, self.by_log) {
            return Err(Reject::Late);
        }
        if self.is_late(time, self.by_others) {
            return Err(Reject::LateAfterIdle);
        }
        let behind = EventTime(time.0.saturating_sub(self.out_of_order_ms));
        self.by_log = self.by_log.max(behind);
        Ok(Some(Timed { time, value }))
    }

    fn watermark(&self) -> EventTime {
        self.by_log.max(self.by_others)
    }

    fn follow(&mut self, watermark: EventTime) {
        self.inner.follow(watermark);
        self.by_others = self.by_others.max(watermark);
    }

    fn snapshot(&self) -> Self::State {
        (self.inner.snapshot(), self.by_log, self.by_others)
    }

    fn restore(&mut self, (inner, by_log, by_others): Self::State) {
        self.inner.restore(inner);
        (self.by_log, self.by_others) = (by_log, by_others);
    }
}
