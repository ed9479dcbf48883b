//! Pure: key groups, the pieces in which keyed state moves between tasks.
//!
//! Every key belongs to one of a fixed number of groups, and every task of an operator owns a range of them. A
//! snapshot says which group each of its entries belongs to, so that it can be taken up by another number of
//! tasks.

use serde::{Deserialize, Serialize};
use std::ops::Range;
use xxhash_rust::xxh3::{xxh3_128, xxh3_64};

/// A hash that is the same in every process and version of Rust.
pub fn stable_hash(key: &impl Serialize) -> u64 {
    serialized(key, xxh3_64)
}

/// One of 128 bits: two keys have the same one as good as never (among a thousand million, with a chance of 10^-21).
pub fn stable_hash_128(key: &impl Serialize) -> u128 {
    serialized(key, xxh3_128)
}

/// Most keys, once they are serialised, are not longer: they need no allocation.
const KEY_BYTES: usize = 128;

fn serialized<R>(key: &impl Serialize, hash: impl FnOnce(&[u8]) -> R) -> R {
    let mut bytes = [0; KEY_BYTES];
    match postcard::to_slice(key, &mut bytes) {
        Ok(bytes) => hash(bytes),
        Err(_) => hash(&postcard::to_stdvec(key).expect("a key is plain data")),
    }
}

/// How many groups the keys of a job are divided into. As long as a job has checkpoints, it does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyGroups(pub u32);

impl KeyGroups {
    /// The group of a key.
    pub fn of(self, key: &impl Serialize) -> u32 {
        (stable_hash(key) % u64::from(self.0)) as u32
    }

    /// Which of so many tasks owns a group.
    ///
    /// ```
    /// use engine::state::KeyGroups;
    ///
    /// let groups = KeyGroups(128);
    /// for tasks in 1..=128 {
    ///     for group in 0..128 {
    ///         assert!(groups.range(groups.task(group, tasks), tasks).contains(&group));
    ///     }
    /// }
    /// ```
    pub fn task(self, group: u32, tasks: usize) -> usize {
        (u64::from(group) * tasks as u64 / u64::from(self.0)) as usize
    }

    /// The groups that one of so many tasks owns.
    pub fn range(self, task: usize, tasks: usize) -> Range<u32> {
        let begin = |task: usize| (task as u64 * u64::from(self.0)).div_ceil(tasks as u64) as u32;
        begin(task)..begin(task + 1)
    }
}

impl Default for KeyGroups {
    fn default() -> Self {
        KeyGroups(128)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_does_not_depend_on_how_long_the_key_is_kept() {
        for length in [
            0,
            1,
            KEY_BYTES - 2,
            KEY_BYTES - 1,
            KEY_BYTES,
            KEY_BYTES + 1,
            1000,
        ] {
            let key = "k".repeat(length);
            let bytes = postcard::to_stdvec(&key).unwrap();
            assert_eq!(stable_hash(&key), xxh3_64(&bytes));
            assert_eq!(stable_hash_128(&key), xxh3_128(&bytes));
        }
    }
}
