//! The Kafka requests that we speak, their frames and record batches.
//!
//! A frame is a length of four bytes, a header and a message; the messages come from `kafka-protocol`,
//! which is generated from Kafka's own definitions. Our client asks in flexible versions only (KIP-482), up to the
//! newest that brokers from Kafka 3.0 on know; our broker also answers the older ones that common clients use. What
//! a peer claims to send is checked before anything believes it: `skeleton` walks over requests, `guarded` over
//! responses, `validate` over the batches that a broker is to keep, `times` over those in which it looks for a time.

pub mod batch;
mod compression;
mod cursor;
pub mod frame;
#[cfg(test)]
mod fuzz;
mod guarded;
pub mod oversize;
mod records;
pub(crate) mod skeleton;
pub mod times;
pub mod validate;

use kafka_protocol::messages::ApiKey;

/// A request that we speak, and in which versions.
#[derive(Clone, Copy, Debug)]
pub struct Api {
    /// Which request.
    pub key: ApiKey,
    /// The oldest version that our broker answers.
    pub version_min: i16,
    /// The newest version that our broker answers.
    pub version_max: i16,
    /// The first flexible version, which is the oldest that our client asks for.
    pub flexible: i16,
}

/// Since Kafka 4.0 brokers say that they speak Produce from version 0, and close the connection if
/// anybody does, because librdkafka asks for it (KAFKA-18659).
pub const PRODUCE_VERSION_ADVERTISED: i16 = 0;

/// All requests that we speak.
pub const APIS: [Api; 35] = [
    api(ApiKey::Produce, 3, 12, 9),
    api(ApiKey::Fetch, 4, 18, 12),
    api(ApiKey::ListOffsets, 1, 10, 6),
    api(ApiKey::Metadata, 1, 12, 9),
    api(ApiKey::OffsetCommit, 2, 9, 8),
    api(ApiKey::OffsetFetch, 1, 8, 6),
    api(ApiKey::FindCoordinator, 0, 4, 3),
    api(ApiKey::JoinGroup, 0, 9, 6),
    api(ApiKey::Heartbeat, 0, 4, 4),
    api(ApiKey::LeaveGroup, 0, 5, 4),
    api(ApiKey::SyncGroup, 0, 5, 4),
    api(ApiKey::DescribeGroups, 0, 5, 5),
    api(ApiKey::ListGroups, 0, 5, 3),
    api(ApiKey::ApiVersions, 0, 3, 3),
    api(ApiKey::CreateTopics, 2, 7, 5),
    api(ApiKey::DeleteTopics, 1, 6, 4),
    api(ApiKey::DeleteRecords, 0, 2, 2),
    api(ApiKey::InitProducerId, 0, 5, 2),
    api(ApiKey::OffsetForLeaderEpoch, 2, 4, 4),
    api(ApiKey::AddPartitionsToTxn, 0, 5, 3),
    api(ApiKey::AddOffsetsToTxn, 0, 4, 3),
    api(ApiKey::EndTxn, 0, 5, 3),
    api(ApiKey::WriteTxnMarkers, 1, 1, 1),
    api(ApiKey::TxnOffsetCommit, 0, 5, 3),
    api(ApiKey::DescribeConfigs, 1, 4, 4),
    api(ApiKey::AlterConfigs, 0, 2, 2),
    api(ApiKey::DescribeLogDirs, 1, 4, 2),
    api(ApiKey::CreatePartitions, 0, 3, 2),
    api(ApiKey::DeleteGroups, 0, 2, 2),
    api(ApiKey::IncrementalAlterConfigs, 0, 1, 1),
    // It never got a flexible version.
    api(ApiKey::OffsetDelete, 0, 0, 1),
    api(ApiKey::DescribeCluster, 0, 1, 0),
    api(ApiKey::DescribeProducers, 0, 0, 0),
    api(ApiKey::DescribeTransactions, 0, 0, 0),
    api(ApiKey::ListTransactions, 0, 1, 0),
];

const fn api(key: ApiKey, version_min: i16, version_max: i16, flexible: i16) -> Api {
    Api {
        key,
        version_min,
        version_max,
        flexible,
    }
}

/// The entry of [`APIS`] for a request, if we speak it.
pub fn api_of(key: i16) -> Option<Api> {
    APIS.into_iter().find(|api| api.key as i16 == key)
}
