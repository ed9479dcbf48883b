//! One attempt, as its coordinator sees it.

use super::{
    aloud,
    protocol::{Deployment, Placed, ToWorker},
    roll::{Event, Roll, WorkerNumber},
    source_name, window_name, AttemptError, Coordinating, PAUSE,
};
use crate::{
    checkpoint::{
        coordinator::Coordinator,
        store::{self, StoreError},
        Complete,
    },
    failure::Failure,
    ids::{CheckpointId, Offset, PartitionId},
    log::{cluster::ClusterError, TopicPartition},
    part::Part,
    sink::SinkError,
    source::MISSING_AFTER,
    task::Report,
};
use futures::{select_biased, FutureExt};
use std::collections::BTreeSet;
use tokio::time::Instant;

/// An attempt that has begun.
pub(super) struct Attempt<'a> {
    pub job: &'a Coordinating<'a>,
    pub begun: store::Attempt,
    /// The newest complete checkpoint: it goes on from there.
    pub restored: Option<Complete>,
    pub partitions: usize,
}

/// How an attempt ends if nothing goes wrong.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    Stopped(CheckpointId),
    Finished(CheckpointId),
}

impl Attempt<'_> {
    /// Recovers, deploys, and takes one checkpoint after the other.
    pub async fn run(&mut self, roll: &mut Roll) -> Result<Ending, AttemptError> {
        let beginning = async {
            let left = "what the attempts before have left in the log";
            aloud(left, self.recover()).await?;
            let open = "whoever has a transaction open at the end of the input, to end it";
            aloud(open, self.ends()).await
        };
        let until = roll.meanwhile(beginning).await?;
        let workers = aloud("workers", self.gather(roll)).await;
        if self.begun.is_fenced().await? {
            return Err(StoreError::Fenced(self.begun.next().0).into());
        }
        let deployments = self.deployments(&workers, until);
        for (number, deployment) in workers.iter().map(|(number, _)| *number).zip(deployments) {
            roll.tell(number, ToWorker::Deploy(deployment));
        }
        let (id, count) = (self.begun.id().0, workers.len());
        tracing::info!(name: "job.deployed", attempt = id, workers = count);
        let members: BTreeSet<WorkerNumber> = workers.iter().map(|(number, _)| *number).collect();
        let done = self.checkpoints(roll, &members).await;
        // What they still do for this attempt ends with their connections.
        members.iter().for_each(|number| roll.dismiss(*number));
        done
    }

    /// Commits what the checkpoint has prepared, then aborts what else the attempts before have open.
    async fn recover(&mut self) -> Result<(), AttemptError> {
        let (recovery, config) = (&self.job.recovery, self.job.config);
        if let Some(complete) = &self.restored {
            let host = self.job.cluster.host();
            let topic_of = |task: &str| config.topic_of(task, host);
            recovery.commit(complete, topic_of).await?;
        }
        // Whoever has completed that checkpoint has swept behind those before it.
        let from = self.restored.as_ref().map(|of| of.manifest().attempt);
        let attempts = from.unwrap_or_default()..self.begun.id();
        let swept = recovery.sweep(attempts, self.restored.as_ref()).await;
        swept.map_err(SinkError::from)?;
        tracing::info!(name: "job.recovered", attempt = self.begun.id().0);
        Ok(())
    }

    /// Where the input ends, if it does.
    async fn ends(&self) -> Result<Option<Vec<Offset>>, AttemptError> {
        if !self.job.config.bounded {
            return Ok(None);
        }
        let mut ends = Vec::new();
        for index in 0..self.partitions {
            let of = TopicPartition::new(self.job.topic, PartitionId(index as i32));
            ends.push(self.end_of(&of).await?);
        }
        Ok(Some(ends))
    }

    /// Where a partition of the input ends, once every transaction in it has ended: a commit is decided before its markers
    /// are there. Not before what was read of it, either: if that lasts, it is gone.
    async fn end_of(&self, of: &TopicPartition) -> Result<Offset, AttemptError> {
        let restored = self.restored.as_ref();
        let read = restored.and_then(|complete| {
            let position = complete
                .manifest()
                .positions()
                .get(&of.partition)
                .copied()?;
            Some((complete.checkpoint(), position))
        });
        let (asked, cluster) = (Instant::now(), &self.job.cluster);
        let unknown = |error: ClusterError| AttemptError::Log(error.to_string());
        let written = cluster.end_offset(of).await.map_err(unknown)?;
        loop {
            let end = cluster.stable_offset(of).await.map_err(unknown)?;
            let Some((checkpoint, position)) = read.filter(|(_, position)| end < *position) else {
                if end >= written {
                    return Ok(end);
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            if asked.elapsed() >= MISSING_AFTER {
                let what = format!(
                    "{of} ends at {end}, and checkpoint {checkpoint} has read up to {position}"
                );
                return Err(AttemptError::Task {
                    task: source_name(of.partition.0 as usize),
                    failure: Failure::Input(what),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits for workers: for as many as there should be, or for at least one when that takes too long.
    async fn gather(&self, roll: &mut Roll) -> Vec<(WorkerNumber, String)> {
        let until = Instant::now() + self.job.config.gather;
        loop {
            let workers = roll.workers();
            let enough = workers.len() >= self.job.config.workers;
            if enough || (!workers.is_empty() && Instant::now() >= until) {
                return workers;
            }
            let left = match workers.is_empty() {
                true => self.job.config.gather,
                false => until.saturating_duration_since(Instant::now()),
            };
            let _ = tokio::time::timeout(left, roll.next(usize::MAX)).await;
        }
    }

    /// Who runs what: tasks in turn over the workers.
    fn deployments(
        &self,
        workers: &[(WorkerNumber, String)],
        until: Option<Vec<Offset>>,
    ) -> Vec<Deployment> {
        let config = self.job.config;
        let place = |index: usize| (index % workers.len()) as u32;
        let mut sources = Vec::new();
        for index in 0..self.partitions {
            let task = source_name(index);
            sources.push(Placed {
                restore: self.source_snapshot(&task).into_iter().collect(),
                worker: place(index),
                task,
            });
        }
        let window_tasks = config.window_tasks();
        let windows: Vec<Placed> = (0..window_tasks)
            .map(|index| Placed {
                task: window_name(index),
                // From the other end, so that the first worker does not have the most of both.
                worker: place(workers.len() - 1 - index % workers.len()),
                restore: self.window_snapshots(index, window_tasks),
            })
            .collect();
        let addresses: Vec<String> = workers.iter().map(|(_, address)| address.clone()).collect();
        let deployment = Deployment {
            attempt: self.begun.id(),
            me: 0,
            workers: addresses,
            sources,
            windows,
            until,
        };
        let mine = |me| Deployment {
            me,
            ..deployment.clone()
        };
        (0..workers.len() as u32).map(mine).collect()
    }

    fn source_snapshot(&self, task: &str) -> Option<String> {
        let complete = self.restored.as_ref()?;
        let snapshot = complete.manifest().tasks.get(task);
        Some(snapshot.expect("each source has one").object.clone())
    }

    /// The objects that hold any group of a window task's keys.
    fn window_snapshots(&self, index: usize, window_tasks: usize) -> Vec<String> {
        let Some(complete) = &self.restored else {
            return Vec::new();
        };
        let mine = self.job.config.key_groups.range(index, window_tasks);
        let snapshots = complete.manifest().tasks.values();
        let overlap = snapshots.filter(|snapshot| {
            let groups = snapshot.groups.as_ref();
            groups.is_some_and(|groups| groups.start < mine.end && mine.start < groups.end)
        });
        overlap.map(|snapshot| snapshot.object.clone()).collect()
    }

    async fn checkpoints(
        &mut self,
        roll: &mut Roll,
        members: &BTreeSet<WorkerNumber>,
    ) -> Result<Ending, AttemptError> {
        let config = self.job.config;
        let window_tasks = config.window_tasks();
        let names = (0..self.partitions)
            .map(source_name)
            .chain((0..window_tasks).map(window_name));
        let mut coordinator = Coordinator::new(names);
        let mut running: BTreeSet<String> = (0..self.partitions).map(source_name).collect();
        let mut due = Instant::now() + config.checkpoint_interval;
        // The newest checkpoint, and what ends with it.
        let mut last: Option<(CheckpointId, Option<Ending>)> = None;
        let mut _tidying = None;
        loop {
            let ends = roll.is_to_stop() || running.is_empty();
            if coordinator.is_idle() && ends {
                match last {
                    // It holds all that there will be.
                    Some((_, Some(ending))) => return Ok(ending),
                    _ => due = Instant::now(),
                }
            }
            let event = select_biased! {
                event = roll.next(self.partitions).fuse() => Some(event),
                () = tokio::time::sleep_until(due).fuse() => None,
            };
            match event {
                None if coordinator.is_idle() => {
                    let checkpoint = self.begun.next();
                    tracing::info!(name: "checkpoint.begun", checkpoint = checkpoint.0);
                    coordinator.begin(checkpoint);
                    let ending = match running.is_empty() {
                        true => Some(Ending::Finished(checkpoint)),
                        false if ends => Some(Ending::Stopped(checkpoint)),
                        false => None,
                    };
                    last = Some((checkpoint, ending));
                    for member in members {
                        roll.tell(*member, ToWorker::Barrier(checkpoint));
                    }
                    due = Instant::now() + config.checkpoint_timeout;
                }
                None => {
                    let missing = format!("{:?}", coordinator.missing());
                    return Err(AttemptError::Timeout(self.begun.next(), missing));
                }
                Some(Event::Came | Event::Stop) => {}
                Some(Event::Lost(number, who, why)) if members.contains(&number) => {
                    return Err(AttemptError::Lost(who, why));
                }
                Some(Event::Lost(..)) => {}
                Some(Event::Report(number, _)) if !members.contains(&number) => {}
                Some(Event::Report(_, Report::Failed { task, failure })) => {
                    return Err(AttemptError::Task { task, failure });
                }
                Some(Event::Report(_, Report::Finished { task })) => {
                    running.remove(&task);
                }
                Some(Event::Report(
                    _,
                    Report::Ack {
                        task,
                        checkpoint,
                        snapshot,
                    },
                )) => {
                    if let Some(snapshots) = coordinator.ack(task, checkpoint, snapshot)? {
                        let savepoint = matches!(last, Some((_, Some(Ending::Stopped(_)))));
                        let complete = self
                            .begun
                            .complete(snapshots, self.job.shape.clone(), savepoint)
                            .await?;
                        coordinator.complete(checkpoint);
                        tracing::info!(
                            name: "checkpoint.complete",
                            checkpoint = checkpoint.0,
                            rows = complete.manifest().rows()
                        );
                        for member in members {
                            roll.tell(*member, ToWorker::Complete(checkpoint));
                        }
                        self.restored = Some(complete);
                    }
                }
                Some(Event::Report(_, Report::Committed { task, checkpoint })) => {
                    if coordinator.committed(task, checkpoint)? {
                        tracing::info!(name: "checkpoint.committed", checkpoint = checkpoint.0);
                        due = Instant::now() + config.checkpoint_interval;
                        _tidying = Some(self.tidy());
                    }
                }
            }
        }
    }

    /// Removes what no attempt will ever want, beside everything else.
    fn tidy(&self) -> Part {
        let (store, complete) = (self.job.store.clone(), self.restored.clone());
        Part(tokio::spawn(async move {
            if let Some(complete) = complete {
                // What cannot be removed now is removed after the next one.
                if let Ok(removed @ 1..) = store.forget_before(&complete).await {
                    tracing::info!(name: "checkpoint.removed", objects = removed);
                }
            }
        }))
    }
}
