//! Pure: all transactional ids of a coordinator, and the one way in which they change.

use super::{Transactional, LEGAL};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// All transactional ids of a coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transactions(BTreeMap<String, Transactional>);

impl Transactions {
    /// One of them.
    pub fn get(&self, id: &str) -> Option<&Transactional> {
        self.0.get(id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Transactional)> {
        self.0.iter()
    }

    /// Takes note of what became of an id; nothing: it was forgotten. The message says what is not legal
    /// about it.
    pub fn apply(&mut self, id: &str, next: Option<Transactional>) -> Result<(), String> {
        let Some(next) = next else {
            self.0.remove(id);
            return Ok(());
        };
        if let Some(known) = self.0.get(id) {
            let (from, to) = (known.state, next.state);
            if !LEGAL.contains(&(from, to)) {
                return Err(format!(
                    "transactional id {id} went from {from:?} to {to:?}"
                ));
            }
            if known.producer == next.producer && known.epoch > next.epoch {
                return Err(format!("the epoch of transactional id {id} went down"));
            }
        }
        self.0.insert(id.to_owned(), next);
        Ok(())
    }

    /// A number that tells states apart.
    pub fn fingerprint(&self) -> u64 {
        let text = serde_json::to_vec(&self.0).expect("plain data");
        xxh3_64(&text)
    }
}
