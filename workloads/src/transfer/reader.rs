//! Readers: they read committed entries all the time, and remember each one, with its time.

use super::{command::Entry, settings::Settings, ENTRIES};
use crate::cluster;
use engine::{
    ids::{Offset, PartitionId},
    log::{cluster::Cluster, consumer::Consumer, TopicPartition},
};
use sim::World;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// Something that a reader saw.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// When.
    pub at: Duration,
    /// Where.
    pub offset: Offset,
    /// What; nothing if it is no entry.
    pub entry: Option<Entry>,
}

/// What one incarnation of a reader saw in one partition, in its order.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Which reader.
    pub who: String,
    /// Which partition.
    pub partition: PartitionId,
    /// What it saw.
    pub seen: Vec<Sighting>,
}

/// What all readers saw. It outlives any crash.
#[derive(Clone, Default)]
pub struct Readings(Arc<Mutex<Vec<Reading>>>);

impl Readings {
    /// All of it.
    pub fn all(&self) -> Vec<Reading> {
        self.0.lock().expect("readings").clone()
    }

    fn begin(&self, who: &str, partition: PartitionId) -> usize {
        let mut all = self.0.lock().expect("readings");
        all.push(Reading {
            who: who.to_owned(),
            partition,
            seen: Vec::new(),
        });
        all.len() - 1
    }

    fn see(&self, index: usize, sightings: impl Iterator<Item = Sighting>) {
        self.0.lock().expect("readings")[index]
            .seen
            .extend(sightings);
    }
}

/// Runs a reader: it reads every partition from its start on.
pub async fn run(
    node: sim::Host,
    world: World,
    brokers: Vec<String>,
    readings: Readings,
    settings: Settings,
) {
    let cluster = Cluster::new(cluster::host(&node), brokers);
    if cluster
        .ensure_topic(ENTRIES, settings.entry_partitions as i32)
        .await
        .is_err()
    {
        return;
    }
    let who = format!("{}#{}", node.name(), node.incarnation());
    for index in 0..settings.entry_partitions {
        let partition = PartitionId(index as i32);
        let of = TopicPartition::new(ENTRIES, partition);
        let mut consumer = Consumer::new(cluster.clone(), of, Offset(0));
        let (world, readings) = (world.clone(), readings.clone());
        let reading = readings.begin(&who, partition);
        tokio::spawn(async move {
            while let Ok(records) = consumer.poll().await {
                let at = world.now();
                let seen = records.into_iter().map(|record| Sighting {
                    at,
                    offset: record.offset,
                    entry: Entry::of(&record),
                });
                readings.see(reading, seen);
            }
        });
    }
    std::future::pending().await
}
