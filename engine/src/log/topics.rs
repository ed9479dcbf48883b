//! Which topics there are, and who leads which partition.
//!
//! The brokers of a cluster are configured; the first of them decides which topics exist, and gives each an id
//! that no other topic has (KIP-516): one that is deleted and made again is another one. Every broker
//! keeps what it has learnt in a file of its own, so that it can serve its partitions while the first
//! broker is away. Partition p of a topic is led by broker (hash of the topic + p) modulo their number.

use super::{configs::Configs, reserve::Reserve, small_file, LogError};
use crate::{host::Disk, ids::PartitionId};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc,
    },
};
use tokio::sync::Mutex;
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_128, xxh3_64};

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

/// A topic of the brokers themselves; it has the same id in every cluster.
pub fn internal(topic: &str, partitions: i32) -> Topic {
    Topic {
        id: Uuid::from_u128(xxh3_128(topic.as_bytes())),
        partitions,
        configs: Configs::default(),
    }
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// No other topic has or had it, not even one of the same name.
    pub id: Uuid,
    /// How many partitions it has.
    pub partitions: i32,
    /// What it was configured with.
    pub configs: Configs,
}

/// The topics that a broker knows.
pub struct Topics {
    disk: Arc<dyn Disk>,
    reserve: Arc<Reserve>,
    known: Mutex<Indexed>,
    /// How many deletions this broker has been told of since it began.
    told: AtomicU64,
}

/// What the file holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Known {
    /// The name of the cluster; nothing until the first broker has said it.
    cluster: Option<String>,
    /// How many topics were created here: it makes their ids differ.
    created: u64,
    topics: BTreeMap<String, Topic>,
    /// Topics that were deleted, and whose files may still be there: their ids.
    deleted: BTreeMap<String, Uuid>,
}

#[derive(Default)]
struct Indexed {
    known: Known,
    names: BTreeMap<Uuid, String>,
}

/// What became of a wish to create a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was created.
    New(Topic),
    /// It was there.
    Exists(Topic),
    /// The topic of this name is still being deleted.
    Deleting,
}

impl Topics {
    /// Reads what this broker knew before; notes durably that it knows nothing, if it is new.
    pub async fn open(disk: Arc<dyn Disk>, reserve: Arc<Reserve>) -> Result<Topics, LogError> {
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
            reserve,
            known: Mutex::new(Indexed::new(known)),
            told: AtomicU64::new(0),
        })
    }

    /// The name of the cluster, if it is known here.
    pub async fn cluster(&self) -> Option<String> {
        self.known.lock().await.known.cluster.clone()
    }

    /// Takes note of the name of the cluster, durably before anybody is told. The first one stays.
    pub async fn name_cluster(&self, name: &str) -> Result<(), LogError> {
        let mut known = self.known.lock().await;
        if known.known.cluster.is_some() {
            return Ok(());
        }
        let mut next = known.known.clone();
        next.cluster = Some(name.to_owned());
        self.replace(&mut known, next).await
    }

    /// How many partitions a topic has; nothing if it is not known here.
    pub async fn partitions(&self, topic: &str) -> Option<i32> {
        let known = self.known.lock().await;
        known.known.topics.get(topic).map(|topic| topic.partitions)
    }

    /// A topic; nothing if it is not known here.
    pub async fn get(&self, topic: &str) -> Option<Topic> {
        self.known.lock().await.known.topics.get(topic).cloned()
    }

    /// The name of the topic with this id; nothing if it is not known here.
    pub async fn name_of(&self, id: Uuid) -> Option<String> {
        self.known.lock().await.names.get(&id).cloned()
    }

    /// All topics that are known here.
    pub async fn all(&self) -> Vec<(String, Topic)> {
        let known = self.known.lock().await;
        let topics = known.known.topics.iter();
        topics
            .map(|(name, topic)| (name.clone(), topic.clone()))
            .collect()
    }

    /// Creates a topic, durably before it is used. Its id is drawn from the name of the cluster, and from how many
    /// topics there were before.
    pub async fn create(
        &self,
        topic: &str,
        partitions: i32,
        configs: Configs,
    ) -> Result<Created, LogError> {
        let mut known = self.known.lock().await;
        if let Some(there) = known.known.topics.get(topic) {
            return Ok(Created::Exists(there.clone()));
        }
        if known.known.deleted.contains_key(topic) {
            return Ok(Created::Deleting);
        }
        let room = self.reserve.room().await;
        let _room = room.map_err(|source| LogError::Unchanged {
            path: TOPICS_FILE.to_owned(),
            source,
        })?;
        let mut next = known.known.clone();
        let cluster = next.cluster.as_deref().unwrap_or_default();
        next.created += 1;
        let from = format!("{cluster}/{}/{topic}", next.created);
        let new = Topic {
            id: random_looking(&from),
            partitions,
            configs,
        };
        next.topics.insert(topic.to_owned(), new.clone());
        self.replace(&mut known, next).await?;
        Ok(Created::New(new))
    }

    /// How many deletions this broker has been told of: see [`Topics::learn`].
    pub fn deletions(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Takes note of what the first broker says of a topic, durably before it counts; it was asked when there had been
    /// `deletions`. Returns `None` if a topic was deleted since, or is still being deleted: it may have been this one,
    /// and the answer older than that. One of the same name and another id is not replaced: its files are here.
    pub async fn learn(
        &self,
        topic: &str,
        mut told: Topic,
        deletions: u64,
    ) -> Result<Option<Topic>, LogError> {
        let mut known = self.known.lock().await;
        if self.deletions() != deletions {
            return Ok(None);
        }
        match known.known.topics.get(topic) {
            Some(there) if there.id != told.id => return Ok(Some(there.clone())),
            // Partitions only become more: an answer that says fewer is an older one.
            Some(there) => {
                told.partitions = told.partitions.max(there.partitions);
                if *there == told {
                    return Ok(Some(told));
                }
            }
            None if known.known.deleted.contains_key(topic) => return Ok(None),
            None => {}
        }
        let mut next = known.known.clone();
        next.topics.insert(topic.to_owned(), told.clone());
        self.replace(&mut known, next).await?;
        Ok(Some(told))
    }

    /// Changes a topic, durably before it counts; nothing if there is none with this id any more.
    pub async fn change(
        &self,
        topic: &str,
        id: Uuid,
        change: impl FnOnce(&mut Topic),
    ) -> Result<Option<Topic>, LogError> {
        let mut known = self.known.lock().await;
        let mut next = known.known.clone();
        let there = next.topics.get_mut(topic).filter(|there| there.id == id);
        let Some(there) = there else {
            return Ok(None);
        };
        change(there);
        let changed = there.clone();
        self.replace(&mut known, next).await?;
        Ok(Some(changed))
    }

    /// Takes note that a topic is deleted, durably before the first of its files goes; that of this id, if one is
    /// given. It cannot be added again before [`Topics::forget`]. Returns whether its files may still be there.
    pub async fn delete(&self, topic: &str, id: Option<Uuid>) -> Result<bool, LogError> {
        let mut known = self.known.lock().await;
        self.told.fetch_add(1, Ordering::Relaxed);
        let is_meant = |there: Uuid| id.is_none_or(|id| id == there);
        if let Some(deleted) = known.known.deleted.get(topic) {
            return Ok(is_meant(*deleted));
        }
        let there = known.known.topics.get(topic).map(|topic| topic.id);
        let Some(there) = there.filter(|there| is_meant(*there)) else {
            return Ok(false);
        };
        let mut next = known.known.clone();
        next.topics.remove(topic);
        next.deleted.insert(topic.to_owned(), there);
        self.replace_to_free(&mut known, next).await?;
        Ok(true)
    }

    /// The files of a deleted topic are gone.
    pub async fn forget(&self, topic: &str) -> Result<(), LogError> {
        let mut known = self.known.lock().await;
        let mut next = known.known.clone();
        next.deleted.remove(topic);
        self.replace_to_free(&mut known, next).await
    }

    /// The deleted topics whose files may still be there, and their ids.
    pub async fn deleted(&self) -> Vec<(String, Uuid)> {
        let known = self.known.lock().await;
        let deleted = known.known.deleted.iter();
        deleted.map(|(topic, id)| (topic.clone(), *id)).collect()
    }

    /// The name of the deleted topic with this id whose files may still be there.
    pub async fn deleted_name_of(&self, id: Uuid) -> Option<String> {
        let deleted = self.deleted().await.into_iter();
        deleted
            .filter(|(_, deleted)| *deleted == id)
            .map(|(name, _)| name)
            .next()
    }

    /// Like [`Topics::replace`], where files go because of it: there must be room for that.
    async fn replace_to_free(&self, known: &mut Indexed, next: Known) -> Result<(), LogError> {
        self.reserve.write(TOPICS_FILE, &next).await?;
        *known = Indexed::new(next);
        Ok(())
    }

    async fn replace(&self, known: &mut Indexed, next: Known) -> Result<(), LogError> {
        small_file::write(&*self.disk, TOPICS_FILE, &next).await?;
        *known = Indexed::new(next);
        Ok(())
    }
}

impl Indexed {
    fn new(known: Known) -> Self {
        let names = known.topics.iter();
        let names = names.map(|(name, topic)| (topic.id, name.clone()));
        Indexed {
            names: names.collect(),
            known,
        }
    }
}

/// An id that looks like the random ones that Kafka draws, and is the same for the same text.
pub fn random_looking(text: &str) -> Uuid {
    uuid::Builder::from_random_bytes(xxh3_128(text.as_bytes()).to_be_bytes()).into_uuid()
}

/// Which of `brokers` leads a partition.
pub fn leader(topic: &str, partition: PartitionId, brokers: usize) -> usize {
    assert!(
        brokers > 0 && partition.0 >= 0,
        "{topic}-{partition} of {brokers} brokers"
    );
    let start = xxh3_64(topic.as_bytes()) as usize;
    start.wrapping_add(partition.0 as usize) % brokers
}

/// Whether a topic can be called so (Kafka's rule).
pub fn is_legal_name(topic: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=249).contains(&topic.len()) && topic.chars().all(legal) && topic != "." && topic != ".."
}
