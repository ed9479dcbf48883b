//! The table that a run ends with: read back from the sink, and counted against the manifests.
//!
//! A manifest says how many rows each task has prepared for its checkpoint. As many must be there: with at-least-once
//! at least, with at-most-once at most. What is missing is named, and a table that is not whole is never printed.

use super::{BadInput, Run};
use crate::revenue::{
    pipeline::{minute_name, RevenueRow},
    DEAD_LETTERS, SUMS,
};
use engine::{
    checkpoint::{Entry, Manifest},
    guarantee::Guarantee,
    ids::{Offset, PartitionId},
    log::{cluster::Cluster, consumer::Consumer, TopicPartition},
    record::Record,
    sink::{idempotent::VERSION, topic::PANE, Objects, SinkKind},
};
use std::collections::{BTreeMap, BTreeSet};

/// What a whole run has come to.
#[derive(Default)]
pub(super) struct Table {
    rows: BTreeMap<i64, RevenueRow>,
    dead_letters: u64,
}

/// Why there is no table to print.
pub(super) enum NotWhole {
    /// What it is made of is not there, or cannot be read.
    Missing(BadInput),
    /// There is more or less of it than was claimed.
    Miscounted(String),
}

impl From<BadInput> for NotWhole {
    fn from(error: BadInput) -> Self {
        NotWhole::Missing(error)
    }
}

impl Table {
    /// Reads the output of a job that has finished.
    pub async fn read(run: &Run<'_>, cluster: &Cluster) -> Result<Table, NotWhole> {
        let damaged = |error| run.damaged(&error);
        let newest = run.store.newest().await.map_err(damaged)?;
        if !matches!(newest, Some((_, Entry::Finished(_)))) {
            let what = format!("the job has not finished; its newest entry is {newest:?}");
            return Err(BadInput::new(what).into());
        }
        let manifests = run.store.manifests().await.map_err(damaged)?;
        match run.config.sink {
            SinkKind::Objects => Table::of_objects(run, &manifests).await,
            _ => Table::of_topics(run, cluster, &manifests).await,
        }
    }

    async fn of_objects(run: &Run<'_>, manifests: &[Manifest]) -> Result<Table, NotWhole> {
        let (mut table, mut sums, mut letters) = (Table::default(), 0, 0);
        for manifest in manifests {
            let read = Objects::read(&run.store, manifest).await;
            for (task, row) in read.map_err(|error| run.damaged(&error))? {
                if is_source(&task) {
                    letters += 1;
                } else {
                    sums += 1;
                    table.take(SUMS, row.value.as_bytes())?;
                }
            }
        }
        table.dead_letters = letters;
        table.counted(run, manifests, (sums, letters))
    }

    async fn of_topics(
        run: &Run<'_>,
        cluster: &Cluster,
        manifests: &[Manifest],
    ) -> Result<Table, NotWhole> {
        let mut table = Table::default();
        let (mut sums, mut letters) = (Counted::of(run), Counted::of(run));
        for record in read(run, cluster, SUMS).await? {
            if sums.count(&record) {
                table.take(SUMS, record.value.as_deref().unwrap_or_default())?;
            }
        }
        for record in read(run, cluster, DEAD_LETTERS).await? {
            letters.count(&record);
        }
        table.dead_letters = letters.rows;
        table.counted(run, manifests, (sums.rows, letters.rows))
    }

    fn take(&mut self, topic: &str, row: &[u8]) -> Result<(), BadInput> {
        let row: RevenueRow = serde_json::from_slice(row)
            .map_err(|error| BadInput::new(format!("{topic}: a row that is none: {error}")))?;
        self.rows.insert(row.minute_ms, row);
        Ok(())
    }

    /// The table, if there are as many rows and dead letters as were prepared.
    fn counted(
        self,
        run: &Run<'_>,
        manifests: &[Manifest],
        (sums, letters): (u64, u64),
    ) -> Result<Table, NotWhole> {
        for (what, there, of_sources) in [(SUMS, sums, false), (DEAD_LETTERS, letters, true)] {
            let tasks = manifests.iter().flat_map(|manifest| &manifest.tasks);
            let tasks = tasks.filter(|(task, _)| is_source(task) == of_sources);
            let prepared: u64 = tasks.map(|(_, snapshot)| snapshot.prepared.rows).sum();
            let is_kept = match run.config.claimed {
                Guarantee::ExactlyOnce => there == prepared,
                Guarantee::AtLeastOnce => there >= prepared,
                Guarantee::AtMostOnce => there <= prepared,
            };
            if !is_kept {
                return Err(NotWhole::Miscounted(format!(
                    "{what}: {there} rows are there, and the manifests of the job say {prepared}: {} is broken. \
                     No table is printed, since it would not be whole",
                    run.config.claimed
                )));
            }
        }
        Ok(self)
    }

    /// Prints it, as JSON lines or for people.
    pub fn print(&self, json: bool) {
        if json {
            for row in self.rows.values() {
                anstream::println!("{}", serde_json::to_string(row).expect("plain data"));
            }
            return;
        }
        let (mut orders, mut cents) = (0, 0);
        for row in self.rows.values() {
            let minute = minute_name(row.minute_ms);
            let sum = row.cents as f64 / 100.0;
            anstream::println!("{minute:<28} {:>9} orders {sum:>16.2}", row.orders);
            orders += row.orders;
            cents += row.cents;
        }
        let (minutes, sum) = (self.rows.len(), cents as f64 / 100.0);
        anstream::println!("{minutes} minutes, {orders} orders, {sum:.2} in all");
        if self.dead_letters > 0 {
            let letters = self.dead_letters;
            anstream::println!("{letters} events could not be used: see the dead letters");
        }
    }
}

/// What sources write are dead letters.
fn is_source(task: &str) -> bool {
    task.starts_with("source")
}

/// All records of a topic, by partition and in order. A partition that is not there, or cannot be read, is named.
async fn read(run: &Run<'_>, cluster: &Cluster, topic: &str) -> Result<Vec<Record>, BadInput> {
    let mut records = Vec::new();
    for index in 0..run.config.partitions {
        let of = TopicPartition::new(topic, PartitionId(index));
        let end = cluster.stable_offset(&of).await;
        let end = end.map_err(|error| BadInput::new(format!("{of}: {error}")))?;
        let mut consumer = Consumer::new(cluster.clone(), of, Offset(0));
        while consumer.position() < end {
            records.extend(consumer.poll().await.map_err(BadInput::new)?);
        }
    }
    Ok(records)
}

/// How many rows of a topic there are. In a table, what was written again is what was there.
struct Counted {
    is_table: bool,
    seen: BTreeSet<(Vec<u8>, u64, u64)>,
    newest: BTreeMap<Vec<u8>, (u64, u64)>,
    rows: u64,
}

impl Counted {
    fn of(run: &Run<'_>) -> Counted {
        Counted {
            is_table: run.config.sink == SinkKind::Idempotent,
            seen: BTreeSet::new(),
            newest: BTreeMap::new(),
            rows: 0,
        }
    }

    /// Counts a row; whether it is the newest of its key so far.
    fn count(&mut self, record: &Record) -> bool {
        if !self.is_table {
            self.rows += 1;
            return true;
        }
        let number = |name: &str| {
            let header = record.headers.iter().find(|(known, _)| known == name);
            let text = header.and_then(|(_, value)| std::str::from_utf8(value).ok());
            text.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        let key = record.key.as_deref().unwrap_or_default().to_vec();
        let version = (number(VERSION), number(PANE));
        if !self.seen.insert((key.clone(), version.0, version.1)) {
            return false;
        }
        self.rows += 1;
        let newest = self.newest.entry(key).or_insert(version);
        let is_newest = *newest <= version;
        *newest = version.max(*newest);
        is_newest
    }
}
