//! `run`: a pipeline for real, with broker, job and sink in one process.

use super::{broker, BadInput, RunArguments};
use crate::revenue::{
    feed::{self, Fed, FeedError},
    pipeline::{minute_name, revenue, RevenueRow},
    DEAD_LETTERS, EVENTS, SUMS,
};
use engine::{
    checkpoint::{Entry, Store},
    graph::Upstream,
    guarantee::Guarantee,
    host::{
        real::{Lock, RealClock, RealDisk, RealNet},
        Host,
    },
    ids::{BrokerId, Offset, PartitionId},
    job::{Ended, JobConfig, JobError},
    log::{
        broker::{Broker, BrokerConfig},
        cluster::Cluster,
        consumer::Consumer,
        TopicPartition,
    },
    sink::{idempotent::Table, Objects, SinkKind},
    worker::WorkerConfig,
};
use futures::{select_biased, FutureExt};
use indicatif::{ProgressBar, ProgressStyle};
use object_store::local::LocalFileSystem;
use std::{
    collections::BTreeMap,
    io,
    sync::{atomic::Ordering, Arc},
    time::Duration,
};

/// Brokers of others have answered by then, or never will.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(20);

pub(super) fn run(arguments: &RunArguments) -> Result<u8, BadInput> {
    if arguments.workload != "revenue" {
        let text = format!(
            "`{}` cannot be run for real; revenue can",
            arguments.workload
        );
        return Err(BadInput::new(text));
    }
    let guarantee = arguments.job.guarantee.unwrap_or(Guarantee::ExactlyOnce);
    let sink = arguments.job.sink.unwrap_or(SinkKind::Transactional);
    let config = JobConfig {
        unchecked: arguments.job.unchecked,
        output_topic: SUMS.into(),
        dead_letter_topic: DEAD_LETTERS.into(),
        partitions: arguments.partitions,
        window_tasks: arguments.window_tasks,
        workers: arguments.workers,
        checkpoint_interval: Duration::from_millis(arguments.checkpoint_ms),
        // Whoever had the folder before is dead: it is locked.
        takeover_after: Duration::from_millis(600),
        ..JobConfig::new("revenue", guarantee, sink)
    };
    if !config.unchecked {
        let chain = revenue(Upstream::Repeats, 0).links(&config);
        chain.check(guarantee).map_err(BadInput::new)?;
    }
    for (name, value, max) in [
        ("--partitions", arguments.partitions as usize, 1024),
        ("--window-tasks", arguments.window_tasks, 128),
        ("--workers", arguments.workers, 64),
    ] {
        if !(1..=max).contains(&value) {
            let text = format!("{name} is {value}; 1 to {max} would be right");
            return Err(BadInput::new(text));
        }
    }
    let lines = feed::check(&arguments.input).map_err(BadInput::new)?;
    broker::prepare_process();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(BadInput::new)?;
    runtime.block_on(Run::new(arguments, config, lines)?.finish())
}

struct Run<'a> {
    arguments: &'a RunArguments,
    config: JobConfig,
    lines: u64,
    host: Host,
    _lock: Lock,
}

impl Run<'_> {
    fn new(arguments: &RunArguments, config: JobConfig, lines: u64) -> Result<Run<'_>, BadInput> {
        let dir = arguments.dir.display();
        let wrong = |error: &dyn std::fmt::Display| BadInput::new(format!("{dir}: {error}"));
        let disk = RealDisk::new(&arguments.dir).map_err(|error| wrong(&error))?;
        let lock = disk.lock().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => BadInput::new(format!(
                "{dir} is in use by another process; stop that one, or give this one a folder of its own"
            )),
            _ => wrong(&error),
        })?;
        let objects = arguments.dir.join("objects");
        std::fs::create_dir_all(&objects).map_err(|error| wrong(&error))?;
        let objects = LocalFileSystem::new_with_prefix(&objects).map_err(|error| wrong(&error))?;
        let clock = Arc::new(RealClock);
        let host = Host {
            instance: broker::instance(&*clock).into(),
            disk: Arc::new(disk),
            net: Arc::new(RealNet),
            clock,
            objects: Arc::new(objects.with_fsync(true)),
        };
        Ok(Run {
            arguments,
            config,
            lines,
            host,
            _lock: lock,
        })
    }

    async fn finish(self) -> Result<u8, BadInput> {
        let (brokers, broker) = self.log().await?;
        let work = async {
            let cluster = Cluster::new(self.host.clone(), brokers.clone());
            self.ensure_input(&cluster, &brokers).await?;
            self.process(&cluster, &brokers).await?;
            self.print(&cluster).await
        };
        select_biased! {
            done = work.boxed_local().fuse() => done,
            ended = broker.fuse() => Err(BadInput::new(ended)),
        }
    }

    /// The topic of events, with as many partitions as it should have.
    async fn ensure_input(&self, cluster: &Cluster, brokers: &[String]) -> Result<(), BadInput> {
        let (brokers, wanted) = (brokers.join(","), self.arguments.partitions);
        let ensured = cluster.ensure_topic(EVENTS, wanted);
        let ensured = match &self.arguments.brokers {
            None => ensured.await,
            Some(_) => tokio::time::timeout(FIRST_ANSWER_WITHIN, ensured)
                .await
                .map_err(|_| {
                    BadInput::new(format!(
                        "--brokers {brokers}: nobody there has answered as a Kafka broker for {} s; the HOST:PORT of one \
                         that runs would be right",
                        FIRST_ANSWER_WITHIN.as_secs()
                    ))
                })?,
        };
        match ensured.map_err(|error| BadInput::new(format!("{brokers}: {error}")))? {
            there if there == wanted => Ok(()),
            there => Err(BadInput::new(format!(
                "--partitions is {wanted}, and topic {EVENTS} has {there}; --partitions {there} would be right"
            ))),
        }
    }

    /// The log: that of others, or a broker in this process; what it says when it ends.
    async fn log(
        &self,
    ) -> Result<(Vec<String>, futures::future::BoxFuture<'static, String>), BadInput> {
        if let Some(brokers) = &self.arguments.brokers {
            let brokers = brokers.split(',').map(str::to_owned).collect();
            return Ok((brokers, Box::pin(std::future::pending())));
        }
        let config = BrokerConfig {
            coordinators: 4,
            retention: Duration::MAX,
            ..BrokerConfig::new(BrokerId(0), vec!["127.0.0.1:0".into()])
        };
        let dir = self.arguments.dir.clone();
        let bound = Broker::bind(self.host.clone(), config).await;
        let bound = bound.map_err(|error| BadInput::new(broker::explain(&error, &dir)))?;
        let address = bound.address().to_owned();
        let run = async move {
            match bound.run().await {
                Ok(()) => "the broker has ended".to_owned(),
                Err(error) => broker::explain(&error, &dir),
            }
        };
        Ok((vec![address], Box::pin(run)))
    }

    /// Feeds the file and runs the job beside it; then runs the job to the end of its input.
    async fn process(&self, cluster: &Cluster, brokers: &[String]) -> Result<(), BadInput> {
        let fed = Fed::default();
        let bar = ProgressBar::new(self.lines);
        let style = "{bar:30} {human_pos}/{human_len} events in the log, {per_sec}; {msg}";
        bar.set_style(ProgressStyle::with_template(style).expect("a right template"));
        bar.enable_steady_tick(Duration::from_millis(200));
        let store = Store::new(self.host.objects.clone(), &self.config.name);
        let showing = async {
            loop {
                bar.set_position(fed.load(Ordering::Relaxed));
                if let Ok(Some((number, entry))) = store.newest().await {
                    let read: i64 = match &entry {
                        Entry::Complete(manifest) => {
                            manifest.positions().values().map(|at| at.0).sum()
                        }
                        _ => 0,
                    };
                    bar.set_message(format!("checkpoint {number}, {read} read"));
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let port = free_port(&self.host).await.map_err(BadInput::new)?;
        let working = self.work(brokers, &port);
        let processing = async {
            let (input, partitions) = (&self.arguments.input, self.arguments.partitions);
            let producer = self.config.producer.clone();
            let feeding = async {
                let fed = feed::feed(cluster, input, partitions, producer, &fed).await;
                fed.map_err(|error: FeedError| BadInput::new(error))?;
                // The job goes on from where it stops, and knows then where its input ends.
                loop {
                    match engine::job::stop(&self.host, &port).await {
                        Ok(checkpoint) => return Ok(checkpoint),
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
            };
            let unbounded = self.coordinate(brokers, &port, false);
            // A feed that cannot go on ends the job; a job that has finished needs no feed.
            let ended = select_biased! {
                ended = unbounded.boxed_local().fuse() => ended,
                fed = feeding.boxed_local().fuse() => match fed {
                    Err(error) => Err(error),
                    Ok(checkpoint) => Ok(Ended::Stopped(checkpoint)),
                },
            };
            match ended? {
                Ended::Finished(_) => Ok(()),
                Ended::Stopped(_) => self.coordinate(brokers, &port, true).await.map(drop),
            }
        };
        let done = select_biased! {
            done = processing.boxed_local().fuse() => done,
            error = working.boxed_local().fuse() => Err(error),
            () = showing.boxed_local().fuse() => Ok(()),
        };
        bar.finish_and_clear();
        done
    }

    /// Coordinates the job, until its input ends if it is `bounded`.
    async fn coordinate(
        &self,
        brokers: &[String],
        listen: &str,
        bounded: bool,
    ) -> Result<Ended, BadInput> {
        let config = JobConfig {
            bounded,
            ..self.config.clone()
        };
        let job = revenue(Upstream::Repeats, 0);
        let coordinating = job.coordinate(self.host.clone(), brokers.to_vec(), config, listen);
        coordinating.await.map_err(|error| match error {
            JobError::Halted(why) => BadInput::new(format!("the job has halted: {why}")),
            error => BadInput::new(error),
        })
    }

    /// The workers of this process; the error that ends one.
    async fn work(&self, brokers: &[String], coordinator: &str) -> BadInput {
        let working = (0..self.arguments.workers).map(|index| {
            let host = Host {
                instance: format!("{}-worker-{index}", self.host.instance).into(),
                ..self.host.clone()
            };
            let at = WorkerConfig {
                coordinators: vec![coordinator.to_owned()],
                listen: "127.0.0.1:0".into(),
                address: "127.0.0.1:0".into(),
            };
            let (brokers, config) = (brokers.to_vec(), self.config.clone());
            let working = tokio::spawn(async move {
                let job = revenue(Upstream::Repeats, 0);
                job.work(host, brokers, config, at).await
            });
            Box::pin(working)
        });
        let (ended, _, _) = futures::future::select_all(working).await;
        match ended {
            Ok(Err(error)) => BadInput::new(format!("a worker: {error}")),
            Ok(Ok(never)) => match never {},
            Err(error) => BadInput::new(format!("a worker: {error}")),
        }
    }

    /// Prints the table.
    async fn print(&self, cluster: &Cluster) -> Result<u8, BadInput> {
        let rows = match self.config.sink {
            SinkKind::Objects => self.rows_of_objects().await?,
            _ => self.rows_of_topic(cluster).await?,
        };
        if self.arguments.json {
            for row in rows.values() {
                anstream::println!("{}", serde_json::to_string(row).expect("plain data"));
            }
            return Ok(0);
        }
        let (mut orders, mut cents) = (0, 0);
        for row in rows.values() {
            let minute = minute_name(row.minute_ms);
            let sum = row.cents as f64 / 100.0;
            anstream::println!("{minute:<28} {:>9} orders {sum:>16.2}", row.orders);
            orders += row.orders;
            cents += row.cents;
        }
        let (minutes, sum) = (rows.len(), cents as f64 / 100.0);
        anstream::println!("{minutes} minutes, {orders} orders, {sum:.2} in all");
        Ok(0)
    }

    async fn rows_of_objects(&self) -> Result<BTreeMap<i64, RevenueRow>, BadInput> {
        let store = Store::new(self.host.objects.clone(), &self.config.name);
        let mut rows = BTreeMap::new();
        for manifest in store.manifests().await.map_err(BadInput::new)? {
            let read = Objects::read(&store, &manifest)
                .await
                .map_err(BadInput::new)?;
            for (task, row) in read {
                if !task.starts_with("source") {
                    let row = parse(row.value.as_bytes())?;
                    rows.insert(row.minute_ms, row);
                }
            }
        }
        Ok(rows)
    }

    async fn rows_of_topic(
        &self,
        cluster: &Cluster,
    ) -> Result<BTreeMap<i64, RevenueRow>, BadInput> {
        let (mut rows, mut table) = (BTreeMap::new(), Table::default());
        for index in 0..self.config.partitions {
            let of = TopicPartition::new(SUMS, PartitionId(index));
            let end = cluster.stable_offset(&of).await.map_err(BadInput::new)?;
            let mut consumer = Consumer::new(cluster.clone(), of, Offset(0));
            while consumer.position() < end {
                for record in consumer.poll().await.map_err(BadInput::new)? {
                    if self.config.sink == SinkKind::Idempotent && !table.apply(&record) {
                        continue;
                    }
                    let row = parse(record.value.as_deref().unwrap_or_default())?;
                    rows.insert(row.minute_ms, row);
                }
            }
        }
        Ok(rows)
    }
}

fn parse(row: &[u8]) -> Result<RevenueRow, BadInput> {
    serde_json::from_slice(row).map_err(|error| BadInput::new(format!("{SUMS}: {error}")))
}

/// An address on this machine that nobody listens on.
async fn free_port(host: &Host) -> io::Result<String> {
    let listener = host.net.listen("127.0.0.1:0").await?;
    Ok(format!("127.0.0.1:{}", listener.port()))
}
