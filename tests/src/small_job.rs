//! A small job for a test in a [`stage`](crate::stage): events in the log, a first run that reads them all, and a second one to
//! the end of the input.

use crate::stage::addresses;
use engine::{
    checkpoint::{Manifest, Store},
    graph::Upstream,
    guarantee::Guarantee,
    host::Host,
    ids::{Offset, PartitionId},
    job::{self, Ended, JobConfig, JobError},
    log::{
        cluster::Cluster,
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
    sink::SinkKind,
    worker::WorkerConfig,
};
use std::time::Duration;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use workloads::revenue::{
    event::OrderEvent,
    pipeline::revenue,
    table::{Output, Table},
    EVENTS,
};

/// Of all topics.
pub const PARTITIONS: i32 = 2;
/// A job that says nothing for so long is stuck.
const SILENCE_MAX: Duration = Duration::from_secs(200);

/// Orders over some minutes, and two records that are none.
pub async fn feed(cluster: &Cluster) {
    cluster.ensure_topic(EVENTS, PARTITIONS).await.unwrap();
    let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
    for index in 0..80i64 {
        let event = OrderEvent {
            event_id: format!("e-{index}"),
            order_id: format!("order-{}", index / 2),
            status: "paid".into(),
            amount_cents: 100 + index,
            event_time: index * 5_000,
        };
        let value = match index {
            20 | 41 => b"no event".to_vec(),
            _ => event.to_bytes(),
        };
        send((cluster, &producer), (index / 2 % 2) as i32, value).await;
    }
}

/// Sends an event, or what is none, to a partition.
pub async fn send((cluster, producer): (&Cluster, &Producer), partition: i32, value: Vec<u8>) {
    let record = NewRecord {
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
        timestamp_ms: cluster.host().clock.now_ms(),
    };
    let to = TopicPartition::new(EVENTS, PartitionId(partition));
    producer.send(&to, record).await.await.unwrap();
}

/// The job.
pub struct SmallJob {
    host: Host,
    number: u64,
    /// How it is run.
    pub config: JobConfig,
    /// Its objects.
    pub store: Store,
}

/// Ends what it holds when it is dropped.
struct Process(JoinHandle<()>);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl SmallJob {
    /// A job that has not begun; its number tells it from others.
    pub fn new(host: &Host, number: u64, sink: SinkKind) -> SmallJob {
        let name = format!("job-{number}");
        SmallJob {
            host: host.clone(),
            number,
            store: Store::new(host.objects.clone(), &name),
            config: JobConfig {
                partitions: PARTITIONS,
                heartbeat: Duration::from_millis(200),
                silence: Duration::from_secs(1),
                gather: Duration::from_secs(1),
                checkpoint_interval: Duration::from_millis(300),
                takeover_after: Duration::from_millis(600),
                store_patience: Duration::from_secs(3),
                ..JobConfig::new(&name, Guarantee::ExactlyOnce, sink)
            },
        }
    }

    /// The process of its first or second run, and where its coordinator listens.
    fn process(&self, run: u64) -> (Host, String) {
        let host = Host {
            instance: format!("{}-{run}", self.config.name).into(),
            ..self.host.clone()
        };
        (host, format!("actor:{}", 7000 + self.number * 4 + run * 2))
    }

    fn work(&self, run: u64) -> Process {
        let (host, coordinator) = self.process(run);
        let port = 7001 + self.number * 4 + run * 2;
        let at = WorkerConfig {
            coordinators: vec![coordinator],
            listen: format!("0.0.0.0:{port}"),
            address: format!("actor:{port}"),
        };
        let config = self.config.clone();
        Process(tokio::spawn(async move {
            let job = revenue(Upstream::Repeats, 0);
            // One that cannot read its objects ends; its coordinator says why.
            drop(job.work(host, addresses(1), config, at).await);
        }))
    }

    /// Reads all of the input, and is then stopped, or dies.
    pub async fn begin(&self, cluster: &Cluster, stopped: bool) {
        let working = self.work(0);
        let (host, listen) = self.process(0);
        let (config, at) = (self.config.clone(), listen.clone());
        let coordinating = Process(tokio::spawn(async move {
            let job = revenue(Upstream::Repeats, 0);
            drop(job.coordinate(host, addresses(1), config, &at).await);
        }));
        let mut ends = Vec::new();
        for index in 0..PARTITIONS {
            let of = TopicPartition::new(EVENTS, PartitionId(index));
            ends.push(cluster.stable_offset(&of).await.unwrap());
        }
        let is_read = |manifest: &Manifest| {
            let positions: Vec<Offset> = manifest.positions().into_values().collect();
            positions == ends
        };
        // Stopped, it has a checkpoint that nobody needs any more; dead, maybe one that is not committed.
        let wanted = if stopped { 2 } else { 1 };
        loop {
            let manifests = self.store.manifests().await.unwrap();
            if manifests.iter().filter(|of| is_read(of)).count() >= wanted {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        if stopped {
            job::stop(&self.host, &self.store, &listen).await.unwrap();
        }
        drop((coordinating, working));
        // What it has asked for last may still be done.
        sleep(Duration::from_secs(1)).await;
    }

    /// Runs it to the end of its input; nothing if it is stuck.
    pub async fn finish(&self) -> Option<Result<Ended, JobError>> {
        let _working = self.work(1);
        let (host, listen) = self.process(1);
        let config = JobConfig {
            bounded: true,
            ..self.config.clone()
        };
        let job = revenue(Upstream::Repeats, 0);
        let ended = job.coordinate(host, addresses(1), config, &listen);
        timeout(SILENCE_MAX, ended).await.ok()
    }

    /// Runs it to the end of its input; the table, or why there is none.
    pub async fn run_to_the_end(&self) -> Result<Table, String> {
        let ended = self.finish().await;
        let ended = ended.ok_or_else(|| "endless silence".to_owned())?;
        ended.map_err(|error| error.to_string())?;
        let cluster = Cluster::new(self.host.clone(), addresses(1));
        let output = Output {
            store: &self.store,
            cluster: &cluster,
            config: &self.config,
        };
        output.table().await.map_err(|error| error.to_string())
    }
}
