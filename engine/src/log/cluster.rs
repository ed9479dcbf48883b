//! The cluster as a client sees it: who leads what.

use super::{
    connection::{CallError, Connection, SharedConnection},
    TopicPartition,
};
use crate::{
    host::Host,
    ids::{Offset, PartitionId},
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        create_topics_request::CreatableTopic,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
        BrokerId, CreateTopicsRequest, ListOffsetsRequest, MetadataRequest, TopicName,
    },
    protocol::StrBytes,
};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

/// How long a request waits for its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two tries.
pub(crate) const BACKOFF: Duration = Duration::from_millis(250);

/// A client's view of a cluster. Clones share it.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    host: Host,
    bootstrap: Vec<String>,
    leaders: Mutex<BTreeMap<TopicPartition, String>>,
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
    fn of_code(code: i16) -> Result<(), ClusterError> {
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
        let known = self.0.leaders.lock().expect("leaders").get(of).cloned();
        let address = match known {
            Some(address) => address,
            None => self.ask_leader(of).await?,
        };
        Ok(self.connect(&address).await?)
    }

    /// Forgets who leads a partition, after a broker said that it does not.
    pub fn forget_leader(&self, of: &TopicPartition) {
        self.0.leaders.lock().expect("leaders").remove(of);
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
            Some((3, _)) => Ok(None),
            _ => Err(io::Error::other("no answer about the topic").into()),
        }
    }

    /// How many partitions a topic has. Tries until it is told; an unknown topic may be new.
    pub async fn partitions(&self, topic: &str) -> i32 {
        loop {
            for address in &self.0.bootstrap {
                if let Ok(Some(partitions)) = self.partitions_of(address, topic).await {
                    return partitions;
                }
            }
            tokio::time::sleep(BACKOFF).await;
        }
    }

    /// Asks one broker to create a topic; its error code.
    pub async fn create_topic_at(
        &self,
        address: &str,
        topic: &str,
        partitions: i32,
    ) -> Result<i16, CallError> {
        let connection = self.connect(address).await?;
        let topic = CreatableTopic::default()
            .with_name(name(topic))
            .with_num_partitions(partitions)
            .with_replication_factor(1);
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

    /// Creates a topic, or finds that it exists. Tries until it is told either.
    pub async fn ensure_topic(&self, topic: &str, partitions: i32) -> Result<(), ClusterError> {
        loop {
            for address in &self.0.bootstrap {
                let Ok(code) = self.create_topic_at(address, topic, partitions).await else {
                    continue;
                };
                match ResponseError::try_from_code(code) {
                    None | Some(ResponseError::TopicAlreadyExists) => return Ok(()),
                    Some(
                        error @ (ResponseError::InvalidTopicException
                        | ResponseError::InvalidPartitions),
                    ) => return Err(ClusterError::Refused(error)),
                    Some(_) => {}
                }
            }
            tokio::time::sleep(BACKOFF).await;
        }
    }

    /// The offset after the last record of a partition that can be read.
    pub async fn end_offset(&self, of: &TopicPartition) -> Result<Offset, ClusterError> {
        let connection = self.connect_leader(of).await?;
        let partition = ListOffsetsPartition::default()
            .with_partition_index(of.partition.0)
            .with_timestamp(-1);
        let topic = ListOffsetsTopic::default()
            .with_name(name(&of.topic))
            .with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
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

pub(crate) fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

fn metadata_of(topic: &str) -> MetadataRequest {
    let topic = MetadataRequestTopic::default().with_name(Some(name(topic)));
    MetadataRequest::default().with_topics(Some(vec![topic]))
}
