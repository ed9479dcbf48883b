//! The workload's parameters, as they stand in a plan.

use engine::{
    graph::Upstream,
    guarantee::{Chain, Guarantee},
    job::JobConfig,
    log::producer::ProducerConfig,
    sink::SinkKind,
    state::KeyGroups,
};
use proptest::{prelude::*, strategy::BoxedStrategy};
use serde::{Deserialize, Serialize};
use sim::Params;
use std::time::Duration;

use super::{
    pipeline::{revenue, revenue_without_dedup, DEDUP_MS},
    workload::WORKERS,
    DEAD_LETTERS, SUMS,
};

/// Sizes, choices and knobs. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Events to write.
    pub records: u64,
    /// What the job claims.
    pub guarantee: Guarantee,
    /// Where the sums go.
    pub sink: SinkKind,
    /// Run the job even if its chain does not give what it claims.
    #[serde(default)]
    pub unchecked: bool,
    /// Whether the shops write an event again if they were not told that it is there, and sometimes if they were.
    pub repeats: bool,
    /// Whether the pipeline tells repeated events apart.
    pub dedup: bool,
    /// A file of events, instead of drawn ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Partitions of the events' topic.
    pub partitions: u64,
    /// Processes that work for the job. Faults strike the first three.
    pub workers: u64,
    /// Tasks that share the windows.
    pub window_tasks: u64,
    /// Tasks that share them once the coordinator has been started again.
    pub window_tasks_later: u64,
    /// Groups that the keys are divided into.
    pub key_groups: u64,
    /// How much later than the watermark an event may be, at the price of a correction. Only for a claim of
    /// exactly-once: what is weaker cannot tell a repetition from a correction.
    pub lateness_ms: u64,
    /// After this long without an event a partition is idle; 0: never.
    pub idle_ms: u64,
    /// When somebody stops the job behind a savepoint, and starts it again; 0: never.
    pub stop_ms: u64,
    /// The job begins when all is written, and finishes.
    pub bounded: bool,
    /// The time over which the events are written.
    pub feed_ms: u64,
    /// Between two times at which a shop writes.
    pub tick_ms: u64,
    /// Between two checkpoints.
    pub checkpoint_ms: u64,
    /// A checkpoint that takes longer ends the attempt.
    pub checkpoint_timeout_ms: u64,
    /// Silence of the manifest log after which a coordinator that stands by takes over.
    pub takeover_ms: u64,
    /// Silence after which coordinator and worker are lost to each other.
    pub silence_ms: u64,
    /// How long the object store is asked before its answer is left unknown.
    pub store_patience_ms: u64,
    /// A transaction that is open for longer is aborted.
    pub transaction_timeout_ms: u64,
    /// After this long a batch's outcome is unknown.
    pub delivery_timeout_ms: u64,
    /// How long a batch waits for more records.
    pub linger_ms: u64,
    /// Records in a batch.
    pub batch_records: u64,
    /// Bytes in a segment.
    pub segment_bytes: u64,
}

impl Settings {
    /// Draws settings around `records` events.
    pub fn strategy(records: u64) -> BoxedStrategy<Params> {
        let sizes = (2u64..6, 1u64..5, 1u64..5, 6_000u64..15_000, 150u64..500);
        let checkpoints = (
            500u64..2500,
            5_000u64..12_000,
            4_000u64..9_000,
            1_500u64..4_000,
            prop_oneof![1 => Just(20_000u64), 2 => 300u64..3_000],
        );
        let time = (
            prop_oneof![Just(0u64), Just(20_000), Just(60_000)],
            prop_oneof![2 => Just(0u64), 1 => 800u64..4_000],
            prop_oneof![3 => Just(0u64), 1 => 3_000u64..12_000],
            prop_oneof![5 => Just(false), 1 => Just(true)],
            // Kafka's default, behind which nobody waits; and one that ends what nobody else has ended.
            prop_oneof![Just(900_000u64), Just(100_000)],
        );
        let producer = (
            4_000u64..40_000,
            1u64..30,
            prop_oneof![Just(5u64), Just(50), Just(500)],
            prop_oneof![Just(8u64), Just(32), Just(128)],
        );
        let segment = prop_oneof![Just(8u64 << 10), Just(32 << 10), Just(1 << 20)];
        let sink = prop_oneof![
            Just(SinkKind::Transactional),
            Just(SinkKind::Idempotent),
            Just(SinkKind::Objects),
        ];
        (sizes, checkpoints, time, producer, segment, sink)
            .prop_map(
                move |(sizes, checkpoints, time, producer, segment_bytes, sink)| {
                    let settings = Settings {
                        records,
                        guarantee: Guarantee::ExactlyOnce,
                        sink,
                        unchecked: false,
                        repeats: true,
                        dedup: true,
                        input: None,
                        partitions: sizes.0,
                        workers: WORKERS as u64,
                        window_tasks: sizes.1,
                        window_tasks_later: sizes.2,
                        key_groups: producer.3,
                        lateness_ms: time.0,
                        idle_ms: time.1,
                        stop_ms: time.2,
                        bounded: time.3,
                        feed_ms: sizes.3,
                        tick_ms: sizes.4,
                        checkpoint_ms: checkpoints.0,
                        checkpoint_timeout_ms: checkpoints.1,
                        takeover_ms: checkpoints.2,
                        silence_ms: checkpoints.3,
                        store_patience_ms: checkpoints.4,
                        transaction_timeout_ms: time.4,
                        delivery_timeout_ms: producer.0,
                        linger_ms: producer.1,
                        batch_records: producer.2,
                        segment_bytes,
                    };
                    settings.to_params()
                },
            )
            .boxed()
    }

    /// The same with another claim and sink, and without what they cannot bear: who writes at once cannot take back
    /// what the clock has decided, or tell a correction from a repetition.
    pub fn with(self, guarantee: Guarantee, sink: SinkKind) -> Settings {
        let exact = guarantee == Guarantee::ExactlyOnce && sink != SinkKind::Append;
        Settings {
            guarantee,
            sink,
            lateness_ms: if exact { self.lateness_ms } else { 0 },
            idle_ms: if exact { self.idle_ms } else { 0 },
            ..self
        }
    }

    /// The settings as they stand in a plan.
    pub fn to_params(&self) -> Params {
        let table = toml::Table::try_from(self).expect("settings are plain data");
        table.into_iter().collect()
    }

    /// Reads settings out of a plan; the message names the parameter.
    pub fn of(params: &Params) -> Result<Settings, String> {
        let table: toml::Table = params.clone().into_iter().collect();
        let settings: Settings = table
            .try_into()
            .map_err(|error| format!("params: {}", error.to_string().trim()))?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), String> {
        let ranges = [
            ("records", self.records, 1, 10_000_000),
            ("partitions", self.partitions, 1, 64),
            ("workers", self.workers, WORKERS as u64, 64),
            ("window_tasks", self.window_tasks, 1, 64),
            ("window_tasks_later", self.window_tasks_later, 1, 64),
            ("key_groups", self.key_groups, 1, 4096),
            ("lateness_ms", self.lateness_ms, 0, DEDUP_MS as u64),
            ("idle_ms", self.idle_ms, 0, 600_000),
            ("stop_ms", self.stop_ms, 0, 600_000),
            ("silence_ms", self.silence_ms, 200, 600_000),
            ("store_patience_ms", self.store_patience_ms, 100, 600_000),
            (
                "transaction_timeout_ms",
                self.transaction_timeout_ms,
                100,
                3_600_000,
            ),
            ("feed_ms", self.feed_ms, 1, 3_600_000),
            ("tick_ms", self.tick_ms, 1, 60_000),
            ("checkpoint_ms", self.checkpoint_ms, 10, 600_000),
            (
                "checkpoint_timeout_ms",
                self.checkpoint_timeout_ms,
                100,
                600_000,
            ),
            ("takeover_ms", self.takeover_ms, 100, 600_000),
            (
                "delivery_timeout_ms",
                self.delivery_timeout_ms,
                100,
                600_000,
            ),
            ("linger_ms", self.linger_ms, 0, 60_000),
            ("batch_records", self.batch_records, 1, 100_000),
            ("segment_bytes", self.segment_bytes, 1024, 1 << 30),
        ];
        for (name, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(format!(
                    "params: {name} is {value}; {min} to {max} would be right"
                ));
            }
        }
        if !self.repeats && self.bounded {
            return Err("params: bounded is true; false would be right without repeats".into());
        }
        if self.clone().with(self.guarantee, self.sink) != *self {
            return Err(format!(
                "params: lateness_ms is {} and idle_ms {}; 0 would be right for {} into {}",
                self.lateness_ms,
                self.idle_ms,
                self.guarantee,
                self.sink.name()
            ));
        }
        Ok(())
    }

    /// The same with shops that never repeat themselves. What they were not told of may still arrive when all is
    /// done; so the input has no end.
    pub fn once(self) -> Settings {
        Settings {
            repeats: false,
            bounded: false,
            ..self
        }
    }

    /// The links of the job's chain.
    pub fn chain(&self) -> Chain {
        let (lateness_ms, config) = (self.lateness_ms as i64, self.job(0));
        match self.dedup {
            true => revenue(self.upstream(), lateness_ms).links(&config),
            false => revenue_without_dedup(self.upstream(), lateness_ms).links(&config),
        }
    }

    /// Whether an event may be there more than once.
    pub fn upstream(&self) -> Upstream {
        match self.repeats {
            true => Upstream::Repeats,
            false => Upstream::Once,
        }
    }

    /// The job's configuration, in a process that was started so many times before.
    pub fn job(&self, incarnation: u64) -> JobConfig {
        JobConfig {
            unchecked: self.unchecked,
            output_topic: SUMS.into(),
            dead_letter_topic: DEAD_LETTERS.into(),
            partitions: self.partitions as i32,
            bounded: self.bounded,
            idle_after: (self.idle_ms > 0).then(|| Duration::from_millis(self.idle_ms)),
            window_tasks: match incarnation {
                0 => self.window_tasks as usize,
                _ => self.window_tasks_later as usize,
            },
            key_groups: KeyGroups(self.key_groups as u32),
            workers: self.workers as usize,
            gather: Duration::from_millis(self.silence_ms),
            heartbeat: Duration::from_millis(self.silence_ms / 5),
            silence: Duration::from_millis(self.silence_ms),
            checkpoint_interval: Duration::from_millis(self.checkpoint_ms),
            checkpoint_timeout: Duration::from_millis(self.checkpoint_timeout_ms),
            takeover_after: Duration::from_millis(self.takeover_ms),
            store_patience: Duration::from_millis(self.store_patience_ms),
            transaction_timeout: Duration::from_millis(self.transaction_timeout_ms),
            producer: self.producer(),
            ..JobConfig::new("revenue", self.guarantee, self.sink)
        }
    }

    /// How producers batch and wait.
    pub fn producer(&self) -> ProducerConfig {
        ProducerConfig {
            batch_records_max: self.batch_records as usize,
            linger: Duration::from_millis(self.linger_ms),
            delivery_timeout: Duration::from_millis(self.delivery_timeout_ms),
        }
    }
}
