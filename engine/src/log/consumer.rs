//! The consumer: reads one assigned partition from a position on.
//!
//! A reader of committed records gets from the broker what lies in front of the last stable offset, and which
//! transactions among it were aborted; leaving those out is its own work, as for every client of Kafka.

use super::{
    cluster::{name, Cluster, ClusterError, BACKOFF},
    connection::SharedConnection,
    partition::Isolation,
    TopicPartition,
};
use crate::{
    ids::{Offset, ProducerId},
    record::Record,
    wire::batch::{self, Batch, Body, Outcome},
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        fetch_request::{FetchPartition, FetchTopic},
        BrokerId, FetchRequest,
    },
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

/// A fetch returns at most about this much.
const FETCH_BYTES_MAX: i32 = 1 << 20;
/// The last version of Fetch that names topics by their names.
const FETCH_BY_NAME: i16 = 12;
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
    /// It is not there, and was not for a while.
    #[error("{of} is not there any more: no broker knows it")]
    Missing {
        /// Which partition.
        of: String,
    },
    /// What is there cannot be read: it is damaged, or compressed in a way that we do not know.
    #[error("{of} at offset {position}: {what}")]
    Unreadable {
        /// Which partition.
        of: String,
        /// Which position.
        position: Offset,
        /// What is wrong.
        what: String,
    },
}

/// A reader of one partition.
pub struct Consumer {
    cluster: Cluster,
    of: TopicPartition,
    isolation: Isolation,
    position: Offset,
    wait: Duration,
    /// A partition that is not there for so long is missing; nothing: it is waited for.
    missing_after: Option<Duration>,
    missing_since: Option<Instant>,
    connection: Option<SharedConnection>,
}

impl Consumer {
    /// Reads committed records of a partition, from `position` on.
    pub fn new(cluster: Cluster, of: TopicPartition, position: Offset) -> Self {
        Consumer::isolated(cluster, of, position, Isolation::ReadCommitted)
    }

    /// Reads a partition from `position` on.
    pub fn isolated(
        cluster: Cluster,
        of: TopicPartition,
        position: Offset,
        isolation: Isolation,
    ) -> Self {
        Consumer {
            cluster,
            of,
            isolation,
            position,
            wait: FETCH_WAIT,
            missing_after: None,
            missing_since: None,
            connection: None,
        }
    }

    /// Waits so long for a record, instead of about a second.
    pub fn waiting(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Gives up on a partition that brokers do not know for so long, instead of waiting for it.
    pub fn missing_after(mut self, after: Duration) -> Self {
        self.missing_after = Some(after);
        self
    }

    /// Which partition it reads.
    pub fn of(&self) -> &TopicPartition {
        &self.of
    }

    /// The offset of the next record.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// The next records; none if there was none for about a second, or the broker could not be asked.
    pub async fn poll(&mut self) -> Result<Vec<Record>, FetchError> {
        let batches = self.poll_batches().await?;
        let records = batches.into_iter().flat_map(|batch| match batch.body {
            Body::Data(records) => records,
            Body::Control(_) => Vec::new(),
        });
        Ok(records.collect())
    }

    /// The next batches, headers and markers included, for who looks at the log itself; a reader of committed
    /// records does not get those that were aborted.
    pub async fn poll_batches(&mut self) -> Result<Vec<Batch>, FetchError> {
        let fetched = self.fetch().await;
        let since = match fetched {
            Err(Trouble::Unknown) => Some(self.missing_since.unwrap_or_else(Instant::now)),
            _ => None,
        };
        self.missing_since = since;
        match fetched {
            Ok(batches) => Ok(batches),
            Err(Trouble::Fatal(error)) => Err(error),
            Err(Trouble::Unknown)
                if since.map(|since| since.elapsed())
                    >= self.missing_after.or(Some(Duration::MAX)) =>
            {
                Err(FetchError::Missing {
                    of: self.of.to_string(),
                })
            }
            Err(Trouble::Later | Trouble::Unknown) => {
                self.connection = None;
                self.cluster.forget_leader(&self.of);
                tokio::time::sleep(BACKOFF).await;
                Ok(Vec::new())
            }
        }
    }

    async fn fetch(&mut self) -> Result<Vec<Batch>, Trouble> {
        let connection = match &self.connection {
            Some(connection) => connection.clone(),
            None => {
                let connected = self.cluster.connect_leader(&self.of).await;
                let connection = connected.map_err(|error| match error {
                    ClusterError::Refused(ResponseError::UnknownTopicOrPartition) => {
                        Trouble::Unknown
                    }
                    _ => Trouble::Later,
                })?;
                self.connection.insert(connection).clone()
            }
        };
        let answer = connection
            .call_at(&self.request(), FETCH_BY_NAME)
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
            Some(ResponseError::UnknownTopicOrPartition) => return Err(Trouble::Unknown),
            Some(_) => return Err(Trouble::Later),
        }
        let bytes = partition.records.unwrap_or_default();
        let mut batches = batch::decode(&bytes).map_err(|error| {
            Trouble::Fatal(FetchError::Unreadable {
                of: self.of.to_string(),
                position: self.position,
                what: error.to_string(),
            })
        })?;
        let from = self.position;
        if let Some(last) = batches.last() {
            self.position = last.header.end_offset().max(from);
        }
        if self.isolation == Isolation::ReadCommitted {
            let aborted = partition.aborted_transactions.unwrap_or_default();
            let aborted = aborted.iter().map(|transaction| {
                let producer = ProducerId(transaction.producer_id.0);
                (Offset(transaction.first_offset), producer)
            });
            leave_out_aborted(&mut batches, aborted.collect());
        }
        // A fetch returns whole batches: the first may begin in front of the position.
        for batch in &mut batches {
            if let Body::Data(records) = &mut batch.body {
                records.retain(|record| record.offset >= from);
            }
        }
        Ok(batches)
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
            .with_max_wait_ms(self.wait.as_millis() as i32)
            .with_min_bytes(1)
            .with_max_bytes(FETCH_BYTES_MAX)
            .with_isolation_level(self.isolation as i8)
            .with_session_epoch(-1)
            .with_topics(vec![topic])
    }
}

/// Leaves out the batches of aborted transactions: of a producer, those from the first offset of such a
/// transaction up to its marker.
fn leave_out_aborted(batches: &mut Vec<Batch>, mut aborted: Vec<(Offset, ProducerId)>) {
    aborted.sort();
    let mut coming = aborted.into_iter().peekable();
    let mut open = BTreeSet::new();
    batches.retain(|batch| {
        let header = &batch.header;
        while let Some((_, producer)) = coming.next_if(|(first, _)| *first < header.end_offset()) {
            open.insert(producer);
        }
        match &batch.body {
            Body::Control(marker) => {
                if marker.outcome == Outcome::Abort {
                    open.remove(&header.producer);
                }
                true
            }
            Body::Data(_) => !(header.transactional && open.contains(&header.producer)),
        }
    });
}

enum Trouble {
    Later,
    /// Nobody whom it has asked knows the partition.
    Unknown,
    Fatal(FetchError),
}
