//! How a job is run.

use super::{JobError, SOURCE};
use crate::{
    checkpoint::{store::PATIENCE, Store},
    guarantee::Guarantee,
    host::Host,
    log::producer::ProducerConfig,
    sink::{OutputTopic, SinkKind},
    state::KeyGroups,
};
use std::time::Duration;

/// How a job is run. The same for its coordinators and workers.
#[derive(Clone, Debug)]
pub struct JobConfig {
    /// Its name: what its objects and transactional ids begin with. It holds no `/`, and is not empty.
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
    /// A job that has finished goes on, as one that was stopped does: its input has grown since.
    pub beyond_finish: bool,
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
    /// How long the object store is asked before its answer is left unknown, and the attempt ends.
    pub store_patience: Duration,
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
            beyond_finish: false,
            idle_after: None,
            window_tasks: 2,
            key_groups: KeyGroups::default(),
            workers: 1,
            gather: Duration::from_secs(3),
            heartbeat: Duration::from_millis(500),
            silence: Duration::from_secs(3),
            checkpoint_interval: Duration::from_secs(1),
            checkpoint_timeout: Duration::from_secs(60),
            store_patience: PATIENCE,
            takeover_after: Duration::from_secs(10),
            transaction_timeout: Duration::from_secs(15 * 60),
            producer: ProducerConfig::default(),
        }
    }

    /// Refuses what makes no sense.
    pub(crate) fn check(&self) -> Result<(), JobError> {
        let wrong = |what: String| Err(JobError::Config(what));
        if self.name.is_empty() || self.name.contains('/') {
            return wrong(format!(
                "a job called `{}`: a name without `/` would be right",
                self.name
            ));
        }
        if self.partitions < 1 || self.window_tasks < 1 || self.key_groups.0 < 1 {
            return wrong(format!(
                "{} output partitions, {} window tasks and {} key groups: at least one of each would be right",
                self.partitions, self.window_tasks, self.key_groups.0
            ));
        }
        Ok(())
    }

    /// How many window tasks there are: one without a key group would have nothing to do.
    pub(crate) fn window_tasks(&self) -> usize {
        self.window_tasks.min(self.key_groups.0 as usize)
    }

    /// The job's objects.
    pub(crate) fn store(&self, host: &Host) -> Store {
        Store::new(host.objects.clone(), &self.name).with_patience(self.store_patience)
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
