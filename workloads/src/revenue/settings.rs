//! The workload's parameters, as they stand in a plan.

use engine::{guarantee::Guarantee, job::JobConfig, log::producer::ProducerConfig, sink::SinkKind};
use proptest::{prelude::*, strategy::BoxedStrategy};
use serde::{Deserialize, Serialize};
use sim::Params;
use std::time::Duration;

use super::{DEAD_LETTERS, SUMS};

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
    /// A file of events, instead of drawn ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Partitions of the events' topic.
    pub partitions: u64,
    /// Tasks that share the windows.
    pub window_tasks: u64,
    /// The time over which the events are written.
    pub feed_ms: u64,
    /// Between two times at which a shop writes.
    pub tick_ms: u64,
    /// Between two checkpoints.
    pub checkpoint_ms: u64,
    /// A checkpoint that takes longer ends the attempt.
    pub checkpoint_timeout_ms: u64,
    /// Silence after which a worker that stands by takes over.
    pub takeover_ms: u64,
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
        let sizes = (2u64..6, 1u64..4, 6_000u64..15_000, 150u64..500);
        let checkpoints = (500u64..2500, 5_000u64..12_000, 4_000u64..9_000);
        let producer = (
            4_000u64..40_000,
            1u64..30,
            prop_oneof![Just(5u64), Just(50), Just(500)],
        );
        let segment = prop_oneof![Just(8u64 << 10), Just(32 << 10), Just(1 << 20)];
        (sizes, checkpoints, producer, segment)
            .prop_map(move |(sizes, checkpoints, producer, segment_bytes)| {
                let settings = Settings {
                    records,
                    guarantee: Guarantee::ExactlyOnce,
                    sink: SinkKind::Objects,
                    unchecked: false,
                    input: None,
                    partitions: sizes.0,
                    window_tasks: sizes.1,
                    feed_ms: sizes.2,
                    tick_ms: sizes.3,
                    checkpoint_ms: checkpoints.0,
                    checkpoint_timeout_ms: checkpoints.1,
                    takeover_ms: checkpoints.2,
                    delivery_timeout_ms: producer.0,
                    linger_ms: producer.1,
                    batch_records: producer.2,
                    segment_bytes,
                };
                settings.to_params()
            })
            .boxed()
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
            ("window_tasks", self.window_tasks, 1, 64),
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
        Ok(())
    }

    /// The job's configuration.
    pub fn job(&self) -> JobConfig {
        JobConfig {
            name: "revenue".into(),
            claimed: self.guarantee,
            unchecked: self.unchecked,
            sink: self.sink,
            output_topic: SUMS.into(),
            dead_letter_topic: DEAD_LETTERS.into(),
            partitions: self.partitions as i32,
            window_tasks: self.window_tasks as usize,
            checkpoint_interval: Duration::from_millis(self.checkpoint_ms),
            checkpoint_timeout: Duration::from_millis(self.checkpoint_timeout_ms),
            takeover_after: Duration::from_millis(self.takeover_ms),
            producer: self.producer(),
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
