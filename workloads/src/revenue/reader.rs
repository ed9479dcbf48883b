//! A reader from outside: it reads the output all the time, and remembers what it saw; and it looks whether the
//! checkpoint that a restore would begin from is all there.

use super::{settings::Settings, SUMS};
use crate::cluster;
use engine::{
    checkpoint::{Entry, Manifest, Store},
    ids::{Offset, PartitionId},
    log::{cluster::Cluster, consumer::Consumer, TopicPartition},
    record::Record,
    sink::{idempotent::VERSION, topic::PANE, Objects, SinkKind},
};
use object_store::path::Path;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A row of output, as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Which result of its key it is.
    pub pane: u32,
    /// Its version, if it has one.
    pub version: Option<u64>,
    /// Where.
    pub place: String,
}

impl Seen {
    /// A row of a topic.
    pub fn of_record(of: &TopicPartition, record: &Record) -> Seen {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let header = |name: &str| {
            let found = record.headers.iter().find(|(known, _)| known == name);
            found.and_then(|(_, value)| text(value).parse::<u64>().ok())
        };
        Seen {
            key: text(record.key.as_deref().unwrap_or_default()),
            value: text(record.value.as_deref().unwrap_or_default()),
            pane: header(PANE).unwrap_or(0) as u32,
            version: header(VERSION),
            place: format!("offset {} of {of}", record.offset),
        }
    }

    /// The rows that a manifest made visible.
    pub async fn of_manifest(store: &Store, manifest: &Manifest) -> Result<Vec<Seen>, String> {
        let place = format!(
            "checkpoint {} by {}",
            manifest.checkpoint, manifest.instance
        );
        let rows = Objects::read(store, manifest).await;
        let rows = rows.map_err(|error| format!("{place}: {error}"))?;
        // Sources write dead letters, and the others sums.
        let sums = rows
            .into_iter()
            .filter(|(task, _)| !task.starts_with("source"));
        let seen = sums.map(|(_, row)| Seen {
            key: row.key,
            value: row.value,
            pane: row.pane,
            version: None,
            place: place.clone(),
        });
        Ok(seen.collect())
    }
}

/// What readers saw. It outlives any crash.
#[derive(Clone, Default)]
pub struct Readings(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// Of each incarnation of a reader: what it saw in a partition, or of objects, in its order.
    seen: BTreeMap<(String, usize), Vec<Seen>>,
    missing: Vec<String>,
    looked: u64,
}

impl Readings {
    /// Of each incarnation of a reader and each partition: what it saw, in order.
    pub fn seen(&self) -> BTreeMap<(String, usize), Vec<Seen>> {
        self.0.lock().expect("readings").seen.clone()
    }

    /// What a restore would not have found; and how often that was looked for.
    pub fn missing(&self) -> (Vec<String>, u64) {
        let inner = self.0.lock().expect("readings");
        (inner.missing.clone(), inner.looked)
    }

    fn see(&self, who: &str, partition: usize, rows: impl IntoIterator<Item = Seen>) {
        let mut inner = self.0.lock().expect("readings");
        let seen = inner.seen.entry((who.to_owned(), partition)).or_default();
        seen.extend(rows);
    }
}

/// Between two looks at the object store.
const LOOK: Duration = Duration::from_millis(1500);

/// Runs a reader.
pub async fn run(node: sim::Host, brokers: Vec<String>, readings: Readings, settings: Settings) {
    let who = format!("{}#{}", node.name(), node.incarnation());
    let host = cluster::host(&node);
    let store = Store::new(host.objects.clone(), "revenue");
    if settings.sink != SinkKind::Objects {
        let cluster = Cluster::new(host, brokers);
        let ensured = cluster.ensure_topic(SUMS, settings.partitions as i32).await;
        if ensured.is_err() {
            return;
        }
        for partition in 0..settings.partitions as usize {
            let of = TopicPartition::new(SUMS, PartitionId(partition as i32));
            let mut consumer = Consumer::new(cluster.clone(), of.clone(), Offset(0));
            let (readings, who) = (readings.clone(), who.clone());
            tokio::spawn(async move {
                while let Ok(records) = consumer.poll().await {
                    let seen = records.iter().map(|record| Seen::of_record(&of, record));
                    readings.see(&who, partition, seen);
                }
            });
        }
    }
    let mut next = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        while let Ok(Some(entry)) = store.entry(next).await {
            next += 1;
            if let (SinkKind::Objects, Entry::Complete(manifest)) = (settings.sink, &entry) {
                match Seen::of_manifest(&store, manifest).await {
                    Ok(rows) => readings.see(&who, 0, rows),
                    Err(what) => readings.0.lock().expect("readings").missing.push(what),
                }
            }
        }
        look_for_missing(&store, &readings).await;
    }
}

/// Looks whether all that the newest checkpoint refers to is there, if it is still the newest afterwards.
async fn look_for_missing(store: &Store, readings: &Readings) {
    let Some(manifest) = newest(store).await else {
        return;
    };
    let mut missing = None;
    for (task, snapshot) in &manifest.tasks {
        let prepared = snapshot.prepared.object.iter();
        for object in prepared.chain(Some(&snapshot.object)) {
            match store.get(&Path::from(object.as_str())).await {
                Ok(Some(_)) => {}
                Ok(None) => missing = Some(format!("{object} of {task}")),
                Err(_) => return,
            }
        }
    }
    let again = newest(store).await;
    let is_newest = again.is_some_and(|again| again.checkpoint == manifest.checkpoint);
    let mut inner = readings.0.lock().expect("readings");
    if is_newest {
        inner.looked += 1;
        if let Some(object) = missing {
            let checkpoint = manifest.checkpoint;
            let what = format!("checkpoint {checkpoint} is the newest, and {object} is not there");
            inner.missing.push(what);
        }
    }
}

async fn newest(store: &Store) -> Option<Manifest> {
    let (_, entry) = store.newest().await.ok()??;
    let checkpoint = match entry {
        Entry::Complete(manifest) => return Some(manifest),
        Entry::Begun { restores, .. } => restores?,
        Entry::Stopped(checkpoint) | Entry::Finished(checkpoint) => checkpoint,
        Entry::Halted(_) => return None,
    };
    let complete = store.complete(checkpoint).await.ok()?;
    Some(complete.manifest().clone())
}
