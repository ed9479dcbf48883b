//! Tellers: they write commands, each until it is told that it is in the log; and chatter beside them, into a
//! topic that keeps only its newest records. One of them lets other topics come and go.

use super::{command::Command, lives::Lives, settings::Settings, CHATTER, COMMANDS};
use crate::cluster;
use engine::{
    ids::PartitionId,
    log::{
        cluster::Cluster,
        producer::{Producer, SendError},
        TopicPartition,
    },
    record::NewRecord,
};
use sim::{History, Seed, Told};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// A command that was handed to a producer.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What.
    pub command: Command,
    /// To which partition.
    pub partition: i32,
}

/// All commands, and what became of them. It outlives any crash.
#[derive(Clone)]
pub struct Till {
    seed: Seed,
    commands: Arc<Vec<(i32, Command)>>,
    acked: Arc<Mutex<Vec<bool>>>,
    /// What was sent, and what the tellers were told.
    pub sends: History<Sent, ()>,
}

impl Till {
    /// The commands of a plan.
    pub fn new(seed: Seed, settings: &Settings) -> Till {
        let mut draws = seed.stream("commands", 0);
        let commands = (0..settings.records).map(|_| {
            let partition = draws.below(settings.partitions) as i32;
            let from = draws.below(settings.accounts);
            let to = (from + 1 + draws.below(settings.accounts - 1)) % settings.accounts;
            let command = Command {
                send: String::new(),
                from,
                to,
                cents: 1 + draws.below(10_000) as i64,
            };
            (partition, command)
        });
        Till {
            seed,
            commands: Arc::new(commands.collect()),
            acked: Arc::new(Mutex::new(vec![false; settings.records as usize])),
            sends: History::default(),
        }
    }

    /// Whether every command is in the log.
    pub fn is_empty(&self) -> bool {
        self.acked.lock().expect("acked").iter().all(|acked| *acked)
    }

    fn left(&self, index: usize, of: usize) -> Vec<usize> {
        let acked = self.acked.lock().expect("acked");
        (0..acked.len())
            .filter(|item| item % of == index && !acked[*item])
            .collect()
    }
}

/// Runs teller `index` of `of`.
pub async fn run(
    node: sim::Host,
    brokers: Vec<String>,
    (till, lives): (Till, Lives),
    settings: Settings,
    (index, of): (usize, usize),
) {
    let host = cluster::host(&node);
    let clock = host.clock.clone();
    let cluster = Cluster::new(host, brokers);
    let chatter_configs = settings.chatter();
    for (topic, partitions, configs) in [
        (COMMANDS, settings.partitions, &[][..]),
        (CHATTER, 1, &chatter_configs[..]),
    ] {
        let ensured = cluster.ensure_configured_topic(topic, partitions as i32, configs);
        if ensured.await.is_err() {
            return;
        }
    }
    tokio::spawn(chatter(cluster.clone(), settings.clone(), node.clone()));
    if index == 0 && settings.passing_partitions > 0 {
        tokio::spawn(passing(
            cluster.clone(),
            settings.clone(),
            node.clone(),
            till.clone(),
            lives,
        ));
    }
    let total = till.commands.len() as u64;
    let begun = tokio::time::Instant::now();
    let due_ms = |item: usize| settings.feed_ms * item as u64 / total;
    let mut left = till.left(index, of);
    let mut count = 0;
    let from_ms = left.first().map_or(0, |item| due_ms(*item));
    while !left.is_empty() {
        let producer = Producer::new(cluster.clone(), settings.producer()).await;
        let failed = Arc::new(Mutex::new(false));
        let mut deliveries = Vec::new();
        for item in left {
            let due = Duration::from_millis(due_ms(item).saturating_sub(from_ms));
            tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
            if *failed.lock().expect("failed") {
                break;
            }
            let (partition, command) = &till.commands[item];
            let mut command = command.clone();
            count += 1;
            command.send = format!("{}#{}/{count}", node.name(), node.incarnation());
            let record = command.to_record(clock.now_ms());
            let partition = *partition;
            let op = till
                .sends
                .invoke(begun.elapsed(), Sent { command, partition });
            let to = TopicPartition::new(COMMANDS, PartitionId(partition));
            let delivered = producer.send(&to, record).await;
            let (till, failed) = (till.clone(), failed.clone());
            deliveries.push(tokio::spawn(async move {
                let delivered = delivered.await;
                *failed.lock().expect("failed") |= delivered.is_err();
                match delivered {
                    Ok(_) => {
                        till.acked.lock().expect("acked")[item] = true;
                        till.sends.tell(op, Told::Ok(()));
                    }
                    Err(SendError::NotSent(_)) => till.sends.tell(op, Told::Failed),
                    Err(SendError::Unknown(_)) => till.sends.tell(op, Told::Unknown),
                }
            }));
        }
        for delivery in deliveries {
            let _ = delivery.await;
        }
        left = till.left(index, of);
    }
    std::future::pending().await
}

/// Lets topics come and go, until every command is in the log.
async fn passing(cluster: Cluster, settings: Settings, node: sim::Host, till: Till, lives: Lives) {
    let who = format!("{}#{}", node.name(), node.incarnation());
    let draws = till.seed.stream("passing", node.incarnation());
    let goes_on = || !till.is_empty();
    lives.run(&cluster, &settings, &who, draws, goes_on).await;
}

/// Writes numbers, each one once, for as long as commands are written. What is acknowledged or not does not matter:
/// only their order does.
async fn chatter(cluster: Cluster, settings: Settings, node: sim::Host) {
    const PAUSE: Duration = Duration::from_millis(40);
    let producer = Producer::new(cluster, settings.producer()).await;
    let to = TopicPartition::new(CHATTER, PartitionId(0));
    let who = format!("{}#{}", node.name(), node.incarnation());
    for number in 0..settings.feed_ms / PAUSE.as_millis() as u64 {
        let record = NewRecord {
            key: Some(who.clone().into()),
            value: Some(format!("{number:0100}").into()),
            ..NewRecord::default()
        };
        drop(producer.send(&to, record).await);
        tokio::time::sleep(PAUSE).await;
    }
    // What is queued is sent as long as the producer is there.
    std::future::pending().await
}
