//! The workload: three brokers, two workers, two shops and an object store; what must come of it.

use super::{
    event::{read_input, Item},
    oracle,
    pipeline::{minute_name, revenue, RevenueRow},
    settings::Settings,
    shop::{self, Orders, SEND},
    DEAD_LETTERS, EVENTS, SUMS,
};
use crate::cluster;
use async_trait::async_trait;
use engine::{
    checkpoint::{Entry, Manifest, Store},
    guarantee::Guarantee,
    ids::{BrokerId, Offset, PartitionId},
    log::{
        broker::{Broker, BrokerConfig},
        cluster::Cluster,
        consumer::Consumer,
        TopicPartition,
    },
    record::Record,
    sink::{Objects, SinkKind},
};
use proptest::strategy::BoxedStrategy;
use sim::{
    objects::{self, Shelf},
    Amount, Findings, Kind, Ledger, Params, Plan, Promise, Scenario, Shape, Told, Workload, World,
};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// How many brokers there are.
pub const BROKERS: usize = 3;
const WORKERS: usize = 2;
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

impl Workload for RevenueWorkload {
    fn name(&self) -> &str {
        "revenue"
    }

    fn about(&self) -> &str {
        "ShopFlow: order events in, revenue per minute out; 3 brokers, 2 workers, 2 shops"
    }

    fn shape(&self) -> Shape {
        let brokers = ["broker-0", "broker-1", "broker-2"];
        let all = ["broker-0", "broker-1", "broker-2", "objects"];
        let mut shape = Shape::new().faults_for(FAULTS_MS);
        for broker in brokers {
            let talks_to: &[&str] = if broker == "broker-0" {
                &[]
            } else {
                &["broker-0"]
            };
            shape = shape.durable(broker, talks_to).events(&[
                "log.appended",
                "log.synced",
                "log.segment-begun",
                "log.duplicate",
            ]);
        }
        for worker in 0..WORKERS {
            shape = shape.process(&format!("worker-{worker}"), &all).events(&[
                "job.attempt-begun",
                "checkpoint.begun",
                "source.snapshot",
                "window.aligned",
                "window.fired",
                "sink.prepared",
                "checkpoint.complete",
                "sink.committed",
            ]);
        }
        for shop in 0..SHOPS {
            shape = shape.process(&format!("shop-{shop}"), &brokers);
        }
        shape.steady("objects", &[])
    }

    fn params(&self) -> BoxedStrategy<Params> {
        Settings::strategy(self.records)
    }

    fn check_params(&self, params: &Params) -> Result<(), String> {
        let settings = Settings::of(params)?;
        if !settings.unchecked {
            let chain = revenue().links(&settings.job());
            chain
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
                    ..BrokerConfig::new(BrokerId(id as i32), broker_addresses())
                };
                // Whatever ends it, its supervisor starts it again.
                let _ = Broker::run(cluster::host(&node), config).await;
            });
        }
        for id in 0..WORKERS {
            let config = settings.job();
            world.node(&format!("worker-{id}"), move |node| {
                let config = config.clone();
                async move {
                    let _ = revenue()
                        .run(cluster::host(&node), broker_addresses(), config)
                        .await;
                }
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
        Box::new(Running {
            store: Store::new(observer.objects.clone(), "revenue"),
            cluster: Cluster::new(observer, broker_addresses()),
            settings,
            orders,
            entries: Vec::new(),
            ends: None,
        })
    }
}

struct Running {
    store: Store,
    cluster: Cluster,
    settings: Settings,
    orders: Orders,
    entries: Vec<Entry>,
    /// The end of each partition of the input, once it is all written.
    ends: Option<Vec<Offset>>,
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
        // What a checkpoint has prepared is committed before the same attempt completes the next one.
        let done = manifests
            .windows(2)
            .any(|two| two[0].attempt == two[1].attempt && behind(&two[0]).is_empty());
        match (done, manifests.last()) {
            (true, _) => Vec::new(),
            (false, None) => vec!["no checkpoint is complete".into()],
            (false, Some(last)) => {
                let mut waits = vec![format!(
                    "checkpoint {} of attempt {} on {} is the last",
                    last.checkpoint, last.attempt, last.instance
                )];
                let behind = behind(last);
                waits.extend(
                    behind
                        .iter()
                        .map(|at| format!("a source has read {at} records")),
                );
                waits
            }
        }
    }

    async fn judge(&mut self) -> Findings {
        let input = self.read_topic(EVENTS).await;
        let payloads: Vec<Vec<Vec<u8>>> = (input.iter())
            .map(|log| {
                log.iter()
                    .map(|r| r.value.as_deref().unwrap_or_default().to_vec())
                    .collect()
            })
            .collect();
        let expected = oracle::fold(&payloads);
        let sums = match self.settings.sink {
            SinkKind::Objects => self.sums_of_objects(&expected).await,
            SinkKind::Append => self.sums_of_topic(&expected).await,
        };
        let rows = self
            .manifests()
            .flat_map(|manifest| manifest.tasks.values());
        let commits = rows
            .filter(|task| task.prepared.as_ref().is_some_and(|p| p.rows > 0))
            .count();
        Findings {
            ledgers: vec![
                sums,
                self.check_log(&input),
                self.check_dead_letters(&expected).await,
            ],
            commits: commits as u64,
            why: self.attempts(),
        }
    }
}

impl Running {
    fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Complete(manifest) => Some(manifest),
            Entry::Begun { .. } => None,
        })
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

    /// All records of a topic, by partition. Everything is calm: it tries until it is told.
    async fn read_topic(&self, topic: &str) -> Vec<Vec<Record>> {
        let mut all = Vec::new();
        for index in 0..self.settings.partitions {
            let of = TopicPartition::new(topic, PartitionId(index as i32));
            let end = loop {
                match self.cluster.end_offset(&of).await {
                    Ok(end) => break end,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
                }
            };
            let mut consumer = Consumer::new(self.cluster.clone(), of, Offset(0));
            let mut records = Vec::new();
            while consumer.position() < end {
                match consumer.poll().await {
                    Ok(polled) => records.extend(polled),
                    Err(_) => break,
                }
            }
            all.push(records);
        }
        all
    }

    /// What was acknowledged to the shops is in the log, once; what is in the log was sent.
    fn check_log(&self, input: &[Vec<Record>]) -> Ledger {
        let mut ledger = Ledger::new("the log", Promise::exactly_once());
        let amount = |payload: &[u8]| Amount {
            count: 1,
            sum: xxh3_64(payload) as i64,
        };
        for (number, op) in self.orders.sends.ops().into_iter().enumerate() {
            let key = format!("send {number} to {EVENTS}-{}", op.asked.partition);
            let amount = amount(&self.orders.items[op.asked.item].1.payload);
            match op.told {
                Told::Ok(()) => ledger.must(key, amount),
                Told::Unknown | Told::Invoked => ledger.may(key, amount),
                Told::Failed => {}
            }
        }
        for (partition, log) in input.iter().enumerate() {
            for (index, record) in log.iter().enumerate() {
                if record.offset != Offset(index as i64) {
                    let what = format!("offset {index} of {EVENTS}-{partition} is missing");
                    ledger.found(Kind::Lost, what);
                    return ledger;
                }
                let send = record.headers.iter().find(|(name, _)| name == SEND);
                let number = send.map_or("?".into(), |(_, value)| String::from_utf8_lossy(value));
                let key = format!("send {number} to {EVENTS}-{partition}");
                let payload = record.value.as_deref().unwrap_or_default();
                ledger.saw_at(key, amount(payload), format!("offset {index}"));
            }
        }
        ledger
    }

    fn sums_ledger(&self, expected: &oracle::Expected) -> Ledger {
        let promise = match self.settings.guarantee {
            Guarantee::ExactlyOnce => Promise::exactly_once(),
            Guarantee::AtLeastOnce => Promise::at_least_once(),
            Guarantee::AtMostOnce => Promise::at_most_once(),
        };
        let mut ledger = Ledger::new(SUMS, promise);
        for (minute, revenue) in &expected.minutes {
            let amount = Amount {
                count: revenue.orders,
                sum: revenue.cents,
            };
            ledger.must(minute_name(*minute), amount);
        }
        ledger
    }

    async fn sums_of_objects(&mut self, expected: &oracle::Expected) -> Ledger {
        let mut ledger = self.sums_ledger(expected);
        for manifest in self.manifests() {
            let place = format!(
                "checkpoint {} by {}",
                manifest.checkpoint, manifest.instance
            );
            match Objects::read(&self.store, manifest).await {
                Err(what) => ledger.found(Kind::Torn, format!("{place}: {what}")),
                Ok(rows) => {
                    for row in rows {
                        saw_sum(&mut ledger, row.value.as_bytes(), place.clone());
                    }
                }
            }
        }
        ledger
    }

    async fn sums_of_topic(&self, expected: &oracle::Expected) -> Ledger {
        let mut ledger = self.sums_ledger(expected);
        for (partition, records) in self.read_topic(SUMS).await.iter().enumerate() {
            for record in records {
                let place = format!("offset {} of {SUMS}-{partition}", record.offset);
                saw_sum(
                    &mut ledger,
                    record.value.as_deref().unwrap_or_default(),
                    place,
                );
            }
        }
        ledger
    }

    /// Every record that cannot be used is among the dead letters, and nothing else is. They may be
    /// written again after a restore, and are told apart by where they come from.
    async fn check_dead_letters(&self, expected: &oracle::Expected) -> Ledger {
        let mut ledger = Ledger::new("dead letters", Promise::at_least_once());
        let one = Amount { count: 1, sum: 0 };
        for ((partition, offset), reason) in &expected.dead_letters {
            ledger.must(format!("{EVENTS}-{partition}@{offset} {reason}"), one);
        }
        for record in self.read_topic(DEAD_LETTERS).await.into_iter().flatten() {
            let header = |name: &str| {
                let found = record.headers.iter().find(|(known, _)| known == name);
                found.map_or("?".into(), |(_, value)| {
                    String::from_utf8_lossy(value).into_owned()
                })
            };
            let reason = header("reason");
            let reason = reason.split(':').next().unwrap_or("?");
            ledger.saw(
                format!("{}@{} {reason}", header("source"), header("offset")),
                one,
            );
        }
        ledger
    }

    /// The attempts of the job, for people.
    fn attempts(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (number, entry) in self.entries.iter().enumerate() {
            match entry {
                Entry::Begun { instance, restores } => {
                    let from = restores.map_or("the start".into(), |id| format!("checkpoint {id}"));
                    lines.push(format!("attempt {number} began on {instance}, from {from}"));
                }
                Entry::Complete(manifest) => {
                    let prepared = manifest
                        .tasks
                        .values()
                        .filter_map(|task| task.prepared.as_ref());
                    let rows: u64 = prepared.map(|prepared| prepared.rows).sum();
                    if rows > 0 {
                        lines.push(format!("checkpoint {number} completed with {rows} rows"));
                    }
                }
            }
        }
        lines
    }
}

fn saw_sum(ledger: &mut Ledger, row: &[u8], place: String) {
    match serde_json::from_slice::<RevenueRow>(row) {
        Err(error) => ledger.found(Kind::Torn, format!("{place}: {error}")),
        Ok(row) => {
            let amount = Amount {
                count: row.orders,
                sum: row.cents,
            };
            ledger.saw_at(minute_name(row.minute_ms), amount, place);
        }
    }
}
