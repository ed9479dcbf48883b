//! The table that a job leaves: read back from its sink, and counted against its manifests.
//!
//! A manifest says how many rows each task has prepared for its checkpoint. As many must be there: with at-least-once
//! at least, with at-most-once at most. What is missing is named, and a table that claims to be whole and is not is none.

mod count;

use super::pipeline::RevenueRow;
use count::{Count, Counting};
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
    sink::{Objects, SinkKind},
};
use std::{collections::BTreeMap, time::Duration};
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
    /// How many rows of output are missing, which at-most-once allows.
    pub missing: u64,
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
        "{there} {of} are there, {different} of them different, and the manifests of the job say {prepared}: {claimed} \
         is broken. No table is printed, since it would not be whole"
    )]
    Miscounted {
        /// What was counted.
        of: &'static str,
        /// How many there are.
        there: u64,
        /// How many of them are not others again.
        different: u64,
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
        let (mut table, rows, letters) = match self.config.sink {
            SinkKind::Objects => self.of_objects(&manifests).await?,
            _ => self.of_topics().await?,
        };
        table.missing = self.count("rows", &rows, &manifests)?;
        table.missing += self.count(DEAD_LETTERS, &letters, &manifests)?;
        table.dead_letters = letters.different;
        Ok(table)
    }

    async fn of_objects(&self, manifests: &[Manifest]) -> Result<(Table, Count, Count), NotWhole> {
        let (mut table, mut rows, mut letters) = (Table::default(), 0, 0);
        for manifest in manifests {
            for (task, row) in Objects::read(self.store, manifest).await? {
                if is_source(&task) {
                    letters += 1;
                } else {
                    rows += 1;
                    table.take(row.value.as_bytes())?;
                }
            }
        }
        Ok((table, Count::each_once(rows), Count::each_once(letters)))
    }

    async fn of_topics(&self) -> Result<(Table, Count, Count), NotWhole> {
        let mut table = Table::default();
        let is_table = self.config.sink == SinkKind::Idempotent;
        let (mut rows, mut letters) = (Counting::new(is_table), Counting::new(is_table));
        for record in self.read(&self.config.output_topic).await? {
            if rows.count(&record) {
                table.take(record.value.as_deref().unwrap_or_default())?;
            }
        }
        for record in self.read(&self.config.dead_letter_topic).await? {
            letters.count(&record);
        }
        Ok((table, rows.end(), letters.end()))
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

    /// As many must be there as were prepared. Returns how many are missing, if the claim allows it.
    fn count(
        &self,
        of: &'static str,
        there: &Count,
        manifests: &[Manifest],
    ) -> Result<u64, NotWhole> {
        let tasks = manifests.iter().flat_map(|manifest| &manifest.tasks);
        let tasks = tasks.filter(|(task, _)| is_source(task) == (of == DEAD_LETTERS));
        let prepared: u64 = tasks.map(|(_, snapshot)| snapshot.prepared.rows).sum();
        let claimed = self.config.claimed;
        match there.keeps(claimed, prepared) {
            true => Ok(prepared.saturating_sub(there.different)),
            false => Err(NotWhole::Miscounted {
                of,
                there: there.rows,
                different: there.different,
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
