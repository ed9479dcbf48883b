//! Tumbling event-time windows over keyed values.
//!
//! A window [start, start + size) of a key fires when the watermark of the task, the least of its inputs',
//! has reached the window's last millisecond. With an allowed lateness it is kept for that much longer, and a
//! value that comes meanwhile fires it again, as a correction: a new pane of the same window, with all of its
//! values. Nothing comes to a window that is gone: that is decided at the source, in log order.
//!
//! An input that has ended, which the watermark [`ENDED`] says, holds back no window any more. But it may have grown
//! when the job is begun again: so what fires only because of an end is kept, and the state knows the watermark of
//! what was really read. What comes then corrects it.

use crate::{
    ids::EventTime,
    state::{stable_hash, KeyGroups},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// The watermark of an input that has ended, for now.
pub const ENDED: EventTime = EventTime(i64::MAX);

/// A value with its key and event time, on its way to a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// How often it had fired before.
    pub pane: u32,
    /// What its values were folded into.
    pub value: A,
}

/// A window that has values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Window<A> {
    /// How often it has fired.
    panes: u32,
    /// Whether it has changed since.
    changed: bool,
    value: A,
}

/// How long windows are, and for how long they are kept once they have fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Their length in milliseconds of event time.
    pub size_ms: i64,
    /// For how long they can be corrected, in milliseconds of event time.
    pub lateness_ms: i64,
}

impl Extent {
    /// The start of the window that holds `time`.
    pub fn start_of(&self, time: EventTime) -> EventTime {
        window_start(time, self.size_ms)
    }

    fn last_of(&self, start: EventTime) -> EventTime {
        EventTime(start.0.saturating_add(self.size_ms - 1))
    }

    /// The watermark at which a window is gone.
    fn gone_at(&self, start: EventTime) -> EventTime {
        EventTime(self.last_of(start).0.saturating_add(self.lateness_ms))
    }
}

/// The windows of one task, and the watermarks of its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows<K: Ord, A> {
    extent: Extent,
    /// Of what was really read.
    watermarks: Vec<EventTime>,
    ended: Vec<bool>,
    /// Those that the watermark has not reached.
    open: BTreeMap<(EventTime, K), Window<A>>,
    /// Those that it has reached, or an end has, while they can be corrected.
    kept: BTreeMap<(EventTime, K), Window<A>>,
    /// Those among them that have changed since they fired.
    changed: BTreeSet<(EventTime, K)>,
}

/// What a snapshot holds of the windows of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowsSnapshot<K, A> {
    extent: Extent,
    key_groups: KeyGroups,
    watermarks: Vec<EventTime>,
    windows: Vec<(u32, EventTime, K, u32, bool, A)>,
}

impl<K, A> Windows<K, A>
where
    K: Ord + Clone + Serialize,
    A: Default + Clone + Serialize,
{
    /// No windows yet, over this many inputs.
    pub fn new(extent: Extent, inputs: usize) -> Self {
        assert!(
            extent.size_ms > 0 && extent.lateness_ms >= 0 && inputs > 0,
            "windows of {extent:?} over {inputs} inputs"
        );
        Windows {
            extent,
            watermarks: vec![EventTime(i64::MIN); inputs],
            ended: vec![false; inputs],
            open: BTreeMap::new(),
            kept: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// How many inputs there are.
    pub fn inputs(&self) -> usize {
        self.watermarks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.kept.is_empty()
    }

    /// Folds a value into its window.
    pub fn add<V>(&mut self, keyed: Keyed<K, V>, fold: impl Fn(&mut A, V)) {
        let at = (self.extent.start_of(keyed.time), keyed.key);
        assert!(
            self.extent.gone_at(at.0) > self.watermark(),
            "values for windows that are gone end at their source"
        );
        let new = || Window {
            panes: 0,
            changed: true,
            value: A::default(),
        };
        if self.extent.last_of(at.0) > self.reached() {
            let window = self.open.entry(at).or_insert_with(new);
            window.changed = true;
            fold(&mut window.value, keyed.value);
        } else {
            let window = self.kept.entry(at.clone()).or_insert_with(new);
            fold(&mut window.value, keyed.value);
            self.changed.insert(at);
        }
    }

    /// The windows that have changed since they fired, in order of start and key.
    pub fn corrections(&mut self) -> Vec<Fired<K, A>> {
        let mut fired = Vec::new();
        for at in std::mem::take(&mut self.changed) {
            let window = self.kept.get_mut(&at).expect("what has changed is kept");
            fired.push(fire(at, window));
        }
        fired
    }

    /// An input's watermark advances, or it has [`ENDED`]: the windows that fire, in order of start and key.
    pub fn advance(&mut self, input: usize, watermark: EventTime) -> Vec<Fired<K, A>> {
        assert!(self.changed.is_empty(), "corrections come first");
        if watermark == ENDED {
            self.ended[input] = true;
        } else {
            let known = &mut self.watermarks[input];
            *known = watermark.max(*known);
        }
        let (reached, watermark) = (self.reached(), self.watermark());
        let mut fired = Vec::new();
        while let Some(entry) = self.open.first_entry() {
            if self.extent.last_of(entry.key().0) > reached {
                break;
            }
            let (at, mut window) = entry.remove_entry();
            // What an earlier end has fired, and nothing has changed since, was right.
            if window.changed {
                fired.push(fire(at.clone(), &mut window));
            }
            if self.extent.gone_at(at.0) > watermark {
                self.kept.insert(at, window);
            }
        }
        while let Some(entry) = self.kept.first_entry() {
            if self.extent.gone_at(entry.key().0) > watermark {
                break;
            }
            entry.remove();
        }
        fired
    }

    /// The least watermark of the inputs, whether they have ended or not.
    pub fn watermark(&self) -> EventTime {
        *self.watermarks.iter().min().expect("there are inputs")
    }

    /// Up to where windows fire: the least watermark of the inputs that have not ended.
    fn reached(&self) -> EventTime {
        let going_on = self.watermarks.iter().zip(&self.ended);
        let going_on = going_on.filter(|(_, ended)| !**ended);
        let least = going_on.map(|(watermark, _)| *watermark).min();
        least.unwrap_or(ENDED)
    }

    /// All of it at this point, each window with the group of its key.
    pub fn snapshot(&self, key_groups: KeyGroups) -> WindowsSnapshot<K, A> {
        assert!(self.changed.is_empty(), "corrections come first");
        let windows = self.open.iter().chain(&self.kept);
        let windows = windows.map(|((start, key), window)| {
            let group = key_groups.of(key);
            (
                group,
                *start,
                key.clone(),
                window.panes,
                window.changed,
                window.value.clone(),
            )
        });
        WindowsSnapshot {
            extent: self.extent,
            key_groups,
            watermarks: self.watermarks.clone(),
            windows: windows.collect(),
        }
    }

    /// Takes over the windows of some groups. The message says what does not fit.
    pub fn restore(
        &mut self,
        snapshot: WindowsSnapshot<K, A>,
        groups: &Range<u32>,
        key_groups: KeyGroups,
    ) -> Result<(), String> {
        if snapshot.key_groups != key_groups {
            return Err(format!(
                "it has {} key groups, the job has {}",
                snapshot.key_groups.0, key_groups.0
            ));
        }
        if snapshot.extent != self.extent {
            return Err(format!(
                "its windows are {:?}, those of the job {:?}",
                snapshot.extent, self.extent
            ));
        }
        if snapshot.watermarks.len() != self.inputs() {
            return Err(format!(
                "it is of {} source partitions, there are {}",
                snapshot.watermarks.len(),
                self.inputs()
            ));
        }
        self.watermarks = snapshot.watermarks;
        let watermark = self.watermark();
        for (group, start, key, panes, changed, value) in snapshot.windows {
            if groups.contains(&group) {
                let window = Window {
                    panes,
                    changed,
                    value,
                };
                match self.extent.last_of(start) > watermark {
                    true => self.open.insert((start, key), window),
                    false => self.kept.insert((start, key), window),
                };
            }
        }
        Ok(())
    }

    /// A number that tells states apart: the sum of what [`window_hash`] gives for each window, whatever task
    /// it is in. The windows of all tasks have the sum of their sums.
    pub fn fingerprint(&self) -> u64 {
        let windows = self.open.iter().chain(&self.kept);
        windows.fold(0, |sum, ((start, key), window)| {
            sum.wrapping_add(window_hash(*start, key, &window.value))
        })
    }
}

/// What a window adds to the fingerprint of the state that holds it.
pub fn window_hash<K: Serialize, A: Serialize>(start: EventTime, key: &K, value: &A) -> u64 {
    stable_hash(&(start, key, value))
}

fn fire<K, A: Clone>((start, key): (EventTime, K), window: &mut Window<A>) -> Fired<K, A> {
    let pane = window.panes;
    window.panes += 1;
    window.changed = false;
    Fired {
        key,
        start,
        pane,
        value: window.value.clone(),
    }
}

/// The start of the window of `size_ms` that holds `time`.
pub fn window_start(time: EventTime, size_ms: i64) -> EventTime {
    EventTime(time.0.saturating_sub(time.0.rem_euclid(size_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE_MS: i64 = 10;

    fn keyed(time: i64) -> Keyed<u8, i64> {
        Keyed {
            key: (time % 3) as u8,
            time: EventTime(time),
            value: time,
        }
    }

    proptest! {
        /// Each value ends in the last pane of its own window, and in no other, whatever the watermarks do
        /// between, and whoever takes the state over.
        #[test]
        fn every_value_is_in_the_last_pane_of_its_window(
            steps in prop::collection::vec((0usize..2, 0i64..500), 0..200),
            lateness_ms in 0i64..40,
            cut in 0usize..200,
            ends in any::<bool>(),
            tasks in 1usize..4,
        ) {
            let extent = Extent { size_ms: SIZE_MS, lateness_ms };
            let groups = KeyGroups(8);
            let mut windows = vec![Windows::<u8, Vec<i64>>::new(extent, 2)];
            let (mut added, mut fired) = (BTreeSet::new(), Vec::new());
            let fold = |all: &mut Vec<i64>, value| all.push(value);
            for (index, (input, number)) in steps.into_iter().enumerate() {
                if index == cut {
                    // The input has ended there, and grown since.
                    for input in 0..if ends { 2 } else { 0 } {
                        fired.extend(windows[0].advance(input, ENDED));
                    }
                    let snapshot = windows[0].snapshot(groups);
                    let before = windows[0].fingerprint();
                    windows = (0..tasks).map(|task| {
                        let mut part = Windows::new(extent, 2);
                        part.restore(snapshot.clone(), &groups.range(task, tasks), groups).unwrap();
                        part
                    }).collect();
                    let after = windows.iter().map(Windows::fingerprint).fold(0, u64::wrapping_add);
                    prop_assert_eq!(before, after);
                }
                let watermark = windows[0].watermark();
                if number % 3 == 0 {
                    for part in &mut windows {
                        fired.extend(part.advance(input, EventTime(number)));
                    }
                } else if number.saturating_add(lateness_ms) > watermark.0 && added.insert(number) {
                    let group = groups.of(&keyed(number).key);
                    let tasks = windows.len();
                    windows[groups.task(group, tasks)].add(keyed(number), fold);
                    windows.iter_mut().for_each(|part| fired.extend(part.corrections()));
                }
            }
            for part in &mut windows {
                for input in 0..2 {
                    fired.extend(part.advance(input, EventTime(i64::MAX - 1)));
                }
                prop_assert!(part.is_empty());
            }
            let mut last = BTreeMap::new();
            for fired in fired {
                let panes = last.get(&(fired.start, fired.key)).map_or(0, |(pane, _)| pane + 1);
                prop_assert_eq!(fired.pane, panes);
                last.insert((fired.start, fired.key), (fired.pane, fired.value));
            }
            let mut seen = BTreeSet::new();
            for ((start, key), (_, values)) in last {
                for value in values {
                    prop_assert_eq!(window_start(EventTime(value), SIZE_MS), start);
                    prop_assert_eq!(keyed(value).key, key);
                    prop_assert!(seen.insert(value));
                }
            }
            prop_assert_eq!(seen, added);
        }
    }

    #[test]
    fn what_an_end_has_fired_is_corrected_once_there_is_more_and_not_repeated_otherwise() {
        let extent = Extent {
            size_ms: SIZE_MS,
            lateness_ms: 0,
        };
        let (groups, sum) = (KeyGroups(8), |sum: &mut i64, value| *sum += value);
        let mut windows: Windows<u8, i64> = Windows::new(extent, 1);
        windows.add(keyed(3), sum);
        windows.add(keyed(13), sum);
        windows.advance(0, EventTime(5));
        assert_eq!(windows.advance(0, ENDED).len(), 2, "nothing is waited for");
        let snapshot = windows.snapshot(groups);
        let mut windows: Windows<u8, i64> = Windows::new(extent, 1);
        windows.restore(snapshot, &(0..8), groups).unwrap();
        assert_eq!(windows.watermark(), EventTime(5), "of what was read");
        windows.add(keyed(6), sum);
        let fired = windows.advance(0, ENDED);
        let fired: Vec<_> = fired
            .into_iter()
            .map(|of| (of.start.0, of.pane, of.value))
            .collect();
        assert_eq!(fired, [(0, 1, 9)]);
    }

    #[test]
    fn windows_fire_at_their_last_millisecond_and_before_1970_too() {
        let extent = Extent {
            size_ms: SIZE_MS,
            lateness_ms: 0,
        };
        let mut windows: Windows<u8, i64> = Windows::new(extent, 1);
        windows.add(keyed(-3), |sum, value| *sum += value);
        assert!(windows.advance(0, EventTime(-2)).is_empty());
        let fired = windows.advance(0, EventTime(-1));
        assert_eq!((fired[0].start, fired[0].pane), (EventTime(-10), 0));
        assert!(windows.is_empty());
    }
}
