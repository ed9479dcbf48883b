//! The log: the durable stream of records, over Kafka's protocol.
//!
//! | part | is |
//! |---|---|
//! | [`segment`] | a checksummed file of record batches, and what opening one may find |
//! | [`producers`] | pure: who has appended what, whether a batch is new, which transactions are open |
//! | [`transactions`] | pure: the life of a transactional id |
//! | [`groups`], [`offsets`] | pure: the members of a group; the positions that it has committed |
//! | [`small_file`] | replaced as a whole, with a header that tells whether it is what was written |
//! | [`reserve`] | room for what frees room, on a disk that is full |
//! | [`partition`] | segments in a row; appends, group sync, reads, retention |
//! | [`fold`] | a coordinator's state: what its partition says, and nothing else |
//! | [`configs`] | pure: what a topic can be configured with |
//! | [`topics`] | which topics there are, and who leads which partition |
//! | [`peer`], [`door`], [`room`], [`unpacking`], [`rarely`] | who is connected, and what peers may take: time, memory, warnings |
//! | [`broker`], [`server`] | several brokers, each leading some partitions; their connections |
//! | [`connection`], [`cluster`] | the client's side: pipelined requests, leaders, coordinators |
//! | [`producer`], [`transactional`] | idempotent batches, five in flight; transactions of them |
//! | [`consumer`], [`member`] | reading a partition; sharing partitions with a group |
//!
//! There is no replication: a partition lives on its leader's disk, and comes back with it. An append is
//! acknowledged, and can be read, once it is synced; one sync serves all appends that wait for it.

pub mod segment;
pub mod producers;
pub mod transactions;
pub mod groups;
pub mod offsets;
pub mod small_file;
pub mod reserve;
pub mod partition;
pub mod fold;
pub mod configs;
pub mod topics;
pub mod peer;
pub mod room;
pub mod unpacking;
pub mod door;
pub mod rarely;
pub mod broker;
pub mod server;
pub mod connection;
pub mod cluster;
pub mod producer;
pub mod transactional;
pub mod consumer;
pub mod member;

use crate::ids::{Offset, PartitionId};
use serde::{Deserialize, Serialize};

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: String,
    /// Which partition of it.
    pub partition: PartitionId,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: &str, partition: PartitionId) -> Self {
        TopicPartition {
            topic: topic.to_owned(),
            partition,
        }
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// What can go wrong on a broker's disk.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk said no. Whether anything was written is unknown.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// What it said.
        source: std::io::Error,
    },
    /// Bytes that were durable are not what was written. Nothing is repaired or skipped.
    #[error("{path} is damaged at byte {position}, before offset {offset}: {what}")]
    Damaged {
        /// Which file.
        path: String,
        /// Where in the file.
        position: u64,
        /// The offset that should be there.
        offset: Offset,
        /// What is wrong with it.
        what: String,
    },
    /// The disk did not take a small file, which is as it was.
    #[error("{path}: {source}")]
    Unchanged {
        /// Which file.
        path: String,
        /// What the disk said.
        source: std::io::Error,
    },
    /// A small file is not what was written. Nothing is guessed.
    #[error("{path} is damaged: {what}")]
    DamagedFile {
        /// Which file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file that was durable is gone. Nothing is begun anew in its place.
    #[error("{path} is missing: {what}")]
    Missing {
        /// Which file.
        path: String,
        /// What was in it.
        what: String,
    },
}

impl LogError {
    pub(crate) fn io(path: &str) -> impl FnOnce(std::io::Error) -> LogError + '_ {
        move |source| LogError::Io {
            path: path.to_owned(),
            source,
        }
    }
}
