//! What earlier runs with this folder have left: what was fed, and how far the job is. It belongs together, or nothing
//! goes on.

use super::{BadInput, Run};
use crate::revenue::{
    feed::{Fed, Feed},
    DEAD_LETTERS, EVENTS, SUMS,
};
use engine::{
    checkpoint::{store::StoreError, Entry, Manifest},
    ids::PartitionId,
    log::{cluster::Cluster, TopicPartition},
    sink::SinkKind,
};

impl Run<'_> {
    /// The feed of this job's input, and what it has fed before. Refuses what does not belong together: a file, a log and objects that are not of
    /// the same job, or of which some are missing.
    pub(super) async fn feed(
        &self,
        cluster: &Cluster,
        brokers: &[String],
    ) -> Result<(Feed, Option<Fed>), BadInput> {
        let mut feed = Feed {
            cluster: cluster.clone(),
            input: self.input.clone(),
            partitions: self.arguments.partitions,
            producer: self.config.producer.clone(),
            job: String::new(),
        };
        let fed = feed.fed().await.map_err(BadInput::new)?;
        let known = self
            .store
            .identity()
            .await
            .map_err(|error| self.damaged(&error))?;
        let (log, objects) = (brokers.join(","), self.arguments.dir.join("objects"));
        let apart = |what: String| {
            BadInput::new(format!(
                "{what}. Nothing was fed, and the job does not go on. Bring back what is missing; or begin anew, with another --dir (and, over \
                 --brokers, without the topics of this run)"
            ))
        };
        match (&fed, &known) {
            (Some(fed), None) => {
                return Err(apart(format!(
                    "{}: the job is not there, and {} lines were fed for it into the log at {log}",
                    objects.display(),
                    fed.lines
                )));
            }
            (Some(fed), Some(known)) if fed.job != known.id => {
                return Err(apart(format!(
                    "{}: there is job {}, and the log at {log} was fed for job {}",
                    objects.display(),
                    known.id,
                    fed.job
                )));
            }
            _ => {}
        }
        if let Some(last) = self.last_manifest().await? {
            self.check_log(&feed, (&fed, &log), &last)
                .await
                .map_err(apart)?;
        }
        if let Some(fed) = &fed {
            feed.check(fed).map_err(BadInput::new)?;
        }
        let identity = self.store.identify(&self.host).await;
        feed.job = identity.map_err(|error| self.damaged(&error))?.id;
        Ok((feed, fed))
    }

    /// What a checkpoint has read and written must be in the log. The message says what is not.
    async fn check_log(
        &self,
        feed: &Feed,
        (fed, log): (&Option<Fed>, &str),
        last: &Manifest,
    ) -> Result<(), String> {
        let positions = last.positions();
        if fed.is_none() && positions.values().any(|position| position.0 > 0) {
            return Err(format!(
                "the log at {log} was never fed, and checkpoint {} has read it",
                last.checkpoint
            ));
        }
        for (partition, position) in positions {
            let of = TopicPartition::new(EVENTS, partition);
            let end = feed.cluster.stable_offset(&of).await;
            let end = end.map_err(|error| format!("{of}, in the log at {log}: {error}"))?;
            if end < position {
                return Err(format!(
                    "{of} ends at {end} in the log at {log}, and checkpoint {} has read up to {position}",
                    last.checkpoint
                ));
            }
        }
        if last.job.sink == SinkKind::Objects {
            return Ok(());
        }
        for topic in [SUMS, DEAD_LETTERS] {
            for index in 0..last.job.output_partitions {
                let of = TopicPartition::new(topic, PartitionId(index));
                let there = feed.cluster.stable_offset(&of).await;
                there.map_err(|error| format!("{of}, in the log at {log}: {error}"))?;
            }
        }
        Ok(())
    }

    /// The newest complete checkpoint. Refuses a manifest log that is not whole.
    async fn last_manifest(&self) -> Result<Option<Manifest>, BadInput> {
        let manifests = self.store.manifests().await;
        let mut manifests = manifests.map_err(|error| self.damaged(&error))?;
        Ok(manifests.pop())
    }

    /// Whether the job has finished, and there is nothing that was not fed, or not read.
    pub(super) async fn is_done(&self, feed: &Feed, fed: Option<Fed>) -> Result<bool, BadInput> {
        let newest = self.store.newest().await;
        let newest = newest.map_err(|error| self.damaged(&error))?;
        if !matches!(newest, Some((_, Entry::Finished(_)))) {
            return Ok(false);
        }
        if fed.is_none_or(|fed| fed.bytes < self.input.bytes) {
            return Ok(false);
        }
        let last = self.last_manifest().await?;
        for (partition, position) in last.map(|last| last.positions()).unwrap_or_default() {
            let of = TopicPartition::new(EVENTS, partition);
            let end = feed.cluster.stable_offset(&of).await;
            if end.map_err(BadInput::new)? > position {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Something is wrong with the job's objects.
    pub(super) fn damaged(&self, error: &StoreError) -> BadInput {
        BadInput::new(format!(
            "{}: {error}. Bring it back from a copy; or begin anew, with another --dir",
            self.arguments.dir.join("objects").display()
        ))
    }
}
