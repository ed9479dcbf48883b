//! Pure: the positions that groups have committed, as the fold of a coordinator's log.
//!
//! What was committed within a transaction waits for its marker, and counts from there on: later than what was
//! committed meanwhile. Which one wins is decided by the log alone, live and after a restart.

use super::{groups::Stored, TopicPartition};
use crate::{
    ids::{Offset, ProducerId},
    record::{NewRecord, Record},
    wire::batch::{Batch, Body, Outcome},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::xxh3_64;

/// A position that a group has committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The next record that it wants.
    pub offset: Offset,
    /// The epoch of the leader that it had read from; -1 if it does not say.
    pub leader_epoch: i32,
    /// Whatever the group wants to remember.
    pub metadata: String,
}

/// What the records of a group coordinator's log say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A position; nothing: it was forgotten.
    Position {
        /// Whose.
        group: String,
        /// Of which partition.
        of: TopicPartition,
        /// What it is.
        position: Option<Committed>,
    },
    /// The members of a group and what they were assigned; nothing: the group was deleted.
    Group {
        /// Which.
        group: String,
        /// What became of it.
        stored: Option<Stored>,
    },
}

impl Entry {
    /// As a record of the log.
    pub fn to_record(&self, timestamp_ms: i64) -> NewRecord {
        let group = match self {
            Entry::Position { group, .. } | Entry::Group { group, .. } => group,
        };
        NewRecord {
            key: Some(group.clone().into()),
            value: Some(serde_json::to_vec(self).expect("plain data").into()),
            headers: Vec::new(),
            timestamp_ms,
        }
    }

    /// What a record of the log says.
    pub fn of_record(record: &Record) -> Result<Entry, String> {
        let value = record.value.as_deref().unwrap_or_default();
        serde_json::from_slice(value).map_err(|error| error.to_string())
    }
}

/// All positions of a coordinator's groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    committed: BTreeMap<String, BTreeMap<TopicPartition, Committed>>,
    /// What open transactions will commit, in the order of the log.
    pending: BTreeMap<ProducerId, Vec<(String, TopicPartition, Committed)>>,
    groups: BTreeMap<String, Stored>,
}

impl Offsets {
    /// A position of a group.
    pub fn get(&self, group: &str, of: &TopicPartition) -> Option<&Committed> {
        self.committed.get(group)?.get(of)
    }

    /// All positions of a group.
    pub fn of_group(&self, group: &str) -> impl Iterator<Item = (&TopicPartition, &Committed)> {
        self.committed.get(group).into_iter().flatten()
    }

    /// Whether an open transaction may still change a position.
    pub fn is_pending(&self, group: &str, of: &TopicPartition) -> bool {
        let mut pending = self.pending.values().flatten();
        pending.any(|(known, partition, _)| known == group && partition == of)
    }

    /// Whether anything is known of a group, or will be once a transaction commits.
    pub fn knows(&self, group: &str) -> bool {
        let is_pending = || {
            let mut pending = self.pending.values().flatten();
            pending.any(|(known, ..)| known == group)
        };
        self.groups.contains_key(group) || self.committed.contains_key(group) || is_pending()
    }

    /// The groups of which anything is known, or will be once a transaction commits.
    pub fn names(&self) -> BTreeSet<&String> {
        let pending = self.pending.values().flatten().map(|(group, ..)| group);
        let known = self.groups.keys().chain(self.committed.keys());
        known.chain(pending).collect()
    }

    /// What is stored of a group; `None` if nothing is.
    pub fn group(&self, name: &str) -> Option<&Stored> {
        self.groups.get(name)
    }

    /// Takes note of a batch of the log. The message says what is wrong with it.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), String> {
        let producer = batch.header.producer;
        let records = match &batch.body {
            Body::Data(records) => records,
            Body::Control(marker) => {
                let pending = self.pending.remove(&producer).unwrap_or_default();
                if marker.outcome == Outcome::Commit {
                    for (group, of, position) in pending {
                        self.set(group, of, Some(position));
                    }
                }
                return Ok(());
            }
        };
        for record in records {
            match Entry::of_record(record)? {
                Entry::Position {
                    group,
                    of,
                    position: Some(position),
                } if batch.header.transactional => {
                    let pending = self.pending.entry(producer).or_default();
                    pending.push((group, of, position));
                }
                Entry::Position {
                    group,
                    of,
                    position,
                } => self.set(group, of, position),
                Entry::Group { group, stored } => match stored {
                    // That nobody was left may be written after who came next.
                    Some(stored) if self.is_newer(&group, &stored) => {
                        self.groups.insert(group, stored);
                    }
                    Some(_) => {}
                    None => drop(self.groups.remove(&group)),
                },
            }
        }
        Ok(())
    }

    fn is_newer(&self, group: &str, stored: &Stored) -> bool {
        let known = self.group(group);
        known.is_none_or(|known| known.generation <= stored.generation)
    }

    fn set(&mut self, group: String, of: TopicPartition, position: Option<Committed>) {
        match position {
            Some(position) => {
                let positions = self.committed.entry(group).or_default();
                positions.insert(of, position);
            }
            None => {
                if let Some(positions) = self.committed.get_mut(&group) {
                    positions.remove(&of);
                    if positions.is_empty() {
                        self.committed.remove(&group);
                    }
                }
            }
        }
    }

    /// A number that tells states apart.
    pub fn fingerprint(&self) -> u64 {
        let text = format!("{self:?}");
        xxh3_64(text.as_bytes())
    }
}
