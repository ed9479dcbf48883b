//! A job: one attempt after the other, each from the newest complete checkpoint.
//!
//! Any number of processes may run the same job. One of them runs an attempt; the others stand by, and
//! watch the manifest log: when nothing was added to it for a while, they begin an attempt, which fences
//! the one before. A process that was only slow finds out when it adds its next entry.

use crate::{
    checkpoint::{
        coordinator::Coordinator,
        store::{Attempt, StoreError},
        Complete, Store,
    },
    exchange,
    graph::WindowJob,
    guarantee::{Chain, Guarantee, Refused},
    host::Host,
    ids::{Offset, PartitionId},
    log::{
        cluster::Cluster,
        consumer::Consumer,
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    operator::{window::Windows, Stage},
    record::Timed,
    sink::{append, Append, Objects, Sink, SinkKind},
    source::{DeadLetters, Source},
    task::{Control, Part, Report, TaskError, TaskLink, WindowTask},
};
use futures::{select_biased, FutureExt};
use serde::{de::DeserializeOwned, Serialize};
use std::time::Duration;
use tokio::{sync::mpsc, time::Instant};

/// How a job is run.
#[derive(Clone, Debug)]
pub struct JobConfig {
    /// Its name: what its objects are stored under.
    pub name: String,
    /// What its output promises.
    pub claimed: Guarantee,
    /// Run it even if its chain does not keep that promise.
    pub unchecked: bool,
    /// Where its output goes.
    pub sink: SinkKind,
    /// The topic of an `append` sink.
    pub output_topic: String,
    /// The topic of records that cannot be used.
    pub dead_letter_topic: String,
    /// How many partitions those two topics have.
    pub partitions: i32,
    /// How many tasks share the windows.
    pub window_tasks: usize,
    /// Between two checkpoints.
    pub checkpoint_interval: Duration,
    /// A checkpoint that takes longer ends the attempt.
    pub checkpoint_timeout: Duration,
    /// When nothing was added to the manifest log for so long, a process that stands by takes over.
    pub takeover_after: Duration,
    /// How its producers batch and wait.
    pub producer: ProducerConfig,
}

/// Why an attempt ended.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The object store, or a later attempt.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A task.
    #[error("{0}: {1}")]
    Task(String, TaskError),
    /// A checkpoint took too long.
    #[error("checkpoint {0} timed out, waiting for {1}")]
    Timeout(u64, String),
    /// The tasks and their coordinator disagree.
    #[error(transparent)]
    Ack(#[from] crate::checkpoint::coordinator::AckError),
}

impl<S, T, K, A> WindowJob<S, T, K, A>
where
    S: Stage<Out = Timed<T>>,
    T: Send + 'static,
    K: Ord + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    A: Default + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// The links of this job's chain, if it is run with `config`.
    pub fn links(&self, config: &JobConfig) -> Chain {
        let sink = (config.sink.name(), config.sink.class());
        let graph = self.graph();
        Chain::new(graph.upstream, graph.has_dedup(), sink, config.claimed)
    }

    /// Runs the job in this process, for ever. Refuses a claim that the chain does not keep.
    pub async fn run(
        self,
        host: Host,
        brokers: Vec<String>,
        config: JobConfig,
    ) -> Result<std::convert::Infallible, Refused> {
        if !config.unchecked {
            self.links(&config).check(config.claimed)?;
        }
        let store = Store::new(host.objects.clone(), &config.name);
        let cluster = Cluster::new(host, brokers);
        loop {
            stand_by(&store, config.takeover_after, &cluster.host().instance).await;
            let Err(error) = self.attempt(&store, &cluster, &config).await;
            let error = error.to_string();
            tracing::info!(name: "job.attempt-ended", error);
        }
    }

    /// Runs one attempt until something goes wrong.
    async fn attempt(
        &self,
        store: &Store,
        cluster: &Cluster,
        config: &JobConfig,
    ) -> Result<std::convert::Infallible, AttemptError> {
        let (attempt, restored) = store.begin(&cluster.host().instance).await?;
        tracing::info!(
            name: "job.attempt-begun",
            attempt = attempt.id().0,
            restores = ?restored.as_ref().map(|complete| complete.checkpoint().0)
        );
        let graph = self.graph();
        let partitions = cluster.partitions(&graph.topic).await;
        for topic in [&config.dead_letter_topic, &config.output_topic] {
            // A name that the cluster refuses shows at the first record, as a task's error.
            let _ = cluster.ensure_topic(topic, config.partitions).await;
        }
        let begin = Begin {
            job: self,
            store,
            cluster,
            config,
            restored: restored.as_ref(),
        };
        let running = begin.tasks(partitions).await?;
        running.coordinate(attempt, config).await
    }
}

/// Processes that find a job without anybody who runs it begin within this time, each at its own moment,
/// so that the others see the first one's entry before they begin theirs.
const SPREAD_MS: u64 = 1000;

/// Waits until the job has nobody who runs it: nothing was added to its manifest log for a while, or
/// ever.
async fn stand_by(store: &Store, takeover_after: Duration, instance: &str) {
    let poll = takeover_after / 6;
    let moment = Duration::from_millis(exchange::stable_hash(&instance) % SPREAD_MS);
    let mut next = loop {
        match store.newest().await {
            Ok(newest) => break newest.map_or(0, |(number, _)| number + 1),
            Err(_) => tokio::time::sleep(poll).await,
        }
    };
    let mut until = match next {
        0 => Instant::now() + moment,
        _ => Instant::now() + takeover_after + moment,
    };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        tokio::time::sleep(left.min(poll)).await;
        while let Ok(Some(_)) = store.entry(next).await {
            next += 1;
            until = Instant::now() + takeover_after + moment;
        }
        if Instant::now() >= until {
            return;
        }
    }
}

/// What it takes to begin the tasks of an attempt.
struct Begin<'a, S, T, K, A> {
    job: &'a WindowJob<S, T, K, A>,
    store: &'a Store,
    cluster: &'a Cluster,
    config: &'a JobConfig,
    restored: Option<&'a Complete>,
}

/// The tasks of an attempt. They end when this is dropped.
struct Running {
    controls: Vec<mpsc::Sender<Control>>,
    sources: usize,
    coordinator: Coordinator,
    reports: mpsc::Receiver<Report>,
    _tasks: Vec<Part>,
}

impl<S, T, K, A> Begin<'_, S, T, K, A>
where
    S: Stage<Out = Timed<T>>,
    T: Send + 'static,
    K: Ord + Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
    A: Default + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Restores and spawns all tasks.
    async fn tasks(&self, partitions: i32) -> Result<Running, AttemptError> {
        let sources = partitions as usize;
        let (report, reports) = mpsc::channel(sources + self.config.window_tasks);
        let (outputs, inputs) = exchange::connect(sources, self.config.window_tasks);
        let (mut controls, mut tasks, mut names) = (Vec::new(), Vec::new(), Vec::new());
        let mut link = |name: &str| {
            let (sender, control) = mpsc::channel(16);
            controls.push(sender);
            names.push(name.to_owned());
            TaskLink {
                name: name.to_owned(),
                control,
                reports: report.clone(),
            }
        };
        for (index, outputs) in outputs.into_iter().enumerate() {
            let name = format!("source-{index}");
            let from = TopicPartition::new(&self.job.graph().topic, PartitionId(index as i32));
            let mut source = Source {
                name: name.clone(),
                from: from.clone(),
                stage: self.job.stage.clone(),
                key: self.job.key.clone(),
                outputs,
                dead_letters: self.dead_letters(index).await,
                store: self.store.clone(),
            };
            let position = match self.snapshot_of(&name)? {
                None => Offset(0),
                Some(object) => {
                    let restored = source.restore(object).await;
                    restored.map_err(|error| AttemptError::Task(name.clone(), error))?
                }
            };
            let consumer = Consumer::new(self.cluster.clone(), from, position);
            let link = link(&name);
            tasks.push(spawn(name, report.clone(), source.run(consumer, link)));
        }
        for (index, inputs) in inputs.into_iter().enumerate() {
            let name = format!("window-{index}");
            let mut task = WindowTask {
                name: name.clone(),
                windows: Windows::new(self.job.size_ms, inputs.len()),
                inputs,
                fold: self.job.fold.clone(),
                row: self.job.row.clone(),
                sink: self.sink(&name).await,
                store: self.store.clone(),
            };
            if let Some(object) = self.snapshot_of(&name)? {
                let restored = task.restore(object).await;
                restored.map_err(|error| AttemptError::Task(name.clone(), error))?;
            }
            let link = link(&name);
            tasks.push(spawn(name, report.clone(), task.run(link)));
        }
        Ok(Running {
            controls,
            sources,
            coordinator: Coordinator::new(names),
            reports,
            _tasks: tasks,
        })
    }

    /// The object that holds a task's state, if the attempt goes on from a checkpoint.
    fn snapshot_of(&self, task: &str) -> Result<Option<&str>, AttemptError> {
        let Some(complete) = self.restored else {
            return Ok(None);
        };
        let manifest = complete.manifest();
        match manifest.tasks.get(task) {
            Some(snapshot) => Ok(Some(&snapshot.object)),
            None => Err(AttemptError::Store(StoreError::Damaged {
                path: format!("checkpoint {}", manifest.checkpoint),
                what: format!("it has no snapshot of {task}"),
            })),
        }
    }

    async fn dead_letters(&self, index: usize) -> DeadLetters {
        let partition = PartitionId(index as i32 % self.config.partitions);
        let to = TopicPartition::new(&self.config.dead_letter_topic, partition);
        let clock = self.cluster.host().clock.clone();
        DeadLetters::new(self.producer().await, clock, to)
    }

    async fn sink(&self, task: &str) -> Box<dyn Sink> {
        let config = self.config;
        match config.sink {
            SinkKind::Objects => Box::new(Objects::new(self.store.clone(), task)),
            SinkKind::Append => {
                let when = match config.claimed {
                    Guarantee::AtMostOnce => append::When::Complete,
                    _ => append::When::AtOnce,
                };
                let clock = self.cluster.host().clock.clone();
                let (topic, partitions) = (&config.output_topic, config.partitions);
                let producer = self.producer().await;
                Box::new(Append::new(producer, clock, topic, partitions, when))
            }
        }
    }

    async fn producer(&self) -> Producer {
        Producer::new(self.cluster.clone(), self.config.producer.clone()).await
    }
}

/// Runs a task; its error goes to the coordinator.
fn spawn(
    name: String,
    report: mpsc::Sender<Report>,
    task: impl std::future::Future<Output = Result<std::convert::Infallible, TaskError>>
        + Send
        + 'static,
) -> Part {
    Part(tokio::spawn(async move {
        let Err(error) = task.await;
        // If the coordinator has ended, nobody needs to know.
        let _ = report.send(Report::Failed(name, error)).await;
    }))
}

impl Running {
    /// One checkpoint after the other, until something goes wrong.
    async fn coordinate(
        mut self,
        mut attempt: Attempt,
        config: &JobConfig,
    ) -> Result<std::convert::Infallible, AttemptError> {
        let mut due = Instant::now() + config.checkpoint_interval;
        loop {
            let report = select_biased! {
                report = self.reports.recv().fuse() => report,
                () = tokio::time::sleep_until(due).fuse() => None,
            };
            match report {
                None if self.coordinator.is_under_way() => {
                    let missing = format!("{:?}", self.coordinator.missing());
                    return Err(AttemptError::Timeout(attempt.next().0, missing));
                }
                None => {
                    let checkpoint = attempt.next();
                    tracing::info!(name: "checkpoint.begun", checkpoint = checkpoint.0);
                    self.coordinator.begin(checkpoint);
                    self.tell(0..self.sources, Control::Barrier(checkpoint))
                        .await;
                    due = Instant::now() + config.checkpoint_timeout;
                }
                Some(Report::Failed(task, error)) => return Err(AttemptError::Task(task, error)),
                Some(Report::Ack(task, checkpoint, snapshot)) => {
                    let acked = self.coordinator.ack(task, checkpoint, snapshot)?;
                    if let Some(snapshots) = acked {
                        let complete = attempt.complete(snapshots).await?;
                        tracing::info!(name: "checkpoint.complete", checkpoint = checkpoint.0);
                        self.tell(0..self.controls.len(), Control::Complete(complete))
                            .await;
                        due = Instant::now() + config.checkpoint_interval;
                    }
                }
            }
        }
    }

    async fn tell(&self, tasks: std::ops::Range<usize>, control: Control) {
        for task in &self.controls[tasks] {
            // A task that has ended has reported why.
            let _ = task.send(control.clone()).await;
        }
    }
}
