//! What sinks that write to a topic share: the topic, and a producer that is there once it is needed.

use super::{Row, SinkError};
use crate::{
    host::Clock,
    ids::PartitionId,
    log::{
        cluster::Cluster,
        producer::{Delivered, Producer, ProducerConfig, RECORD_BYTES_MAX},
        TopicPartition,
    },
    record::NewRecord,
    state::stable_hash,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// A topic that rows go to.
#[derive(Clone)]
pub struct OutputTopic {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: i32,
    /// What stamps the records.
    pub clock: Arc<dyn Clock>,
}

/// The header that tells panes apart.
pub const PANE: &str = "pane";

impl OutputTopic {
    /// The row as a record, and its partition: rows with the same key share one.
    pub(super) fn record(&self, row: Row) -> Result<(TopicPartition, NewRecord), SinkError> {
        self.check(&row)?;
        let partition = stable_hash(&row.key) % self.partitions as u64;
        let to = TopicPartition::new(&self.name, PartitionId(partition as i32));
        let mut headers = vec![(PANE.to_owned(), Bytes::from(row.pane.to_string()))];
        let others = row.headers.into_iter();
        headers.extend(others.map(|(name, value)| (name, Bytes::from(value))));
        let record = NewRecord {
            key: Some(row.key.into()),
            value: Some(row.value.into()),
            headers,
            timestamp_ms: self.clock.now_ms(),
        };
        Ok((to, record))
    }

    /// Refuses a row that no topic takes.
    pub(super) fn check(&self, row: &Row) -> Result<(), SinkError> {
        let headers = row
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let bytes = row.key.len() + row.value.len() + headers.sum::<usize>();
        match bytes > RECORD_BYTES_MAX {
            false => Ok(()),
            true => Err(SinkError::TooLarge {
                topic: self.name.clone(),
                key: row.key.chars().take(100).collect(),
                bytes,
            }),
        }
    }
}

/// An idempotent producer that is made with the first rows: to make one takes a broker that answers.
#[derive(Clone)]
pub struct OnDemand {
    cluster: Cluster,
    config: ProducerConfig,
    producer: Arc<OnceCell<Producer>>,
}

impl OnDemand {
    /// None yet.
    pub fn new(cluster: Cluster, config: ProducerConfig) -> Self {
        OnDemand {
            cluster,
            config,
            producer: Arc::default(),
        }
    }

    /// Sends rows.
    pub(super) async fn send(
        &self,
        topic: &OutputTopic,
        rows: Vec<Row>,
    ) -> Result<InFlight, SinkError> {
        let mut sent = InFlight::default();
        for row in rows {
            let new = || Producer::new(self.cluster.clone(), self.config.clone());
            let producer = self.producer.get_or_init(new).await;
            let (to, record) = topic.record(row)?;
            sent.0.push(Box::pin(producer.send(&to, record).await));
        }
        Ok(sent)
    }
}

/// Rows on their way to the log.
#[derive(Default)]
pub(super) struct InFlight(Vec<BoxFuture<'static, Delivered>>);

impl InFlight {
    /// More of them.
    pub fn extend(&mut self, more: InFlight) {
        self.0.extend(more.0);
    }

    /// Waits until all of them are in the log.
    pub async fn arrive(self) -> Result<(), SinkError> {
        for delivered in self.0 {
            delivered.await?;
        }
        Ok(())
    }
}
