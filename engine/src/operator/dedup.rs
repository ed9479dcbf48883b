//! Dedup on (key, event id) within an event-time window.
//!
//! The first of each id in log order passes; the others do not, while the id is remembered: until the
//! watermark has passed its event time by the window, which is no shorter than the allowed lateness. An event that repeats itself carries the same
//! time, so that a repetition after that is late, and passes no more. Memory is bounded by the ids
//! within the window; ids made downstream would change on replay, and are worthless here.

use super::{Reject, Stage};
use crate::{
    ids::EventTime,
    record::{Record, Timed},
};
use serde::{de::DeserializeOwned, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Lets the first of each id pass.
pub struct Dedup<S, I, F> {
    inner: S,
    id: F,
    window_ms: i64,
    seen: BTreeMap<I, EventTime>,
    by_time: BTreeSet<(EventTime, I)>,
}

impl<S: Clone, I: Clone, F: Clone> Clone for Dedup<S, I, F> {
    fn clone(&self) -> Self {
        Dedup {
            inner: self.inner.clone(),
            id: self.id.clone(),
            window_ms: self.window_ms,
            seen: self.seen.clone(),
            by_time: self.by_time.clone(),
        }
    }
}

impl<S, I: Ord + Clone, F> Dedup<S, I, F> {
    /// Tells values apart by `id`, and remembers it for `window_ms` of event time.
    pub fn new(inner: S, id: F, window_ms: i64) -> Self {
        assert!(window_ms >= 0, "a dedup window cannot be negative");
        Dedup {
            inner,
            id,
            window_ms,
            seen: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    /// Whether an id is seen for the first time.
    fn is_first(&mut self, id: I, time: EventTime) -> bool {
        if self.seen.contains_key(&id) {
            return false;
        }
        self.seen.insert(id.clone(), time);
        self.by_time.insert((time, id));
        true
    }

    /// Forgets the ids that the watermark has passed by the window.
    fn forget(&mut self, watermark: EventTime) {
        let until = watermark.0.saturating_sub(self.window_ms);
        while self
            .by_time
            .first()
            .is_some_and(|(time, _)| time.0 <= until)
        {
            let (_, id) = self.by_time.pop_first().expect("just seen");
            self.seen.remove(&id);
        }
        assert_eq!(
            self.seen.len(),
            self.by_time.len(),
            "two views of the same ids"
        );
        let oldest = self.by_time.first();
        assert!(
            oldest.is_none_or(|(time, _)| time.0 > until),
            "what is remembered lies within the window"
        );
    }
}

impl<S, T, I, F> Stage for Dedup<S, I, F>
where
    S: Stage<Out = Timed<T>>,
    T: Send + 'static,
    I: Ord + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    F: Fn(&T) -> I + Clone + Send + Sync + 'static,
{
    type Out = Timed<T>;
    type State = (S::State, Vec<(EventTime, I)>);

    fn process(&mut self, record: &Record) -> Result<Option<Timed<T>>, Reject> {
        let out = self.inner.process(record);
        self.forget(self.inner.watermark());
        let Some(timed) = out? else {
            return Ok(None);
        };
        let first = self.is_first((self.id)(&timed.value), timed.time);
        Ok(first.then_some(timed))
    }

    fn watermark(&self) -> EventTime {
        self.inner.watermark()
    }

    fn follow(&mut self, watermark: EventTime) {
        self.inner.follow(watermark);
        self.forget(self.inner.watermark());
    }

    fn snapshot(&self) -> Self::State {
        (
            self.inner.snapshot(),
            self.by_time.iter().cloned().collect(),
        )
    }

    fn restore(&mut self, (inner, seen): Self::State) {
        self.inner.restore(inner);
        self.seen.clear();
        self.by_time.clear();
        for (time, id) in seen {
            self.seen.insert(id.clone(), time);
            self.by_time.insert((time, id));
        }
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
