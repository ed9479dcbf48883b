//! The life of a checkpoint.
//!
//! | state | what happens | then |
//! |---|---|---|
//! | idle | the interval has passed: barriers go into the sources | collecting |
//! | collecting | a task has stored its snapshot, its sink has prepared, and acknowledges | collecting, or storing with the last |
//! | storing | the manifest is created, if its place in the manifest log is free: complete | committing |
//! | committing | a sink has committed | committing, or idle with the last |
//! | any | a task fails, a worker is lost, a timeout passes, the place is taken | the attempt ends |
//!
//! An attempt whose checkpoint fails ends with it: the next one fences it, reads the newest manifest, commits
//! what that has prepared, and goes on from there ([`recovery`]).

pub mod coordinator;
pub mod identity;
pub mod recovery;
mod sealed;
pub mod shape;
pub mod store;

pub use identity::Identity;
pub use shape::JobShape;
pub use store::{Complete, Store};

use crate::{
    ids::{AttemptId, CheckpointId, Offset, PartitionId},
    sink::Prepared,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::Range};

/// A task of a job by its name, for example `source-0` or `window-1`.
pub type TaskName = String;

/// What a task gives for a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSnapshot {
    /// The object that holds its state.
    pub object: String,
    /// How far it has read, if it is a source.
    pub position: Option<(PartitionId, Offset)>,
    /// The groups of its keys, if it is not.
    pub groups: Option<Range<u32>>,
    /// What its sink has prepared.
    pub prepared: Prepared,
}

/// An entry of the manifest log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// An attempt has begun: no earlier one can add an entry any more.
    Begun {
        /// The process that runs it.
        instance: String,
        /// The checkpoint that it goes on from.
        restores: Option<CheckpointId>,
    },
    /// A checkpoint is complete.
    Complete(Manifest),
    /// The job has been stopped behind a complete checkpoint, and its output is committed: it can go on from there.
    Stopped(CheckpointId),
    /// The input has ended, and the output is committed.
    Finished(CheckpointId),
    /// The job cannot go on without loss: why, and what to do.
    Halted(String),
}

/// What a complete checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Which checkpoint.
    pub checkpoint: CheckpointId,
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// The process that ran it.
    pub instance: String,
    /// Its objects are kept until somebody removes them.
    pub savepoint: bool,
    /// The job that it is of.
    pub job: JobShape,
    /// The snapshots of all tasks.
    pub tasks: BTreeMap<TaskName, TaskSnapshot>,
}

impl Manifest {
    /// How far each partition was read.
    pub fn positions(&self) -> BTreeMap<PartitionId, Offset> {
        self.tasks
            .values()
            .filter_map(|task| task.position)
            .collect()
    }

    /// The rows that it made visible.
    pub fn rows(&self) -> u64 {
        self.tasks.values().map(|task| task.prepared.rows).sum()
    }
}
