//! The ids that were seen within a window of event time.
//!
//! An id is kept as a hash of 128 bits, in two places: a table that is asked, and a bucket of event time with which it
//! goes. Nothing depends on the order of the table.

use crate::ids::EventTime;
use hashbrown::{hash_table::Entry, HashTable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A window is divided into so many buckets: what is remembered is remembered for that part of it longer.
const BUCKETS: i64 = 32;

/// Ids, and until when they are remembered.
#[derive(Clone, Debug)]
pub struct Seen {
    window_ms: i64,
    bucket_ms: i64,
    ids: HashTable<u128>,
    /// By the last millisecond of a bucket, in the order in which they were seen.
    buckets: BTreeMap<i64, Vec<u128>>,
}

/// What a snapshot holds: the last millisecond of each bucket, and its ids, of 16 bytes each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenSnapshot(Vec<(i64, Vec<u8>)>);

impl Seen {
    /// Nothing yet; what will be seen is remembered for this long.
    pub fn new(window_ms: i64) -> Self {
        assert!(window_ms >= 0, "a dedup window cannot be negative");
        Seen {
            window_ms,
            bucket_ms: (window_ms / BUCKETS).max(1),
            ids: HashTable::new(),
            buckets: BTreeMap::new(),
        }
    }

    /// Whether this is the first time that an id is seen.
    pub fn is_first(&mut self, id: u128, time: EventTime) -> bool {
        if !enter(&mut self.ids, id) {
            return false;
        }
        let into = time.0.rem_euclid(self.bucket_ms);
        let last = time.0.saturating_add(self.bucket_ms - 1 - into);
        self.buckets.entry(last).or_default().push(id);
        true
    }

    /// Forgets what the watermark has passed by the window.
    pub fn forget(&mut self, watermark: EventTime) {
        let until = watermark.0.saturating_sub(self.window_ms);
        while let Some(oldest) = self.buckets.first_entry() {
            if *oldest.key() > until {
                break;
            }
            for id in oldest.remove() {
                let known = self.ids.find_entry(hash(&id), |known| *known == id);
                known.expect("what is in a bucket is in the table").remove();
            }
        }
        let oldest = self.buckets.first_key_value();
        assert!(
            oldest.is_none_or(|(last, _)| *last > until),
            "what is remembered lies within the window"
        );
        assert_eq!(
            self.buckets.is_empty(),
            self.ids.is_empty(),
            "two views of the same ids"
        );
    }

    /// All of it.
    pub fn snapshot(&self) -> SeenSnapshot {
        let bytes = |ids: &Vec<u128>| ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let buckets = self.buckets.iter().map(|(last, ids)| (*last, bytes(ids)));
        SeenSnapshot(buckets.collect())
    }

    /// Remembers what a snapshot holds, and nothing else.
    pub fn restore(&mut self, snapshot: SeenSnapshot) {
        self.ids.clear();
        self.buckets.clear();
        for (last, bytes) in snapshot.0 {
            let (ids, _) = bytes.as_chunks();
            let ids = ids.iter().map(|id| u128::from_le_bytes(*id));
            let ids: Vec<u128> = ids.filter(|id| enter(&mut self.ids, *id)).collect();
            self.buckets.insert(last, ids);
        }
    }
}

/// Whether an id was not in the table before.
fn enter(ids: &mut HashTable<u128>, id: u128) -> bool {
    match ids.entry(hash(&id), |known| *known == id, hash) {
        Entry::Occupied(_) => false,
        Entry::Vacant(place) => {
            place.insert(id);
            true
        }
    }
}

/// An id is a hash already.
fn hash(id: &u128) -> u64 {
    *id as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// What was seen within the window is known, what is older than the window and a bucket is not, whoever goes
        /// on from a snapshot.
        #[test]
        fn ids_are_remembered_for_the_window(
            steps in prop::collection::vec((0u128..50, 0i64..300, any::<bool>()), 0..200),
            window_ms in 0i64..100,
        ) {
            let mut seen = Seen::new(window_ms);
            let mut known: BTreeMap<u128, i64> = BTreeMap::new();
            let mut watermark = -100;
            for (id, time, restores) in steps {
                if restores {
                    let snapshot = seen.snapshot();
                    seen = Seen::new(window_ms);
                    seen.restore(snapshot.clone());
                    prop_assert_eq!(seen.snapshot(), snapshot);
                }
                watermark = watermark.max(time - 50);
                seen.forget(EventTime(watermark));
                let before = known.get(&id).copied();
                let first = seen.is_first(id, EventTime(time));
                match before {
                    None => prop_assert!(first),
                    Some(before) if before > watermark - window_ms => prop_assert!(!first),
                    Some(before) if before < watermark - window_ms - window_ms / BUCKETS => {
                        prop_assert!(first);
                    }
                    Some(_) => {}
                }
                if first {
                    known.insert(id, time);
                }
            }
        }
    }
}
