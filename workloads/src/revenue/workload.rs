//! The workload: three brokers, two coordinators, three workers, two shops, a reader and an object store.

use super::{
    event::{read_input, Item},
    ghost::Ghost,
    judge::Evidence,
    moves,
    pipeline::{revenue, revenue_without_dedup, Paid, Revenues},
    reader::{self, Readings},
    settings::Settings,
    shop::{self, Orders},
    DEAD_LETTERS, EVENTS, SUMS,
};
use crate::cluster;
use async_trait::async_trait;
use engine::{
    checkpoint::{Entry, Manifest, Store},
    ids::{BrokerId, Offset, PartitionId},
    job,
    log::{
        broker::{Broker, BrokerConfig},
        cluster::Cluster,
        TopicPartition,
    },
    operator::Stage,
    record::Timed,
    sink::SinkKind,
    worker::WorkerConfig,
};
use proptest::strategy::BoxedStrategy;
use sim::{
    objects::{self, Shelf},
    Findings, Kind, Ledger, Params, Plan, Scenario, Shape, Workload, World,
};
use std::{path::Path, time::Duration};

/// How many brokers there are.
pub const BROKERS: usize = 3;
/// How many workers there are, at least.
pub const WORKERS: usize = 3;
const COORDINATORS: usize = 2;
const SHOPS: usize = 2;
/// Faults strike within this much virtual time.
const FAULTS_MS: u64 = 16_000;

/// The workload.
pub struct RevenueWorkload {
    /// How many events a seed has, unless its plan says otherwise.
    pub records: u64,
}

impl Default for RevenueWorkload {
    fn default() -> Self {
        RevenueWorkload { records: 1000 }
    }
}

fn broker_addresses() -> Vec<String> {
    (0..BROKERS).map(|id| format!("broker-{id}:9092")).collect()
}

fn coordinator_addresses() -> Vec<String> {
    (0..COORDINATORS)
        .map(|id| format!("coordinator-{id}:7000"))
        .collect()
}

impl Workload for RevenueWorkload {
    fn name(&self) -> &str {
        "revenue"
    }

    fn about(&self) -> &str {
        "ShopFlow: order events in, revenue per minute out; 3 brokers, 2 coordinators, 3 workers"
    }

    fn shape(&self) -> Shape {
        let brokers = ["broker-0", "broker-1", "broker-2"];
        let all = ["broker-0", "broker-1", "broker-2", "objects"];
        let coordinators = ["coordinator-0", "coordinator-1"];
        let workers = ["worker-0", "worker-1", "worker-2"];
        let mut shape = Shape::new().faults_for(FAULTS_MS);
        for broker in brokers {
            let others: Vec<&str> = brokers
                .into_iter()
                .filter(|other| *other != broker)
                .collect();
            shape = shape.durable(broker, &others).events(&[
                "log.appended",
                "log.synced",
                "log.segment-begun",
                "log.duplicate",
                "transaction.ongoing",
                "transaction.commit-decided",
                "transaction.abort-decided",
                "transaction.marked",
                "transaction.initialized",
            ]);
        }
        for coordinator in coordinators {
            shape = shape.process(coordinator, &all).events(&[
                "job.attempt-begun",
                "job.recovered",
                "job.worker-came",
                "sink.recovered",
                "sink.aborted",
                "checkpoint.begun",
                "checkpoint.complete",
                "checkpoint.committed",
                "checkpoint.removed",
            ]);
        }
        for worker in workers {
            let others = all.into_iter().chain(coordinators).chain(workers);
            let others: Vec<&str> = others.filter(|other| *other != worker).collect();
            shape = shape.process(worker, &others).events(&[
                "worker.deployed",
                "source.snapshot",
                "source.idle",
                "window.aligned",
                "window.fired",
                "window.corrected",
                "producer.initialized",
                "producer.committed",
                "sink.prepared",
                "sink.committed",
            ]);
        }
        shape = shape.process("reader", &all);
        for shop in 0..SHOPS {
            shape = shape.process(&format!("shop-{shop}"), &brokers);
        }
        shape
            .steady("operator", &coordinators)
            .steady("objects", &[])
            .events(&["objects.created"])
    }

    fn params(&self) -> BoxedStrategy<Params> {
        Settings::strategy(self.records)
    }

    fn check_params(&self, params: &Params) -> Result<(), String> {
        let settings = Settings::of(params)?;
        if !settings.unchecked {
            settings
                .chain()
                .check(settings.guarantee)
                .map_err(|refused| refused.to_string())?;
        }
        match &settings.input {
            None => Ok(()),
            Some(path) => read_input(Path::new(path))
                .map(drop)
                .map_err(|error| error.to_string()),
        }
    }

    fn smaller(&self, params: &Params) -> Vec<Params> {
        let Ok(settings) = Settings::of(params) else {
            return Vec::new();
        };
        if settings.input.is_some() {
            return Vec::new();
        }
        let records = settings.records;
        let mut sizes = vec![10, 40, records / 4, records / 2, records * 3 / 4];
        sizes.retain(|size| (1..records).contains(size));
        let smaller = sizes.into_iter().map(|records| Settings {
            records,
            ..settings.clone()
        });
        smaller.map(|settings| settings.to_params()).collect()
    }

    fn moves(&self) -> Vec<String> {
        moves::names()
    }

    fn build(&self, world: &World, plan: &Plan) -> Box<dyn Scenario> {
        let settings = Settings::of(&plan.params).expect("the plan was checked");
        let input: Option<Vec<Item>> = (settings.input.as_ref())
            .map(|path| read_input(Path::new(path)).expect("the plan was checked"));
        let orders = Orders::new(plan.seed, &settings, input.as_deref());
        let shelf = Shelf::default();
        world.node("objects", move |host| {
            let shelf = shelf.clone();
            async move { drop(objects::serve(host, 80, shelf).await) }
        });
        for id in 0..BROKERS {
            let segment_bytes = settings.segment_bytes;
            world.node(&format!("broker-{id}"), move |node| async move {
                let config = BrokerConfig {
                    segment_bytes,
                    reserve_bytes: 16 << 10,
                    ..BrokerConfig::new(BrokerId(id as i32), broker_addresses())
                };
                // Whatever ends it, its supervisor starts it again.
                let _ = Broker::run(cluster::host(&node), config).await;
            });
        }
        for id in 0..COORDINATORS {
            let (orders, settings) = (orders.clone(), settings.clone());
            world.node(&format!("coordinator-{id}"), move |node| {
                let (orders, settings) = (orders.clone(), settings.clone());
                coordinate(node, orders, settings, id)
            });
        }
        for id in 0..settings.workers as usize {
            let settings = settings.clone();
            world.node(&format!("worker-{id}"), move |node| {
                work(node, settings.clone(), id)
            });
        }
        let readings = Readings::default();
        {
            let (readings, settings) = (readings.clone(), settings.clone());
            world.node("reader", move |node| {
                let (readings, settings) = (readings.clone(), settings.clone());
                reader::run(node, broker_addresses(), readings, settings)
            });
        }
        for id in 0..SHOPS {
            let (orders, settings) = (orders.clone(), settings.clone());
            world.node(&format!("shop-{id}"), move |node| {
                let (orders, settings) = (orders.clone(), settings.clone());
                shop::run(node, broker_addresses(), orders, settings, (id, SHOPS))
            });
        }
        let observer = cluster::host(&world.observer());
        let stop_ms = settings.stop_ms;
        world.node("operator", move |node| stop(node, stop_ms));
        let ghost = Ghost::default();
        ghost.watch(world);
        Box::new(Running {
            store: Store::new(observer.objects.clone(), "revenue"),
            cluster: Cluster::new(observer, broker_addresses()),
            settings,
            orders,
            readings,
            ghost,
            entries: Vec::new(),
            ends: None,
            open: Vec::new(),
        })
    }
}

/// Coordinates the job; one with an end begins when all of its input is there.
async fn coordinate(node: sim::Host, orders: Orders, settings: Settings, id: usize) {
    while settings.bounded && !orders.are_written() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let role = Role::Coordinator(coordinator_addresses().swap_remove(id));
    take_part(node, settings, role).await;
}

/// Works for the job.
async fn work(node: sim::Host, settings: Settings, id: usize) {
    let at = WorkerConfig {
        coordinators: coordinator_addresses(),
        listen: "0.0.0.0:7001".into(),
        address: format!("worker-{id}:7001"),
    };
    take_part(node, settings, Role::Worker(at)).await;
}

/// What a process is to the job.
enum Role {
    /// It coordinates, and listens there.
    Coordinator(String),
    /// It works.
    Worker(WorkerConfig),
}

async fn take_part(node: sim::Host, settings: Settings, role: Role) {
    let (upstream, lateness_ms) = (settings.upstream(), settings.lateness_ms as i64);
    match settings.dedup {
        true => play(revenue(upstream, lateness_ms), node, settings, role).await,
        false => {
            play(
                revenue_without_dedup(upstream, lateness_ms),
                node,
                settings,
                role,
            )
            .await
        }
    }
}

async fn play<S>(job: Revenues<S>, node: sim::Host, settings: Settings, role: Role)
where
    S: Stage<Out = Timed<Paid>>,
{
    let config = settings.job(node.incarnation());
    let (host, brokers) = (cluster::host(&node), broker_addresses());
    // Whatever ends it, its supervisor starts it again.
    match role {
        Role::Coordinator(listen) => drop(job.coordinate(host, brokers, config, &listen).await),
        Role::Worker(at) => drop(job.work(host, brokers, config, at).await),
    }
}

/// Somebody stops the job, whoever coordinates it, after some time; 0: never. Its processes end, and are started again.
async fn stop(node: sim::Host, after_ms: u64) {
    const TRIES: usize = 20;
    let host = cluster::host(&node);
    let store = Store::new(host.objects.clone(), "revenue");
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    let tries = if after_ms == 0 { 0 } else { TRIES };
    'tries: for _ in 0..tries {
        for address in coordinator_addresses() {
            let stopping = job::stop(&host, &store, &address);
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), stopping).await {
                break 'tries;
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    std::future::pending().await
}

struct Running {
    store: Store,
    cluster: Cluster,
    settings: Settings,
    orders: Orders,
    readings: Readings,
    ghost: Ghost,
    entries: Vec<Entry>,
    /// The end of each partition of the input, once it is all written.
    ends: Option<Vec<Offset>>,
    /// What of the output had a transaction open when that was looked for.
    open: Vec<String>,
}

#[async_trait(?Send)]
impl Scenario for Running {
    fn is_fed(&self) -> bool {
        self.orders.are_written()
    }

    async fn waits_for(&mut self) -> Vec<String> {
        if self.ends.is_none() {
            match self.read_ends().await {
                Ok(ends) => self.ends = Some(ends),
                Err(error) => return vec![format!("the observer waits for a broker: {error}")],
            }
        }
        if let Err(error) = self.read_entries().await {
            return vec![format!("the observer waits for the object store: {error}")];
        }
        let ends = self.ends.as_ref().expect("just read");
        let manifests: Vec<&Manifest> = self.manifests().collect();
        let behind = |manifest: &&Manifest| {
            let positions = manifest.positions();
            let read = |index: usize| positions.get(&PartitionId(index as i32)).copied();
            let missing = (0..ends.len()).filter(|index| read(*index) < Some(ends[*index]));
            missing
                .map(|index| format!("{:?} of {}", read(index), ends[index]))
                .collect::<Vec<_>>()
        };
        // A checkpoint begins when what the one before it has prepared is committed.
        let done = match self.entries.last() {
            Some(Entry::Finished(_)) => {
                manifests.last().is_some_and(|last| behind(last).is_empty())
            }
            _ => manifests
                .windows(2)
                .any(|two| two[0].attempt == two[1].attempt && behind(&two[0]).is_empty()),
        };
        if done {
            self.open = self.look_for_open().await;
            return self.open.clone();
        }
        let mut waits = match manifests.last() {
            None => vec!["no checkpoint is complete".into()],
            Some(last) => {
                let behind = behind(last);
                let behind = behind.iter();
                let mut waits = vec![format!(
                    "checkpoint {} of attempt {} on {} is the last",
                    last.checkpoint, last.attempt, last.instance
                )];
                waits.extend(behind.map(|at| format!("a source has read {at} records")));
                waits
            }
        };
        if let Some(Entry::Halted(why)) = self.entries.last() {
            waits.insert(0, format!("the job halted: {why}"));
        }
        waits
    }

    fn overheard(&mut self) -> Vec<Ledger> {
        let mut heard = self.ghost.testimony().to_ledger();
        if let Some(Entry::Halted(why)) = self.entries.last() {
            heard.found(Kind::Halted, why.clone());
        }
        for open in &self.open {
            heard.found(Kind::Undecided, open.clone());
        }
        vec![heard]
    }

    async fn judge(&mut self) -> Findings {
        // The job goes on meanwhile: what was seen before this must be among what is read now.
        let (before, seen) = (self.ghost.testimony(), self.readings.seen());
        while self.read_entries().await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let evidence = Evidence {
            before,
            seen,
            cluster: &self.cluster,
            store: &self.store,
            settings: &self.settings,
            orders: &self.orders,
            entries: &self.entries,
            readings: &self.readings,
            testimony: self.ghost.testimony(),
        };
        Findings {
            moves: self.ghost.moves(),
            ..evidence.judge().await
        }
    }
}

impl Running {
    fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Complete(manifest) => Some(manifest),
            _ => None,
        })
    }

    /// Which partitions of the output somebody has left a transaction open in.
    async fn look_for_open(&self) -> Vec<String> {
        let mut open = Vec::new();
        if self.settings.sink != SinkKind::Transactional {
            return open;
        }
        for topic in [SUMS, DEAD_LETTERS] {
            for index in 0..self.settings.partitions {
                let of = TopicPartition::new(topic, PartitionId(index as i32));
                let stable = self.cluster.stable_offset(&of).await;
                let end = self.cluster.end_offset(&of).await;
                match (stable, end) {
                    (Ok(stable), Ok(end)) if stable == end => {}
                    (Ok(stable), Ok(end)) => open.push(format!(
                        "a transaction is open in {of}: it is stable up to {stable} of {end}"
                    )),
                    (stable, end) => open.push(format!(
                        "the observer waits for a broker: {of}: {:?}",
                        stable.err().or(end.err())
                    )),
                }
            }
        }
        open
    }

    /// Reads the entries of the manifest log that are new.
    async fn read_entries(&mut self) -> Result<(), String> {
        loop {
            let next = self.store.entry(self.entries.len() as u64).await;
            match next.map_err(|error| error.to_string())? {
                None => return Ok(()),
                Some(entry) => self.entries.push(entry),
            }
        }
    }

    async fn read_ends(&self) -> Result<Vec<Offset>, String> {
        let mut ends = Vec::new();
        for index in 0..self.settings.partitions {
            let of = TopicPartition::new(EVENTS, PartitionId(index as i32));
            let end = self.cluster.end_offset(&of).await;
            ends.push(end.map_err(|error| format!("{of}: {error}"))?);
        }
        Ok(ends)
    }
}
