//! `append`: a topic. What is written is there, as often as it was written.
//!
//! For at-least-once, rows are written at once, and acknowledged before the checkpoint is: after a restore
//! those since the last checkpoint are written again. For at-most-once, rows wait until their
//! checkpoint is complete; a crash before they are written loses them, and nothing writes them again.

use super::{OutputTopic, Phase, Prepared, Row, Sink, SinkError};
use crate::{
    checkpoint::Complete,
    ids::CheckpointId,
    log::producer::{Delivered, Producer},
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::{collections::BTreeMap, sync::Arc};

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
    producer: Arc<Producer>,
    topic: OutputTopic,
    when: When,
    in_flight: Vec<BoxFuture<'static, Delivered>>,
    rows: Vec<Row>,
    count: u64,
    /// Rows that wait for their checkpoint.
    waiting: BTreeMap<CheckpointId, Vec<Row>>,
}

impl Append {
    /// Writes to a topic.
    pub fn new(producer: Producer, topic: OutputTopic, when: When) -> Self {
        Append {
            producer: Arc::new(producer),
            topic,
            when,
            in_flight: Vec::new(),
            rows: Vec::new(),
            count: 0,
            waiting: BTreeMap::new(),
        }
    }
}

#[async_trait]
impl Sink for Append {
    async fn write(&mut self, rows: Vec<Row>) -> Result<(), SinkError> {
        self.count += rows.len() as u64;
        match self.when {
            When::AtOnce => {
                let sent = send(&self.producer, &self.topic, rows).await;
                self.in_flight.extend(sent);
            }
            When::Complete => self.rows.extend(rows),
        }
        Ok(())
    }

    fn prepare(&mut self, checkpoint: CheckpointId) -> Phase<Prepared> {
        let rows = std::mem::take(&mut self.rows);
        if !rows.is_empty() {
            self.waiting.insert(checkpoint, rows);
        }
        let prepared = Prepared {
            rows: std::mem::take(&mut self.count),
            ..Prepared::default()
        };
        let in_flight = std::mem::take(&mut self.in_flight);
        Box::pin(async move {
            arrive(in_flight).await?;
            Ok(prepared)
        })
    }

    fn commit(&mut self, complete: &Complete) -> Phase<()> {
        let later = self
            .waiting
            .split_off(&CheckpointId(complete.checkpoint().0 + 1));
        let ready = std::mem::replace(&mut self.waiting, later);
        let (producer, topic) = (self.producer.clone(), self.topic.clone());
        Box::pin(async move {
            let rows = ready.into_values().flatten().collect();
            arrive(send(&producer, &topic, rows).await).await
        })
    }

    async fn abort(&mut self) {}
}

/// Sends rows; what becomes of them.
pub(super) async fn send(
    producer: &Producer,
    topic: &OutputTopic,
    rows: Vec<Row>,
) -> Vec<BoxFuture<'static, Delivered>> {
    let mut in_flight: Vec<BoxFuture<'static, Delivered>> = Vec::new();
    for row in rows {
        let (to, record) = topic.record(row);
        in_flight.push(Box::pin(producer.send(&to, record).await));
    }
    in_flight
}

/// Waits until all of it is in the log.
pub(super) async fn arrive(in_flight: Vec<BoxFuture<'static, Delivered>>) -> Result<(), SinkError> {
    for delivered in in_flight {
        delivered.await?;
    }
    Ok(())
}
