//! A job: a coordinator, workers, and one attempt after the other, each from the newest complete checkpoint.
//!
//! Any number of processes may coordinate the same job, and any number may work for it. One coordinator runs an
//! attempt; the others stand by, and watch the manifest log: when nothing was added to it for a while, they
//! begin an attempt, which fences the one before. A coordinator that was only slow finds out when it adds its
//! next entry. All that a coordinator knows is in the object store; workers come to whoever listens.
//!
//! An attempt: fence, commit what the newest checkpoint has prepared, abort the rest, wait for workers, give
//! them their tasks; then one checkpoint after the other, until a task fails or a worker is not heard of any
//! more. The next attempt goes on with the workers that are there.

mod attempt;
pub(crate) mod protocol;
mod roll;

use crate::{
    checkpoint::{
        store::{Begun, StoreError},
        Entry, Store,
    },
    graph::{Graph, WindowJob},
    guarantee::{Chain, Guarantee, Refused},
    host::Host,
    ids::{AttemptId, CheckpointId},
    link,
    log::{cluster::Cluster, producer::ProducerConfig},
    sink::{recover::Recovery, OutputTopic, SinkError, SinkKind},
    state::{stable_hash, KeyGroups},
};
use attempt::{Attempt, Ending};
use protocol::{Hello, StoppedAt};
use roll::Roll;
use std::{fmt, time::Duration};
use tokio::time::Instant;

/// How a job is run. The same for its coordinators and workers.
#[derive(Clone, Debug)]
pub struct JobConfig {
    /// Its name: what its objects and transactional ids begin with. It holds no `/`.
    pub name: String,
    /// What its output promises.
    pub claimed: Guarantee,
    /// Run it even if its chain does not keep that promise.
    pub unchecked: bool,
    /// Where its output goes.
    pub sink: SinkKind,
    /// The topic of its output, unless that goes to objects.
    pub output_topic: String,
    /// The topic of records that cannot be used, unless output goes to objects.
    pub dead_letter_topic: String,
    /// How many partitions those two topics have.
    pub partitions: i32,
    /// The input ends where it ends now; then the job finishes.
    pub bounded: bool,
    /// A partition from which nothing comes for so long does not hold back the watermark; nothing: it does.
    pub idle_after: Option<Duration>,
    /// How many tasks share the windows. May change from one attempt to the next.
    pub window_tasks: usize,
    /// How many groups the keys are divided into. As long as the job has checkpoints, it does not change.
    pub key_groups: KeyGroups,
    /// An attempt waits for so many workers…
    pub workers: usize,
    /// …but no longer than this, if there is one.
    pub gather: Duration,
    /// Between two signs of life.
    pub heartbeat: Duration,
    /// Whoever is not heard of for so long is lost.
    pub silence: Duration,
    /// Between two checkpoints.
    pub checkpoint_interval: Duration,
    /// A checkpoint that takes longer ends the attempt.
    pub checkpoint_timeout: Duration,
    /// When nothing was added to the manifest log for so long, a process that stands by takes over.
    pub takeover_after: Duration,
    /// The brokers abort a transaction that is open for longer, prepared or not: more than a checkpoint and the
    /// longest downtime.
    pub transaction_timeout: Duration,
    /// How its producers batch and wait.
    pub producer: ProducerConfig,
}

impl JobConfig {
    /// Small defaults for a job of this name, claim and sink.
    pub fn new(name: &str, claimed: Guarantee, sink: SinkKind) -> Self {
        JobConfig {
            name: name.to_owned(),
            claimed,
            unchecked: false,
            sink,
            output_topic: format!("{name}-output"),
            dead_letter_topic: format!("{name}-dead-letters"),
            partitions: 4,
            bounded: false,
            idle_after: None,
            window_tasks: 2,
            key_groups: KeyGroups::default(),
            workers: 1,
            gather: Duration::from_secs(3),
            heartbeat: Duration::from_millis(500),
            silence: Duration::from_secs(3),
            checkpoint_interval: Duration::from_secs(1),
            checkpoint_timeout: Duration::from_secs(60),
            takeover_after: Duration::from_secs(10),
            transaction_timeout: Duration::from_secs(15 * 60),
            producer: ProducerConfig::default(),
        }
    }

    /// What coordinator and workers must agree on.
    pub(crate) fn fingerprint(&self, graph: &Graph) -> u64 {
        stable_hash(&(
            &self.name,
            self.claimed.name(),
            self.sink.name(),
            (&self.output_topic, &self.dead_letter_topic, self.partitions),
            self.key_groups,
            graph.describe(),
        ))
    }

    /// Where the rows of a task go: what sources write are dead letters.
    pub(crate) fn topic_of(&self, task: &str, host: &Host) -> OutputTopic {
        let name = match task.starts_with(SOURCE) {
            true => &self.dead_letter_topic,
            false => &self.output_topic,
        };
        OutputTopic {
            name: name.clone(),
            partitions: self.partitions,
            clock: host.clock.clone(),
        }
    }
}

/// What the names of source tasks begin with.
const SOURCE: &str = "source-";

/// The name of the task that reads a partition.
pub(crate) fn source_name(index: usize) -> String {
    format!("{SOURCE}{index}")
}

/// The name of a task that holds windows.
pub(crate) fn window_name(index: usize) -> String {
    format!("window-{index}")
}

/// How a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Somebody has stopped it behind a savepoint: whoever runs it again goes on from there.
    Stopped(CheckpointId),
    /// Its input has ended.
    Finished(CheckpointId),
}

/// Why a job does not run.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// It claims more than its chain gives.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It cannot go on without loss: why, and what to do.
    #[error("halted: {0}")]
    Halted(String),
    /// The coordinator cannot listen.
    #[error("cannot listen on {0}: {1}")]
    Listen(String, std::io::Error),
}

/// Why an attempt ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    /// The object store, or a later attempt.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was prepared could not be committed.
    #[error(transparent)]
    Recovery(#[from] SinkError),
    /// A task.
    #[error("{task}: {error}")]
    Task {
        task: String,
        error: String,
        gone: bool,
    },
    /// A worker.
    #[error("worker {0} is lost: {1}")]
    Lost(String, String),
    /// A checkpoint took too long.
    #[error("checkpoint {0} timed out, waiting for {1}")]
    Timeout(CheckpointId, String),
    /// The tasks and their coordinator disagree.
    #[error(transparent)]
    Ack(#[from] crate::checkpoint::coordinator::AckError),
    /// The log cannot be asked.
    #[error("the log: {0}")]
    Log(String),
}

impl AttemptError {
    /// Output is gone: why, and what to do.
    fn gone(&self) -> Option<String> {
        match self {
            AttemptError::Recovery(SinkError::Gone(why)) => Some(why.clone()),
            AttemptError::Task {
                error, gone: true, ..
            } => Some(error.clone()),
            _ => None,
        }
    }

    fn is_fenced(&self) -> bool {
        matches!(self, AttemptError::Store(StoreError::Fenced(_)))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Stopped(checkpoint) => write!(f, "stopped at checkpoint {checkpoint}"),
            Ended::Finished(checkpoint) => write!(f, "finished at checkpoint {checkpoint}"),
        }
    }
}

/// Between two attempts of one coordinator.
const PAUSE: Duration = Duration::from_millis(300);

impl<S, T, K, A> WindowJob<S, T, K, A> {
    /// The links of this job's chain, if it is run with `config`.
    pub fn links(&self, config: &JobConfig) -> Chain {
        let sink = (config.sink.name(), config.sink.class());
        let graph = self.graph();
        Chain::new(graph.upstream, graph.dedup(), sink, config.claimed)
    }

    /// Coordinates the job until it ends: workers come to `listen` (`HOST:PORT`). Refuses a claim that the chain
    /// does not keep.
    pub async fn coordinate(
        &self,
        host: Host,
        brokers: Vec<String>,
        config: JobConfig,
        listen: &str,
    ) -> Result<Ended, JobError> {
        if !config.unchecked {
            self.links(&config).check(config.claimed)?;
        }
        let store = Store::new(host.objects.clone(), &config.name);
        let cluster = Cluster::new(host, brokers);
        let coordinator = Coordinating {
            graph: self.graph(),
            config: &config,
            recovery: Recovery {
                job: config.name.clone(),
                sink: config.sink,
                cluster: cluster.clone(),
                store: store.clone(),
                producer: config.producer.clone(),
            },
            cluster,
            store,
        };
        coordinator.run(listen).await
    }
}

/// A process that coordinates a job.
struct Coordinating<'a> {
    graph: &'a Graph,
    config: &'a JobConfig,
    cluster: Cluster,
    store: Store,
    recovery: Recovery,
}

impl Coordinating<'_> {
    async fn run(&self, listen: &str) -> Result<Ended, JobError> {
        let mut resumes = true;
        loop {
            if let Some(ended) = self.stand_by(&mut resumes).await? {
                self.sweep_after(ended).await;
                return Ok(ended);
            }
            let host = self.cluster.host();
            let listener = host.net.listen(listen).await;
            let listener = listener.map_err(|error| JobError::Listen(listen.to_owned(), error))?;
            let fingerprint = self.config.fingerprint(self.graph);
            let mut roll = Roll::new(listener, fingerprint, self.config);
            // As long as nobody else takes over, this process goes on.
            loop {
                match self.attempt(&mut roll).await {
                    Ok(ended) => {
                        if let Ok(ended) = ended {
                            self.sweep_after(ended).await;
                        }
                        return ended;
                    }
                    Err(error) => {
                        let fenced = error.is_fenced();
                        let error = error.to_string();
                        tracing::info!(name: "job.attempt-ended", error);
                        if fenced {
                            break;
                        }
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Aborts what tasks have begun behind the end of the job. Their attempt is over, and nobody may come after it.
    async fn sweep_after(&self, ended: Ended) {
        let (Ended::Stopped(checkpoint) | Ended::Finished(checkpoint)) = ended;
        let complete = loop {
            match self.store.complete(checkpoint).await {
                Ok(complete) => break complete,
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        let attempt = complete.manifest().attempt;
        let attempts = attempt..AttemptId(attempt.0 + 1);
        self.recovery.sweep(attempts, Some(&complete)).await;
    }

    /// One attempt, until it is over or the job is.
    async fn attempt(&self, roll: &mut Roll) -> Result<Result<Ended, JobError>, AttemptError> {
        let partitions = self.cluster.partitions(&self.graph.topic).await as usize;
        for topic in [&self.config.dead_letter_topic, &self.config.output_topic] {
            if self.config.sink != SinkKind::Objects {
                // A name that the cluster refuses shows at the first record, as a task's error.
                let _ = self
                    .cluster
                    .ensure_topic(topic, self.config.partitions)
                    .await;
            }
        }
        let instance = &self.cluster.host().instance;
        let (begun, restored) = match self.store.begin(instance).await? {
            Begun::Attempt(begun, restored) => (begun, restored),
            Begun::Finished(checkpoint) => return Ok(Ok(Ended::Finished(checkpoint))),
            Begun::Halted(why) => return Ok(Err(JobError::Halted(why))),
        };
        tracing::info!(
            name: "job.attempt-begun",
            attempt = begun.id().0,
            restores = ?restored.as_ref().map(|complete| complete.checkpoint().0)
        );
        let mut attempt = Attempt {
            job: self,
            begun,
            restored,
            partitions,
        };
        match attempt.run(roll).await {
            Ok(Ending::Stopped(checkpoint)) => {
                attempt.begun.end(Entry::Stopped(checkpoint)).await?;
                roll.stopped(checkpoint).await;
                Ok(Ok(Ended::Stopped(checkpoint)))
            }
            Ok(Ending::Finished(checkpoint)) => {
                attempt.begun.end(Entry::Finished(checkpoint)).await?;
                roll.stopped(checkpoint).await;
                Ok(Ok(Ended::Finished(checkpoint)))
            }
            Err(error) => {
                let Some(why) = error.gone() else {
                    // Whoever has taken over meanwhile is not to be fenced by another attempt of this process.
                    let place = attempt.begun.next();
                    return match attempt.begun.is_fenced().await? {
                        true => Err(StoreError::Fenced(place.0).into()),
                        false => Err(error),
                    };
                };
                tracing::error!(name: "job.halted", why);
                attempt.begun.end(Entry::Halted(why.clone())).await?;
                Ok(Err(JobError::Halted(why)))
            }
        }
    }

    /// Waits until the job has nobody who runs it: nothing was added to its manifest log for a while, or ever, or
    /// the last entry is this process's own. Tells if the job has ended. A job that was stopped goes on if this
    /// process has been started since, once.
    async fn stand_by(&self, resumes: &mut bool) -> Result<Option<Ended>, JobError> {
        let instance: &str = &self.cluster.host().instance;
        let takeover_after = self.config.takeover_after;
        let poll = takeover_after / 6;
        let moment = Duration::from_millis(stable_hash(&instance) % SPREAD_MS);
        let newest = loop {
            match self.store.newest().await {
                Ok(newest) => break newest,
                Err(_) => tokio::time::sleep(poll).await,
            }
        };
        let (mut next, mut last) = match newest {
            None => (0, None),
            Some((number, entry)) => (number + 1, Some(entry)),
        };
        let mut until = match &last {
            None => Instant::now() + moment,
            Some(Entry::Stopped(_)) if *resumes => Instant::now() + moment,
            Some(_) => Instant::now() + takeover_after + moment,
        };
        let may_resume = std::mem::replace(resumes, false);
        let mut watched = false;
        loop {
            match &last {
                Some(Entry::Finished(checkpoint)) => return Ok(Some(Ended::Finished(*checkpoint))),
                Some(Entry::Halted(why)) => return Err(JobError::Halted(why.clone())),
                Some(Entry::Stopped(checkpoint)) if watched || !may_resume => {
                    return Ok(Some(Ended::Stopped(*checkpoint)));
                }
                Some(Entry::Begun { instance: by, .. }) if by == instance => return Ok(None),
                _ => {}
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(poll)).await;
            while let Ok(Some(entry)) = self.store.entry(next).await {
                next += 1;
                last = Some(entry);
                watched = true;
                until = Instant::now() + takeover_after + moment;
            }
        }
    }
}

/// Processes that find a job without anybody who runs it begin within this time, each at its own moment,
/// so that the others see the first one's entry before they begin theirs.
const SPREAD_MS: u64 = 1000;

/// Stops a job behind a savepoint, and waits for it; the coordinator listens at `address`. An error leaves unknown
/// whether it stops.
pub async fn stop(host: &Host, address: &str) -> std::io::Result<CheckpointId> {
    let connection = host.net.connect(address).await?;
    let (mut reader, mut writer) = link::split(connection);
    writer.write(&Hello::Stop).await?;
    let stopped: Option<StoppedAt> = reader.read().await?;
    let gone = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    stopped
        .map(|StoppedAt(checkpoint)| checkpoint)
        .ok_or_else(gone)
}
