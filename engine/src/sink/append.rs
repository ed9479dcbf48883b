//! `append`: a topic. What is written is there, as often as it was written.
//!
//! For at-least-once, rows are written at once, and acknowledged before the checkpoint is: after a restore
//! those since the last checkpoint are written again. For at-most-once, rows wait until their
//! checkpoint is complete; a crash before they are written loses them, and nothing writes them again.

use super::{Prepared, Row, Sink, SinkError};
use crate::{
    checkpoint::Complete,
    exchange::stable_hash,
    host::Clock,
    ids::{CheckpointId, PartitionId},
    log::{
        producer::{Delivered, Producer},
        TopicPartition,
    },
    record::NewRecord,
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::sync::Arc;

/// When rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// As they come.
    AtOnce,
    /// Once their checkpoint is complete.
    Complete,
}

/// A task's output as records.
pub struct Append {
    producer: Producer,
    clock: Arc<dyn Clock>,
    topic: String,
    partitions: i32,
    when: When,
    in_flight: Vec<BoxFuture<'static, Delivered>>,
    /// Rows that wait, for which checkpoint.
    waiting: Vec<(Option<CheckpointId>, Row)>,
    rows: u64,
}

impl Append {
    /// Writes to a topic.
    pub fn new(
        producer: Producer,
        clock: Arc<dyn Clock>,
        topic: &str,
        partitions: i32,
        when: When,
    ) -> Self {
        Append {
            producer,
            clock,
            topic: topic.to_owned(),
            partitions,
            when,
            in_flight: Vec::new(),
            waiting: Vec::new(),
            rows: 0,
        }
    }

    async fn send(&mut self, row: Row) {
        let partition = stable_hash(&row.key) % self.partitions as u64;
        let to = TopicPartition::new(&self.topic, PartitionId(partition as i32));
        let record = NewRecord {
            key: Some(row.key.clone().into()),
            value: Some(row.bytes()),
            headers: Vec::new(),
            timestamp_ms: self.clock.now_ms(),
        };
        let delivered = self.producer.send(&to, record).await;
        self.in_flight.push(Box::pin(delivered));
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        for delivered in self.in_flight.drain(..) {
            delivered.await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for Append {
    async fn write(&mut self, rows: Vec<Row>) -> Result<(), SinkError> {
        self.rows += rows.len() as u64;
        for row in rows {
            match self.when {
                When::AtOnce => self.send(row).await,
                When::Complete => self.waiting.push((None, row)),
            }
        }
        Ok(())
    }

    async fn prepare(&mut self, checkpoint: CheckpointId) -> Result<Prepared, SinkError> {
        self.flush().await?;
        for (of, _) in &mut self.waiting {
            of.get_or_insert(checkpoint);
        }
        let rows = std::mem::take(&mut self.rows);
        Ok(Prepared { object: None, rows })
    }

    async fn commit(&mut self, complete: &Complete) -> Result<(), SinkError> {
        let until = Some(complete.checkpoint());
        let (ready, later): (Vec<_>, Vec<_>) = (std::mem::take(&mut self.waiting).into_iter())
            .partition(|(of, _)| of.is_some() && *of <= until);
        self.waiting = later;
        for (_, row) in ready {
            self.send(row).await;
        }
        self.flush().await
    }
}
