//! The table that a job leaves: read back from its sink, and counted against its manifests.
//!
//! A manifest says how many rows each task has prepared for its checkpoint. As many must be there: with at-least-once
//! at least, with at-most-once at most. What is missing is named, and a table that is not whole is none.

use super::pipeline::RevenueRow;
use engine::{
    checkpoint::{store::StoreError, Entry, Manifest, Store},
    guarantee::Guarantee,
    ids::{Offset, PartitionId},
    job::JobConfig,
    log::{
        cluster::{Cluster, ClusterError},
        consumer::Consumer,
        TopicPartition,
    },
    record::Record,
    sink::{idempotent::VERSION, topic::PANE, Objects, SinkKind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// The markers of a transaction that is decided are there by then, if somebody lives who writes them.
const MARKED_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a job that has finished has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The last row of each minute.
    pub rows: BTreeMap<i64, RevenueRow>,
    /// How many events could not be used.
    pub dead_letters: u64,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum NotWhole {
    /// An object is damaged, missing, or cannot be read.
    #[error(transparent)]
    Objects(#[from] StoreError),
    /// A part of the output is not in the log, or cannot be read.
    #[error("{0}")]
    Log(String),
    /// The job has not finished.
    #[error("the job has not finished: {0}")]
    Unfinished(String),
    /// There is more or less of it than was claimed.
    #[error(
        "{there} {of} are there, and the manifests of the job say {prepared}: {claimed} is broken. \
         No table is printed, since it would not be whole"
    )]
    Miscounted {
        /// What was counted.
        of: &'static str,
        /// How many there are.
        there: u64,
        /// How many there should be.
        prepared: u64,
        /// What the job claims.
        claimed: Guarantee,
    },
}

/// Where a job's output is.
pub struct Output<'a> {
    /// The job's objects.
    pub store: &'a Store,
    /// The log.
    pub cluster: &'a Cluster,
    /// How the job is run.
    pub config: &'a JobConfig,
}

impl Output<'_> {
    /// Reads the output of a job that has finished.
    pub async fn table(&self) -> Result<Table, NotWhole> {
        let newest = self.store.newest().await?;
        if !matches!(newest, Some((_, Entry::Finished(_)))) {
            let what = format!("its newest entry is {newest:?}");
            return Err(NotWhole::Unfinished(what));
        }
        let manifests = self.store.manifests().await?;
        let (table, rows) = match self.config.sink {
            SinkKind::Objects => self.of_objects(&manifests).await?,
            _ => self.of_topics().await?,
        };
        self.count("rows", rows, &manifests)?;
        self.count(DEAD_LETTERS, table.dead_letters, &manifests)?;
        Ok(table)
    }

    async fn of_objects(&self, manifests: &[Manifest]) -> Result<(Table, u64), NotWhole> {
        let (mut table, mut rows) = (Table::default(), 0);
        for manifest in manifests {
            for (task, row) in Objects::read(self.store, manifest).await? {
                if is_source(&task) {
                    table.dead_letters += 1;
                } else {
                    rows += 1;
                    table.take(row.value.as_bytes())?;
                }
            }
        }
        Ok((table, rows))
    }

    async fn of_topics(&self) -> Result<(Table, u64), NotWhole> {
        let mut table = Table::default();
        let is_table = self.config.sink == SinkKind::Idempotent;
        let (mut rows, mut letters) = (Counted::new(is_table), Counted::new(is_table));
        for record in self.read(&self.config.output_topic).await? {
            if rows.count(&record) {
                table.take(record.value.as_deref().unwrap_or_default())?;
            }
        }
        for record in self.read(&self.config.dead_letter_topic).await? {
            letters.count(&record);
        }
        table.dead_letters = letters.rows;
        Ok((table, rows.rows))
    }

    /// All records of a topic, by partition and in order. A partition that is not there, or cannot be read, is named.
    async fn read(&self, topic: &str) -> Result<Vec<Record>, NotWhole> {
        let mut records = Vec::new();
        for index in 0..self.config.partitions {
            let of = TopicPartition::new(topic, PartitionId(index));
            let end = self.end_of(&of).await?;
            let mut consumer = Consumer::new(self.cluster.clone(), of, Offset(0));
            while consumer.position() < end {
                let polled = consumer.poll().await;
                records.extend(polled.map_err(|error| NotWhole::Log(error.to_string()))?);
            }
        }
        Ok(records)
    }

    /// The end of a partition, once every transaction in it has ended: a commit is decided before its markers are there.
    async fn end_of(&self, of: &TopicPartition) -> Result<Offset, NotWhole> {
        let unknown = |error: ClusterError| NotWhole::Log(format!("{of}: {error}"));
        let asked = Instant::now();
        loop {
            let written = self.cluster.end_offset(of).await.map_err(unknown)?;
            let stable = self.cluster.stable_offset(of).await.map_err(unknown)?;
            if stable >= written {
                return Ok(stable);
            }
            if asked.elapsed() >= MARKED_WITHIN {
                let open =
                    format!("{of}: a transaction is open at offset {stable}, and nobody ends it");
                return Err(NotWhole::Log(open));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// As many must be there as were prepared.
    fn count(&self, of: &'static str, there: u64, manifests: &[Manifest]) -> Result<(), NotWhole> {
        let tasks = manifests.iter().flat_map(|manifest| &manifest.tasks);
        let tasks = tasks.filter(|(task, _)| is_source(task) == (of == DEAD_LETTERS));
        let prepared: u64 = tasks.map(|(_, snapshot)| snapshot.prepared.rows).sum();
        let claimed = self.config.claimed;
        let is_kept = match claimed {
            Guarantee::ExactlyOnce => there == prepared,
            Guarantee::AtLeastOnce => there >= prepared,
            Guarantee::AtMostOnce => there <= prepared,
        };
        match is_kept {
            true => Ok(()),
            false => Err(NotWhole::Miscounted {
                of,
                there,
                prepared,
                claimed,
            }),
        }
    }
}

/// What sources write.
const DEAD_LETTERS: &str = "dead letters";

fn is_source(task: &str) -> bool {
    task.starts_with("source")
}

impl Table {
    fn take(&mut self, row: &[u8]) -> Result<(), NotWhole> {
        let row: RevenueRow = serde_json::from_slice(row)
            .map_err(|error| NotWhole::Log(format!("a row of output that is none: {error}")))?;
        self.rows.insert(row.minute_ms, row);
        Ok(())
    }
}

/// How many rows of a topic there are. In a table, what was written again is what was there.
struct Counted {
    is_table: bool,
    seen: BTreeSet<(Vec<u8>, u64, u64)>,
    newest: BTreeMap<Vec<u8>, (u64, u64)>,
    rows: u64,
}

impl Counted {
    fn new(is_table: bool) -> Counted {
        Counted {
            is_table,
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
