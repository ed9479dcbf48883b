//! Pure: which checkpoint is under way, and who has not acknowledged it yet.

use super::{TaskName, TaskSnapshot};
use crate::ids::CheckpointId;
use std::collections::{BTreeMap, BTreeSet};

/// Collects the acknowledgements of one checkpoint after the other.
#[derive(Clone, Debug)]
pub struct Coordinator {
    tasks: BTreeSet<TaskName>,
    under_way: Option<(CheckpointId, BTreeMap<TaskName, TaskSnapshot>)>,
}

/// An acknowledgement that makes no sense: the attempt is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{task} acknowledges checkpoint {checkpoint}: {why}")]
pub struct AckError {
    task: TaskName,
    checkpoint: CheckpointId,
    why: &'static str,
}

impl Coordinator {
    /// For a job of these tasks.
    pub fn new(tasks: impl IntoIterator<Item = TaskName>) -> Self {
        Coordinator {
            tasks: tasks.into_iter().collect(),
            under_way: None,
        }
    }

    /// Begins a checkpoint. At most one is under way.
    pub fn begin(&mut self, checkpoint: CheckpointId) {
        assert!(self.under_way.is_none(), "a checkpoint is under way");
        self.under_way = Some((checkpoint, BTreeMap::new()));
    }

    /// Whether a checkpoint is under way.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Who has not acknowledged.
    pub fn missing(&self) -> Vec<&TaskName> {
        let acked = self.under_way.as_ref().map(|(_, acked)| acked);
        let missing = |task: &&TaskName| acked.is_none_or(|acked| !acked.contains_key(*task));
        self.tasks.iter().filter(missing).collect()
    }

    /// A task acknowledges; with the last one, the snapshots of all.
    pub fn ack(
        &mut self,
        task: TaskName,
        checkpoint: CheckpointId,
        snapshot: TaskSnapshot,
    ) -> Result<Option<BTreeMap<TaskName, TaskSnapshot>>, AckError> {
        let wrong = |why| AckError {
            task: task.clone(),
            checkpoint,
            why,
        };
        if !self.tasks.contains(&task) {
            return Err(wrong("it is no task of the job"));
        }
        let Some((current, acked)) = &mut self.under_way else {
            return Err(wrong("none is under way"));
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
        let (_, acked) = self.under_way.take().expect("it is under way");
        Ok(Some(acked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_whole_when_every_task_has_acknowledged_it_once() {
        let snapshot = TaskSnapshot {
            object: "o".into(),
            position: None,
            prepared: None,
        };
        let mut coordinator = Coordinator::new(["a".to_owned(), "b".to_owned()]);
        let ack = |coordinator: &mut Coordinator, task: &str, id| {
            coordinator.ack(task.into(), CheckpointId(id), snapshot.clone())
        };
        assert!(ack(&mut coordinator, "a", 1).is_err(), "none is under way");
        coordinator.begin(CheckpointId(2));
        assert!(ack(&mut coordinator, "a", 1).is_err(), "another one");
        assert!(ack(&mut coordinator, "c", 2).is_err(), "no task of the job");
        assert_eq!(ack(&mut coordinator, "a", 2), Ok(None));
        assert!(ack(&mut coordinator, "a", 2).is_err(), "twice");
        assert_eq!(coordinator.missing(), ["b"]);
        assert_eq!(ack(&mut coordinator, "b", 2).unwrap().unwrap().len(), 2);
        assert!(!coordinator.is_under_way());
    }
}
