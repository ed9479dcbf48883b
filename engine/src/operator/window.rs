//! Tumbling event-time windows over keyed values.
//!
//! A window [start, start + size) of a key fires once, when the watermark of the task, the least of
//! its inputs', has reached the window's last millisecond. Nothing later than a watermark belongs to a
//! window that it fired.

use crate::ids::EventTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A value with its key and event time, on its way to a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyed<K, V> {
    /// What it is grouped by.
    pub key: K,
    /// When it happened.
    pub time: EventTime,
    /// What is folded.
    pub value: V,
}

/// A window that fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired<K, A> {
    /// Its key.
    pub key: K,
    /// Its first millisecond.
    pub start: EventTime,
    /// What its values were folded into.
    pub value: A,
}

/// The open windows of one task, and the watermarks of its inputs: what a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windows<K: Ord, A> {
    size_ms: i64,
    watermarks: Vec<EventTime>,
    open: BTreeMap<(EventTime, K), A>,
}

impl<K: Ord + Clone, A: Default> Windows<K, A> {
    /// No windows yet, of `size_ms`, over this many inputs.
    pub fn new(size_ms: i64, inputs: usize) -> Self {
        assert!(
            size_ms > 0 && inputs > 0,
            "windows of {size_ms} ms over {inputs} inputs"
        );
        Windows {
            size_ms,
            watermarks: vec![EventTime(i64::MIN); inputs],
            open: BTreeMap::new(),
        }
    }

    /// How many inputs there are.
    pub fn inputs(&self) -> usize {
        self.watermarks.len()
    }

    /// Folds a value into its window.
    pub fn add<V>(&mut self, keyed: Keyed<K, V>, fold: impl Fn(&mut A, V)) {
        assert!(
            keyed.time > self.watermark(),
            "late values end at their source"
        );
        let start = window_start(keyed.time, self.size_ms);
        fold(
            self.open.entry((start, keyed.key)).or_default(),
            keyed.value,
        );
    }

    /// An input's watermark advances: the windows that fire, in order of start and key.
    pub fn advance(&mut self, input: usize, watermark: EventTime) -> Vec<Fired<K, A>> {
        let known = &mut self.watermarks[input];
        *known = watermark.max(*known);
        let watermark = self.watermark();
        let mut fired = Vec::new();
        while let Some(entry) = self.open.first_entry() {
            let last = entry.key().0 .0.saturating_add(self.size_ms - 1);
            if last > watermark.0 {
                break;
            }
            let ((start, key), value) = entry.remove_entry();
            fired.push(Fired { key, start, value });
        }
        fired
    }

    /// The least watermark of the inputs.
    pub fn watermark(&self) -> EventTime {
        *self.watermarks.iter().min().expect("there are inputs")
    }
}

/// The start of the window that holds `time`.
pub fn window_start(time: EventTime, size_ms: i64) -> EventTime {
    EventTime(time.0.saturating_sub(time.0.rem_euclid(size_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Each value ends in exactly one fired window, its own, whatever the watermarks do between.
        #[test]
        fn every_value_fires_once(steps in prop::collection::vec((0usize..2, 0i64..500), 0..100)) {
            let mut windows: Windows<u8, Vec<i64>> = Windows::new(10, 2);
            let (mut added, mut fired) = (Vec::new(), Vec::new());
            for (input, number) in steps {
                if number % 3 == 0 {
                    fired.extend(windows.advance(input, EventTime(number)));
                } else if number > windows.watermark().0 {
                    added.push(number);
                    let keyed = Keyed { key: 0, time: EventTime(number), value: number };
                    windows.add(keyed, |all: &mut Vec<i64>, value| all.push(value));
                }
            }
            for input in 0..2 {
                fired.extend(windows.advance(input, EventTime(10_000)));
            }
            let mut got = Vec::new();
            for window in &fired {
                for value in &window.value {
                    prop_assert_eq!(window_start(EventTime(*value), 10), window.start);
                    got.push(*value);
                }
            }
            let mut starts: Vec<_> = fired.iter().map(|window| window.start).collect();
            starts.dedup();
            prop_assert_eq!(starts.len(), fired.len(), "no window fires twice");
            got.sort();
            added.sort();
            prop_assert_eq!(got, added);
        }
    }
}
