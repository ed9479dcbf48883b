//! `run`: a pipeline for real, with broker, job and sink in one process.
//!
//! It ends with exit code 0 only when the table is whole, and counted ([`Output`]). Told to stop (ctrl-C, SIGTERM), it ends
//! behind a savepoint, with the code that a shell gives for that signal. The same command goes on from wherever an
//! earlier one has come to, and from the end, if the file has grown.

mod kept;
mod progress;
mod table;

use super::{broker, signals::Signals, BadInput, RunArguments};
use crate::revenue::{
    feed::{Feed, Input, Progress},
    pipeline::revenue,
    table::{NotWhole, Output},
    DEAD_LETTERS, EVENTS, SUMS,
};
use engine::{
    checkpoint::Store,
    graph::Upstream,
    guarantee::Guarantee,
    host::{
        real::{Lock, RealClock, RealDisk, RealEntropy, RealNet},
        Host,
    },
    ids::{BrokerId, CheckpointId},
    job::{Ended, JobConfig, JobError},
    log::{
        broker::{Broker, BrokerConfig},
        cluster::Cluster,
    },
    sink::SinkKind,
    worker::WorkerConfig,
};
use futures::{future::BoxFuture, select_biased, FutureExt};
use object_store::local::LocalFileSystem;
use progress::show;
use std::{cell::Cell, io, sync::Arc, time::Duration};

/// Brokers of others have answered by then, or never will.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// A savepoint is there by then, or the run ends without one.
const SAVEPOINT_WITHIN: Duration = Duration::from_secs(30);
/// Nobody comes to a job that has finished.
const UNUSED: &str = "127.0.0.1:0";
/// Between two tries to reach the coordinator.
const STOP_AGAIN: Duration = Duration::from_millis(100);

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
    let input = Input::check(&arguments.input).map_err(BadInput::new)?;
    broker::prepare_process();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(BadInput::new)?;
    runtime.block_on(Run::new(arguments, config, input)?.finish())
}

struct Run<'a> {
    arguments: &'a RunArguments,
    config: JobConfig,
    input: Input,
    host: Host,
    store: Store,
    _lock: Lock,
}

impl Run<'_> {
    fn new(arguments: &RunArguments, config: JobConfig, input: Input) -> Result<Run<'_>, BadInput> {
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
            entropy: Arc::new(RealEntropy),
            objects: Arc::new(objects.with_fsync(true)),
        };
        Ok(Run {
            arguments,
            store: Store::new(host.objects.clone(), &config.name),
            config,
            input,
            host,
            _lock: lock,
        })
    }

    async fn finish(self) -> Result<u8, BadInput> {
        let mut signals = Signals::new()?;
        let (brokers, broker) = match signals.unless_told(self.log()).await {
            Ok(log) => log?,
            Err(code) => return Ok(told_early(code)),
        };
        select_biased! {
            done = self.run(&brokers, &mut signals).boxed_local().fuse() => done,
            ended = broker.fuse() => Err(BadInput::new(ended)),
        }
    }

    async fn run(&self, brokers: &[String], signals: &mut Signals) -> Result<u8, BadInput> {
        let cluster = Cluster::new(self.host.clone(), brokers.to_vec());
        let opening = async {
            self.ensure_input(&cluster, brokers).await?;
            let (feed, fed) = self.feed(&cluster, brokers).await?;
            let is_done = self.is_done(&feed, fed).await?;
            Ok::<_, BadInput>((feed, is_done))
        };
        let (feed, is_done) = match signals.unless_told(opening).await {
            Ok(opened) => opened?,
            Err(code) => return Ok(told_early(code)),
        };
        if !is_done {
            let outcome = self.process(&feed, brokers, signals).await?;
            if let Outcome::Stopped(how) = outcome {
                anstream::eprintln!("{}; the same command goes on from there", how.what);
                return Ok(how.code);
            }
        }
        let reading = async {
            if is_done {
                // Nothing is left to do; but it must be the same job.
                let finished = self.coordinate(brokers, UNUSED, self.config.clone());
                finished.await?;
            }
            self.read_table(&cluster).await
        };
        match signals.unless_told(reading).await {
            Ok(code) => code,
            Err(code) => {
                anstream::eprintln!(
                    "ended before the table was read; the job has finished, and the same command reads it"
                );
                Ok(code)
            }
        }
    }

    /// Reads the table that the job has left, and prints it if it is whole.
    async fn read_table(&self, cluster: &Cluster) -> Result<u8, BadInput> {
        let output = Output {
            store: &self.store,
            cluster,
            config: &self.config,
        };
        match output.table().await {
            Ok(table) => {
                table::print(&table, self.arguments.json);
                Ok(0)
            }
            Err(NotWhole::Objects(error)) => Err(self.damaged(&error)),
            Err(error @ NotWhole::Miscounted { .. }) => {
                anstream::eprintln!("error: {error}");
                Ok(1)
            }
            Err(error) => Err(BadInput::new(error)),
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
    async fn log(&self) -> Result<(Vec<String>, BoxFuture<'static, String>), BadInput> {
        if let Some(brokers) = &self.arguments.brokers {
            let brokers = brokers.split(',').map(str::to_owned).collect();
            return Ok((brokers, Box::pin(std::future::pending())));
        }
        let config = BrokerConfig {
            coordinators: 4,
            retention: None,
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
    async fn process(
        &self,
        feed: &Feed,
        brokers: &[String],
        signals: &mut Signals,
    ) -> Result<Outcome, BadInput> {
        let progress = Progress::default();
        let port = free_port(&self.host).await.map_err(BadInput::new)?;
        let (is_fed, told) = (Cell::new(false), Cell::new(None));
        let processing = async {
            let feeding = async {
                feed.run(&progress).await.map_err(BadInput::new)?;
                // The job goes on from where it stops, and knows then where its input ends.
                is_fed.set(true);
                Ok(self.stop(&port).await)
            };
            let unbounded = self.coordinate(brokers, &port, self.going_on(false));
            // A feed that cannot go on ends the job.
            let mut ended = select_biased! {
                ended = unbounded.boxed_local().fuse() => ended?,
                fed = feeding.boxed_local().fuse() => Ended::Stopped(fed?),
            };
            if is_fed.get() && told.get().is_none() {
                ended = self.coordinate(brokers, &port, self.going_on(true)).await?;
            }
            Ok(match ended {
                Ended::Finished(_) => Outcome::Finished,
                Ended::Stopped(checkpoint) => {
                    Outcome::Stopped(Stopped::behind(told.get(), Some(checkpoint)))
                }
            })
        };
        let stopping = async {
            let code = signals.next().await;
            told.set(Some(code));
            anstream::eprintln!("stopping behind a savepoint; once more ends it at once");
            let stopped = tokio::time::timeout(SAVEPOINT_WITHIN, self.stop(&port)).fuse();
            let checkpoint = select_biased! {
                stopped = std::pin::pin!(stopped) => stopped.ok(),
                _ = signals.next().boxed_local().fuse() => None,
            };
            Ok(Outcome::Stopped(Stopped::behind(Some(code), checkpoint)))
        };
        let working = self.work(brokers, &port);
        let showing = show(&progress, self.input.lines, &self.store);
        select_biased! {
            done = processing.boxed_local().fuse() => done,
            stopped = stopping.boxed_local().fuse() => stopped,
            error = working.boxed_local().fuse() => Err(error),
            never = showing.boxed_local().fuse() => match never {},
        }
    }

    /// Stops the job, as soon as somebody coordinates it.
    async fn stop(&self, port: &str) -> CheckpointId {
        loop {
            match engine::job::stop(&self.host, &self.store, port).await {
                Ok(checkpoint) => return checkpoint,
                Err(_) => tokio::time::sleep(STOP_AGAIN).await,
            }
        }
    }

    /// How the job is run that has more to read: until its input ends, if it is `bounded`.
    fn going_on(&self, bounded: bool) -> JobConfig {
        JobConfig {
            bounded,
            beyond_finish: true,
            ..self.config.clone()
        }
    }

    /// Coordinates the job until it ends.
    async fn coordinate(
        &self,
        brokers: &[String],
        listen: &str,
        config: JobConfig,
    ) -> Result<Ended, BadInput> {
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
}

/// How a run ends that nothing went wrong with.
enum Outcome {
    Finished,
    Stopped(Stopped),
}

/// It was told to stop before its input had ended.
struct Stopped {
    code: u8,
    what: String,
}

impl Stopped {
    /// By a signal with this exit code, or by somebody who may; behind a savepoint, if there is one.
    fn behind(signal: Option<u8>, savepoint: Option<CheckpointId>) -> Stopped {
        Stopped {
            // Whoever else has stopped it knows that the table is not whole; this process only knows that it is not.
            code: signal.unwrap_or(2),
            what: match savepoint {
                Some(checkpoint) => format!("stopped behind savepoint {checkpoint}"),
                None => "ended without a savepoint, at the newest checkpoint".to_owned(),
            },
        }
    }
}

/// Told to stop while the log was opened and compared: nothing has begun that a savepoint could keep.
fn told_early(code: u8) -> u8 {
    anstream::eprintln!(
        "ended before anything was fed or read; the same command goes on from there"
    );
    code
}

/// An address on this machine that nobody listens on.
async fn free_port(host: &Host) -> io::Result<String> {
    let listener = host.net.listen("127.0.0.1:0").await?;
    Ok(format!("127.0.0.1:{}", listener.port()))
}
