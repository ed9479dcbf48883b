//! Recovery: what an attempt does with the output of those before it, once it has fenced them.
//!
//! First everything that the manifest says is prepared is committed, by its identity. Only then the rest is aborted:
//! transactions of earlier attempts that are open and belong to no complete checkpoint would hold back all
//! readers of committed records until their time is over. For that, every transactional id of those attempts is
//! taken over, but for those of the checkpoint itself: these may be committed once more, and nobody writes under
//! them before a later checkpoint is complete. Whoever is only slow, and takes an id later than that, asks the
//! manifest log before it writes ([`Transactional`](super::Transactional)), and finds this attempt.

use super::{
    idempotent::Idempotent,
    transactional::{attempt_of, gone_or},
    OnDemand, OutputTopic, SinkError, SinkKind,
};
use crate::{
    checkpoint::{Complete, Store},
    ids::AttemptId,
    log::{
        cluster::Cluster,
        producer::ProducerConfig,
        transactional::{end_prepared, take_over, Prepared as Transaction, TransactionError},
    },
    wire::batch::Outcome,
};
use futures::{StreamExt, TryStreamExt};
use std::{collections::BTreeSet, ops::Range, time::Duration};

/// Commits and aborts for a whole job.
#[derive(Clone)]
pub struct Recovery {
    /// The job's name.
    pub job: String,
    /// What its sinks are.
    pub sink: SinkKind,
    /// Where its output is.
    pub cluster: Cluster,
    /// Its objects.
    pub store: Store,
    /// How its producers work.
    pub producer: ProducerConfig,
}

impl Recovery {
    /// Commits what a complete checkpoint has prepared, maybe again. `topic_of` tells where a task's rows go.
    pub async fn commit(
        &self,
        complete: &Complete,
        topic_of: impl Fn(&str) -> OutputTopic,
    ) -> Result<(), SinkError> {
        let manifest = complete.manifest();
        let producer = OnDemand::new(self.cluster.clone(), self.producer.clone());
        for (task, snapshot) in &manifest.tasks {
            let prepared = &snapshot.prepared;
            if let Some(transaction) = &prepared.transaction {
                self.end(transaction, complete).await?;
            }
            if let (SinkKind::Idempotent, Some(object)) = (self.sink, &prepared.object) {
                Idempotent::write_again(&self.store, object, &producer, &topic_of(task)).await?;
            }
            if prepared.rows > 0 {
                tracing::info!(
                    name: "sink.recovered",
                    task = %task,
                    checkpoint = manifest.checkpoint.0,
                    rows = prepared.rows
                );
            }
        }
        Ok(())
    }

    async fn end(&self, transaction: &Transaction, complete: &Complete) -> Result<(), SinkError> {
        let within = self.producer.delivery_timeout;
        match end_prepared(&self.cluster, transaction, Outcome::Commit, within).await {
            Ok(()) => Ok(()),
            // No process of this job uses its id again before the next checkpoint is complete.
            Err(TransactionError::Fenced(why)) => Err(SinkError::Gone(format!(
                "somebody who is no process of this job has taken over {}, which held output of complete \
                 checkpoint {}: {why}",
                transaction.transactional_id,
                complete.checkpoint()
            ))),
            Err(error) => Err(gone_or(error, complete.checkpoint())),
        }
    }

    /// Aborts what `attempts` have open, but for what a checkpoint has prepared. Tries until there is an answer.
    pub async fn sweep(
        &self,
        attempts: Range<AttemptId>,
        complete: Option<&Complete>,
    ) -> Result<(), TransactionError> {
        if self.sink != SinkKind::Transactional || attempts.is_empty() {
            return Ok(());
        }
        let tasks = complete
            .into_iter()
            .flat_map(|of| of.manifest().tasks.values());
        let prepared = tasks.filter_map(|task| task.prepared.transaction.as_ref());
        let prepared: BTreeSet<&str> = prepared.map(|of| &*of.transactional_id).collect();
        let ids: BTreeSet<String> = self.cluster.transactional_ids().await.into_iter().collect();
        let strays = ids.into_iter().filter(|id| {
            let attempt = attempt_of(&self.job, id);
            attempt.is_some_and(|of| attempts.contains(&of)) && !prepared.contains(&**id)
        });
        let sweeping = strays.map(|id| async move {
            loop {
                match take_over(&self.cluster, &id, self.producer.delivery_timeout).await {
                    Ok(()) => break,
                    Err(TransactionError::Unknown(_)) => tokio::time::sleep(AGAIN).await,
                    Err(error) => return Err(error),
                }
            }
            tracing::info!(name: "sink.aborted", id = %id);
            Ok(())
        });
        let sweeping = futures::stream::iter(sweeping);
        sweeping.buffered(AT_ONCE).try_collect::<()>().await
    }
}

/// Ids that are taken over at the same time.
const AT_ONCE: usize = 16;
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(200);
