//! Tasks: what they are told and say, their part in a checkpoint, and the window task.

use crate::{
    barrier::{Aligner, Alignment},
    checkpoint::{
        store::{encode_state, StoreError},
        Complete, Store, TaskName, TaskSnapshot,
    },
    exchange::{EdgeClosed, Inputs},
    failure::Failure,
    graph::{Fold, ToRow},
    ids::{CheckpointId, EventTime, Offset, PartitionId},
    log::consumer::FetchError,
    operator::window::{Fired, Keyed, Windows},
    record::Message,
    sink::{Row, Sink, SinkError},
    state::KeyGroups,
};
use futures::{future::BoxFuture, select_biased, stream::FuturesOrdered, FutureExt, StreamExt};
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    ops::Range,
    sync::{Arc, Mutex},
};
use tokio::sync::{mpsc, oneshot};

/// What a task is told.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    /// Sources: send a barrier.
    Barrier(CheckpointId),
    /// A checkpoint is complete.
    Complete(Complete),
    /// Sources: the partitions that are not idle have come to this watermark.
    Others(EventTime),
}

/// What a task says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It has stored its part of a checkpoint.
    Ack {
        task: TaskName,
        checkpoint: CheckpointId,
        snapshot: TaskSnapshot,
    },
    /// Its sink has committed a checkpoint.
    Committed {
        task: TaskName,
        checkpoint: CheckpointId,
    },
    /// Its input has ended, and it has said so to all behind it.
    Finished { task: TaskName },
    /// It cannot go on.
    Failed { task: TaskName, failure: Failure },
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
    /// Its partition.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A task that it sends to or receives from.
    #[error(transparent)]
    Edge(#[from] EdgeClosed),
    /// Barriers came out of order.
    #[error("barriers out of order at checkpoint {0}")]
    Barriers(CheckpointId),
    /// A part of it, or its worker, has ended.
    #[error("{0} has ended")]
    Ended(&'static str),
}

impl TaskError {
    fn failure(&self) -> Failure {
        match self {
            TaskError::Store(error) => error.into(),
            TaskError::Sink(error) => error.into(),
            TaskError::Fetch(error) => error.into(),
            error @ (TaskError::Edge(_) | TaskError::Barriers(_) | TaskError::Ended(_)) => {
                Failure::Passing(error.to_string())
            }
        }
    }
}

/// How far the sources of a worker are: the watermark of each partition, and whether it is idle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<Mutex<BTreeMap<PartitionId, (EventTime, bool)>>>);

impl Progress {
    pub fn set(&self, partition: PartitionId, watermark: EventTime, idle: bool) {
        let mut all = self.0.lock().expect("progress");
        all.insert(partition, (watermark, idle));
    }

    pub fn all(&self) -> BTreeMap<PartitionId, (EventTime, bool)> {
        self.0.lock().expect("progress").clone()
    }
}

/// A task's way to its worker.
pub(crate) struct TaskLink {
    pub name: TaskName,
    pub control: mpsc::Receiver<Control>,
    pub reports: mpsc::Sender<Report>,
}

impl TaskLink {
    /// What it is told next.
    pub async fn next(&mut self) -> Result<Control, TaskError> {
        self.control
            .recv()
            .await
            .ok_or(TaskError::Ended("the worker"))
    }

    /// Says something.
    pub async fn report(&self, report: Report) -> Result<(), TaskError> {
        let sent = self.reports.send(report).await;
        sent.map_err(|_| TaskError::Ended("the worker"))
    }
}

/// A task that runs until something goes wrong, or its worker wants it to end.
pub(crate) trait Task: Send + 'static {
    /// Runs, for ever.
    fn run(&mut self, link: TaskLink)
        -> impl Future<Output = Result<Infallible, TaskError>> + Send;

    /// Where its output goes.
    fn sink(&mut self) -> &mut dyn Sink;
}

/// A task that is running. When this is dropped it ends, and aborts what its sink has open.
pub(crate) struct Running {
    _end: oneshot::Sender<()>,
}

/// Starts a task; its error goes to the worker.
pub(crate) fn start(mut task: impl Task, link: TaskLink) -> Running {
    let (_end, ended) = oneshot::channel::<()>();
    let (name, reports) = (link.name.clone(), link.reports.clone());
    tokio::spawn(async move {
        let error = select_biased! {
            _ = ended.fuse() => None,
            error = task.run(link).fuse() => Some(error),
        };
        task.sink().abort().await;
        if let Some(Err(error)) = error {
            let failed = Report::Failed {
                task: name,
                failure: error.failure(),
            };
            // If the worker has ended, nobody needs to know.
            let _ = reports.send(failed).await;
        }
    });
    Running { _end }
}

/// A task's part in checkpoints: its state is stored and its sink prepares and commits while it goes on.
pub(crate) struct Checkpointing {
    pub name: TaskName,
    pub store: Store,
    pub sink: Box<dyn Sink>,
    under_way: FuturesOrdered<BoxFuture<'static, Result<Report, TaskError>>>,
}

impl Checkpointing {
    pub fn new(name: TaskName, store: Store, sink: Box<dyn Sink>) -> Self {
        Checkpointing {
            name,
            store,
            sink,
            under_way: FuturesOrdered::new(),
        }
    }

    /// The barrier of a checkpoint has come: the state is this, and what the sink was given belongs to it.
    pub fn begin(
        &mut self,
        checkpoint: CheckpointId,
        state: Vec<u8>,
        position: Option<(PartitionId, Offset)>,
        groups: Option<Range<u32>>,
    ) {
        let (store, task) = (self.store.clone(), self.name.clone());
        let preparing = self.sink.prepare(checkpoint);
        self.under_way.push_back(Box::pin(async move {
            let storing = store.write_state(checkpoint, &task, state);
            let storing = async { Ok(storing.await?) };
            let preparing = async {
                let prepared = preparing.await?;
                tracing::info!(
                    name: "sink.prepared",
                    task = %task,
                    checkpoint = checkpoint.0,
                    rows = prepared.rows,
                    handle = prepared.transaction.is_some() || prepared.object.is_some()
                );
                Ok::<_, TaskError>(prepared)
            };
            let (object, prepared) = futures::future::try_join(storing, preparing).await?;
            let snapshot = TaskSnapshot {
                object,
                position,
                groups,
                prepared,
            };
            Ok(Report::Ack {
                task,
                checkpoint,
                snapshot,
            })
        }));
    }

    /// A checkpoint is complete.
    pub fn commit(&mut self, complete: &Complete) {
        let (task, checkpoint) = (self.name.clone(), complete.checkpoint());
        let committing = self.sink.commit(complete);
        self.under_way.push_back(Box::pin(async move {
            committing.await?;
            tracing::info!(name: "sink.committed", task = %task, checkpoint = checkpoint.0);
            Ok(Report::Committed { task, checkpoint })
        }));
    }

    /// What is to be said next; never, if nothing is under way.
    pub async fn next(&mut self) -> Result<Report, TaskError> {
        match self.under_way.next().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }
}

/// The task that holds the windows of some keys.
pub(crate) struct WindowTask<T, K: Ord, A> {
    pub inputs: Inputs<Keyed<K, T>>,
    pub windows: Windows<K, A>,
    pub key_groups: KeyGroups,
    pub groups: Range<u32>,
    pub fold: Fold<A, T>,
    pub row: ToRow<K, A>,
    pub checkpointing: Checkpointing,
    /// The objects that it goes on from.
    pub restore: Vec<String>,
}

impl<T, K, A> Task for WindowTask<T, K, A>
where
    T: Send + 'static,
    K: Ord + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    A: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    async fn run(&mut self, mut link: TaskLink) -> Result<Infallible, TaskError> {
        self.restore().await?;
        let mut aligner = Aligner::new(self.inputs.len());
        loop {
            let event = select_biased! {
                control = link.next().fuse() => Event::Control(control?),
                report = self.checkpointing.next().fuse() => Event::Report(report?),
                message = self.inputs.next(|input| aligner.is_waiting(input)).fuse() => {
                    let (input, message) = message?;
                    Event::Message(input, message)
                }
            };
            match event {
                Event::Control(Control::Complete(complete)) => self.checkpointing.commit(&complete),
                Event::Control(_) => {}
                Event::Report(report) => link.report(report).await?,
                Event::Message(_, Message::Batch(batch)) => {
                    for keyed in batch {
                        self.windows.add(keyed, &*self.fold);
                    }
                    let corrected = self.windows.corrections();
                    if !corrected.is_empty() {
                        let (task, count) = (&self.checkpointing.name, corrected.len());
                        tracing::info!(name: "window.corrected", task = %task, count);
                        self.write(corrected).await?;
                    }
                }
                Event::Message(input, Message::Watermark(watermark)) => {
                    let fired = self.windows.advance(input, watermark);
                    if !fired.is_empty() {
                        let (task, count) = (&self.checkpointing.name, fired.len());
                        tracing::info!(name: "window.fired", task = %task, count);
                        self.write(fired).await?;
                    }
                }
                Event::Message(input, Message::Barrier(id)) => match aligner.barrier(input, id) {
                    Alignment::Waits => {}
                    Alignment::OutOfOrder => return Err(TaskError::Barriers(id)),
                    Alignment::Aligned(id) => self.snapshot(id),
                },
            }
        }
    }

    fn sink(&mut self) -> &mut dyn Sink {
        &mut *self.checkpointing.sink
    }
}

impl<T, K, A> WindowTask<T, K, A>
where
    T: Send + 'static,
    K: Ord + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    A: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Takes its groups out of the snapshots of whoever had them.
    async fn restore(&mut self) -> Result<(), TaskError> {
        for object in std::mem::take(&mut self.restore) {
            let snapshot = self.checkpointing.store.read_state(&object).await?;
            let restored = self
                .windows
                .restore(snapshot, &self.groups, self.key_groups);
            restored.map_err(|what| StoreError::Damaged { path: object, what })?;
        }
        Ok(())
    }

    async fn write(&mut self, fired: Vec<Fired<K, A>>) -> Result<(), TaskError> {
        let row = |fired: &Fired<K, A>| Row {
            pane: fired.pane,
            ..(self.row)(fired)
        };
        let rows: Vec<Row> = fired.iter().map(row).collect();
        Ok(self.checkpointing.sink.write(rows).await?)
    }

    fn snapshot(&mut self, id: CheckpointId) {
        tracing::info!(
            name: "window.aligned",
            task = %self.checkpointing.name,
            checkpoint = id.0,
            watermark = self.windows.watermark().0,
            fingerprint = self.windows.fingerprint()
        );
        let state = encode_state(&self.windows.snapshot(self.key_groups));
        self.checkpointing
            .begin(id, state, None, Some(self.groups.clone()));
    }
}

enum Event<T> {
    Control(Control),
    Report(Report),
    Message(usize, Message<T>),
}
