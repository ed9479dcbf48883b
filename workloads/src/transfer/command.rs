//! A command, its two entries, and what numbers them.

use bytes::Bytes;
use engine::{
    ids::{Offset, PartitionId},
    record::{NewRecord, Record},
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Move money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Which send of which teller it is: no two records of the log have the same.
    pub send: String,
    /// Where the money comes from.
    pub from: u64,
    /// Where it goes to.
    pub to: u64,
    /// How much.
    pub cents: i64,
}

/// One leg of a command: what an account loses or gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The command's partition.
    pub partition: PartitionId,
    /// The command's offset.
    pub offset: Offset,
    /// Which account.
    pub account: u64,
    /// What is added to it.
    pub cents: i64,
    /// The attempt that wrote it: no two transactions have the same.
    pub attempt: String,
    /// What makes an entry too large to be sent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub padding: String,
}

impl Command {
    /// As a record.
    pub fn to_record(&self, timestamp_ms: i64) -> NewRecord {
        to_record(self, timestamp_ms)
    }

    /// Of a record.
    pub fn of(record: &Record) -> Option<Command> {
        serde_json::from_slice(record.value.as_deref()?).ok()
    }

    /// Its two legs, in the order in which they are written.
    pub fn entries(&self, partition: PartitionId, offset: Offset, attempt: &str) -> [Entry; 2] {
        let leg = |account, cents| Entry {
            partition,
            offset,
            account,
            cents,
            attempt: attempt.to_owned(),
            padding: String::new(),
        };
        [leg(self.from, -self.cents), leg(self.to, self.cents)]
    }
}

impl Entry {
    /// As a record.
    pub fn to_record(&self, timestamp_ms: i64) -> NewRecord {
        to_record(self, timestamp_ms)
    }

    /// Of a record.
    pub fn of(record: &Record) -> Option<Entry> {
        serde_json::from_slice(record.value.as_deref()?).ok()
    }

    /// In which of so many partitions the entries of its account are.
    pub fn partition_among(&self, partitions: u64) -> PartitionId {
        PartitionId((self.account % partitions) as i32)
    }

    /// What the ledger adds up: both legs of a command give the same as the command itself.
    pub fn weight(&self) -> i64 {
        weight(self.account, self.cents)
    }
}

/// A number for a leg.
pub fn weight(account: u64, cents: i64) -> i64 {
    (xxh3_64(format!("{account} {cents}").as_bytes()) >> 8) as i64
}

fn to_record(value: &impl Serialize, timestamp_ms: i64) -> NewRecord {
    let json = serde_json::to_vec(value).expect("plain data");
    NewRecord {
        key: None,
        value: Some(Bytes::from(json)),
        headers: Vec::new(),
        timestamp_ms,
    }
}
