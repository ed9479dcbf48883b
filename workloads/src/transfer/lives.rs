//! The lives of topics: some are created, written to, deleted, and created again under the same name.
//!
//! A request names a topic, not one of its lives: one that was not answered in time may arrive when the topic has its
//! next life, and belongs to that then, as in Kafka. So a name that a request may still be on its way to is not
//! used again.

use super::{scan::Log, settings::Settings};
use engine::{
    ids::PartitionId,
    log::{
        cluster::Cluster,
        partition::Isolation,
        producer::{Producer, SendError},
        TopicPartition,
    },
    record::NewRecord,
    wire::batch::Body,
};
use sim::{seed::Stream, Amount, Kind, Ledger, Promise, Told};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;

/// A request that has taken less time was answered, or its connection has broken: nothing of it comes later.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// Between two lives, at most.
const PAUSE_MS: u64 = 1_000;
/// Records of a life, at most.
const RECORDS_MAX: u64 = 12;
/// Lives under one name, at most.
const LIVES_MAX: u64 = 3;
/// Between two tries. Everything is calm: it tries until it is told.
const AGAIN: Duration = Duration::from_millis(200);

/// One life of a topic.
#[derive(Clone, Debug)]
struct Life {
    topic: String,
    /// No other life is called so: its records say it.
    name: String,
    /// What was sent to which partition, and what was told.
    sent: Vec<(i32, u64, Told<()>)>,
    state: State,
    /// A request of it may still be on its way.
    doubtful: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Creating,
    Created,
    Deleting,
    Deleted,
}

/// All lives, in their order. They outlive any crash.
#[derive(Clone, Default)]
pub struct Lives(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    lives: Vec<Life>,
    active: bool,
}

impl Lives {
    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().expect("lives")
    }

    /// Whether somebody is at it.
    pub fn is_active(&self) -> bool {
        self.all().active
    }

    fn change(&self, life: usize, change: impl FnOnce(&mut Life)) {
        change(&mut self.all().lives[life]);
    }

    /// Lets topics come and go while `goes_on`. `who` is an incarnation: the next one uses other names.
    pub async fn run(
        &self,
        cluster: &Cluster,
        settings: &Settings,
        who: &str,
        mut draws: Stream,
        goes_on: impl Fn() -> bool,
    ) {
        self.all().active = true;
        let mut names = 0;
        while goes_on() {
            names += 1;
            let topic = format!("passing.{}.{names}", who.replace('#', "."));
            let lives = 1 + draws.below(LIVES_MAX);
            for number in 1..=lives {
                let pause = Duration::from_millis(draws.below(PAUSE_MS));
                tokio::time::sleep(pause).await;
                if !goes_on()
                    || !self
                        .live(cluster, settings, &topic, number, &mut draws)
                        .await
                {
                    break;
                }
                // The last life may go on.
                if number == lives && draws.chance(500) || !self.end(cluster, &topic).await {
                    break;
                }
            }
        }
        self.all().active = false;
    }

    /// Whether every request of it was answered.
    async fn live(
        &self,
        cluster: &Cluster,
        settings: &Settings,
        topic: &str,
        number: u64,
        draws: &mut Stream,
    ) -> bool {
        let life = {
            let lives = &mut self.all().lives;
            lives.push(Life {
                topic: topic.to_owned(),
                name: format!("{topic}/{number}"),
                sent: Vec::new(),
                state: State::Creating,
                doubtful: true,
            });
            lives.len() - 1
        };
        let begun = Instant::now();
        let partitions = settings.passing_partitions;
        if cluster
            .ensure_topic(topic, partitions as i32)
            .await
            .is_err()
        {
            return false;
        }
        self.change(life, |life| life.state = State::Created);
        let producer = Producer::new(cluster.clone(), settings.producer()).await;
        for record in 0..draws.below(RECORDS_MAX) {
            // The last partition is never used.
            let partition = draws.below(partitions - 1) as i32;
            self.change(life, |life| {
                life.sent.push((partition, record, Told::Invoked))
            });
            let value = format!("{topic}/{number} {record}");
            let value = NewRecord {
                value: Some(value.into()),
                ..NewRecord::default()
            };
            let to = TopicPartition::new(topic, PartitionId(partition));
            let told = match producer.send(&to, value).await.await {
                Ok(_) => Told::Ok(()),
                Err(SendError::NotSent(_)) => Told::Failed,
                Err(SendError::Unknown(_)) => Told::Unknown,
            };
            let is_known = told != Told::Unknown;
            self.change(life, |life| {
                life.sent.last_mut().expect("it was just added").2 = told;
            });
            if !is_known {
                return false;
            }
        }
        let answered = begun.elapsed() < ANSWERED_WITHIN;
        self.change(life, |life| life.doubtful = !answered);
        answered
    }

    /// Ends the newest life. Whether every request of that was answered.
    async fn end(&self, cluster: &Cluster, topic: &str) -> bool {
        let life = self.all().lives.len() - 1;
        self.change(life, |life| {
            life.state = State::Deleting;
            life.doubtful = true;
        });
        let begun = Instant::now();
        cluster.delete_topic(topic).await;
        let answered = begun.elapsed() < ANSWERED_WITHIN;
        self.change(life, |life| {
            life.state = State::Deleted;
            life.doubtful = !answered;
        });
        answered
    }

    /// What was acknowledged in the last life of a topic is there, and nothing of the lives before; what was deleted is
    /// not there; and each topic can be deleted in the end, and begins empty if it is created again.
    pub async fn judge(
        &self,
        cluster: &Cluster,
        brokers: &[String],
        settings: &Settings,
    ) -> Ledger {
        let mut ledger = Ledger::new("topics that come and go", Promise::exactly_once());
        let mut last = BTreeMap::<String, Life>::new();
        for life in self.all().lives.clone() {
            last.insert(life.topic.clone(), life);
        }
        for (topic, life) in last {
            if life.state == State::Deleted && !life.doubtful {
                ledger.compared_here(1);
                for broker in brokers {
                    if is_known(cluster, broker, &topic).await {
                        let what = format!("{topic} was deleted, and is there on {broker}");
                        ledger.found(Kind::Phantom, what);
                    }
                }
                continue;
            }
            if life.state == State::Created {
                life.compare(cluster, settings, &mut ledger).await;
            }
            cluster.delete_topic(&topic).await;
            let created = cluster
                .ensure_topic(&topic, settings.passing_partitions as i32)
                .await;
            created.expect("its name is legal");
            for (place, text) in read(cluster, &topic, settings).await {
                let what = format!("{place} was just created, and holds {text:?}");
                ledger.found(Kind::Phantom, what);
            }
            ledger.compared_here(1);
        }
        ledger
    }
}

impl Life {
    async fn compare(&self, cluster: &Cluster, settings: &Settings, ledger: &mut Ledger) {
        let one = Amount { count: 1, sum: 0 };
        let key = |partition: i32, number: u64| {
            format!(
                "record \"{} {number}\" of {}-{partition}",
                self.name, self.topic
            )
        };
        for (partition, number, told) in &self.sent {
            match told {
                // A request that comes late may still delete it.
                Told::Ok(()) if !self.doubtful => ledger.must(key(*partition, *number), one),
                Told::Failed => {}
                _ => ledger.may(key(*partition, *number), one),
            }
        }
        for (place, text) in read(cluster, &self.topic, settings).await {
            ledger.saw(format!("record {text:?} of {place}"), one);
        }
    }
}

/// The records of a topic, and the partition of each.
async fn read(cluster: &Cluster, topic: &str, settings: &Settings) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for index in 0..settings.passing_partitions {
        let of = TopicPartition::new(topic, PartitionId(index as i32));
        let log = Log::read(cluster, &of, Isolation::ReadUncommitted).await;
        for batch in &log.batches {
            let Body::Data(records) = &batch.body else {
                continue;
            };
            all.extend(records.iter().map(|record| {
                let value = record.value.as_deref().unwrap_or_default();
                (of.to_string(), String::from_utf8_lossy(value).into_owned())
            }));
        }
    }
    all
}

async fn is_known(cluster: &Cluster, broker: &str, topic: &str) -> bool {
    loop {
        match cluster.partitions_of(broker, topic).await {
            Ok(known) => return known.is_some(),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}
