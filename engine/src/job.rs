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
mod config;
mod pauses;
pub(crate) mod protocol;
mod roll;

pub use config::JobConfig;

use crate::{
    checkpoint::{
        recovery::Beginning,
        store::{Begun, StoreError},
        Complete, Entry, JobShape, Store,
    },
    failure::Failure,
    graph::WindowJob,
    guarantee::{Chain, Refused},
    host::Host,
    ids::{AttemptId, CheckpointId},
    link::{self, Token},
    log::cluster::Cluster,
    sink::{recover::Recovery, SinkError, SinkKind},
    source::MISSING_AFTER,
    state::stable_hash,
};
use attempt::{Attempt, Ending};
use futures::{select_biased, FutureExt};
use pauses::Pauses;
use protocol::{Hello, StoppedAt};
use roll::Roll;
use std::{future::Future, io, time::Duration};
use tokio::time::Instant;

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
    /// Somebody has stopped it after a savepoint: whoever runs it again goes on from there.
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
    /// Its configuration makes no sense.
    #[error("{0}")]
    Config(String),
    /// It has checkpoints, and is another job now: what is not as it was.
    #[error(
        "its checkpoints are of a job with {0}. Run it as it was, or under another name: then it reads its input again"
    )]
    Changed(String),
    /// It cannot go on without loss: why, and what to do.
    #[error("halted: {0}")]
    Halted(String),
    /// Its objects cannot be used, however often that is tried.
    #[error("the job's objects: {0}. {remedy}", remedy = remedy(&Failure::from(.0)))]
    Objects(StoreError),
    /// A task of it cannot go on, however often that is tried: see [`Failure::remedy`].
    #[error("{task}: {failure}. {remedy}", remedy = remedy(.failure))]
    Task {
        /// Which task, or what works for it.
        task: String,
        /// Why.
        failure: Failure,
    },
    /// A topic that it has read from or written to is not there any more.
    #[error("topic {0} is not there, and the job has used it. {remedy}", remedy = remedy(&Failure::Input(String::new())))]
    Missing(String),
    /// A topic has not as many partitions as the job is to write to.
    #[error("topic {topic} has {there} partitions, the job has {wanted} for it")]
    Partitions {
        /// Which topic.
        topic: String,
        /// How many it has.
        there: i32,
        /// How many it should have.
        wanted: i32,
    },
    /// It has ended, and what tasks have left open after its end cannot be aborted.
    #[error("it has ended, and left a transaction open: {0}")]
    Output(SinkError),
    /// The coordinator cannot listen.
    #[error("cannot listen on {0}: {1}")]
    Listen(String, io::Error),
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
    #[error("{task}: {failure}")]
    Task { task: String, failure: Failure },
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
                failure: Failure::Gone(why),
                ..
            } => Some(why.clone()),
            _ => None,
        }
    }

    /// What the job gives up with, if another attempt cannot help before somebody has done something.
    fn giving_up(self) -> Result<JobError, AttemptError> {
        match self {
            AttemptError::Store(error) | AttemptError::Recovery(SinkError::Store(error))
                if error.is_definite() =>
            {
                Ok(JobError::Objects(error))
            }
            AttemptError::Task { task, failure } if failure.remedy().is_some() => {
                Ok(JobError::Task { task, failure })
            }
            error => Err(error),
        }
    }

    fn is_fenced(&self) -> bool {
        matches!(self, AttemptError::Store(StoreError::Fenced(_)))
    }

    /// What happened to the attempt, in a word or two.
    fn because(&self) -> &'static str {
        match self {
            AttemptError::Store(StoreError::Fenced(_)) => "is fenced",
            AttemptError::Store(_) => "loses the store",
            AttemptError::Recovery(_) => "cannot recover",
            AttemptError::Task { .. } => "loses a task",
            AttemptError::Lost(..) => "loses a worker",
            AttemptError::Timeout(..) => "times out",
            AttemptError::Ack(_) => "is confused",
            AttemptError::Log(_) => "loses the log",
        }
    }
}

fn remedy(failure: &Failure) -> &'static str {
    failure.remedy().unwrap_or("Start the job again")
}

/// Between two tries of what is no attempt.
const PAUSE: Duration = Duration::from_millis(300);
/// What takes longer is said, each time that it has taken so long again.
pub(crate) const SAY_EVERY: Duration = Duration::from_secs(10);

/// Asks the object store until there is a definite answer.
async fn told<T, F>(ask: impl Fn() -> F) -> Result<T, JobError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let asking = async {
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_definite() => return Err(JobError::Objects(error)),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    };
    aloud("the object store", asking).await
}

/// Does something that may take long, and says in its log who is waited for.
pub(crate) async fn aloud<T>(whom: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work.fuse());
    loop {
        select_biased! {
            done = work => return done,
            () = tokio::time::sleep(SAY_EVERY).fuse() => {
                tracing::warn!(name: "job.waits", whom, "the job waits for {whom}");
            }
        }
    }
}

impl<S, T, K, A> WindowJob<S, T, K, A> {
    /// The links of this job's chain, if it is run with `config`.
    pub fn links(&self, config: &JobConfig) -> Chain {
        let sink = (config.sink.name(), config.sink.class());
        let graph = self.graph();
        Chain::new(graph.upstream, graph.dedup(), sink, config.claimed)
    }

    /// What stays as it is while the job has checkpoints, and what its processes must agree on.
    pub(crate) fn shape(&self, config: &JobConfig) -> JobShape {
        JobShape {
            name: config.name.clone(),
            operators: self.graph().describe(),
            windows: self.extent,
            key_groups: config.key_groups,
            claimed: config.claimed,
            sink: config.sink,
            output_topic: config.output_topic.clone(),
            dead_letter_topic: config.dead_letter_topic.clone(),
            output_partitions: config.partitions,
        }
    }

    /// Coordinates the job until it ends: workers come to `listen` (`HOST:PORT`). Refuses a claim that the chain
    /// does not keep, and a job that is not that of its checkpoints.
    pub async fn coordinate(
        &self,
        host: Host,
        brokers: Vec<String>,
        config: JobConfig,
        listen: &str,
    ) -> Result<Ended, JobError> {
        config.check()?;
        if !config.unchecked {
            self.links(&config).check(config.claimed)?;
        }
        let store = config.store(&host);
        let cluster = Cluster::new(host, brokers);
        let coordinator = Coordinating {
            shape: self.shape(&config),
            topic: &self.graph().topic,
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
        let ended = coordinator.run(listen).await;
        if let Err(error @ (JobError::Objects(_) | JobError::Task { .. } | JobError::Missing(_))) =
            &ended
        {
            let why = error.to_string();
            tracing::error!(name: "job.gave-up", why, "the job gives up: {error}");
        }
        ended
    }
}

/// A process that coordinates a job.
struct Coordinating<'a> {
    shape: JobShape,
    /// The topic that it reads.
    topic: &'a str,
    config: &'a JobConfig,
    cluster: Cluster,
    store: Store,
    recovery: Recovery,
}

impl Coordinating<'_> {
    async fn run(&self, listen: &str) -> Result<Ended, JobError> {
        let token = self.token().await?;
        let mut resumes = true;
        loop {
            if let Some(ended) = self.stand_by(&mut resumes).await? {
                self.sweep_after(ended).await?;
                return Ok(ended);
            }
            let host = self.cluster.host();
            let listener = host.net.listen(listen).await;
            let listener = listener.map_err(|error| JobError::Listen(listen.to_owned(), error))?;
            let mut roll = Roll::new(listener, token, self.shape.clone(), self.config);
            let mut pauses = Pauses::default();
            // As long as nobody else takes over, this process goes on.
            loop {
                let begun = Instant::now();
                match self.attempt(&mut roll).await {
                    Ok(ended) => {
                        if let Ok(ended) = ended {
                            self.sweep_after(ended).await?;
                        }
                        return ended;
                    }
                    Err(error) if error.is_fenced() => break,
                    Err(error) => {
                        let (because, error) = match error.giving_up() {
                            Ok(given_up) => return Err(given_up),
                            Err(error) => (error.because(), error.to_string()),
                        };
                        let pause = pauses.after(begun.elapsed());
                        let pause_ms = pause.as_millis() as u64;
                        tracing::warn!(
                            name: "job.tries-again",
                            because,
                            error,
                            pause_ms,
                            "an attempt {because}: {error}; the next one begins in {pause_ms} ms"
                        );
                        roll.meanwhile(tokio::time::sleep(pause)).await;
                    }
                }
            }
        }
    }

    /// What opens this job's ports; drawn, if it begins here.
    async fn token(&self) -> Result<Token, JobError> {
        let identity = told(|| self.store.identify(self.cluster.host())).await?;
        Ok(identity.token())
    }

    /// Aborts what tasks have begun after the end of the job. Their attempt is over, and nobody may come after it.
    async fn sweep_after(&self, ended: Ended) -> Result<(), JobError> {
        let (Ended::Stopped(checkpoint) | Ended::Finished(checkpoint)) = ended;
        let complete = told(|| self.store.complete(checkpoint)).await?;
        self.check_shape(&complete)?;
        let attempt = complete.manifest().attempt;
        let attempts = attempt..AttemptId(attempt.0 + 1);
        let swept = self.recovery.sweep(attempts, Some(&complete)).await;
        swept.map_err(|error| JobError::Output(error.into()))
    }

    /// Refuses a checkpoint of another job.
    fn check_shape(&self, complete: &Complete) -> Result<(), JobError> {
        match complete.manifest().job.instead_of(&self.shape) {
            None => Ok(()),
            Some(difference) => Err(JobError::Changed(difference)),
        }
    }

    /// One attempt, until it is over or the job is.
    async fn attempt(&self, roll: &mut Roll) -> Result<Result<Ended, JobError>, AttemptError> {
        let beginning = aloud("brokers, topics and the object store", self.begin());
        let (partitions, begun) = match roll.meanwhile(beginning).await? {
            Ok(begun) => begun,
            Err(error) => return Ok(Err(error)),
        };
        let (begun, restored) = match begun {
            Begun::Attempt(begun, restored) => (begun, restored),
            Begun::Finished(checkpoint) => return Ok(Ok(Ended::Finished(checkpoint))),
            Begun::Halted(why) => return Ok(Err(JobError::Halted(why))),
        };
        tracing::info!(
            name: "job.attempt-begun",
            attempt = begun.id().0,
            restores = restored.as_ref().map(|complete| complete.checkpoint().0)
        );
        if let Some(complete) = &restored {
            let read = complete.manifest().positions().len();
            let checked = self.check_shape(complete).and(match read == partitions {
                true => Ok(()),
                false => Err(JobError::Changed(format!(
                    "{read} partitions of input instead of {partitions}"
                ))),
            });
            if let Err(error) = checked {
                return Ok(Err(error));
            }
        }
        let id = begun.id().0;
        let attempt = Attempt {
            job: self,
            begun,
            restored,
            partitions,
        };
        let ended = self.see_through(attempt, roll).await;
        if let Err(error) = &ended {
            let (because, error) = (error.because(), error.to_string());
            tracing::info!(name: "job.attempt-ended", attempt = id, because, error);
        }
        ended
    }

    /// Begins an attempt; with how many partitions the input has.
    async fn begin(&self) -> Result<Result<(usize, Begun), JobError>, StoreError> {
        let newest = self.store.newest().await?;
        let behind = Beginning::behind(newest.as_ref().map(|(_, entry)| entry));
        let has_checkpoints = behind != Beginning::From(None);
        let partitions = match self.partitions(self.topic, has_checkpoints).await {
            Ok(partitions) => partitions as usize,
            Err(error) => return Ok(Err(error)),
        };
        if self.config.sink != SinkKind::Objects {
            if let Err(error) = self.ensure_topics(has_checkpoints).await {
                return Ok(Err(error));
            }
        }
        let (instance, beyond_finish) = (&self.cluster.host().instance, self.config.beyond_finish);
        let begun = self.store.begin(instance, beyond_finish).await;
        let begun = begun.inspect_err(|error| {
            let error = error.to_string();
            tracing::info!(name: "job.attempt-not-begun", error);
        })?;
        Ok(Ok((partitions, begun)))
    }

    /// Runs an attempt that has begun, and ends it in the manifest log if the job ends.
    async fn see_through(
        &self,
        mut attempt: Attempt<'_>,
        roll: &mut Roll,
    ) -> Result<Result<Ended, JobError>, AttemptError> {
        let id = attempt.begun.id().0;
        match attempt.run(roll).await {
            Ok(Ending::Stopped(checkpoint)) => {
                attempt.begun.end(Entry::Stopped(checkpoint)).await?;
                tracing::info!(name: "job.stopped", attempt = id, checkpoint = checkpoint.0);
                roll.stopped(checkpoint).await;
                Ok(Ok(Ended::Stopped(checkpoint)))
            }
            Ok(Ending::Finished(checkpoint)) => {
                attempt.begun.end(Entry::Finished(checkpoint)).await?;
                tracing::info!(name: "job.finished", attempt = id, checkpoint = checkpoint.0);
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

    /// How many partitions a topic has. One that is not there may be new, unless the job has used it before.
    async fn partitions(&self, topic: &str, used: bool) -> Result<i32, JobError> {
        let mut missing_since = None;
        loop {
            match self.cluster.ask_partitions(topic).await {
                Some(Some(partitions)) => return Ok(partitions),
                Some(None) => {
                    let since = *missing_since.get_or_insert_with(Instant::now);
                    if used && since.elapsed() >= MISSING_AFTER {
                        return Err(JobError::Missing(topic.to_owned()));
                    }
                }
                None => missing_since = None,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The topics that it writes to are there, with as many partitions as it expects. Those that it has used are not
    /// created again: what it has written to them would be missed by nobody.
    async fn ensure_topics(&self, used: bool) -> Result<(), JobError> {
        let wanted = self.config.partitions;
        for topic in [&self.config.dead_letter_topic, &self.config.output_topic] {
            let there = match used {
                true => self.partitions(topic, used).await?,
                false => {
                    let ensured = self.cluster.ensure_topic(topic, wanted).await;
                    ensured.map_err(|error| JobError::Config(format!("topic {topic}: {error}")))?
                }
            };
            if there != wanted {
                return Err(JobError::Partitions {
                    topic: topic.clone(),
                    there,
                    wanted,
                });
            }
        }
        Ok(())
    }

    /// Waits until the job has nobody who runs it: nothing was added to its manifest log for a while, or ever, or
    /// the last entry is this process's own. Tells if the job has ended. A job that was stopped goes on if this
    /// process has been started since, once; so does one that has finished, if it is to go on beyond that.
    async fn stand_by(&self, resumes: &mut bool) -> Result<Option<Ended>, JobError> {
        let instance: &str = &self.cluster.host().instance;
        let takeover_after = self.config.takeover_after;
        let poll = takeover_after / 6;
        let moment = Duration::from_millis(stable_hash(&instance) % SPREAD_MS);
        let newest = told(|| self.store.newest()).await?;
        let (mut next, mut last) = match newest {
            None => (0, None),
            Some((number, entry)) => (number + 1, Some(entry)),
        };
        let mut until = match &last {
            None => Instant::now() + moment,
            Some(last) if *resumes && ended_by(last).is_some() => Instant::now() + moment,
            Some(_) => Instant::now() + takeover_after + moment,
        };
        let may_resume = std::mem::replace(resumes, false);
        let mut watched = false;
        loop {
            match &last {
                Some(Entry::Halted(why)) => return Err(JobError::Halted(why.clone())),
                Some(Entry::Finished(checkpoint)) if !self.config.beyond_finish => {
                    return Ok(Some(Ended::Finished(*checkpoint)));
                }
                Some(last) if watched || !may_resume => {
                    if let Some(ended) = ended_by(last) {
                        return Ok(Some(ended));
                    }
                }
                _ => {}
            }
            let begun_here =
                matches!(&last, Some(Entry::Begun { instance: by, .. }) if by == instance);
            if begun_here || Instant::now() >= until {
                return Ok(None);
            }
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(poll)).await;
            loop {
                match self.store.entry(next).await {
                    Ok(Some(entry)) => last = Some(entry),
                    Err(error) if error.is_definite() => return Err(JobError::Objects(error)),
                    Ok(None) | Err(_) => break,
                }
                next += 1;
                watched = true;
                until = Instant::now() + takeover_after + moment;
            }
        }
    }
}

/// How an entry of the manifest log ends the job, if it does so in good order.
fn ended_by(entry: &Entry) -> Option<Ended> {
    match entry {
        Entry::Stopped(checkpoint) => Some(Ended::Stopped(*checkpoint)),
        Entry::Finished(checkpoint) => Some(Ended::Finished(*checkpoint)),
        Entry::Begun { .. } | Entry::Complete(_) | Entry::Halted(_) => None,
    }
}

/// Processes that find a job without anybody who runs it begin within this time, each at its own moment,
/// so that the others see the first one's entry before they begin theirs.
const SPREAD_MS: u64 = 1000;

/// Stops a job after a savepoint, and waits for it; its coordinator listens at `address`. Who may read the job's objects
/// may stop it. An error leaves unknown whether it stops.
pub async fn stop(host: &Host, store: &Store, address: &str) -> io::Result<CheckpointId> {
    let identity = store.identity().await.map_err(io::Error::other)?;
    let identity = identity.ok_or_else(|| io::Error::other("the job has never begun"))?;
    let (mut reader, mut writer) = link::call(&*host.net, address, identity.token()).await?;
    writer.write(&Hello::Stop).await?;
    let stopped: Option<StoppedAt> = reader.read().await?;
    let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
    stopped
        .map(|StoppedAt(checkpoint)| checkpoint)
        .ok_or_else(gone)
}
