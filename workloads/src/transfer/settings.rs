//! The workload's parameters, as they stand in a plan.

use engine::{
    ids::BrokerId,
    log::{
        broker::BrokerConfig, member::MemberConfig, producer::ProducerConfig,
        transactional::TransactionalConfig, transactions::TransactionVersion,
    },
};
use proptest::{prelude::*, strategy::BoxedStrategy};
use serde::{Deserialize, Serialize};
use sim::Params;
use std::time::Duration;

use super::{COMMANDS, GROUP};

/// Entries that are larger cannot be sent.
pub const RECORD_BYTES_MAX: usize = 4096;

/// Sizes, choices and knobs. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Commands to carry out.
    pub records: u64,
    /// Accounts.
    pub accounts: u64,
    /// Partitions of the commands.
    pub partitions: u64,
    /// Partitions of the entries.
    pub entry_partitions: u64,
    /// The time over which the commands are written.
    pub feed_ms: u64,
    /// Commands in a transaction, at most.
    pub commands_per_transaction: u64,
    /// How many transactions of 1,000 are aborted for no reason.
    pub abort_per_mille: u64,
    /// How long a worker thinks within a transaction.
    pub think_ms: u64,
    /// How many transactions of 1,000 take longer than they may.
    pub late_per_mille: u64,
    /// In how many transactions of 1,000 an entry is too large to be sent.
    pub oversize_per_mille: u64,
    /// The version of transactions that the workers speak: 1 or 2.
    pub transaction_version: u64,
    /// A transaction that takes longer is aborted.
    pub transaction_timeout_ms: u64,
    /// After so long a silence a worker is left out of the group.
    pub session_ms: u64,
    /// So long may workers take to join again.
    pub rebalance_ms: u64,
    /// After this long a batch's outcome is unknown.
    pub delivery_timeout_ms: u64,
    /// How long a batch waits for more records.
    pub linger_ms: u64,
    /// Records in a batch.
    pub batch_records: u64,
    /// Bytes in a segment.
    pub segment_bytes: u64,
    /// Bytes that are kept of the topic that keeps only its newest records.
    pub chatter_bytes: u64,
    /// Partitions of topics that come and go while commands are written; 0 if there are none.
    #[serde(default)]
    pub passing_partitions: u64,
}

/// One of so many seeds has topics that come and go.
const PASSING_ONE_IN: u64 = 6;

/// How many partitions topics that come and go have, in a plan for which these numbers were drawn: not a draw of its own,
/// which would change all plans that there were before.
fn passing_partitions(drawn: impl std::fmt::Debug) -> u64 {
    let lot = xxhash_rust::xxh3::xxh3_64(format!("passing {drawn:?}").as_bytes());
    match lot % PASSING_ONE_IN {
        0 => 2 + lot / PASSING_ONE_IN % 4,
        _ => 0,
    }
}

impl Settings {
    /// Draws settings around `records` commands.
    pub fn strategy(records: u64) -> BoxedStrategy<Params> {
        let sizes = (3u64..20, 2u64..5, 2u64..6, 6_000u64..14_000);
        let work = (1u64..12, 0u64..150, 0u64..60, 0u64..60);
        let transactions = (1u64..3, 1_500u64..6_000, 2_000u64..6_000, 2_000u64..5_000);
        let producer = (
            3_000u64..15_000,
            1u64..20,
            prop_oneof![Just(2u64), Just(10), Just(100)],
        );
        let segments = (
            prop_oneof![Just(4u64 << 10), Just(16 << 10), Just(1 << 20)],
            2_000u64..20_000,
        );
        (sizes, work, transactions, producer, segments)
            .prop_map(move |(sizes, work, transactions, producer, segments)| {
                let settings = Settings {
                    records,
                    passing_partitions: passing_partitions((sizes, work, transactions)),
                    accounts: sizes.0,
                    partitions: sizes.1,
                    entry_partitions: sizes.2,
                    feed_ms: sizes.3,
                    commands_per_transaction: work.0,
                    abort_per_mille: work.1,
                    think_ms: work.2,
                    late_per_mille: work.3 / 2,
                    oversize_per_mille: work.3,
                    transaction_version: transactions.0,
                    transaction_timeout_ms: transactions.1,
                    session_ms: transactions.2,
                    rebalance_ms: transactions.3,
                    delivery_timeout_ms: producer.0,
                    linger_ms: producer.1,
                    batch_records: producer.2,
                    segment_bytes: segments.0,
                    chatter_bytes: segments.1,
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
            ("records", self.records, 1, 1_000_000),
            ("accounts", self.accounts, 2, 1_000_000),
            ("partitions", self.partitions, 1, 64),
            ("entry_partitions", self.entry_partitions, 1, 64),
            ("feed_ms", self.feed_ms, 1, 3_600_000),
            (
                "commands_per_transaction",
                self.commands_per_transaction,
                1,
                10_000,
            ),
            ("abort_per_mille", self.abort_per_mille, 0, 900),
            ("think_ms", self.think_ms, 0, 60_000),
            ("late_per_mille", self.late_per_mille, 0, 900),
            ("oversize_per_mille", self.oversize_per_mille, 0, 900),
            ("transaction_version", self.transaction_version, 1, 2),
            (
                "transaction_timeout_ms",
                self.transaction_timeout_ms,
                100,
                600_000,
            ),
            ("session_ms", self.session_ms, 100, 600_000),
            ("rebalance_ms", self.rebalance_ms, 100, 600_000),
            (
                "delivery_timeout_ms",
                self.delivery_timeout_ms,
                100,
                600_000,
            ),
            ("linger_ms", self.linger_ms, 0, 60_000),
            ("batch_records", self.batch_records, 1, 100_000),
            ("segment_bytes", self.segment_bytes, 1024, 1 << 30),
            ("chatter_bytes", self.chatter_bytes, 1, 1 << 30),
            ("passing_partitions", self.passing_partitions, 0, 64),
        ];
        for (name, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(format!(
                    "params: {name} is {value}; {min} to {max} would be right"
                ));
            }
        }
        // One of them is never used.
        if self.passing_partitions == 1 {
            return Err("params: passing_partitions is 1; 0 or 2 to 64 would be right".into());
        }
        Ok(())
    }

    /// How producers batch and wait.
    pub fn producer(&self) -> ProducerConfig {
        ProducerConfig {
            batch_records_max: self.batch_records as usize,
            linger: Duration::from_millis(self.linger_ms),
            delivery_timeout: Duration::from_millis(self.delivery_timeout_ms),
        }
    }

    /// How a worker's transactions work.
    pub fn transactional(&self, id: &str) -> TransactionalConfig {
        TransactionalConfig {
            timeout: Duration::from_millis(self.transaction_timeout_ms),
            version: Some(match self.transaction_version {
                1 => TransactionVersion::V1,
                _ => TransactionVersion::V2,
            }),
            record_bytes_max: RECORD_BYTES_MAX,
            producer: self.producer(),
            ..TransactionalConfig::new(id)
        }
    }

    /// How a worker takes part in the group.
    pub fn member(&self) -> MemberConfig {
        MemberConfig {
            group: GROUP.into(),
            topics: vec![COMMANDS.into()],
            session: Duration::from_millis(self.session_ms),
            rebalance: Duration::from_millis(self.rebalance_ms),
        }
    }

    /// What the topic is configured with that keeps only its newest records.
    pub fn chatter(&self) -> [(&'static str, String); 1] {
        [("retention.bytes", self.chatter_bytes.to_string())]
    }

    /// How broker `id` of `brokers` is set up.
    pub fn broker(&self, id: usize, brokers: Vec<String>) -> BrokerConfig {
        BrokerConfig {
            segment_bytes: self.segment_bytes,
            reserve_bytes: 16 << 10,
            ..BrokerConfig::new(BrokerId(id as i32), brokers)
        }
    }
}
