//! The consumer: reads one assigned partition from a position on.

use super::{
    cluster::{name, Cluster, BACKOFF},
    connection::SharedConnection,
    TopicPartition,
};
use crate::{ids::Offset, record::Record, wire::batch};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        fetch_request::{FetchPartition, FetchTopic},
        BrokerId, FetchRequest,
    },
};
use std::time::Duration;

/// A fetch returns at most about this much.
const FETCH_BYTES_MAX: i32 = 1 << 20;
/// How long a broker waits for a record.
const FETCH_WAIT: Duration = Duration::from_millis(1000);

/// Why a partition cannot be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The position lies behind the end of the partition, or in front of its start: records that were
    /// there are gone.
    #[error("{of} has no offset {position}")]
    OutOfRange {
        /// Which partition.
        of: String,
        /// Which position.
        position: Offset,
    },
}

/// A reader of one partition.
pub struct Consumer {
    cluster: Cluster,
    of: TopicPartition,
    position: Offset,
    connection: Option<SharedConnection>,
}

impl Consumer {
    /// Reads a partition from `position` on.
    pub fn new(cluster: Cluster, of: TopicPartition, position: Offset) -> Self {
        Consumer {
            cluster,
            of,
            position,
            connection: None,
        }
    }

    /// The offset of the next record.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// The next records; none if there was none for about a second, or the broker could not be asked.
    pub async fn poll(&mut self) -> Result<Vec<Record>, FetchError> {
        match self.fetch().await {
            Ok(records) => Ok(records),
            Err(Trouble::Fatal(error)) => Err(error),
            Err(Trouble::Later) => {
                self.connection = None;
                self.cluster.forget_leader(&self.of);
                tokio::time::sleep(BACKOFF).await;
                Ok(Vec::new())
            }
        }
    }

    async fn fetch(&mut self) -> Result<Vec<Record>, Trouble> {
        let connection = match &self.connection {
            Some(connection) => connection.clone(),
            None => {
                let connected = self.cluster.connect_leader(&self.of).await;
                let connection = connected.map_err(|_| Trouble::Later)?;
                self.connection.insert(connection).clone()
            }
        };
        let answer = connection
            .call(&self.request())
            .await
            .map_err(|_| Trouble::Later)?;
        let partition = (answer.responses.into_iter())
            .flat_map(|topic| topic.partitions)
            .next()
            .ok_or(Trouble::Later)?;
        match ResponseError::try_from_code(partition.error_code) {
            None => {}
            Some(ResponseError::OffsetOutOfRange) => {
                return Err(Trouble::Fatal(FetchError::OutOfRange {
                    of: self.of.to_string(),
                    position: self.position,
                }))
            }
            Some(_) => return Err(Trouble::Later),
        }
        let bytes = partition.records.unwrap_or_default();
        let mut records = batch::decode(&bytes).map_err(|_| Trouble::Later)?;
        // A fetch returns whole batches: the first may begin in front of the position.
        records.retain(|record| record.offset >= self.position);
        if let Some(last) = records.last() {
            self.position = last.offset.plus(1);
        }
        Ok(records)
    }

    fn request(&self) -> FetchRequest {
        let partition = FetchPartition::default()
            .with_partition(self.of.partition.0)
            .with_current_leader_epoch(-1)
            .with_fetch_offset(self.position.0)
            .with_log_start_offset(-1)
            .with_partition_max_bytes(FETCH_BYTES_MAX);
        let topic = FetchTopic::default()
            .with_topic(name(&self.of.topic))
            .with_partitions(vec![partition]);
        FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(FETCH_WAIT.as_millis() as i32)
            .with_min_bytes(1)
            .with_max_bytes(FETCH_BYTES_MAX)
            .with_session_epoch(-1)
            .with_topics(vec![topic])
    }
}

enum Trouble {
    Later,
    Fatal(FetchError),
}
