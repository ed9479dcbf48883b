//! Turning each value into another.

use super::{Reject, Stage};
use crate::{
    ids::EventTime,
    record::{Record, Timed},
};

/// Turns each value into another, which happened at the same time.
///
/// What follows gets no more than it needs: strings that nobody looks at any more are not sent to other tasks.
#[derive(Clone)]
pub struct Map<S, F> {
    inner: S,
    map: F,
}

impl<S, F> Map<S, F> {
    /// Turns values into what `map` makes of them.
    pub fn new(inner: S, map: F) -> Self {
        Map { inner, map }
    }
}

impl<S, T, U, F> Stage for Map<S, F>
where
    S: Stage<Out = Timed<T>>,
    U: Send + 'static,
    F: Fn(T) -> U + Clone + Send + Sync + 'static,
{
    type Out = Timed<U>;
    type State = S::State;

    fn process(&mut self, record: &Record) -> Result<Option<Timed<U>>, Reject> {
        let out = self.inner.process(record)?;
        Ok(out.map(|Timed { time, value }| Timed {
            time,
            value: (self.map)(value),
        }))
    }

    fn watermark(&self) -> EventTime {
        self.inner.watermark()
    }

    fn follow(&mut self, watermark: EventTime) {
        self.inner.follow(watermark);
    }

    fn snapshot(&self) -> S::State {
        self.inner.snapshot()
    }

    fn restore(&mut self, state: S::State) {
        self.inner.restore(state);
    }
}
