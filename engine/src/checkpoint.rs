//! The life of a checkpoint.
//!
//! | state | what happens | then |
//! |---|---|---|
//! | idle | the interval has passed: barriers go into the sources | collecting |
//! | collecting | a task has stored its snapshot, its sink has prepared, and acknowledges | collecting, or storing with the last |
//! | storing | the manifest is created, if its place in the manifest log is free | complete |
//! | complete | the sinks commit | idle |
//! | any | a task fails, a timeout passes, the place is taken | the attempt ends |
//!
//! An attempt whose checkpoint fails ends with it: the next one fences it, reads the newest manifest, and
//! goes on from there.

pub mod coordinator;
pub mod store;

pub use store::{Complete, Store};

use crate::{
    ids::{AttemptId, CheckpointId, Offset, PartitionId},
    sink::Prepared,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A task of a job by its name, for example `source-0` or `window-1`.
pub type TaskName = String;

/// What a task gives for a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSnapshot {
    /// The object that holds its state.
    pub object: String,
    /// How far it has read, if it is a source.
    pub position: Option<(PartitionId, Offset)>,
    /// What its sink has prepared, if it has one.
    pub prepared: Option<Prepared>,
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
}
