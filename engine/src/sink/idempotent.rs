//! `idempotent`: a topic that is read as a table. Each row has a key, and a version that grows with the position
//! of the job: the id of its checkpoint. What is written again is what is there, and what an older attempt
//! still writes is older: a reader takes the newest version of each key ([`Table`]).
//!
//! Rows wait in the checkpoint until it is complete, and only then go to the topic; so a reader never sees what
//! a restore takes back.

use super::{
    objects::{read_rows, write_rows},
    topic::PANE,
    OnDemand, OutputTopic, Phase, Prepared, Row, Sink, SinkError, Waiting,
};
use crate::{
    checkpoint::{Complete, Store, TaskName},
    ids::CheckpointId,
    record::Record,
};
use async_trait::async_trait;
use std::collections::BTreeMap;

/// The header that holds a row's version.
pub const VERSION: &str = "version";

/// A task's output as rows of a table.
pub struct Idempotent {
    store: Store,
    task: TaskName,
    producer: OnDemand,
    topic: OutputTopic,
    rows: Vec<Row>,
    waiting: Waiting<Vec<Row>>,
}

impl Idempotent {
    /// The output of `task`, in a topic.
    pub fn new(store: Store, task: &str, producer: OnDemand, topic: OutputTopic) -> Self {
        Idempotent {
            store,
            task: task.to_owned(),
            producer,
            topic,
            rows: Vec::new(),
            waiting: Waiting::default(),
        }
    }

    /// Writes what a complete checkpoint has prepared, maybe again.
    pub(super) async fn write_again(
        store: &Store,
        object: &str,
        producer: &OnDemand,
        topic: &OutputTopic,
    ) -> Result<(), SinkError> {
        let rows = read_rows(store, object).await?;
        producer.send(topic, rows).await?.arrive().await
    }
}

#[async_trait]
impl Sink for Idempotent {
    async fn write(&mut self, rows: Vec<Row>) -> Result<(), SinkError> {
        // Once it is prepared, it must be written.
        rows.iter().try_for_each(|row| self.topic.check(row))?;
        self.rows.extend(rows);
        Ok(())
    }

    fn prepare(&mut self, checkpoint: CheckpointId) -> Phase<Prepared> {
        let mut rows = std::mem::take(&mut self.rows);
        for row in &mut rows {
            row.headers
                .push((VERSION.to_owned(), checkpoint.to_string()));
        }
        if !rows.is_empty() {
            self.waiting.insert(checkpoint, rows.clone());
        }
        let path = self.store.staged_path(checkpoint, &self.task);
        let store = self.store.clone();
        Box::pin(async move { write_rows(&store, path, &rows).await })
    }

    fn commit(&mut self, complete: &Complete) -> Phase<()> {
        let ready = self.waiting.ready(complete).flatten().collect();
        let (producer, topic) = (self.producer.clone(), self.topic.clone());
        Box::pin(async move { producer.send(&topic, ready).await?.arrive().await })
    }

    async fn abort(&mut self) {}
}

/// A topic read as a table: of each key, the newest version.
///
/// ```
/// use engine::{ids::Offset, record::Record, sink::idempotent::Table};
///
/// let record = |version: &str, pane: &str, value: &'static str| Record {
///     offset: Offset(0),
///     key: Some("minute 7".into()),
///     value: Some(value.into()),
///     headers: vec![
///         ("version".into(), version.to_owned().into()),
///         ("pane".into(), pane.to_owned().into()),
///     ],
///     timestamp_ms: 0,
/// };
/// let mut table = Table::default();
/// assert!(table.apply(&record("4", "0", "three orders")));
/// assert!(table.apply(&record("9", "1", "four orders")));
/// assert!(!table.apply(&record("4", "0", "three orders")), "an older attempt writes again");
/// assert_eq!(table.rows().next(), Some((&"minute 7".to_owned(), &"four orders".into())));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rows: BTreeMap<String, ((u64, u32), bytes::Bytes)>,
}

impl Table {
    /// Takes a record in; whether it is newer than what there was.
    pub fn apply(&mut self, record: &Record) -> bool {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let number = |name: &str| {
            let found = record.headers.iter().find(|(known, _)| known == name);
            found
                .and_then(|(_, value)| text(value).parse::<u64>().ok())
                .unwrap_or(0)
        };
        let key = text(record.key.as_deref().unwrap_or_default());
        let version = (number(VERSION), number(PANE) as u32);
        let value = record.value.clone().unwrap_or_default();
        match self.rows.get(&key) {
            Some((known, _)) if *known >= version => false,
            _ => {
                self.rows.insert(key, (version, value));
                true
            }
        }
    }

    /// The rows, by key.
    pub fn rows(&self) -> impl Iterator<Item = (&String, &bytes::Bytes)> {
        self.rows.iter().map(|(key, (_, value))| (key, value))
    }
}
