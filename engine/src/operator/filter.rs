//! Keeping some values and not others.

use super::{Reject, Stage};
use crate::{
    ids::EventTime,
    record::{Record, Timed},
};

/// Keeps the values for which `keep` holds. The watermark advances with the others, too.
#[derive(Clone)]
pub struct Filter<S, F> {
    inner: S,
    keep: F,
}

impl<S, F> Filter<S, F> {
    /// Keeps the values for which `keep` holds.
    pub fn new(inner: S, keep: F) -> Self {
        Filter { inner, keep }
    }
}

impl<S, T, F> Stage for Filter<S, F>
where
    S: Stage<Out = Timed<T>>,
    T: Send + 'static,
    F: Fn(&T) -> bool + Clone + Send + Sync + 'static,
{
    type Out = Timed<T>;
    type State = S::State;

    fn process(&mut self, record: &Record) -> Result<Option<Timed<T>>, Reject> {
        let out = self.inner.process(record)?;
        Ok(out.filter(|timed| (self.keep)(&timed.value)))
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
