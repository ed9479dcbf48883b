//! Which topics there are, and who leads which partition.
//!
//! The brokers of a cluster are configured; the first of them decides which topics exist. Every broker
//! keeps what it has learnt in a file of its own, so that it can serve its partitions while the first
//! broker is away. Partition p of a topic is led by broker (hash of the topic + p) modulo their number.

use super::{small_file, LogError};
use crate::{host::Disk, ids::PartitionId};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc,
    },
};
use tokio::sync::Mutex;
use xxhash_rust::xxh3::xxh3_64;

/// The log of the coordinators of transactional ids.
pub const TRANSACTIONS_TOPIC: &str = "__transaction_state";
/// The log of the coordinators of groups.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// What a broker knows of topics.
pub(crate) const TOPICS_FILE: &str = "topics";

/// Whether a topic belongs to the brokers themselves.
pub fn is_internal(topic: &str) -> bool {
    matches!(topic, TRANSACTIONS_TOPIC | OFFSETS_TOPIC)
}

/// The topics that a broker knows.
pub struct Topics {
    disk: Arc<dyn Disk>,
    known: Mutex<Known>,
    /// How many deletions this broker has been told of since it began.
    told: AtomicU64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Known {
    /// How many partitions each topic has.
    topics: BTreeMap<String, i32>,
    /// Topics that were deleted, and whose files may still be there: which deletion it was.
    #[serde(default)]
    deleted: BTreeMap<String, u64>,
    /// The number of the last deletion: the first broker counts them. The others carry them out in this order, and none
    /// of them twice: a request that comes late must not delete a new topic of this name.
    #[serde(default)]
    deletions: u64,
}

/// What became of a wish to create a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was created.
    New,
    /// It was there, with this many partitions.
    Exists(i32),
}

impl Topics {
    /// Reads what this broker knew before; notes durably that it knows nothing, if it is new.
    pub async fn open(disk: Arc<dyn Disk>) -> Result<Topics, LogError> {
        let known = match small_file::read(&*disk, TOPICS_FILE).await? {
            Some(known) => known,
            None => {
                let none = Known::default();
                small_file::write(&*disk, TOPICS_FILE, &none).await?;
                none
            }
        };
        Ok(Topics {
            disk,
            known: Mutex::new(known),
            told: AtomicU64::new(0),
        })
    }

    /// How many partitions a topic has; nothing if it is not known here.
    pub async fn partitions(&self, topic: &str) -> Option<i32> {
        self.known.lock().await.topics.get(topic).copied()
    }

    /// All topics that are known here.
    pub async fn all(&self) -> Vec<(String, i32)> {
        let known = self.known.lock().await;
        known
            .topics
            .iter()
            .map(|(topic, partitions)| (topic.clone(), *partitions))
            .collect()
    }

    /// How many deletions this broker has been told of: see [`Topics::learn`].
    pub fn deletions(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Takes note of a topic that the first broker was asked about when there had been `deletions`. Returns `false` if
    /// a topic was deleted since: it may have been this one, and the answer older than that.
    pub async fn learn(
        &self,
        topic: &str,
        partitions: i32,
        deletions: u64,
    ) -> Result<bool, LogError> {
        let mut known = self.known.lock().await;
        if self.deletions() != deletions {
            return Ok(false);
        }
        self.add_to(&mut known, topic, partitions).await?;
        Ok(true)
    }

    /// Takes note of a topic, durably before it is used.
    pub async fn add(&self, topic: &str, partitions: i32) -> Result<Created, LogError> {
        let mut known = self.known.lock().await;
        self.add_to(&mut known, topic, partitions).await
    }

    async fn add_to(
        &self,
        known: &mut Known,
        topic: &str,
        partitions: i32,
    ) -> Result<Created, LogError> {
        if let Some(there) = known.topics.get(topic) {
            return Ok(Created::Exists(*there));
        }
        if known.deleted.contains_key(topic) {
            let source = io::Error::other("the topic of this name is still being deleted");
            return Err(LogError::io(topic)(source));
        }
        let mut next = known.clone();
        next.topics.insert(topic.to_owned(), partitions);
        self.replace(known, next).await?;
        Ok(Created::New)
    }

    /// Takes note that a topic is deleted, durably before the first of its files goes. It cannot be added
    /// again before [`Topics::forget`]. `number` is that of the deletion, as the first broker has it; without one,
    /// this is the first broker. Returns whether files may be left; `None` if there is no such topic.
    pub async fn delete(&self, topic: &str, number: Option<u64>) -> Result<Option<bool>, LogError> {
        let mut known = self.known.lock().await;
        self.told.fetch_add(1, Ordering::Relaxed);
        if known.deleted.contains_key(topic) {
            return Ok(Some(true));
        }
        let is_there = known.topics.contains_key(topic);
        let number = match number {
            None if !is_there => return Ok(None),
            None => known.deletions + 1,
            // It was carried out before, and what has this name now is another topic.
            Some(number) if number <= known.deletions => return Ok(Some(false)),
            Some(number) => number,
        };
        let mut next = known.clone();
        next.deletions = number;
        if next.topics.remove(topic).is_some() {
            next.deleted.insert(topic.to_owned(), number);
        }
        self.replace(&mut known, next).await?;
        Ok(Some(is_there))
    }

    /// The files of a deleted topic are gone.
    pub async fn forget(&self, topic: &str) -> Result<(), LogError> {
        let mut known = self.known.lock().await;
        let mut next = known.clone();
        next.deleted.remove(topic);
        self.replace(&mut known, next).await
    }

    /// The deleted topics whose files may still be there, in the order of their deletions, which is told with them.
    pub async fn deleted(&self) -> Vec<(String, u64)> {
        let known = self.known.lock().await;
        let deleted = known.deleted.iter();
        let mut deleted: Vec<_> = deleted
            .map(|(topic, number)| (topic.clone(), *number))
            .collect();
        deleted.sort_by_key(|(_, number)| *number);
        deleted
    }

    async fn replace(&self, known: &mut Known, next: Known) -> Result<(), LogError> {
        small_file::write(&*self.disk, TOPICS_FILE, &next).await?;
        *known = next;
        Ok(())
    }
}

/// Which of `brokers` leads a partition.
pub fn leader(topic: &str, partition: PartitionId, brokers: usize) -> usize {
    let start = xxh3_64(topic.as_bytes()) as usize;
    start.wrapping_add(partition.0 as usize) % brokers
}

/// Whether a topic can be called so (Kafka's rule).
pub fn is_legal_name(topic: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=249).contains(&topic.len()) && topic.chars().all(legal) && topic != "." && topic != ".."
}
