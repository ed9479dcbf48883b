//! `transactional`: a topic, in transactions that commit with the checkpoint.
//!
//! What is written between two checkpoints is one transaction. At the barrier it is prepared: everything has
//! arrived, and whose transaction it is ({transactional id, producer id, epoch}) becomes part of the manifest. Once
//! the checkpoint is complete it is committed, by the task, or after a failure by its identity
//! ([`recover`](super::recover)); never is a second one written in its place. While one waits for its
//! commit, the next one is written by another producer, and the one behind that by a third: until the next
//! checkpoint is complete, a failure leads back to this one, and its transaction may be committed once more, by its
//! identity. So its producer begins no other one until then.
//!
//! Transactional ids hold the attempt: `job/attempt/task/0`. So no attempt, however late, touches a transaction of
//! another one. And whoever takes such an id looks whether its attempt is still the newest, before it writes: the next
//! one takes over all ids that it finds, after its own beginning is in the manifest log. An id of which that request
//! was sent more than once, because an answer was lost, is not used: the lost one may still be on its way, and would fence
//! the very transaction that was begun after it.

use super::{OutputTopic, Phase, Prepared, Row, Sink, SinkError, Waiting};
use crate::{
    checkpoint::{Complete, Store, TaskName},
    ids::{AttemptId, CheckpointId},
    log::{
        cluster::Cluster,
        transactional::{TransactionError, TransactionalConfig, TransactionalProducer},
    },
};
use async_trait::async_trait;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::mpsc;

/// Producers of a task: one is committed, one is prepared, one writes.
const PRODUCERS: usize = 3;
/// How long an attempt that ends tries to abort what it has open. What is left is aborted by who comes next.
const ABORT_WITHIN: Duration = Duration::from_secs(2);

/// Committed, and maybe to be committed once more.
type Resting = Arc<Mutex<Vec<TransactionalProducer>>>;

/// A task's output as transactions.
pub struct Transactional {
    cluster: Cluster,
    store: Store,
    attempt: AttemptId,
    config: TransactionalConfig,
    topic: OutputTopic,
    /// How many producers it has, and how many ids it has taken for them.
    producers: usize,
    ids: usize,
    current: Option<TransactionalProducer>,
    rows: u64,
    /// Prepared, and not committed yet.
    waiting: Arc<Mutex<Waiting<TransactionalProducer>>>,
    /// Those whose transactions belong to the newest complete checkpoint.
    resting: Resting,
    give_back: mpsc::Sender<TransactionalProducer>,
    idle: mpsc::Receiver<TransactionalProducer>,
}

/// What the transactional ids of a job's attempt begin with.
pub fn ids_of(job: &str, attempt: AttemptId) -> String {
    format!("{job}/{attempt}/")
}

/// The attempt that a transactional id belongs to, if it is one of the job.
pub fn attempt_of(job: &str, transactional_id: &str) -> Option<AttemptId> {
    let rest = transactional_id.strip_prefix(job)?.strip_prefix('/')?;
    rest.split('/').next()?.parse().ok().map(AttemptId)
}

impl Transactional {
    /// The output of `task` in an attempt of a job, in a topic. `config` is that of its producers, but for the id.
    pub fn new(
        cluster: Cluster,
        store: Store,
        (job, attempt, task): (&str, AttemptId, &TaskName),
        topic: OutputTopic,
        config: TransactionalConfig,
    ) -> Self {
        let (give_back, idle) = mpsc::channel(PRODUCERS);
        Transactional {
            cluster,
            store,
            attempt,
            config: TransactionalConfig {
                transactional_id: format!("{}{task}", ids_of(job, attempt)),
                ..config
            },
            topic,
            producers: 0,
            ids: 0,
            current: None,
            rows: 0,
            waiting: Arc::default(),
            resting: Resting::default(),
            give_back,
            idle,
        }
    }

    /// A producer of a new id. One whose own beginning might still fence it, after it has prepared, is not used.
    async fn new_producer(&mut self) -> Result<TransactionalProducer, SinkError> {
        loop {
            let config = TransactionalConfig {
                transactional_id: format!("{}/{}", self.config.transactional_id, self.ids),
                ..self.config.clone()
            };
            self.ids += 1;
            let new = TransactionalProducer::new(self.cluster.clone(), config).await?;
            self.store.check_newest(self.attempt).await?;
            if !new.may_fence_itself() {
                return Ok(new);
            }
        }
    }

    /// A producer with an open transaction. Waits while all of them wait for their commits.
    async fn begin(&mut self) -> Result<TransactionalProducer, SinkError> {
        let mut producer = match self.idle.try_recv() {
            Ok(idle) => idle,
            Err(_) if self.producers < PRODUCERS => {
                let new = self.new_producer().await?;
                self.producers += 1;
                new
            }
            Err(_) => self.idle.recv().await.expect("it holds a sender itself"),
        };
        producer.begin().await?;
        Ok(producer)
    }
}

#[async_trait]
impl Sink for Transactional {
    async fn write(&mut self, rows: Vec<Row>) -> Result<(), SinkError> {
        if rows.is_empty() {
            return Ok(());
        }
        if self.current.is_none() {
            self.current = Some(self.begin().await?);
        }
        let producer = self.current.as_mut().expect("just begun");
        self.rows += rows.len() as u64;
        for row in rows {
            let (to, record) = self.topic.record(row)?;
            producer.send(&to, record).await?;
        }
        Ok(())
    }

    fn prepare(&mut self, checkpoint: CheckpointId) -> Phase<Prepared> {
        let rows = std::mem::take(&mut self.rows);
        // Nothing was written: there is no transaction, and nothing to commit (FLINK-31363).
        let Some(mut producer) = self.current.take() else {
            return Box::pin(async { Ok(Prepared::default()) });
        };
        let waiting = self.waiting.clone();
        Box::pin(async move {
            let transaction = producer.prepare().await?;
            let mut waiting = waiting.lock().expect("waiting");
            waiting.insert(checkpoint, producer);
            Ok(Prepared {
                rows,
                object: None,
                transaction: Some(transaction),
            })
        })
    }

    fn commit(&mut self, complete: &Complete) -> Phase<()> {
        let checkpoint = complete.checkpoint();
        let ready = self.waiting.lock().expect("waiting").ready(complete);
        let (resting, give_back) = (self.resting.clone(), self.give_back.clone());
        // No failure leads back behind this checkpoint any more.
        let rested = std::mem::take(&mut *resting.lock().expect("resting"));
        Box::pin(async move {
            for producer in rested {
                // If the task has ended, nobody wants it back.
                let _ = give_back.send(producer).await;
            }
            for mut producer in ready {
                let committed = producer.commit().await;
                committed.map_err(|error| gone_or(error, checkpoint))?;
                resting.lock().expect("resting").push(producer);
            }
            Ok(())
        })
    }

    async fn abort(&mut self) {
        if let Some(mut producer) = self.current.take() {
            // Whoever recovers does it otherwise.
            let _ = tokio::time::timeout(ABORT_WITHIN, producer.abort()).await;
        }
    }
}

/// What it means that a prepared transaction of a complete checkpoint cannot be committed.
pub(super) fn gone_or(error: TransactionError, checkpoint: CheckpointId) -> SinkError {
    match error {
        TransactionError::Abortable(why) => SinkError::Gone(format!(
            "the output of complete checkpoint {checkpoint} is gone: {why}. The transaction's timeout was shorter \
             than the time until its commit. Raise the job's transaction timeout (and the brokers' \
             transaction.max.timeout.ms) above the checkpoint interval and the longest downtime, and \
             start the job under another name, so that it reads its input again"
        )),
        error => SinkError::Transaction(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_its_attempt() {
        let id = format!("{}window-1/0", ids_of("revenue", AttemptId(17)));
        assert_eq!(id, "revenue/17/window-1/0");
        assert_eq!(attempt_of("revenue", &id), Some(AttemptId(17)));
        assert_eq!(attempt_of("reven", &id), None);
        assert_eq!(attempt_of("revenue", "revenue"), None);
        assert_eq!(attempt_of("revenue", "revenue/x/1"), None);
    }
}
