//! The Kafka requests that we speak, their frames and record batches.
//!
//! A frame is a length of four bytes, a header and a message; the messages come from `kafka-protocol`,
//! which is generated from Kafka's own definitions. We speak the flexible versions only (KIP-482), up to the
//! newest that brokers from Kafka 3.0 on and common clients both know: in those a peer cannot claim
//! more than it sends.

pub mod batch;
pub mod frame;
mod guarded;

use kafka_protocol::messages::ApiKey;

/// A request that our broker answers, and in which versions.
#[derive(Clone, Copy, Debug)]
pub struct Api {
    /// Which request.
    pub key: ApiKey,
    /// The oldest version that the broker answers.
    pub version_min: i16,
    /// The newest version that the broker answers, and that our client asks for.
    pub version_max: i16,
}

/// All requests that we speak.
pub const APIS: [Api; 7] = [
    api(ApiKey::Produce, 9, 9),
    api(ApiKey::Fetch, 12, 12),
    api(ApiKey::ListOffsets, 6, 7),
    api(ApiKey::Metadata, 9, 12),
    api(ApiKey::ApiVersions, 0, 3),
    api(ApiKey::CreateTopics, 5, 7),
    api(ApiKey::InitProducerId, 2, 4),
];

const fn api(key: ApiKey, version_min: i16, version_max: i16) -> Api {
    Api {
        key,
        version_min,
        version_max,
    }
}

/// The entry of [`APIS`] for a request, if we speak it.
pub fn api_of(key: i16) -> Option<Api> {
    APIS.into_iter().find(|api| api.key as i16 == key)
}
