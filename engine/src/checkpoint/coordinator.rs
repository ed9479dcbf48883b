//! Pure: which checkpoint is under way, and who it waits for. One after the other: each ends with the commit of its
//! output, so that no sink ever has two of them to commit.

use super::{TaskName, TaskSnapshot};
use crate::ids::CheckpointId;
use std::collections::{BTreeMap, BTreeSet};

/// Collects what the tasks say about one checkpoint after the other.
#[derive(Clone, Debug)]
pub struct Coordinator {
    tasks: BTreeSet<TaskName>,
    phase: Phase,
}

/// Where a checkpoint is in its life: see the table in [`checkpoint`](super).
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Collecting(CheckpointId, BTreeMap<TaskName, TaskSnapshot>),
    Storing(CheckpointId),
    Committing(CheckpointId, BTreeSet<TaskName>),
}

/// Something that a task says makes no sense: the attempt is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{task} has {what} checkpoint {checkpoint}: {why}")]
pub struct AckError {
    task: TaskName,
    what: &'static str,
    checkpoint: CheckpointId,
    why: &'static str,
}

impl Coordinator {
    /// For a job of these tasks.
    pub fn new(tasks: impl IntoIterator<Item = TaskName>) -> Self {
        Coordinator {
            tasks: tasks.into_iter().collect(),
            phase: Phase::Idle,
        }
    }

    /// Whether no checkpoint is under way.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Begins a checkpoint.
    pub fn begin(&mut self, checkpoint: CheckpointId) {
        assert!(self.is_idle(), "a checkpoint is under way");
        self.phase = Phase::Collecting(checkpoint, BTreeMap::new());
    }

    /// Who it waits for.
    pub fn missing(&self) -> Vec<&TaskName> {
        match &self.phase {
            Phase::Idle | Phase::Storing(_) => Vec::new(),
            Phase::Collecting(_, acked) => {
                let missing = |task: &&TaskName| !acked.contains_key(*task);
                self.tasks.iter().filter(missing).collect()
            }
            Phase::Committing(_, waits) => waits.iter().collect(),
        }
    }

    /// A task has stored its part; with the last one, the parts of all: they are to be stored as one.
    pub fn ack(
        &mut self,
        task: TaskName,
        checkpoint: CheckpointId,
        snapshot: TaskSnapshot,
    ) -> Result<Option<BTreeMap<TaskName, TaskSnapshot>>, AckError> {
        let wrong = |why| AckError {
            task: task.clone(),
            what: "stored its part of",
            checkpoint,
            why,
        };
        if !self.tasks.contains(&task) {
            return Err(wrong("it is no task of the job"));
        }
        let Phase::Collecting(current, acked) = &mut self.phase else {
            return Err(wrong("none is being collected"));
        };
        if *current != checkpoint {
            return Err(wrong("another one is under way"));
        }
        if acked.insert(task.clone(), snapshot).is_some() {
            return Err(wrong("it has done so before"));
        }
        if acked.len() < self.tasks.len() {
            return Ok(None);
        }
        let acked = std::mem::take(acked);
        self.phase = Phase::Storing(checkpoint);
        Ok(Some(acked))
    }

    /// The manifest is durable.
    pub fn complete(&mut self, checkpoint: CheckpointId) {
        assert_eq!(self.phase, Phase::Storing(checkpoint), "all are there");
        self.phase = Phase::Committing(checkpoint, self.tasks.clone());
    }

    /// A task's sink has committed; whether it was the last one.
    pub fn committed(
        &mut self,
        task: TaskName,
        checkpoint: CheckpointId,
    ) -> Result<bool, AckError> {
        let wrong = |why| AckError {
            task: task.clone(),
            what: "committed",
            checkpoint,
            why,
        };
        let Phase::Committing(current, waits) = &mut self.phase else {
            return Err(wrong("none is complete"));
        };
        if *current != checkpoint {
            return Err(wrong("another one is"));
        }
        if !waits.remove(&task) {
            return Err(wrong("it has done so before, or is no task of the job"));
        }
        let last = waits.is_empty();
        if last {
            self.phase = Phase::Idle;
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Prepared;

    #[test]
    fn a_checkpoint_is_over_when_every_task_has_stored_and_committed_once() {
        let snapshot = TaskSnapshot {
            object: "o".into(),
            position: None,
            groups: None,
            prepared: Prepared::default(),
        };
        let id = CheckpointId(2);
        let mut coordinator = Coordinator::new(["a".to_owned(), "b".to_owned()]);
        let ack = |coordinator: &mut Coordinator, task: &str, id| {
            coordinator.ack(task.into(), CheckpointId(id), snapshot.clone())
        };
        assert!(ack(&mut coordinator, "a", 1).is_err(), "none is under way");
        coordinator.begin(id);
        assert!(ack(&mut coordinator, "a", 1).is_err(), "another one");
        assert!(ack(&mut coordinator, "c", 2).is_err(), "no task of the job");
        assert_eq!(ack(&mut coordinator, "a", 2), Ok(None));
        assert!(ack(&mut coordinator, "a", 2).is_err(), "twice");
        assert!(coordinator.committed("a".into(), id).is_err(), "too early");
        assert_eq!(coordinator.missing(), ["b"]);
        assert_eq!(ack(&mut coordinator, "b", 2).unwrap().unwrap().len(), 2);
        assert!(ack(&mut coordinator, "b", 2).is_err(), "it is being stored");
        coordinator.complete(id);
        assert_eq!(coordinator.committed("b".into(), id), Ok(false));
        assert!(coordinator.committed("b".into(), id).is_err(), "twice");
        assert!(!coordinator.is_idle());
        assert_eq!(coordinator.committed("a".into(), id), Ok(true));
        assert!(coordinator.is_idle());
    }
}
