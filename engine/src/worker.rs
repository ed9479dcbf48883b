//! A worker: it runs the tasks that a coordinator gives it, of one attempt at a time.
//!
//! It comes to whichever coordinator listens, and does what that one says until one of them is not heard of any
//! more. Then its tasks end, and it looks for a coordinator again: whoever it finds has begun an attempt that
//! fences whatever its tasks may still have on the way.

mod switchboard;

use crate::{
    checkpoint::Store,
    exchange::{self, remote, EdgeId, Input, Inputs, Output, Outputs},
    failure::Failure,
    graph::WindowJob,
    guarantee::Guarantee,
    host::Host,
    ids::{AttemptId, EventTime, Offset, PartitionId},
    job::{
        aloud,
        protocol::{Deployment, Hello, ToCoordinator, ToWorker},
        JobConfig, SAY_EVERY,
    },
    link::{self, Reader, Token, Writer},
    log::{cluster::Cluster, rarely::Rarely, transactional::TransactionalConfig, TopicPartition},
    operator::{
        window::{Keyed, Windows},
        Stage,
    },
    part::Part,
    record::Timed,
    sink::{append, Append, Idempotent, Objects, OnDemand, Sink, SinkKind, Transactional},
    source::Source,
    task::{start, Checkpointing, Control, Progress, Report, Running, TaskLink, WindowTask},
};
use futures::{select_biased, FutureExt};
use serde::{de::DeserializeOwned, Serialize};
use std::{collections::BTreeMap, convert::Infallible, io, time::Duration};
use switchboard::Switchboard;
use tokio::{sync::mpsc, time::Instant};

/// Where a worker is, and where coordinators may be.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where coordinators may listen, as `HOST:PORT`.
    pub coordinators: Vec<String>,
    /// Where this worker listens, as `HOST:PORT`.
    pub listen: String,
    /// Where other workers find it; its port is that on which it listens.
    pub address: String,
}

/// Between two looks for a coordinator.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Controls of a task that it has not taken.
const CONTROLS_MAX: usize = 16;
/// Reports that are not sent yet.
const REPORTS_MAX: usize = 64;

impl<S, T, K, A> WindowJob<S, T, K, A>
where
    S: Stage<Out = Timed<T>>,
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
    K: Ord + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    A: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Works for the job, for ever. An error says that the worker cannot listen, that its configuration makes no sense, or
    /// that the job's objects cannot be used.
    pub async fn work(
        &self,
        host: Host,
        brokers: Vec<String>,
        config: JobConfig,
        at: WorkerConfig,
    ) -> io::Result<Infallible> {
        config
            .check()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let listener = host.net.listen(&at.listen).await?;
        let store = config.store(&host);
        let identifying = async {
            loop {
                match store.identify(&host).await {
                    Ok(identity) => break Ok(identity.token()),
                    Err(error) if error.is_definite() => {
                        break Err(io::Error::new(io::ErrorKind::InvalidData, error));
                    }
                    Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
                }
            }
        };
        let token = aloud("the object store", identifying).await?;
        let address = at
            .address
            .rsplit_once(':')
            .map_or(&*at.address, |(host, _)| host);
        let worker = Worker {
            job: self,
            address: format!("{address}:{}", listener.port()),
            cluster: Cluster::new(host.clone(), brokers),
            store,
            switchboard: Switchboard::new(listener, token),
            token,
            host,
            config,
            refused: Rarely::default(),
        };
        let (mut heard, unheard) = (Instant::now(), Rarely::default());
        loop {
            for coordinator in &at.coordinators {
                if let Err(error) = worker.serve(coordinator, &mut heard).await {
                    let (coordinator, error) = (coordinator.as_str(), error.to_string());
                    tracing::debug!(name: "worker.left", coordinator, error);
                    let is_long = heard.elapsed() >= SAY_EVERY;
                    if let Some(unsaid) = is_long.then(|| unheard.say()).flatten() {
                        tracing::warn!(
                            name: "worker.waits",
                            coordinator,
                            error,
                            unsaid,
                            "nobody coordinates the job, as far as this worker knows; it goes on looking"
                        );
                    }
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

struct Worker<'a, S, T, K, A> {
    job: &'a WindowJob<S, T, K, A>,
    host: Host,
    address: String,
    cluster: Cluster,
    store: Store,
    token: Token,
    config: JobConfig,
    switchboard: Switchboard<Keyed<K, T>>,
    /// Warnings that a coordinator does not want this worker.
    refused: Rarely,
}

/// The tasks of an attempt on this worker.
struct Tasks {
    attempt: AttemptId,
    controls: BTreeMap<String, mpsc::Sender<Control>>,
    progress: Progress,
    _running: Vec<Running>,
    /// Connections to other workers, and what waits for the object store.
    parts: Vec<Part>,
}

/// The beginnings and ends of edges, until tasks take them.
struct Edges<M> {
    outputs: BTreeMap<EdgeId, Output<M>>,
    inputs: BTreeMap<EdgeId, Input<M>>,
    parts: Vec<Part>,
}

impl<S, T, K, A> Worker<'_, S, T, K, A>
where
    S: Stage<Out = Timed<T>>,
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
    K: Ord + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    A: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Works for one coordinator, until one of the two is lost to the other. `heard` is when any of them last told it
    /// something.
    async fn serve(&self, coordinator: &str, heard: &mut Instant) -> io::Result<()> {
        let silence = self.config.silence;
        let calling = link::call(&*self.host.net, coordinator, self.token);
        let (reader, mut writer) = within(silence, calling).await?;
        let hello = Hello::Worker {
            instance: self.host.instance.to_string(),
            address: self.address.clone(),
            job: self.job.shape(&self.config),
        };
        within(silence, writer.write(&hello)).await?;
        let (told, mut tells) = mpsc::channel(CONTROLS_MAX);
        let _reading = Part(tokio::spawn(read(reader, told)));
        let (report, mut reports) = mpsc::channel(REPORTS_MAX);
        let mut tasks: Option<Tasks> = None;
        let mut heard_here = Instant::now();
        loop {
            let event = select_biased! {
                told = tells.recv().fuse() => Event::Told(told),
                report = reports.recv().fuse() => Event::Report(report.expect("it is held here")),
                () = tokio::time::sleep_until(heard_here + silence).fuse() => Event::Silence,
            };
            let say = match event {
                Event::Silence => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no sign of life"));
                }
                Event::Told(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Event::Told(Some(Err(error))) => return Err(error),
                Event::Told(Some(Ok(told))) => {
                    heard_here = Instant::now();
                    *heard = heard_here;
                    self.obey(told, &mut tasks, &report)?
                }
                Event::Report(report) => Some(ToCoordinator::Report(report)),
            };
            if let Some(say) = say {
                within(silence, writer.write(&say)).await?;
            }
        }
    }

    /// Does what the coordinator says; what is to be answered at once.
    fn obey(
        &self,
        told: ToWorker,
        tasks: &mut Option<Tasks>,
        report: &mpsc::Sender<Report>,
    ) -> io::Result<Option<ToCoordinator>> {
        match told {
            ToWorker::Refused(why) => {
                if let Some(unsaid) = self.refused.say() {
                    tracing::warn!(name: "worker.refused", why, unsaid, "the coordinator does not want this worker");
                }
                return Err(io::Error::other(why));
            }
            ToWorker::Deploy(deployment) => {
                tracing::info!(
                    name: "worker.deployed",
                    attempt = deployment.attempt.0,
                    worker = deployment.me
                );
                // Those of an attempt before end first.
                *tasks = None;
                *tasks = Some(self.deploy(&deployment, report));
            }
            ToWorker::Barrier(checkpoint) => {
                for control in tasks.iter().flat_map(|tasks| tasks.controls.values()) {
                    tell(control, Control::Barrier(checkpoint))?;
                }
            }
            ToWorker::Complete(checkpoint) => {
                if let Some(tasks) = tasks {
                    // The right to commit is in the manifest log, and nowhere else.
                    let (store, controls) = (self.store.clone(), tasks.controls.clone());
                    let (attempt, report) = (tasks.attempt, report.clone());
                    tasks.parts.push(Part(tokio::spawn(async move {
                        let told = match store.complete(checkpoint).await {
                            Ok(complete) if complete.manifest().attempt == attempt => controls
                                .values()
                                .try_for_each(|control| {
                                    tell(control, Control::Complete(complete.clone()))
                                })
                                .map_err(|error| Failure::Passing(error.to_string())),
                            Ok(_) => {
                                let why = "another attempt has completed it";
                                Err(Failure::Passing(why.to_owned()))
                            }
                            Err(error) => Err(Failure::from(&error)),
                        };
                        if let Err(failure) = told {
                            fail(&report, &format!("checkpoint {checkpoint}"), failure).await;
                        }
                    })));
                }
            }
            ToWorker::Beat(watermark) => {
                let mut progress = Vec::new();
                if let Some(tasks) = tasks {
                    if let Some(watermark) = watermark {
                        // Only who has taken what it was told before is told this.
                        let controls = tasks.controls.values();
                        for control in controls.filter(|to| to.capacity() == CONTROLS_MAX) {
                            tell(control, Control::Others(watermark))?;
                        }
                    }
                    let all = tasks.progress.all().into_iter();
                    progress = all
                        .map(|(partition, (watermark, idle))| (partition, watermark, idle))
                        .collect();
                    tasks.parts.retain(|part| !part.0.is_finished());
                }
                return Ok(Some(ToCoordinator::Beat(progress)));
            }
        }
        Ok(None)
    }

    /// Starts the tasks of an attempt.
    fn deploy(&self, deployment: &Deployment, report: &mpsc::Sender<Report>) -> Tasks {
        let mut edges = self.edges(deployment, report);
        let (mut controls, mut running) = (BTreeMap::new(), Vec::new());
        let progress = Progress::default();
        let mut link = |name: &str| {
            let (sender, control) = mpsc::channel(CONTROLS_MAX);
            controls.insert(name.to_owned(), sender);
            TaskLink {
                name: name.to_owned(),
                control,
                reports: report.clone(),
            }
        };
        let mine = |worker: u32| worker == deployment.me;
        for (index, placed) in deployment.sources.iter().enumerate() {
            if !mine(placed.worker) {
                continue;
            }
            let partition = PartitionId(index as i32);
            let outputs = (0..deployment.windows.len()).map(|to| edge(index, to));
            let outputs = outputs.map(|id| edges.outputs.remove(&id).expect("each has one"));
            let until = deployment.until.as_ref();
            let source = Source {
                cluster: self.cluster.clone(),
                from: TopicPartition::new(&self.job.graph().topic, partition),
                until: until.map(|until| until[index]),
                idle_after: self.config.idle_after,
                stage: self.job.stage.clone(),
                key: self.job.key.clone(),
                outputs: Outputs::new(outputs.collect(), self.config.key_groups),
                progress: progress.clone(),
                checkpointing: self.checkpointing(&placed.task, deployment.attempt),
                restore: placed.restore.first().cloned(),
                position: Offset(0),
                sent: EventTime(i64::MIN),
                idle: false,
            };
            running.push(start(source, link(&placed.task)));
        }
        for (index, placed) in deployment.windows.iter().enumerate() {
            if !mine(placed.worker) {
                continue;
            }
            let inputs = (0..deployment.sources.len()).map(|from| edge(from, index));
            let inputs = inputs.map(|id| edges.inputs.remove(&id).expect("each has one"));
            let task = WindowTask {
                inputs: Inputs::new(inputs.collect()),
                windows: Windows::new(self.job.extent, deployment.sources.len()),
                key_groups: self.config.key_groups,
                groups: (self.config.key_groups).range(index, deployment.windows.len()),
                fold: self.job.fold.clone(),
                row: self.job.row.clone(),
                checkpointing: self.checkpointing(&placed.task, deployment.attempt),
                restore: placed.restore.clone(),
            };
            running.push(start(task, link(&placed.task)));
        }
        Tasks {
            attempt: deployment.attempt,
            controls,
            progress,
            _running: running,
            parts: edges.parts,
        }
    }

    /// All edges that begin or end on this worker; those to others are being connected.
    fn edges(&self, deployment: &Deployment, report: &mpsc::Sender<Report>) -> Edges<Keyed<K, T>> {
        let me = deployment.me;
        let mut edges = Edges {
            outputs: BTreeMap::new(),
            inputs: BTreeMap::new(),
            parts: Vec::new(),
        };
        let (mut outgoing, mut incoming) = (BTreeMap::new(), BTreeMap::new());
        for (from, source) in deployment.sources.iter().enumerate() {
            for (to, window) in deployment.windows.iter().enumerate() {
                let id = edge(from, to);
                match (source.worker == me, window.worker == me) {
                    (true, true) => {
                        let (output, input) = exchange::local(id);
                        edges.outputs.insert(id, output);
                        edges.inputs.insert(id, input);
                    }
                    (true, false) => {
                        let to: &mut Vec<EdgeId> = outgoing.entry(window.worker).or_default();
                        to.push(id);
                    }
                    (false, true) => {
                        let from: &mut Vec<EdgeId> = incoming.entry(source.worker).or_default();
                        from.push(id);
                    }
                    (false, false) => {}
                }
            }
        }
        let mut ends = BTreeMap::new();
        for (from, ids) in incoming {
            let (inputs, end) = remote::end(&ids);
            edges.inputs.extend(ids.into_iter().zip(inputs));
            ends.insert(from, end);
        }
        self.switchboard
            .expect(deployment.attempt, ends, report.clone());
        for (to, ids) in outgoing {
            let (outputs, begin) = remote::begin(&ids);
            edges.outputs.extend(ids.into_iter().zip(outputs));
            let address = deployment.workers[to as usize].clone();
            let dial = switchboard::dial(
                self.host.net.clone(),
                address.clone(),
                self.token,
                deployment.attempt,
                me,
            );
            let (silence, report) = (self.config.silence, report.clone());
            edges.parts.push(Part(tokio::spawn(async move {
                let carried = async { begin.carry(within(silence, dial).await?).await };
                if let Err(error) = carried.await {
                    let failure = Failure::Passing(error.to_string());
                    fail(&report, &format!("edges to {address}"), failure).await;
                }
            })));
        }
        edges
    }

    fn checkpointing(&self, task: &str, attempt: AttemptId) -> Checkpointing {
        let sink = self.sink(task, attempt);
        Checkpointing::new(task.to_owned(), self.store.clone(), sink)
    }

    fn sink(&self, task: &str, attempt: AttemptId) -> Box<dyn Sink> {
        let config = &self.config;
        let topic = config.topic_of(task, &self.host);
        let producer = OnDemand::new(self.cluster.clone(), config.producer.clone());
        match config.sink {
            SinkKind::Objects => Box::new(Objects::new(self.store.clone(), task)),
            SinkKind::Transactional => {
                let producers = TransactionalConfig {
                    timeout: config.transaction_timeout,
                    producer: config.producer.clone(),
                    ..TransactionalConfig::new("")
                };
                let task = task.to_owned();
                let whose = (&*config.name, attempt, &task);
                Box::new(Transactional::new(
                    self.cluster.clone(),
                    self.store.clone(),
                    whose,
                    topic,
                    producers,
                ))
            }
            SinkKind::Idempotent => {
                Box::new(Idempotent::new(self.store.clone(), task, producer, topic))
            }
            SinkKind::Append => {
                let when = match config.claimed {
                    Guarantee::AtMostOnce => append::When::Complete,
                    _ => append::When::AtOnce,
                };
                Box::new(Append::new(producer, topic, when))
            }
        }
    }
}

enum Event {
    Told(Option<io::Result<ToWorker>>),
    Report(Report),
    Silence,
}

fn edge(from: usize, to: usize) -> EdgeId {
    EdgeId {
        from: from as u32,
        to: to as u32,
    }
}

/// Tells a task something. One that takes nothing any more has ended, and has said why.
fn tell(task: &mpsc::Sender<Control>, what: Control) -> io::Result<()> {
    match task.try_send(what) {
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        Err(mpsc::error::TrySendError::Full(_)) => Err(io::Error::other("a task is stuck")),
    }
}

async fn fail(report: &mpsc::Sender<Report>, task: &str, failure: Failure) {
    let failed = Report::Failed {
        task: task.to_owned(),
        failure,
    };
    // If the worker has left its coordinator, nobody needs to know.
    let _ = report.send(failed).await;
}

async fn read(mut reader: Reader, told: mpsc::Sender<io::Result<ToWorker>>) {
    loop {
        let message = match reader.read().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let failed = message.is_err();
        if told.send(message).await.is_err() || failed {
            return;
        }
    }
}

async fn within<T>(
    time: Duration,
    work: impl std::future::Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    tokio::time::timeout(time, work).await.map_err(late)?
}

/// Both directions of a connection.
type Directions = (Reader, Writer);
