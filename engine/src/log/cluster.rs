//! The cluster as a client sees it: who leads what.

use super::{
    connection::{CallError, Connection, SharedConnection},
    partition::Isolation,
    topics::TRANSACTIONS_TOPIC,
    TopicPartition,
};
use crate::{
    host::Host,
    ids::{Offset, PartitionId},
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
        BrokerId, CreateTopicsRequest, DeleteTopicsRequest, FindCoordinatorRequest,
        ListOffsetsRequest, ListTransactionsRequest, MetadataRequest, TopicName,
    },
    protocol::StrBytes,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

/// How long a request waits for its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// `UNKNOWN_TOPIC_OR_PARTITION`.
const UNKNOWN_TOPIC: i16 = 3;
/// The last version of DeleteTopics with nothing but names.
const DELETE_BY_NAME: i16 = 5;
/// Between two tries.
pub(crate) const BACKOFF: Duration = Duration::from_millis(250);

/// A client's view of a cluster. Clones share it.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    host: Host,
    bootstrap: Vec<String>,
    leaders: Mutex<BTreeMap<TopicPartition, String>>,
    coordinators: Mutex<BTreeMap<(KeyType, String), String>>,
    /// Connections for requests that do not wait for long, by address.
    shared: Mutex<BTreeMap<String, SharedConnection>>,
}

/// What a coordinator is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyType {
    /// A group.
    Group = 0,
    /// A transactional id.
    Transaction = 1,
}

/// Why a question about the cluster has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Nobody answered.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The broker's answer was an error.
    #[error("{0:?}")]
    Refused(ResponseError),
}

impl ClusterError {
    pub(crate) fn of_code(code: i16) -> Result<(), ClusterError> {
        ResponseError::try_from_code(code).map_or(Ok(()), |error| Err(ClusterError::Refused(error)))
    }
}

impl Cluster {
    /// The cluster that the brokers at these addresses belong to. Connects to nobody yet.
    pub fn new(host: Host, bootstrap: Vec<String>) -> Self {
        Cluster(Arc::new(Inner {
            host,
            bootstrap,
            leaders: Mutex::default(),
            coordinators: Mutex::default(),
            shared: Mutex::default(),
        }))
    }

    /// The process that this client runs in.
    pub fn host(&self) -> &Host {
        &self.0.host
    }

    /// Connects to a broker.
    pub async fn connect(&self, address: &str) -> Result<SharedConnection, CallError> {
        let connection = Connection::open(&self.0.host, address, REQUEST_TIMEOUT).await?;
        Ok(Arc::new(connection))
    }

    /// A connection to a broker that others use, too: a broker answers the requests of one connection one
    /// after the other, so nothing that waits for long belongs there.
    pub async fn share(&self, address: &str) -> Result<SharedConnection, CallError> {
        let known = self.0.shared.lock().expect("shared").get(address).cloned();
        if let Some(known) = known.filter(|known| !known.is_closed()) {
            return Ok(known);
        }
        let connection = self.connect(address).await?;
        let mut shared = self.0.shared.lock().expect("shared");
        shared.insert(address.to_owned(), connection.clone());
        Ok(connection)
    }

    /// Shares a connection no longer, after it was of no use.
    pub fn forget_connection(&self, connection: &SharedConnection) {
        let mut shared = self.0.shared.lock().expect("shared");
        shared.retain(|_, known| !Arc::ptr_eq(known, connection));
    }

    /// Connects to whichever broker answers first, in the order of their addresses.
    pub async fn connect_any(&self) -> Result<SharedConnection, CallError> {
        let mut last = CallError::from(io::Error::from(io::ErrorKind::NotFound));
        for address in &self.0.bootstrap {
            match self.connect(address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Connects to the leader of a partition.
    pub async fn connect_leader(
        &self,
        of: &TopicPartition,
    ) -> Result<SharedConnection, ClusterError> {
        let address = self.leader(of).await?;
        Ok(self.connect(&address).await?)
    }

    /// A shared connection to the leader of a partition.
    pub async fn share_leader(
        &self,
        of: &TopicPartition,
    ) -> Result<SharedConnection, ClusterError> {
        let address = self.leader(of).await?;
        Ok(self.share(&address).await?)
    }

    async fn leader(&self, of: &TopicPartition) -> Result<String, ClusterError> {
        let known = self.0.leaders.lock().expect("leaders").get(of).cloned();
        match known {
            Some(address) => Ok(address),
            None => self.ask_leader(of).await,
        }
    }

    /// Forgets who leads a partition, after a broker said that it does not.
    pub fn forget_leader(&self, of: &TopicPartition) {
        self.0.leaders.lock().expect("leaders").remove(of);
    }

    /// A shared connection to the coordinator of a group or a transactional id.
    pub async fn share_coordinator(
        &self,
        kind: KeyType,
        key: &str,
    ) -> Result<SharedConnection, ClusterError> {
        let address = self.coordinator(kind, key).await?;
        let shared = self.share(&address).await;
        Ok(shared.inspect_err(|_| self.forget_coordinator(kind, key))?)
    }

    /// Connects to the coordinator of a group or a transactional id, for requests that may take so long.
    pub async fn connect_coordinator_within(
        &self,
        kind: KeyType,
        key: &str,
        timeout: Duration,
    ) -> Result<SharedConnection, ClusterError> {
        let address = self.coordinator(kind, key).await?;
        let connected = Connection::open(&self.0.host, &address, timeout).await;
        let connected = connected.inspect_err(|_| self.forget_coordinator(kind, key))?;
        Ok(Arc::new(connected))
    }

    async fn coordinator(&self, kind: KeyType, key: &str) -> Result<String, ClusterError> {
        let of = (kind, key.to_owned());
        let known = self
            .0
            .coordinators
            .lock()
            .expect("coordinators")
            .get(&of)
            .cloned();
        match known {
            Some(address) => Ok(address),
            None => self.ask_coordinator(kind, key).await,
        }
    }

    /// Forgets who a coordinator is, after a broker said that it is not.
    pub fn forget_coordinator(&self, kind: KeyType, key: &str) {
        let of = (kind, key.to_owned());
        self.0
            .coordinators
            .lock()
            .expect("coordinators")
            .remove(&of);
    }

    async fn ask_coordinator(&self, kind: KeyType, key: &str) -> Result<String, ClusterError> {
        let connection = self.connect_any().await?;
        let request = FindCoordinatorRequest::default()
            .with_key_type(kind as i8)
            .with_coordinator_keys(vec![StrBytes::from_string(key.to_owned())]);
        let answer = connection.call(&request).await?;
        let found = answer.coordinators.first();
        let found = found.ok_or(ClusterError::Refused(ResponseError::UnknownServerError))?;
        ClusterError::of_code(found.error_code)?;
        let address = format!("{}:{}", &*found.host, found.port);
        let of = (kind, key.to_owned());
        let mut known = self.0.coordinators.lock().expect("coordinators");
        known.insert(of, address.clone());
        Ok(address)
    }

    async fn ask_leader(&self, of: &TopicPartition) -> Result<String, ClusterError> {
        let connection = self.connect_any().await?;
        let answer = connection.call(&metadata_of(&of.topic)).await?;
        let mut addresses = BTreeMap::new();
        for broker in &answer.brokers {
            addresses.insert(broker.node_id, format!("{}:{}", broker.host, broker.port));
        }
        for topic in &answer.topics {
            ClusterError::of_code(topic.error_code)?;
            for partition in &topic.partitions {
                if let Some(address) = addresses.get(&partition.leader_id) {
                    let index = PartitionId(partition.partition_index);
                    let key = TopicPartition::new(&of.topic, index);
                    self.0
                        .leaders
                        .lock()
                        .expect("leaders")
                        .insert(key, address.clone());
                }
            }
        }
        let known = self.0.leaders.lock().expect("leaders").get(of).cloned();
        known.ok_or(ClusterError::Refused(
            ResponseError::UnknownTopicOrPartition,
        ))
    }

    /// All transactional ids that the cluster knows, whatever became of their transactions. Tries until every
    /// coordinator has answered.
    pub async fn transactional_ids(&self) -> Vec<String> {
        loop {
            match self.list_transactions().await {
                Ok(ids) => return ids,
                Err(_) => tokio::time::sleep(BACKOFF).await,
            }
        }
    }

    /// A list is whole only if every partition of the coordinators' log had the same leader all the time: a
    /// broker that is down is not asked, and one that has just become a leader knows nothing yet.
    async fn list_transactions(&self) -> Result<Vec<String>, ClusterError> {
        let leaders = self.transaction_leaders().await?;
        let addresses: BTreeSet<&String> = leaders.iter().map(|(address, _)| address).collect();
        let mut ids = Vec::new();
        for address in addresses {
            ids.extend(self.transactional_ids_of(address).await?);
        }
        match self.transaction_leaders().await? == leaders {
            true => Ok(ids),
            false => Err(ClusterError::Refused(ResponseError::NotCoordinator)),
        }
    }

    /// Who leads each partition of the coordinators' log, and under which leader epoch; all brokers, if there is
    /// no such topic.
    async fn transaction_leaders(&self) -> Result<Vec<(String, i32)>, ClusterError> {
        let connection = self.connect_any().await?;
        let answer = connection.call(&metadata_of(TRANSACTIONS_TOPIC)).await?;
        let brokers: BTreeMap<_, _> = (answer.brokers.iter())
            .map(|broker| (broker.node_id, format!("{}:{}", broker.host, broker.port)))
            .collect();
        let none = ClusterError::Refused(ResponseError::LeaderNotAvailable);
        let topic = answer.topics.first().ok_or(none)?;
        if topic.error_code == UNKNOWN_TOPIC {
            return Ok(brokers.into_values().map(|address| (address, -1)).collect());
        }
        ClusterError::of_code(topic.error_code)?;
        let leaders = topic.partitions.iter().map(|partition| {
            ClusterError::of_code(partition.error_code)?;
            let leader = brokers.get(&partition.leader_id);
            let none = ClusterError::Refused(ResponseError::LeaderNotAvailable);
            Ok((leader.ok_or(none)?.clone(), partition.leader_epoch))
        });
        leaders.collect()
    }

    async fn transactional_ids_of(&self, address: &str) -> Result<Vec<String>, ClusterError> {
        let connection = self.share(address).await?;
        let answer = connection.call(&ListTransactionsRequest::default()).await;
        let answer = answer.inspect_err(|_| self.forget_connection(&connection))?;
        ClusterError::of_code(answer.error_code)?;
        let states = answer.transaction_states.into_iter();
        Ok(states
            .map(|state| state.transactional_id.to_string())
            .collect())
    }

    /// How many partitions a topic has, as one broker knows; nothing if there is no such topic.
    pub async fn partitions_of(
        &self,
        address: &str,
        topic: &str,
    ) -> Result<Option<i32>, CallError> {
        let connection = self.connect(address).await?;
        let answer = connection.call(&metadata_of(topic)).await?;
        let topic = answer.topics.first();
        match topic.map(|topic| (topic.error_code, topic.partitions.len() as i32)) {
            Some((0, partitions)) => Ok(Some(partitions)),
            Some((UNKNOWN_TOPIC, _)) => Ok(None),
            _ => Err(io::Error::other("no answer about the topic").into()),
        }
    }

    /// How many partitions a topic has. Tries until it is told; an unknown topic may be new.
    pub async fn partitions(&self, topic: &str) -> i32 {
        loop {
            if let Some(Some(partitions)) = self.ask_partitions(topic).await {
                return partitions;
            }
            tokio::time::sleep(BACKOFF).await;
        }
    }

    /// How many partitions a topic has, as the first broker says that knows it: `Some(None)` if those that answered know of
    /// none, nothing if nobody has answered.
    pub async fn ask_partitions(&self, topic: &str) -> Option<Option<i32>> {
        let mut told = None;
        for address in &self.0.bootstrap {
            match self.partitions_of(address, topic).await {
                Ok(Some(partitions)) => return Some(Some(partitions)),
                Ok(None) => told = Some(None),
                Err(_) => {}
            }
        }
        told
    }

    /// Asks one broker to create a topic; its error code.
    async fn create_topic_at(
        &self,
        address: &str,
        topic: &str,
        partitions: i32,
        configs: &[(&str, String)],
    ) -> Result<i16, CallError> {
        let connection = self.connect(address).await?;
        let configs = configs.iter().map(|(name, value)| {
            CreatableTopicConfig::default()
                .with_name(StrBytes::from_string((*name).to_owned()))
                .with_value(Some(StrBytes::from_string(value.clone())))
        });
        let topic = CreatableTopic::default()
            .with_name(name(topic))
            .with_num_partitions(partitions)
            .with_replication_factor(1)
            .with_configs(configs.collect());
        let request = CreateTopicsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(REQUEST_TIMEOUT.as_millis() as i32);
        let answer = connection.call(&request).await?;
        let topic = answer.topics.first();
        Ok(
            topic.map_or(ResponseError::UnknownServerError.code(), |topic| {
                topic.error_code
            }),
        )
    }

    /// Creates a topic, or finds that it exists; how many partitions it has. Tries until it is told.
    pub async fn ensure_topic(&self, topic: &str, partitions: i32) -> Result<i32, ClusterError> {
        self.ensure_configured_topic(topic, partitions, &[]).await
    }

    /// Like [`Cluster::ensure_topic`]; one that is created is configured so.
    pub async fn ensure_configured_topic(
        &self,
        topic: &str,
        partitions: i32,
        configs: &[(&str, String)],
    ) -> Result<i32, ClusterError> {
        loop {
            for address in &self.0.bootstrap {
                let created = self.create_topic_at(address, topic, partitions, configs);
                let Ok(code) = created.await else {
                    continue;
                };
                match ResponseError::try_from_code(code) {
                    None => return Ok(partitions),
                    Some(ResponseError::TopicAlreadyExists) => {
                        return Ok(self.partitions(topic).await);
                    }
                    Some(
                        error @ (ResponseError::InvalidTopicException
                        | ResponseError::InvalidPartitions
                        | ResponseError::InvalidConfig),
                    ) => return Err(ClusterError::Refused(error)),
                    Some(_) => {}
                }
            }
            tokio::time::sleep(BACKOFF).await;
        }
    }

    /// Asks one broker to delete a topic; its error code.
    pub async fn delete_topic_at(&self, address: &str, topic: &str) -> Result<i16, CallError> {
        let connection = self.connect(address).await?;
        let request = DeleteTopicsRequest::default()
            .with_topic_names(vec![name(topic)])
            .with_timeout_ms(REQUEST_TIMEOUT.as_millis() as i32);
        let answer = connection.call_at(&request, DELETE_BY_NAME).await?;
        let topic = answer.responses.first();
        Ok(
            topic.map_or(ResponseError::UnknownServerError.code(), |topic| {
                topic.error_code
            }),
        )
    }

    /// Deletes a topic, or finds that it does not exist. Tries until it is told either.
    pub async fn delete_topic(&self, topic: &str) {
        loop {
            for address in &self.0.bootstrap {
                let asked = self.delete_topic_at(address, topic).await;
                if matches!(asked, Ok(0 | UNKNOWN_TOPIC)) {
                    return;
                }
            }
            tokio::time::sleep(BACKOFF).await;
        }
    }

    /// The offset after the last record of a partition that is durable.
    pub async fn end_offset(&self, of: &TopicPartition) -> Result<Offset, ClusterError> {
        self.find_offset(of, -1, Isolation::ReadUncommitted).await
    }

    /// The first offset of a partition that is left.
    pub async fn start_offset(&self, of: &TopicPartition) -> Result<Offset, ClusterError> {
        self.find_offset(of, -2, Isolation::ReadUncommitted).await
    }

    /// The last stable offset of a partition: in front of it, every transaction has ended.
    pub async fn stable_offset(&self, of: &TopicPartition) -> Result<Offset, ClusterError> {
        self.find_offset(of, -1, Isolation::ReadCommitted).await
    }

    async fn find_offset(
        &self,
        of: &TopicPartition,
        timestamp: i64,
        isolation: Isolation,
    ) -> Result<Offset, ClusterError> {
        let connection = self.connect_leader(of).await?;
        let partition = ListOffsetsPartition::default()
            .with_partition_index(of.partition.0)
            .with_timestamp(timestamp);
        let topic = ListOffsetsTopic::default()
            .with_name(name(&of.topic))
            .with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_isolation_level(isolation as i8)
            .with_topics(vec![topic]);
        let answer = connection.call(&request).await?;
        let partitions = answer
            .topics
            .first()
            .and_then(|topic| topic.partitions.first());
        let partition =
            partitions.ok_or(ClusterError::Refused(ResponseError::UnknownServerError))?;
        ClusterError::of_code(partition.error_code).inspect_err(|_| self.forget_leader(of))?;
        Ok(Offset(partition.offset))
    }
}

/// Whether asking again may bring another answer. While the transaction before is being ended, Kafka's leaders say so
/// of a batch as its coordinators do of a request (KIP-890); `kafka-protocol` does not count that among what can be retried.
pub(crate) fn may_change(error: ResponseError) -> bool {
    error.is_retriable() || error == ResponseError::ConcurrentTransactions
}

pub(crate) fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

fn metadata_of(topic: &str) -> MetadataRequest {
    let topic = MetadataRequestTopic::default().with_name(Some(name(topic)));
    MetadataRequest::default()
        .with_topics(Some(vec![topic]))
        .with_allow_auto_topic_creation(false)
}
