//! The workload: three brokers, three workers in a group, two tellers and two readers.

use super::{
    fences,
    ghost::Ghost,
    judge::{self, Evidence},
    lives::Lives,
    reader::{self, Readings},
    settings::Settings,
    teller::{self, Till},
    worker::{self, Attempts},
    COMMANDS, ENTRIES, GROUP,
};
use crate::cluster;
use async_trait::async_trait;
use engine::{
    ids::{Offset, PartitionId},
    log::{broker::Broker, cluster::Cluster, member, topics::OFFSETS_TOPIC, TopicPartition},
};
use proptest::strategy::BoxedStrategy;
use sim::{Findings, Kind, Ledger, Params, Plan, Scenario, Shape, Workload, World};
use std::{collections::BTreeMap, time::Duration};

/// How many brokers there are.
pub const BROKERS: usize = 3;
const WORKERS: usize = 3;
const TELLERS: usize = 2;
const READERS: usize = 2;
/// Faults strike within this much virtual time.
const FAULTS_MS: u64 = 16_000;

/// The workload.
pub struct TransferWorkload {
    /// How many commands a seed has, unless its plan says otherwise.
    pub records: u64,
}

impl Default for TransferWorkload {
    fn default() -> Self {
        TransferWorkload { records: 200 }
    }
}

fn broker_addresses() -> Vec<String> {
    (0..BROKERS).map(|id| format!("broker-{id}:9092")).collect()
}

impl Workload for TransferWorkload {
    fn name(&self) -> &str {
        "transfer"
    }

    fn about(&self) -> &str {
        "money between accounts, in the log's transactions; 3 brokers, 3 workers, 2 tellers, 2 readers"
    }

    fn shape(&self) -> Shape {
        let brokers = ["broker-0", "broker-1", "broker-2"];
        let mut shape = Shape::new().faults_for(FAULTS_MS).detecting();
        for broker in brokers {
            let others: Vec<&str> = brokers
                .into_iter()
                .filter(|other| *other != broker)
                .collect();
            shape = shape.durable(broker, &others).events(&[
                "log.appended",
                "log.synced",
                "log.segment-begun",
                "log.segments-removed",
                "log.duplicate",
                "transaction.joined",
                "transaction.ongoing",
                "transaction.commit-decided",
                "transaction.abort-decided",
                "transaction.marked",
                "transaction.committed",
                "transaction.aborted",
                "transaction.timed-out",
                "transaction.initialized",
                "transaction.fenced",
                "group.joined",
                "group.stable",
            ]);
        }
        for worker in 0..WORKERS {
            shape = shape
                .process(&format!("worker-{worker}"), &brokers)
                .events(&[
                    "producer.initialized",
                    "producer.committed",
                    "producer.aborted",
                    "producer.retry",
                ]);
        }
        for teller in 0..TELLERS {
            shape = shape.process(&format!("teller-{teller}"), &brokers);
        }
        for reader in 0..READERS {
            shape = shape.process(&format!("reader-{reader}"), &brokers);
        }
        shape
    }

    fn params(&self) -> BoxedStrategy<Params> {
        Settings::strategy(self.records)
    }

    fn check_params(&self, params: &Params) -> Result<(), String> {
        Settings::of(params).map(drop)
    }

    fn smaller(&self, params: &Params) -> Vec<Params> {
        let Ok(settings) = Settings::of(params) else {
            return Vec::new();
        };
        let records = settings.records;
        let mut sizes = vec![5, 20, records / 4, records / 2, records * 3 / 4];
        sizes.retain(|size| (1..records).contains(size));
        let smaller = sizes.into_iter().map(|records| Settings {
            records,
            ..settings.clone()
        });
        let without = (settings.passing_partitions > 0).then(|| Settings {
            passing_partitions: 0,
            ..settings.clone()
        });
        let smaller = without.into_iter().chain(smaller);
        smaller.map(|settings| settings.to_params()).collect()
    }

    fn moves(&self) -> Vec<String> {
        fences::MOVES.map(str::to_owned).to_vec()
    }

    fn build(&self, world: &World, plan: &Plan) -> Box<dyn Scenario> {
        let settings = Settings::of(&plan.params).expect("the plan was checked");
        let ghost = Ghost::default();
        ghost.watch(world);
        for id in 0..BROKERS {
            let settings = settings.clone();
            let (ghost, seen_by) = (ghost.clone(), world.clone());
            world.node(&format!("broker-{id}"), move |node| {
                let config = settings.broker(id, broker_addresses());
                let (ghost, seen_by) = (ghost.clone(), seen_by.clone());
                // Whatever ends it, its supervisor starts it again.
                async move {
                    if let Err(error) = Broker::run(cluster::host(&node), config).await {
                        ghost.broker_ended(&seen_by, node.name(), &error);
                    }
                }
            });
        }
        let attempts = Attempts::default();
        for id in 0..WORKERS {
            let (tells, settings, seed) = (
                (attempts.clone(), ghost.clone()),
                settings.clone(),
                plan.seed,
            );
            world.node(&format!("worker-{id}"), move |node| {
                let (tells, settings) = (tells.clone(), settings.clone());
                worker::run(node, broker_addresses(), tells, settings, seed)
            });
        }
        let (till, lives) = (Till::new(plan.seed, &settings), Lives::default());
        for id in 0..TELLERS {
            let (tells, settings) = ((till.clone(), lives.clone()), settings.clone());
            world.node(&format!("teller-{id}"), move |node| {
                let (tells, settings) = (tells.clone(), settings.clone());
                teller::run(node, broker_addresses(), tells, settings, (id, TELLERS))
            });
        }
        let readings = Readings::default();
        for id in 0..READERS {
            let (readings, settings) = (readings.clone(), settings.clone());
            let seen_from = world.clone();
            world.node(&format!("reader-{id}"), move |node| {
                let (readings, settings) = (readings.clone(), settings.clone());
                reader::run(
                    node,
                    seen_from.clone(),
                    broker_addresses(),
                    readings,
                    settings,
                )
            });
        }
        Box::new(Running {
            cluster: Cluster::new(cluster::host(&world.observer()), broker_addresses()),
            settings,
            till,
            lives,
            attempts,
            readings,
            ghost,
            open_since: BTreeMap::new(),
            seen_from: world.clone(),
        })
    }
}

struct Running {
    cluster: Cluster,
    settings: Settings,
    till: Till,
    lives: Lives,
    attempts: Attempts,
    readings: Readings,
    ghost: Ghost,
    /// Partitions with an open transaction: since when it has begun at the same offset.
    open_since: BTreeMap<TopicPartition, (Offset, Duration)>,
    seen_from: World,
}

impl Running {
    /// Notes which partitions have an open transaction, and how long it has been.
    async fn look_for_open(&mut self) {
        let entries = (0..self.settings.entry_partitions as i32).map(|index| (ENTRIES, index));
        let positions = (0..BROKERS as i32).map(|index| (OFFSETS_TOPIC, index));
        for (topic, index) in entries.chain(positions) {
            let of = TopicPartition::new(topic, PartitionId(index));
            let stable = self.cluster.stable_offset(&of).await;
            let end = self.cluster.end_offset(&of).await;
            let now = self.seen_from.now();
            match (stable, end) {
                (Ok(stable), Ok(end)) if stable < end => {
                    let since = self.open_since.entry(of).or_insert((stable, now));
                    if since.0 != stable {
                        *since = (stable, now);
                    }
                }
                _ => drop(self.open_since.remove(&of)),
            }
        }
    }
}

/// The observer asks again after so long.
const PATIENCE: Duration = Duration::from_secs(10);

#[async_trait(?Send)]
impl Scenario for Running {
    fn is_fed(&self) -> bool {
        self.till.is_empty() && !self.lives.is_active()
    }

    async fn waits_for(&mut self) -> Vec<String> {
        self.ghost.calm(self.seen_from.now());
        let mut waits = Vec::new();
        for index in 0..self.settings.partitions {
            let of = TopicPartition::new(COMMANDS, PartitionId(index as i32));
            let asked = async {
                let end = self.cluster.end_offset(&of).await;
                (end, member::position(&self.cluster, GROUP, &of).await)
            };
            match tokio::time::timeout(PATIENCE, asked).await {
                Err(_) => waits.push(format!(
                    "a transaction may still change the position in {of}"
                )),
                Ok((Err(error), _)) => waits.push(format!("the observer waits for {of}: {error}")),
                Ok((Ok(end), at)) => {
                    let at = at.map_or(0, |at| at.0);
                    if at < end.0 {
                        waits.push(format!("the group is at {at} of {end} in {of}"));
                    }
                }
            }
        }
        if !waits.is_empty() {
            self.look_for_open().await;
        }
        waits
    }

    fn overheard(&mut self) -> Vec<Ledger> {
        let mut ledger = judge::brokers(&self.ghost.testimony());
        let longest = Duration::from_millis(self.settings.transaction_timeout_ms) + PATIENCE;
        for (of, (first, since)) in &self.open_since {
            let open = self.seen_from.now().saturating_sub(*since);
            if open > longest {
                let what = format!(
                    "{of}: a transaction is open at offset {first} for {} s, and nobody ends it",
                    open.as_secs()
                );
                ledger.found(Kind::Unstable, what);
            }
        }
        vec![ledger]
    }

    async fn judge(&mut self) -> Findings {
        let evidence = Evidence {
            cluster: self.cluster.clone(),
            settings: self.settings.clone(),
            till: self.till.clone(),
            lives: self.lives.clone(),
            attempts: self.attempts.clone(),
            readings: self.readings.clone(),
            ghost: self.ghost.clone(),
            brokers: broker_addresses(),
        };
        evidence.judge().await
    }
}
