//! What coordinator, workers and people say to each other: frames of these messages ([`link`](crate::link)).

use crate::{
    checkpoint::{JobShape, TaskName},
    ids::{AttemptId, CheckpointId, EventTime, Offset, PartitionId},
    task::Report,
};
use serde::{Deserialize, Serialize};

/// The first message of whoever comes to a coordinator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Hello {
    /// A worker wants tasks.
    Worker {
        instance: String,
        /// Where other workers find it.
        address: String,
        /// What it knows of the job.
        job: JobShape,
    },
    /// Somebody wants the job to stop behind a savepoint.
    Stop,
}

/// What a coordinator says to a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// It knows another job.
    Refused(String),
    /// Run these tasks.
    Deploy(Deployment),
    /// Sources: send a barrier.
    Barrier(CheckpointId),
    /// A checkpoint is complete: see the manifest log.
    Complete(CheckpointId),
    /// The coordinator is there; and the watermark of the partitions that are not idle.
    Beat(Option<EventTime>),
}

/// What a worker says to its coordinator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ToCoordinator {
    /// The worker is there; and how far its sources are, and which are idle.
    Beat(Vec<(PartitionId, EventTime, bool)>),
    /// A task says something.
    Report(Report),
}

/// What a coordinator says to who wants the job to stop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoppedAt(pub CheckpointId);

/// The tasks of an attempt, and who runs them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deployment {
    /// Which attempt.
    pub attempt: AttemptId,
    /// Which of the workers this one is.
    pub me: u32,
    /// Where they are.
    pub workers: Vec<String>,
    /// Each source, by partition.
    pub sources: Vec<Placed>,
    /// Each window task.
    pub windows: Vec<Placed>,
    /// Where the input ends, by partition.
    pub until: Option<Vec<Offset>>,
}

/// A task, who runs it, and what it goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placed {
    pub task: TaskName,
    pub worker: u32,
    pub restore: Vec<String>,
}
