//! The end of a transaction: markers from its coordinator to the leaders of its partitions.

use super::{Cause, Coordinator, Step, JOIN_PAUSE};
use crate::{
    ids::{PartitionId, ProducerEpoch, ProducerId},
    log::{
        broker::{data, to_its_end, Broker, OFFSETS_TOPIC},
        cluster::{name, BACKOFF},
        partition::AppendError,
        TopicPartition,
    },
    wire::batch::{Marker, Outcome},
};
use futures::future::join_all;
use kafka_protocol::{
    error::ResponseError,
    messages::{
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
        write_txn_markers_response::{
            WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
        },
        WriteTxnMarkersRequest, WriteTxnMarkersResponse,
    },
};
use std::{collections::BTreeMap, sync::Arc};

const MARKERS_VERSION: i16 = 1;

impl Broker {
    /// See [`Broker::finish`]; in a task of its own.
    pub(super) fn spawn_finish(self: &Arc<Self>, coordinator: &Arc<Coordinator>, id: &str) {
        let (broker, coordinator) = (self.clone(), coordinator.clone());
        let id = id.to_owned();
        tokio::spawn(async move { broker.finish(&coordinator, &id).await });
    }

    /// Carries out the end of a transaction: markers to all of its partitions, then it is complete.
    async fn finish(self: &Arc<Self>, coordinator: &Arc<Coordinator>, id: &str) {
        let Some(known) = coordinator.get(id) else {
            return;
        };
        let Some(marker) = known.marker() else { return };
        let mut by_leader = BTreeMap::<usize, Vec<TopicPartition>>::new();
        for partition in &known.partitions {
            let leader = self.leader_of(partition);
            by_leader.entry(leader).or_default().push(partition.clone());
        }
        let sends = by_leader.into_iter().map(|(leader, mut left)| async move {
            while !left.is_empty() {
                left = self.send_markers(leader, marker, left).await;
                if !left.is_empty() {
                    tracing::info!(name: "transaction.markers-again", id, leader);
                    tokio::time::sleep(BACKOFF).await;
                }
            }
        });
        join_all(sends).await;
        loop {
            let completed = self.settle(coordinator, id, Cause::Completion, move |known, now| {
                // Somebody else may have completed it, and another transaction may have begun.
                let still = known.filter(|known| known.marker() == Some(marker));
                let next = still.and_then(|known| known.complete(now));
                Ok(next.map_or(Step::Stay, |next| Step::Become(Some(next))))
            });
            match completed.await {
                Err(
                    ResponseError::ConcurrentTransactions | ResponseError::CoordinatorNotAvailable,
                ) => {
                    tokio::time::sleep(JOIN_PAUSE).await;
                }
                // Done; or the broker ends, and does it when it is back.
                _ => return,
            }
        }
    }

    /// Sends a marker to a leader; the partitions that do not have it yet, or of which that is unknown.
    async fn send_markers(
        self: &Arc<Self>,
        leader: usize,
        marker: Marker,
        to: Vec<TopicPartition>,
    ) -> Vec<TopicPartition> {
        let mut left = Vec::new();
        if leader == self.config.id.0 as usize {
            let written = to.into_iter().map(|partition| async move {
                let written = self.write_marker(&partition, marker).await;
                (partition, is_settled(written))
            });
            let written = join_all(written).await;
            left.extend(
                written
                    .into_iter()
                    .filter(|(_, done)| !done)
                    .map(|(to, _)| to),
            );
            return left;
        }
        let mut topics = BTreeMap::<&str, Vec<i32>>::new();
        for partition in &to {
            let indexes = topics.entry(&partition.topic).or_default();
            indexes.push(partition.partition.0);
        }
        let topics = topics.into_iter().map(|(topic, indexes)| {
            WritableTxnMarkerTopic::default()
                .with_name(name(topic))
                .with_partition_indexes(indexes)
        });
        let one = WritableTxnMarker::default()
            .with_producer_id(marker.producer.0.into())
            .with_producer_epoch(marker.epoch.0)
            .with_transaction_result(marker.outcome == Outcome::Commit)
            .with_coordinator_epoch(marker.number)
            .with_topics(topics.collect());
        let request = WriteTxnMarkersRequest::default().with_markers(vec![one]);
        let Ok(answer) = self.ask(leader, &request, MARKERS_VERSION).await else {
            return to;
        };
        let done = |partition: &TopicPartition| {
            let topics = answer.markers.iter().flat_map(|marker| &marker.topics);
            let topics = topics.filter(|topic| *topic.name == *partition.topic);
            let mut results = topics.flat_map(|topic| &topic.partitions);
            let result = results.find(|result| result.partition_index == partition.partition.0);
            result.is_some_and(|result| {
                let error = ResponseError::try_from_code(result.error_code);
                is_settled(error.map_or(Ok(()), Err))
            })
        };
        to.into_iter()
            .filter(|partition| !done(partition))
            .collect()
    }

    /// Ends transactions in partitions that are led here.
    pub async fn write_markers(
        self: &Arc<Self>,
        request: WriteTxnMarkersRequest,
    ) -> WriteTxnMarkersResponse {
        let mut markers = Vec::new();
        for asked in request.markers {
            let marker = Marker {
                producer: ProducerId(asked.producer_id.0),
                epoch: ProducerEpoch(asked.producer_epoch),
                outcome: match asked.transaction_result {
                    true => Outcome::Commit,
                    false => Outcome::Abort,
                },
                number: asked.coordinator_epoch,
            };
            let topics = asked.topics.into_iter().map(|topic| async move {
                let writes = topic.partition_indexes.iter().map(|index| {
                    let to = TopicPartition::new(&topic.name, PartitionId(*index));
                    async move {
                        let written = self.write_marker(&to, marker).await;
                        WritableTxnMarkerPartitionResult::default()
                            .with_partition_index(*index)
                            .with_error_code(written.err().map_or(0, |error| error.code()))
                    }
                });
                let partitions = join_all(writes).await;
                WritableTxnMarkerTopicResult::default()
                    .with_name(topic.name.clone())
                    .with_partitions(partitions)
            });
            markers.push(
                WritableTxnMarkerResult::default()
                    .with_producer_id(asked.producer_id)
                    .with_topics(join_all(topics).await),
            );
        }
        WriteTxnMarkersResponse::default().with_markers(markers)
    }

    /// Ends a transaction in a partition: durably, and for a group's positions visibly, too.
    async fn write_marker(
        self: &Arc<Self>,
        to: &TopicPartition,
        marker: Marker,
    ) -> Result<(), ResponseError> {
        let partition = self.partition(to).await?;
        let (appending, now_ms) = (partition.clone(), self.host.clock.now_ms());
        let appended = to_its_end(async move { appending.append_marker(marker, now_ms).await });
        let appended = match appended.await {
            Ok(appended) => appended,
            Err(AppendError::Fenced) => return Err(ResponseError::InvalidProducerEpoch),
            Err(AppendError::Deleted) => return Err(ResponseError::UnknownTopicOrPartition),
            Err(AppendError::Log(error)) => {
                self.fail(error);
                return Err(ResponseError::KafkaStorageError);
            }
            Err(_) => return Err(ResponseError::KafkaStorageError),
        };
        data::durable(Ok((partition, appended))).await?;
        if to.topic == OFFSETS_TOPIC {
            let groups = self.group_coordinator(to.partition.0).await?;
            groups.wait_applied(appended.end_offset).await?;
        }
        tracing::info!(
            name: "transaction.marked",
            partition = %to,
            producer = marker.producer.0,
            epoch = marker.epoch.0
        );
        Ok(())
    }
}

/// Whether nothing is left to be done for a marker in a partition: it is there, or the partition was deleted.
fn is_settled(written: Result<(), ResponseError>) -> bool {
    matches!(
        written,
        Ok(()) | Err(ResponseError::UnknownTopicOrPartition)
    )
}
