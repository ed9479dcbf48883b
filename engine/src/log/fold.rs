//! A state that is the fold of a partition: what its coordinator knows is what its log says, and nothing
//! else. Live and after a restart, the same task reads the same records and applies them in their order;
//! who has appended something waits until it was applied.

use super::{
    partition::{Isolation, Partition, Portion},
    LogError,
};
use crate::{
    ids::Offset,
    watched::Watched,
    wire::batch::{self, Batch},
};
use std::sync::{Arc, Mutex};

/// What can be folded.
pub trait Folded: Send + 'static {
    /// Takes note of the next batch. The message says what is wrong with it.
    fn apply(&mut self, batch: &Batch) -> Result<(), String>;

    /// A number that tells states apart.
    fn fingerprint(&self) -> u64;
}

/// A state, and the partition that it follows.
pub struct Fold<S> {
    partition: Arc<Partition>,
    name: String,
    state: Mutex<S>,
    applied: Watched<Applied>,
}

#[derive(Clone, Copy, Debug)]
struct Applied {
    until: Offset,
    failed: bool,
}

const READ_PORTION: Portion = Portion::AtLeastOneBatch(1 << 20);

impl<S: Folded> Fold<S> {
    /// Folds all that the partition holds.
    pub async fn open(partition: Arc<Partition>, name: String, state: S) -> Result<Self, LogError> {
        let start = partition.bounds().await.start;
        let fold = Fold {
            partition,
            name,
            state: Mutex::new(state),
            applied: Watched::new(Applied {
                until: start,
                failed: false,
            }),
        };
        while fold.applied.get().until < fold.partition.high_watermark() {
            fold.step().await?;
        }
        fold.tell("rebuilt");
        Ok(fold)
    }

    /// The partition.
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// Looks at the state.
    pub fn look<R>(&self, at: impl FnOnce(&S) -> R) -> R {
        at(&self.state.lock().expect("the state"))
    }

    /// Waits until everything in front of `end` was applied. An error: that will not happen.
    pub async fn wait_applied(&self, end: Offset) -> Result<(), LogError> {
        let reached = self
            .applied
            .wait_for(|now| now.failed || now.until >= end)
            .await;
        match reached.until >= end {
            true => Ok(()),
            false => Err(LogError::io(&self.name)(std::io::Error::other(
                "it has ended",
            ))),
        }
    }

    /// Applies what is appended, for ever; ends with the error that stops it.
    pub async fn follow(&self) -> LogError {
        loop {
            let from = self.applied.get().until;
            self.partition
                .wait_readable(from, Isolation::ReadUncommitted)
                .await;
            if let Err(error) = self.step().await {
                self.applied.update(|applied| applied.failed = true);
                return error;
            }
            self.tell("live");
        }
    }

    async fn step(&self) -> Result<(), LogError> {
        let from = self.applied.get().until;
        let reading = self
            .partition
            .read(from, READ_PORTION, Isolation::ReadUncommitted)
            .await?;
        let reading = reading.ok_or_else(|| LogError::Missing {
            path: self.name.clone(),
            what: format!("the state of a coordinator begins with offset {from}"),
        })?;
        let damaged = |offset: Offset, what: String| LogError::Damaged {
            path: self.name.clone(),
            position: 0,
            offset,
            what,
        };
        let batches = batch::decode(&reading.records);
        let batches = batches.map_err(|error| damaged(from, error.to_string()))?;
        if batches.is_empty() {
            let error = std::io::Error::other("the partition gave up");
            return Err(LogError::io(&self.name)(error));
        }
        for batch in batches {
            let mut state = self.state.lock().expect("the state");
            let applied = state.apply(&batch);
            applied.map_err(|what| damaged(batch.header.base_offset, what))?;
            drop(state);
            let until = batch.header.end_offset();
            self.applied.update(|applied| applied.until = until);
        }
        Ok(())
    }

    /// Says what the state is at an offset: rebuilt or live, it is the same.
    fn tell(&self, by: &str) {
        tracing::debug!(
            name: "log.state",
            partition = %self.name,
            end_offset = self.applied.get().until.0,
            fingerprint = self.look(S::fingerprint),
            by
        );
    }
}
