//! What there is: topics, brokers, versions.
//!
//! | part | is |
//! |---|---|
//! | `create` | topics are created, and get more partitions |
//! | `delete` | topics are deleted: what is asked, and what is answered |
//! | `configs` | what topics are configured with |
//! | `learn` | what the other brokers know of the first one |
//! | `objection` | why something is refused |

pub(super) mod configs;
mod create;
mod delete;
mod learn;
mod objection;

pub(super) use learn::Which;

use self::objection::Objection;
use super::{is_internal, Broker};
use crate::{
    ids::PartitionId,
    log::{
        topics::{self, Topic},
        LogError,
    },
    wire,
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey},
        describe_cluster_response::DescribeClusterBroker,
        metadata_request::MetadataRequestTopic,
        metadata_response::{
            MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
        },
        ApiKey, ApiVersionsResponse, DescribeClusterRequest, DescribeClusterResponse,
        MetadataRequest, MetadataResponse, TopicName,
    },
    protocol::StrBytes,
};
use std::sync::Arc;
use uuid::Uuid;

/// The feature under which a broker says which transactions it has (KIP-890).
pub const TRANSACTION_VERSION: &str = "transaction.version";
/// `AUTHORIZED_OPERATIONS` that nobody has asked for.
const OPERATIONS_UNKNOWN: i32 = i32::MIN;

impl Broker {
    /// How many partitions a topic has: known here, or asked of the first broker.
    pub(super) async fn partition_count(
        self: &Arc<Self>,
        topic: &str,
    ) -> Result<i32, ResponseError> {
        if is_internal(topic) {
            return Ok(self.config.coordinators);
        }
        match self.topics.partitions(topic).await {
            Some(count) => Ok(count),
            None => Ok(self.learn(topic.into()).await?.1.partitions),
        }
    }

    /// A topic: known here, or asked of the first broker.
    async fn topic(self: &Arc<Self>, name: &str) -> Result<Topic, ResponseError> {
        match self.topic_here(name).await {
            Some(topic) => Ok(topic),
            None => Ok(self.learn(name.into()).await?.1),
        }
    }

    /// A topic, if it is known here.
    pub(super) async fn topic_here(&self, name: &str) -> Option<Topic> {
        match is_internal(name) {
            true => Some(topics::internal(name, self.config.coordinators)),
            false => self.topics.get(name).await,
        }
    }

    /// The name of the topic with this id: known here, or asked of the first broker.
    pub(super) async fn name_of(self: &Arc<Self>, id: Uuid) -> Result<String, ResponseError> {
        let own = [topics::TRANSACTIONS_TOPIC, topics::OFFSETS_TOPIC];
        if let Some(own) = own
            .into_iter()
            .find(|own| topics::internal(own, 1).id == id)
        {
            return Ok(own.to_owned());
        }
        match self.topics.name_of(id).await {
            Some(name) => Ok(name),
            None if self.config.id.0 == 0 => Err(ResponseError::UnknownTopicId),
            None => Ok(self.learn(Which::Id(id)).await?.0),
        }
    }

    /// What is said where the disk did not keep what was decided. If it is unknown whether it did, the broker ends.
    fn not_kept(&self, error: LogError) -> Objection {
        let told = Objection::new(ResponseError::KafkaStorageError, error.to_string());
        if !matches!(error, LogError::Unchanged { .. }) {
            self.fail(error);
        }
        told
    }

    /// What this broker can do.
    pub fn api_versions(&self, error_code: i16) -> ApiVersionsResponse {
        let keys = wire::APIS.iter().map(|api| {
            ApiVersion::default()
                .with_api_key(api.key as i16)
                .with_min_version(match api.key {
                    ApiKey::Produce => wire::PRODUCE_VERSION_ADVERTISED,
                    _ => api.version_min,
                })
                .with_max_version(api.version_max)
        });
        let name = StrBytes::from_static_str(TRANSACTION_VERSION);
        let supported = SupportedFeatureKey::default()
            .with_name(name.clone())
            .with_min_version(0)
            .with_max_version(2);
        let finalized = FinalizedFeatureKey::default()
            .with_name(name)
            .with_min_version_level(2)
            .with_max_version_level(2);
        ApiVersionsResponse::default()
            .with_error_code(error_code)
            .with_api_keys(keys.collect())
            .with_supported_features(vec![supported])
            .with_finalized_features_epoch(0)
            .with_finalized_features(vec![finalized])
    }

    /// Who leads what.
    pub async fn metadata(
        self: &Arc<Self>,
        request: MetadataRequest,
        version: i16,
    ) -> MetadataResponse {
        let brokers = self.config.brokers.iter().enumerate().map(|(id, address)| {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
            MetadataResponseBroker::default()
                .with_node_id((id as i32).into())
                .with_host(StrBytes::from_string(host.to_owned()))
                .with_port(port.parse().unwrap_or(0))
        });
        let may_create = self.config.auto_create_topics && request.allow_auto_topic_creation;
        let mut topics = Vec::new();
        match request.topics {
            None => {
                for (name, topic) in self.topics.all().await {
                    topics.push(self.topic_metadata(&name, &topic));
                }
            }
            Some(asked) => {
                for asked in asked {
                    let found = self.asked_topic(&asked, version, may_create).await;
                    topics.push(match found {
                        Ok((name, topic)) => self.topic_metadata(&name, &topic),
                        Err(error) => MetadataResponseTopic::default()
                            .with_is_internal(asked.name.as_deref().is_some_and(|n| is_internal(n)))
                            // Before version 12 a name must be said.
                            .with_name(asked.name.or((version < BY_ID).then(TopicName::default)))
                            .with_topic_id(asked.topic_id)
                            .with_topic_authorized_operations(OPERATIONS_UNKNOWN)
                            .with_error_code(error.code()),
                    });
                }
            }
        }
        let cluster = self.cluster_name().await;
        MetadataResponse::default()
            .with_brokers(brokers.collect())
            .with_controller_id(0.into())
            .with_cluster_authorized_operations(OPERATIONS_UNKNOWN)
            .with_cluster_id(cluster.map(StrBytes::from_string))
            .with_topics(topics)
    }

    /// The topic that somebody asks about, created if it need be and may be.
    async fn asked_topic(
        self: &Arc<Self>,
        asked: &MetadataRequestTopic,
        version: i16,
        may_create: bool,
    ) -> Result<(String, Topic), ResponseError> {
        let Some(name) = &asked.name else {
            if version < BY_ID || asked.topic_id.is_nil() {
                return Err(ResponseError::InvalidRequest);
            }
            let name = self.name_of(asked.topic_id).await?;
            let topic = self.topic(&name).await?;
            return match topic.id == asked.topic_id {
                true => Ok((name, topic)),
                false => Err(ResponseError::UnknownTopicId),
            };
        };
        if version < BY_ID && !asked.topic_id.is_nil() {
            return Err(ResponseError::InvalidRequest);
        }
        if !topics::is_legal_name(name) {
            return Err(ResponseError::InvalidTopicException);
        }
        let mut found = self.topic(name).await;
        if may_create && found == Err(ResponseError::UnknownTopicOrPartition) {
            self.create_on_first_use(name).await?;
            found = self.topic(name).await;
        }
        Ok((name.to_string(), found?))
    }

    fn topic_metadata(&self, name: &str, topic: &Topic) -> MetadataResponseTopic {
        let partitions = (0..topic.partitions).map(|index| self.partition_metadata(name, index));
        MetadataResponseTopic::default()
            .with_name(Some(text(name).into()))
            .with_topic_id(topic.id)
            .with_is_internal(is_internal(name))
            .with_topic_authorized_operations(OPERATIONS_UNKNOWN)
            .with_partitions(partitions.collect())
    }

    fn partition_metadata(&self, topic: &str, index: i32) -> MetadataResponsePartition {
        let brokers = self.config.brokers.len();
        let leader = topics::leader(topic, PartitionId(index), brokers) as i32;
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(leader.into())
            .with_leader_epoch(0)
            .with_replica_nodes(vec![leader.into()])
            .with_isr_nodes(vec![leader.into()])
    }

    /// All brokers of the cluster (KIP-700).
    pub async fn describe_cluster(
        self: &Arc<Self>,
        _: DescribeClusterRequest,
    ) -> DescribeClusterResponse {
        let brokers = self.config.brokers.iter().enumerate().map(|(id, address)| {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
            DescribeClusterBroker::default()
                .with_broker_id((id as i32).into())
                .with_host(StrBytes::from_string(host.to_owned()))
                .with_port(port.parse().unwrap_or(0))
        });
        let cluster = self.cluster_name().await;
        let answer = DescribeClusterResponse::default()
            .with_endpoint_type(1)
            .with_controller_id(0.into())
            .with_brokers(brokers.collect())
            .with_cluster_authorized_operations(OPERATIONS_UNKNOWN);
        match cluster {
            Some(name) => answer.with_cluster_id(StrBytes::from_string(name)),
            // Only the first broker knows it, and does not answer.
            None => answer.with_error_code(ResponseError::CoordinatorNotAvailable.code()),
        }
    }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// The first version of Metadata in which a topic is asked for by its id.
const BY_ID: i16 = 12;
