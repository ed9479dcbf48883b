//! Workers: they consume commands, and produce entries and their own positions in one transaction. Several share
//! the commands in a group; each has a transactional id of its own, so what fences one that was left out of the
//! group is the group's generation (KIP-447).

use super::{
    command::Command,
    ghost::Ghost,
    settings::{Settings, RECORD_BYTES_MAX},
    COMMANDS, ENTRIES,
};
use crate::cluster;
use engine::{
    ids::{Offset, PartitionId, ProducerEpoch, ProducerId},
    log::{
        cluster::Cluster,
        consumer::Consumer,
        member::{Assignment, Member},
        transactional::{TransactionError, TransactionalProducer},
        TopicPartition,
    },
    record::Record,
};
use sim::{History, Seed, Told};
use std::{collections::BTreeMap, time::Duration};

/// A transaction that a worker has tried.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its name: that of its entries, too.
    pub name: String,
    /// Under which producer.
    pub producer: ProducerId,
    /// Under which epoch.
    pub epoch: ProducerEpoch,
    /// Whether the worker wants to commit it.
    pub commits: bool,
}

/// How a transaction ended, as its worker was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was committed.
    Committed,
    /// It was aborted.
    Aborted,
}

/// All transactions that were tried, and what the workers were told.
pub type Attempts = History<Attempt, Ended>;

const READ_WAIT: Duration = Duration::from_millis(40);

/// Runs a worker.
pub async fn run(
    node: sim::Host,
    brokers: Vec<String>,
    (attempts, ghost): (Attempts, Ghost),
    settings: Settings,
    seed: Seed,
) {
    let cluster = Cluster::new(cluster::host(&node), brokers);
    let topics = [
        (COMMANDS, settings.partitions),
        (ENTRIES, settings.entry_partitions),
    ];
    for (topic, partitions) in topics {
        if cluster
            .ensure_topic(topic, partitions as i32)
            .await
            .is_err()
        {
            return;
        }
    }
    // Moods must not depend on timing: they are keyed by node and incarnation.
    let key = format!("{}#{}", node.name(), node.incarnation());
    let mut worker = Worker {
        member: Member::new(cluster.clone(), settings.member()),
        moods: seed.stream("moods", xxhash_rust::xxh3::xxh3_64(key.as_bytes())),
        cluster,
        attempts,
        ghost,
        settings,
        name: key,
        id: node.name().to_owned(),
        count: 0,
    };
    loop {
        let config = worker.settings.transactional(&worker.id);
        let producer = TransactionalProducer::new(worker.cluster.clone(), config).await;
        let mut producer = match producer {
            Ok(producer) => producer,
            Err(error) => {
                worker.hear_of(None, &error);
                continue;
            }
        };
        while worker.take_part(&mut producer).await {}
    }
}

struct Worker {
    cluster: Cluster,
    member: Member,
    attempts: Attempts,
    ghost: Ghost,
    settings: Settings,
    moods: sim::seed::Stream,
    name: String,
    id: String,
    count: u64,
}

impl Worker {
    /// Works for one generation of the group. Whether the producer can go on.
    async fn take_part(&mut self, producer: &mut TransactionalProducer) -> bool {
        let assignment = self.member.join().await;
        let mut consumers = Vec::new();
        for of in &assignment.partitions {
            let position = self.member.position(of).await.unwrap_or(Offset(0));
            let consumer = Consumer::new(self.cluster.clone(), of.clone(), position);
            consumers.push(consumer.waiting(READ_WAIT));
        }
        let mut queued = BTreeMap::<TopicPartition, Vec<Record>>::new();
        while !assignment.is_over() {
            for consumer in &mut consumers {
                let of = consumer.of().clone();
                if queued.get(&of).is_some_and(|records| !records.is_empty()) {
                    continue;
                }
                match consumer.poll().await {
                    Ok(records) => drop(queued.insert(of, records)),
                    Err(_) => return true,
                }
            }
            if consumers.is_empty() {
                tokio::time::sleep(READ_WAIT).await;
            }
            if queued.values().all(Vec::is_empty) {
                continue;
            }
            let share = self.share(&mut queued);
            match self.carry_out(producer, &assignment, &share).await {
                Ok(Ended::Committed) => {}
                // What was consumed is consumed again: from where the group is.
                Ok(Ended::Aborted) => return true,
                Err(error) => {
                    self.hear_of(Some(producer.identity()), &error);
                    return false;
                }
            }
        }
        true
    }

    /// An error says that another instance has taken over; it has had this epoch before, if it has had one.
    fn hear_of(&self, had: Option<(ProducerId, ProducerEpoch)>, error: &TransactionError) {
        if let TransactionError::Fenced(why) = error {
            let had = had.map(|(producer, epoch)| (producer.0, epoch.0.into()));
            self.ghost.told_fenced(&self.name, &self.id, had, why);
        }
    }

    /// The commands of the next transaction.
    fn share(
        &self,
        queued: &mut BTreeMap<TopicPartition, Vec<Record>>,
    ) -> Vec<(PartitionId, Record)> {
        let mut room = self.settings.commands_per_transaction as usize;
        let mut share = Vec::new();
        for (of, records) in queued {
            let taken = records.drain(..room.min(records.len()));
            share.extend(taken.map(|record| (of.partition, record)));
            room = (self.settings.commands_per_transaction as usize) - share.len();
        }
        share
    }

    /// One transaction. An error: the producer is of no more use.
    async fn carry_out(
        &mut self,
        producer: &mut TransactionalProducer,
        assignment: &Assignment,
        share: &[(PartitionId, Record)],
    ) -> Result<Ended, TransactionError> {
        producer.begin().await?;
        self.count += 1;
        let name = format!("{}/{}", self.name, self.count);
        let commits = !self.moods.chance(self.settings.abort_per_mille);
        let is_late = self.moods.chance(self.settings.late_per_mille);
        let (id, epoch) = producer.identity();
        let attempt = Attempt {
            name: name.clone(),
            producer: id,
            epoch,
            commits,
        };
        let op = self.attempts.invoke(Duration::ZERO, attempt);
        let written = self
            .write(producer, assignment, share, &name, is_late)
            .await;
        let ended = match written {
            Ok(()) if commits => producer.commit().await.map(|()| Ended::Committed),
            Ok(()) => producer.abort().await.map(|()| Ended::Aborted),
            Err(error) => Err(error),
        };
        let ended = match ended {
            Err(TransactionError::Abortable(_)) => producer.abort().await.map(|()| Ended::Aborted),
            ended => ended,
        };
        self.attempts.tell(
            op,
            match &ended {
                Ok(ended) => Told::Ok(*ended),
                // Whoever has taken over has aborted it first.
                Err(TransactionError::Fenced(_)) => Told::Ok(Ended::Aborted),
                Err(_) => Told::Unknown,
            },
        );
        ended
    }

    async fn write(
        &mut self,
        producer: &mut TransactionalProducer,
        assignment: &Assignment,
        share: &[(PartitionId, Record)],
        name: &str,
        is_late: bool,
    ) -> Result<(), TransactionError> {
        let mut positions = BTreeMap::new();
        let mut is_oversize = self.moods.chance(self.settings.oversize_per_mille);
        for (partition, record) in share {
            positions.insert(*partition, record.offset.plus(1));
            let Some(command) = Command::of(record) else {
                continue;
            };
            for mut entry in command.entries(*partition, record.offset, name) {
                let to = entry.partition_among(self.settings.entry_partitions);
                let to = TopicPartition::new(ENTRIES, to);
                if std::mem::take(&mut is_oversize) {
                    entry.padding = "x".repeat(RECORD_BYTES_MAX);
                }
                // Like a program that leaves it to the commit to fail: whatever was not sent, the transaction
                // cannot commit without it.
                let _ = producer
                    .send(&to, entry.to_record(record.timestamp_ms))
                    .await;
            }
        }
        let think = self.moods.below(self.settings.think_ms + 1);
        let late = if is_late {
            self.settings.transaction_timeout_ms + 1_000
        } else {
            0
        };
        tokio::time::sleep(Duration::from_millis(think + late)).await;
        let positions: Vec<(TopicPartition, Offset)> = positions
            .into_iter()
            .map(|(partition, position)| (TopicPartition::new(COMMANDS, partition), position))
            .collect();
        let member = Some(&assignment.membership);
        producer
            .send_positions(super::GROUP, member, &positions)
            .await
    }
}
