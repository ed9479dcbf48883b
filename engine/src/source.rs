//! Source tasks: a partition in, through a chain of operators, out to the window tasks.
//!
//! Records that the chain rejects become dead letters, with reason, source partition and offset. They are
//! acknowledged before a checkpoint that has passed them; after a restore they may be written again, and
//! are told apart by (partition, offset).

use crate::{
    checkpoint::{Store, TaskSnapshot},
    exchange::Outputs,
    host::Clock,
    ids::{CheckpointId, EventTime, Offset},
    log::{
        consumer::Consumer,
        producer::{Delivered, Producer},
        TopicPartition,
    },
    operator::{window::Keyed, Reject, Stage},
    record::{Message, NewRecord, Record, Timed},
    task::{Control, TaskError, TaskLink},
};
use bytes::Bytes;
use futures::{future::BoxFuture, select_biased, FutureExt};
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Polls that are read ahead.
const READ_AHEAD: usize = 2;

/// What a source's snapshot holds.
#[derive(Serialize, Deserialize)]
struct SourceState<S> {
    position: Offset,
    stage: S,
}

/// The task that reads one partition.
pub(crate) struct Source<S, T, K> {
    pub name: String,
    pub from: TopicPartition,
    pub stage: S,
    pub key: Arc<dyn Fn(&T) -> K + Send + Sync>,
    pub outputs: Outputs<Keyed<K, T>>,
    pub dead_letters: DeadLetters,
    pub store: Store,
}

impl<S, T, K> Source<S, T, K>
where
    S: Stage<Out = Timed<T>>,
    T: Send + 'static,
    K: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Goes on from a snapshot.
    pub async fn restore(&mut self, object: &str) -> Result<Offset, TaskError> {
        let state: SourceState<S::State> = self.store.read_state(object).await?;
        self.stage.restore(state.stage);
        Ok(state.position)
    }

    /// Reads from `position` on, for ever.
    pub async fn run(
        mut self,
        consumer: Consumer,
        mut link: TaskLink,
    ) -> Result<std::convert::Infallible, TaskError> {
        let mut position = consumer.position();
        let (sender, mut polled) = mpsc::channel(READ_AHEAD);
        let _reading = link.spawn(read_ahead(consumer, sender));
        let mut sent = EventTime(i64::MIN);
        if self.stage.watermark() > sent {
            sent = self.stage.watermark();
            self.outputs.send_all(|| Message::Watermark(sent)).await?;
        }
        loop {
            let event = select_biased! {
                control = link.next().fuse() => Event::Control(control?),
                records = polled.recv().fuse() => Event::Records(records),
            };
            match event {
                Event::Control(Control::Barrier(checkpoint)) => {
                    self.barrier(checkpoint, position, &mut link).await?;
                }
                Event::Control(Control::Complete(_)) => {}
                Event::Records(None) => return Err(TaskError::Ended("its reader")),
                Event::Records(Some(records)) => {
                    let records: Vec<Record> = records?;
                    let Some(last) = records.last() else { continue };
                    position = last.offset.plus(1);
                    self.process(records).await?;
                    if self.stage.watermark() > sent {
                        sent = self.stage.watermark();
                        self.outputs.send_all(|| Message::Watermark(sent)).await?;
                    }
                }
            }
        }
    }

    async fn process(&mut self, records: Vec<Record>) -> Result<(), TaskError> {
        let mut out = Vec::new();
        for record in records {
            match self.stage.process(&record) {
                Ok(None) => {}
                Ok(Some(Timed { time, value })) => {
                    let key = (self.key)(&value);
                    out.push(Keyed { key, time, value });
                }
                Err(reject) => self.dead_letters.send(&self.from, &record, &reject).await,
            }
        }
        self.outputs.send_by(out, |keyed| &keyed.key).await?;
        Ok(())
    }

    async fn barrier(
        &mut self,
        checkpoint: CheckpointId,
        position: Offset,
        link: &mut TaskLink,
    ) -> Result<(), TaskError> {
        // The barrier says that what came before it is done; so the dead letters come first.
        self.dead_letters.flush().await?;
        self.outputs
            .send_all(|| Message::Barrier(checkpoint))
            .await?;
        let state = SourceState {
            position,
            stage: self.stage.snapshot(),
        };
        let object = self
            .store
            .write_state(checkpoint, &self.name, &state)
            .await?;
        tracing::info!(
            name: "source.snapshot",
            task = %self.name,
            checkpoint = checkpoint.0,
            position = position.0
        );
        let snapshot = TaskSnapshot {
            object,
            position: Some((self.from.partition, position)),
            prepared: None,
        };
        link.ack(checkpoint, snapshot).await
    }
}

enum Event<R> {
    Control(Control),
    Records(R),
}

async fn read_ahead(
    mut consumer: Consumer,
    sender: mpsc::Sender<Result<Vec<Record>, crate::log::consumer::FetchError>>,
) {
    loop {
        let polled = consumer.poll().await;
        let failed = polled.is_err();
        let empty = polled.as_ref().is_ok_and(Vec::is_empty);
        if !empty && sender.send(polled).await.is_err() || failed {
            return;
        }
    }
}

/// Where rejected records go.
pub(crate) struct DeadLetters {
    producer: Producer,
    clock: Arc<dyn Clock>,
    to: TopicPartition,
    in_flight: Vec<BoxFuture<'static, Delivered>>,
}

impl DeadLetters {
    pub fn new(producer: Producer, clock: Arc<dyn Clock>, to: TopicPartition) -> Self {
        DeadLetters {
            producer,
            clock,
            to,
            in_flight: Vec::new(),
        }
    }

    async fn send(&mut self, from: &TopicPartition, record: &Record, reject: &Reject) {
        let reason = reject.reason();
        tracing::info!(
            name: "source.dead-letter",
            from = %from,
            offset = record.offset.0,
            reason = %reason
        );
        let letter = NewRecord {
            key: record.key.clone(),
            value: record.value.clone(),
            headers: vec![
                ("reason".to_owned(), Bytes::from(reason)),
                ("source".to_owned(), Bytes::from(from.to_string())),
                ("offset".to_owned(), Bytes::from(record.offset.to_string())),
            ],
            timestamp_ms: self.clock.now_ms(),
        };
        let delivered = self.producer.send(&self.to, letter).await;
        self.in_flight.push(Box::pin(delivered));
    }

    async fn flush(&mut self) -> Result<(), TaskError> {
        for delivered in self.in_flight.drain(..) {
            delivered.await?;
        }
        Ok(())
    }
}
