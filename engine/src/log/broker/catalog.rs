//! What there is: topics, brokers, versions, settings.

use super::{deletion::Deleted, is_internal, to_its_end, Broker};
use crate::{
    ids::PartitionId,
    log::{
        cluster::name,
        topics::{self, Created},
        LogError,
    },
    wire,
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey},
        create_topics_response::CreatableTopicResult,
        delete_topics_response::DeletableTopicResult,
        describe_cluster_response::DescribeClusterBroker,
        describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult},
        metadata_response::{
            MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
        },
        ApiKey, ApiVersionsResponse, CreateTopicsRequest, CreateTopicsResponse,
        DeleteTopicsRequest, DeleteTopicsResponse, DescribeClusterResponse, DescribeConfigsRequest,
        DescribeConfigsResponse, MetadataRequest, MetadataResponse, TopicName,
    },
    protocol::StrBytes,
};
use std::sync::Arc;

/// The feature under which a broker says which transactions it has (KIP-890).
pub const TRANSACTION_VERSION: &str = "transaction.version";
const CLUSTER_ID: &str = "seedbed";
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
        if let Some(count) = self.topics.partitions(topic).await {
            return Ok(count);
        }
        if self.config.id.0 == 0 {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        let deletions = self.topics.deletions();
        let asked = self
            .peers
            .partitions_of(&self.config.brokers[0], topic)
            .await;
        let count = asked.map_err(|_| ResponseError::LeaderNotAvailable)?;
        let count = count.ok_or(ResponseError::UnknownTopicOrPartition)?;
        let (broker, topic) = (self.clone(), topic.to_owned());
        let learnt = to_its_end(async move { broker.topics.learn(&topic, count, deletions).await });
        match learnt.await {
            Ok(true) => Ok(count),
            Ok(false) => Err(ResponseError::LeaderNotAvailable),
            Err(_) => Err(ResponseError::KafkaStorageError),
        }
    }

    async fn add_topic(self: &Arc<Self>, topic: &str, count: i32) -> Result<Created, LogError> {
        let (broker, topic) = (self.clone(), topic.to_owned());
        to_its_end(async move { broker.topics.add(&topic, count).await }).await
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
    pub async fn metadata(self: &Arc<Self>, request: MetadataRequest) -> MetadataResponse {
        let brokers = self.config.brokers.iter().enumerate().map(|(id, address)| {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
            MetadataResponseBroker::default()
                .with_node_id((id as i32).into())
                .with_host(StrBytes::from_string(host.to_owned()))
                .with_port(port.parse().unwrap_or(0))
        });
        let names: Vec<String> = match &request.topics {
            None => self
                .topics
                .all()
                .await
                .into_iter()
                .map(|(name, _)| name)
                .collect(),
            Some(topics) => {
                let names = topics.iter().filter_map(|topic| topic.name.as_ref());
                names.map(|name| name.to_string()).collect()
            }
        };
        let mut topics = Vec::new();
        for name in names {
            let answer = MetadataResponseTopic::default()
                .with_name(Some(TopicName(StrBytes::from_string(name.clone()))))
                .with_is_internal(is_internal(&name))
                .with_topic_authorized_operations(OPERATIONS_UNKNOWN);
            topics.push(match self.partition_count(&name).await {
                Err(error) => answer.with_error_code(error.code()),
                Ok(count) => {
                    let partitions = (0..count).map(|index| self.partition_metadata(&name, index));
                    answer.with_partitions(partitions.collect())
                }
            });
        }
        MetadataResponse::default()
            .with_brokers(brokers.collect())
            .with_controller_id(0.into())
            .with_cluster_authorized_operations(OPERATIONS_UNKNOWN)
            .with_cluster_id(Some(StrBytes::from_static_str(CLUSTER_ID)))
            .with_topics(topics)
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

    /// Creates topics: the first broker decides, the others pass the request on.
    pub async fn create_topics(
        self: &Arc<Self>,
        request: CreateTopicsRequest,
    ) -> CreateTopicsResponse {
        let mut results = Vec::new();
        for topic in request.topics {
            let name = topic.name.to_string();
            let partitions = if topic.num_partitions == -1 {
                1
            } else {
                topic.num_partitions
            };
            let error = self
                .create_topic(&name, partitions, request.validate_only)
                .await;
            results.push(
                CreatableTopicResult::default()
                    .with_name(topic.name)
                    .with_error_code(error.map_or(0, |error| error.code()))
                    .with_num_partitions(partitions)
                    .with_replication_factor(1),
            );
        }
        CreateTopicsResponse::default().with_topics(results)
    }

    async fn create_topic(
        self: &Arc<Self>,
        name: &str,
        count: i32,
        dry: bool,
    ) -> Option<ResponseError> {
        if !topics::is_legal_name(name) || is_internal(name) {
            return Some(ResponseError::InvalidTopicException);
        }
        if !(1..=10_000).contains(&count) {
            return Some(ResponseError::InvalidPartitions);
        }
        if self.config.id.0 != 0 {
            let asked = self
                .peers
                .create_topic_at(&self.config.brokers[0], name, count)
                .await;
            return match asked {
                Ok(code) => ResponseError::try_from_code(code),
                Err(_) => Some(ResponseError::RequestTimedOut),
            };
        }
        if dry {
            let there = self.topics.partitions(name).await;
            return there.map(|_| ResponseError::TopicAlreadyExists);
        }
        match self.add_topic(name, count).await {
            Ok(Created::New) => None,
            Ok(Created::Exists(_)) => Some(ResponseError::TopicAlreadyExists),
            Err(_) => Some(ResponseError::KafkaStorageError),
        }
    }

    /// Deletes topics: the first broker decides, then all remove what they have of it. If one of them is away, the
    /// answer is that it takes longer; it goes on nonetheless.
    pub async fn delete_topics(
        self: &Arc<Self>,
        request: DeleteTopicsRequest,
    ) -> DeleteTopicsResponse {
        let mut results = Vec::new();
        // Nobody tells the first broker.
        let number = number_of(request.timeout_ms).filter(|_| self.config.id.0 != 0);
        for name in request.topic_names {
            let deleted = self.delete_topic(&name, number).await;
            results.push(
                DeletableTopicResult::default()
                    .with_name(Some(name))
                    .with_error_code(deleted.err().map_or(0, |error| error.code())),
            );
        }
        DeleteTopicsResponse::default().with_responses(results)
    }

    async fn delete_topic(
        self: &Arc<Self>,
        name: &TopicName,
        number: Option<u64>,
    ) -> Result<(), ResponseError> {
        if is_internal(name) {
            return Err(ResponseError::InvalidTopicException);
        }
        if number.is_none() && self.config.id.0 != 0 {
            let request = delete_request(name, FROM_USER_MS);
            let answer = self.ask(0, &request, DELETE_TOPICS_VERSION).await;
            return first_error(answer.ok());
        }
        let (broker, topic) = (self.clone(), name.to_string());
        let deleted = to_its_end(async move { broker.delete_here(&topic, number).await });
        match deleted.await {
            Ok(Deleted::Gone) => Ok(()),
            Ok(Deleted::Unknown) => Err(ResponseError::UnknownTopicOrPartition),
            Ok(Deleted::Later) => Err(ResponseError::RequestTimedOut),
            // Nothing was noted, and nothing is removed.
            Err(LogError::Unchanged { .. }) => Err(ResponseError::KafkaStorageError),
            Err(error) => {
                self.fail(error);
                Err(ResponseError::KafkaStorageError)
            }
        }
    }

    /// Has another broker remove what it has of a topic.
    pub(super) async fn delete_at(
        &self,
        peer: usize,
        topic: &str,
        number: u64,
    ) -> Result<(), ResponseError> {
        let request = delete_request(&name(topic), timeout_of(number));
        let answer = self.ask(peer, &request, DELETE_TOPICS_VERSION).await;
        first_error(answer.ok())
    }

    /// All brokers of the cluster (KIP-700).
    pub fn describe_cluster(&self) -> DescribeClusterResponse {
        let brokers = self.config.brokers.iter().enumerate().map(|(id, address)| {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
            DescribeClusterBroker::default()
                .with_broker_id((id as i32).into())
                .with_host(StrBytes::from_string(host.to_owned()))
                .with_port(port.parse().unwrap_or(0))
        });
        DescribeClusterResponse::default()
            .with_endpoint_type(1)
            .with_cluster_id(StrBytes::from_static_str(CLUSTER_ID))
            .with_controller_id(0.into())
            .with_brokers(brokers.collect())
            .with_cluster_authorized_operations(OPERATIONS_UNKNOWN)
    }

    /// The settings that clients ask about: those that this broker has.
    pub fn describe_configs(&self, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
        let settings = [
            ("cleanup.policy", "delete".to_owned()),
            ("segment.bytes", self.config.segment_bytes.to_string()),
            (
                "retention.ms",
                self.config.retention.as_millis().to_string(),
            ),
            (
                "max.message.bytes",
                wire::frame::FRAME_BYTES_MAX.to_string(),
            ),
            (
                "transaction.max.timeout.ms",
                self.config.transaction_max_timeout.as_millis().to_string(),
            ),
        ];
        let results = request.resources.into_iter().map(|resource| {
            let wanted = |name: &str| match &resource.configuration_keys {
                None => true,
                Some(keys) => keys.iter().any(|key| key.as_str() == name),
            };
            let configs = settings.iter().filter(|(name, _)| wanted(name));
            let configs = configs.map(|(name, value)| {
                DescribeConfigsResourceResult::default()
                    .with_name(StrBytes::from_static_str(name))
                    .with_value(Some(StrBytes::from_string(value.clone())))
                    .with_read_only(true)
                    .with_config_source(4)
            });
            DescribeConfigsResult::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name.clone())
                .with_configs(configs.collect())
        });
        DescribeConfigsResponse::default().with_results(results.collect())
    }
}

const DELETE_TOPICS_VERSION: i16 = 5;
const FROM_USER_MS: i32 = 5000;
/// The first broker tells the others the number of a deletion in its time-out: so little has no user.
const FROM_PEER_MS: i32 = i32::MIN;
const DELETIONS_MAX: u64 = 1 << 30;

fn timeout_of(number: u64) -> i32 {
    assert!(number < DELETIONS_MAX, "{number} topics were deleted");
    FROM_PEER_MS + number as i32
}

/// The number of a deletion, if the first broker asks for it.
fn number_of(timeout_ms: i32) -> Option<u64> {
    let number = u64::from(timeout_ms.abs_diff(FROM_PEER_MS));
    (number < DELETIONS_MAX).then_some(number)
}

fn delete_request(topic: &TopicName, timeout_ms: i32) -> DeleteTopicsRequest {
    DeleteTopicsRequest::default()
        .with_topic_names(vec![topic.clone()])
        .with_timeout_ms(timeout_ms)
}

fn first_error(answer: Option<DeleteTopicsResponse>) -> Result<(), ResponseError> {
    let answer = answer.ok_or(ResponseError::RequestTimedOut)?;
    let code = answer
        .responses
        .first()
        .map_or(0, |result| result.error_code);
    ResponseError::try_from_code(code).map_or(Ok(()), Err)
}
