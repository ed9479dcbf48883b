//! Dedup on (key, event id) within an event-time window.
//!
//! The first of each id in log order passes; the others do not, while the id is remembered: until the
//! watermark has passed its event time by the window, which is no shorter than the allowed lateness. An event that
//! repeats itself carries the same time, so that a repetition after that is late, and passes no more. Memory is bounded
//! by the ids within the window; ids made downstream would change on replay, and are worthless here.

mod seen;

use super::{Reject, Stage};
use crate::{
    ids::EventTime,
    record::{Record, Timed},
    state::stable_hash_128,
};
use seen::{Seen, SeenSnapshot};
use serde::Serialize;
use std::marker::PhantomData;

/// Lets the first of each id pass.
pub struct Dedup<S, I, F> {
    inner: S,
    id: F,
    seen: Seen,
    is_of: PhantomData<fn() -> I>,
}

impl<S: Clone, I, F: Clone> Clone for Dedup<S, I, F> {
    fn clone(&self) -> Self {
        Dedup {
            inner: self.inner.clone(),
            id: self.id.clone(),
            seen: self.seen.clone(),
            is_of: PhantomData,
        }
    }
}

impl<S, I, F> Dedup<S, I, F> {
    /// Tells values apart by `id`, and remembers it for `window_ms` of event time.
    pub fn new(inner: S, id: F, window_ms: i64) -> Self {
        Dedup {
            inner,
            id,
            seen: Seen::new(window_ms),
            is_of: PhantomData,
        }
    }
}

impl<S, T, I, F> Stage for Dedup<S, I, F>
where
    S: Stage<Out = Timed<T>>,
    T: Send + 'static,
    I: Serialize + 'static,
    F: Fn(&T) -> I + Clone + Send + Sync + 'static,
{
    type Out = Timed<T>;
    type State = (S::State, SeenSnapshot);

    fn process(&mut self, record: &Record) -> Result<Option<Timed<T>>, Reject> {
        let out = self.inner.process(record);
        self.seen.forget(self.inner.watermark());
        let Some(timed) = out? else {
            return Ok(None);
        };
        let id = stable_hash_128(&(self.id)(&timed.value));
        Ok(self.seen.is_first(id, timed.time).then_some(timed))
    }

    fn watermark(&self) -> EventTime {
        self.inner.watermark()
    }

    fn follow(&mut self, watermark: EventTime) {
        self.inner.follow(watermark);
        self.seen.forget(self.inner.watermark());
    }

    fn snapshot(&self) -> Self::State {
        (self.inner.snapshot(), self.seen.snapshot())
    }

    fn restore(&mut self, (inner, seen): Self::State) {
        self.inner.restore(inner);
        self.seen.restore(seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::Offset,
        operator::{Decode, Stamp},
    };
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn record(id: u8, time: u8) -> Record {
        Record {
            offset: Offset(0),
            key: None,
            value: Some(vec![id, time].into()),
            headers: Vec::new(),
            timestamp_ms: 0,
        }
    }

    fn stage(window_ms: i64) -> impl Stage<Out = Timed<(u8, u8)>> {
        let decode = |bytes: &[u8]| Ok((bytes[0], bytes[1]));
        let stamped = Stamp::new(
            Decode::new(decode),
            |v: &(u8, u8)| EventTime(v.1.into()),
            10,
            0,
        );
        Dedup::new(stamped, |v: &(u8, u8)| v.0, window_ms)
    }

    proptest! {
        /// An event repeats itself with the same time: exactly its first copy passes, unless that is
        /// late; and a stage that is restored anywhere goes on in the same way.
        #[test]
        fn the_first_of_each_event_passes(
            events in prop::collection::vec(0u8..40, 0..200),
            cut in 0usize..200,
            window in 0i64..30,
        ) {
            let (mut stage, mut passed) = (stage(window), BTreeSet::new());
            let fresh = stage.clone();
            for (index, event) in events.iter().enumerate() {
                if index == cut {
                    let state = stage.snapshot();
                    stage = fresh.clone();
                    stage.restore(state);
                }
                let time = event.wrapping_mul(37) % 64;
                let late = i64::from(time) <= stage.watermark().0;
                match stage.process(&record(*event, time)) {
                    Ok(Some(_)) => prop_assert!(passed.insert(*event) && !late),
                    Ok(None) => prop_assert!(passed.contains(event)),
                    Err(reject) => prop_assert_eq!((reject, late), (Reject::Late, true)),
                }
            }
        }
    }
}
