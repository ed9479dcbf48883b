//! `append`: a topic. What is written is there, as often as it was written.
//!
//! For at-least-once, rows are written at once, and acknowledged before the checkpoint is: after a restore
//! those since the last checkpoint are written again. For at-most-once, rows wait until their
//! checkpoint is complete; a crash before they are written loses them, and nothing writes them again.

use super::{
    topic::InFlight, OnDemand, OutputTopic, Phase, Prepared, Row, Sink, SinkError, Waiting,
};
use crate::{checkpoint::Complete, ids::CheckpointId};
use async_trait::async_trait;

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
    producer: OnDemand,
    topic: OutputTopic,
    when: When,
    in_flight: InFlight,
    rows: Vec<Row>,
    count: u64,
    waiting: Waiting<Vec<Row>>,
}

impl Append {
    /// Writes to a topic.
    pub fn new(producer: OnDemand, topic: OutputTopic, when: When) -> Self {
        Append {
            producer,
            topic,
            when,
            in_flight: InFlight::default(),
            rows: Vec::new(),
            count: 0,
            waiting: Waiting::default(),
        }
    }
}

#[async_trait]
impl Sink for Append {
    async fn write(&mut self, rows: Vec<Row>) -> Result<(), SinkError> {
        self.count += rows.len() as u64;
        match self.when {
            When::AtOnce => {
                let sent = self.producer.send(&self.topic, rows).await?;
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
            in_flight.arrive().await?;
            Ok(prepared)
        })
    }

    fn commit(&mut self, complete: &Complete) -> Phase<()> {
        let ready = self.waiting.ready(complete).flatten().collect();
        let (producer, topic) = (self.producer.clone(), self.topic.clone());
        Box::pin(async move { producer.send(&topic, ready).await?.arrive().await })
    }

    async fn abort(&mut self) {}
}
