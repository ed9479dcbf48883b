//! The partitions of a broker that are open, or being opened. Opening one reads all of its segments: whoever needs another
//! one does not wait for that.

use super::{folder_of, Broker};
use crate::log::{partition::Partition, TopicPartition};
use kafka_protocol::error::ResponseError;
use std::{
    collections::BTreeMap,
    sync::{atomic::Ordering, Arc, Mutex, MutexGuard},
};
use uuid::Uuid;

/// One for each partition that somebody has asked for.
#[derive(Default)]
pub(super) struct Slots(Mutex<BTreeMap<TopicPartition, Arc<Slot>>>);

/// Its state is held by who opens the partition, until it is open.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<State>);

#[derive(Clone, Default)]
enum State {
    #[default]
    Unopened,
    /// With the id of its topic.
    Open(Uuid, Arc<Partition>),
    /// Its topic is deleted.
    Gone,
}

impl Slots {
    fn all(&self) -> MutexGuard<'_, BTreeMap<TopicPartition, Arc<Slot>>> {
        self.0.lock().expect("no change panics")
    }

    fn slot(&self, of: &TopicPartition) -> Arc<Slot> {
        let mut all = self.all();
        if let Some(known) = all.get(of) {
            return known.clone();
        }
        all.entry(of.clone()).or_default().clone()
    }

    /// The partition, if it is open, and the id of its topic. Waits, if somebody is opening it.
    pub async fn get(&self, of: &TopicPartition) -> Option<(Uuid, Arc<Partition>)> {
        let slot = self.all().get(of).cloned()?;
        let state = slot.0.lock().await;
        match &*state {
            State::Open(topic, open) => Some((*topic, open.clone())),
            State::Unopened | State::Gone => None,
        }
    }

    /// All that are open, in their order, with the ids of their topics.
    pub async fn open(&self) -> Vec<(TopicPartition, Uuid, Arc<Partition>)> {
        let slots: Vec<_> = {
            let all = self.all();
            let slots = all.iter();
            slots.map(|(of, slot)| (of.clone(), slot.clone())).collect()
        };
        let mut open = Vec::new();
        for (of, slot) in slots {
            if let State::Open(topic, partition) = &*slot.0.lock().await {
                open.push((of, *topic, partition.clone()));
            }
        }
        open
    }

    /// Takes those of a topic out, which is noted to be deleted: none of them is opened after this.
    pub async fn remove(&self, topic: &str) -> Vec<Arc<Partition>> {
        let mut slots = Vec::new();
        self.all().retain(|of, slot| {
            let is_left = of.topic != topic;
            if !is_left {
                slots.push(slot.clone());
            }
            is_left
        });
        let mut open = Vec::new();
        for slot in slots {
            let before = std::mem::replace(&mut *slot.0.lock().await, State::Gone);
            if let State::Open(_, partition) = before {
                open.push(partition);
            }
        }
        open
    }
}

impl Broker {
    /// Opens a partition that is led here, unless it is open; with the id of its topic.
    pub(super) async fn open_partition(
        self: Arc<Self>,
        key: TopicPartition,
    ) -> Result<(Uuid, Arc<Partition>), ResponseError> {
        let slot = self.slots.slot(&key);
        let mut state = slot.0.lock().await;
        match &*state {
            State::Open(topic, open) => return Ok((*topic, open.clone())),
            State::Gone => return Err(ResponseError::UnknownTopicOrPartition),
            State::Unopened => {}
        }
        // It may have been deleted since it was looked up. Who deletes it notes that first, and then waits for this slot.
        let topic = self.topic_here(&key.topic).await;
        let topic = topic.ok_or(ResponseError::UnknownTopicOrPartition)?;
        // So does who stops the broker.
        if self.stopped.load(Ordering::Relaxed) {
            return Err(ResponseError::NotLeaderOrFollower);
        }
        let effective = self.effective(&key.topic, &topic.configs);
        let expected = self.notes.expected(&key);
        let ground = self.ground.clone();
        let opened = Partition::open(ground, folder_of(&key), effective, expected).await;
        let opened = match opened {
            Ok(opened) => Arc::new(opened),
            Err(error) => {
                self.fail(error);
                return Err(ResponseError::KafkaStorageError);
            }
        };
        let newest = opened.newest_producer(self.own_producer_ids()).await;
        self.pass_producer_id(newest).await;
        let (broker, syncing) = (self.clone(), opened.clone());
        tokio::spawn(async move {
            if let Err(error) = syncing.keep_synced().await {
                broker.fail(error);
            }
        });
        *state = State::Open(topic.id, opened.clone());
        Ok((topic.id, opened))
    }
}
