//! Tasks: what a job's coordinator and its tasks say to each other, and the window task.

use crate::{
    barrier::{Aligner, Alignment},
    checkpoint::{store::StoreError, Complete, Store, TaskSnapshot},
    exchange::{EdgeClosed, Inputs},
    graph::{Fold, ToRow},
    ids::CheckpointId,
    log::{consumer::FetchError, producer::SendError},
    operator::window::{Keyed, Windows},
    record::Message,
    sink::{Row, Sink, SinkError},
};
use futures::{select_biased, FutureExt};
use serde::{de::DeserializeOwned, Serialize};
use std::future::Future;
use tokio::{sync::mpsc, task::JoinHandle};

/// What a coordinator says to a task.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    /// Sources: send a barrier.
    Barrier(CheckpointId),
    /// A checkpoint is complete.
    Complete(Complete),
}

/// What a task says to its coordinator.
#[derive(Debug)]
pub(crate) enum Report {
    /// It has stored its part of a checkpoint.
    Ack(String, CheckpointId, TaskSnapshot),
    /// It cannot go on.
    Failed(String, TaskError),
}

/// Why a task cannot go on. Its attempt ends.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The object store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its sink.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// Its dead letters.
    #[error("dead letters: {0}")]
    DeadLetters(#[from] SendError),
    /// Its partition.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A task that it sends to or receives from.
    #[error(transparent)]
    Edge(#[from] EdgeClosed),
    /// Barriers came out of order.
    #[error("barriers out of order at checkpoint {0}")]
    Barriers(CheckpointId),
    /// A part of it, or its coordinator, has ended.
    #[error("{0} has ended")]
    Ended(&'static str),
}

/// A task's way to its coordinator.
pub(crate) struct TaskLink {
    pub name: String,
    pub control: mpsc::Receiver<Control>,
    pub reports: mpsc::Sender<Report>,
}

impl TaskLink {
    /// What the coordinator says next.
    pub async fn next(&mut self) -> Result<Control, TaskError> {
        self.control
            .recv()
            .await
            .ok_or(TaskError::Ended("the coordinator"))
    }

    /// Tells the coordinator that this task's part of a checkpoint is stored.
    pub async fn ack(
        &mut self,
        checkpoint: CheckpointId,
        snapshot: TaskSnapshot,
    ) -> Result<(), TaskError> {
        let report = Report::Ack(self.name.clone(), checkpoint, snapshot);
        self.reports
            .send(report)
            .await
            .map_err(|_| TaskError::Ended("the coordinator"))
    }

    /// Spawns a part of the task, which ends with it.
    pub fn spawn(&self, part: impl Future<Output = ()> + Send + 'static) -> Part {
        Part(tokio::spawn(part))
    }
}

/// Something spawned that ends when this is dropped.
pub(crate) struct Part(pub JoinHandle<()>);

impl Drop for Part {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The task that holds the windows of some keys.
pub(crate) struct WindowTask<T, K: Ord, A> {
    pub name: String,
    pub inputs: Inputs<Keyed<K, T>>,
    pub windows: Windows<K, A>,
    pub fold: Fold<A, T>,
    pub row: ToRow<K, A>,
    pub sink: Box<dyn Sink>,
    pub store: Store,
}

impl<T, K, A> WindowTask<T, K, A>
where
    T: Send + 'static,
    K: Ord + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    A: Default + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Goes on from a snapshot.
    pub async fn restore(&mut self, object: &str) -> Result<(), TaskError> {
        let windows: Windows<K, A> = self.store.read_state(object).await?;
        if windows.inputs() != self.inputs.len() {
            return Err(TaskError::Store(StoreError::Damaged {
                path: object.to_owned(),
                what: format!(
                    "it is of {} source partitions, there are {}",
                    windows.inputs(),
                    self.inputs.len()
                ),
            }));
        }
        self.windows = windows;
        Ok(())
    }

    /// Takes what comes, for ever.
    pub async fn run(mut self, mut link: TaskLink) -> Result<std::convert::Infallible, TaskError> {
        let mut aligner = Aligner::new(self.inputs.len());
        loop {
            let event = select_biased! {
                control = link.next().fuse() => Event::Control(control?),
                message = self.inputs.next(|input| aligner.is_waiting(input)).fuse() => {
                    let (input, message) = message?;
                    Event::Message(input, message)
                }
            };
            match event {
                Event::Control(Control::Barrier(_)) => {}
                Event::Control(Control::Complete(complete)) => {
                    self.sink.commit(&complete).await?;
                    tracing::info!(
                        name: "sink.committed",
                        task = %self.name,
                        checkpoint = complete.checkpoint().0
                    );
                }
                Event::Message(_, Message::Batch(batch)) => {
                    for keyed in batch {
                        self.windows.add(keyed, &*self.fold);
                    }
                }
                Event::Message(input, Message::Watermark(watermark)) => {
                    let fired = self.windows.advance(input, watermark);
                    if !fired.is_empty() {
                        let count = fired.len() as u64;
                        tracing::info!(name: "window.fired", task = %self.name, count);
                        let rows: Vec<Row> = fired.iter().map(|fired| (self.row)(fired)).collect();
                        self.sink.write(rows).await?;
                    }
                }
                Event::Message(input, Message::Barrier(id)) => match aligner.barrier(input, id) {
                    Alignment::Waits => {}
                    Alignment::OutOfOrder => return Err(TaskError::Barriers(id)),
                    Alignment::Aligned(id) => self.snapshot(id, &mut link).await?,
                },
            }
        }
    }

    async fn snapshot(&mut self, id: CheckpointId, link: &mut TaskLink) -> Result<(), TaskError> {
        tracing::info!(name: "window.aligned", task = %self.name, checkpoint = id.0);
        let object = self
            .store
            .write_state(id, &self.name, &self.windows)
            .await?;
        let prepared = self.sink.prepare(id).await?;
        tracing::info!(
            name: "sink.prepared",
            task = %self.name,
            checkpoint = id.0,
            rows = prepared.rows
        );
        let snapshot = TaskSnapshot {
            object,
            position: None,
            prepared: Some(prepared),
        };
        link.ack(id, snapshot).await
    }
}

enum Event<T> {
    Control(Control),
    Message(usize, Message<T>),
}
