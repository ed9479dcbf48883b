//! How far groups have come: committed positions, at once or with a transaction.

use crate::{
    ids::{Offset, PartitionId, ProducerEpoch, ProducerId, Sequence},
    log::{
        broker::{to_its_end, Broker},
        groups::Speaker,
        offsets::{Committed, Entry},
        transactions::TransactionVersion,
        TopicPartition,
    },
    wire::batch::Identity,
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
        offset_fetch_response::{
            OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
            OffsetFetchResponseTopic, OffsetFetchResponseTopics,
        },
        txn_offset_commit_response::{
            TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
        },
        OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
        TopicName, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
    },
    protocol::StrBytes,
};
use std::{collections::BTreeMap, sync::Arc};

/// The metadata that a group may attach to a position is not longer.
const METADATA_BYTES_MAX: usize = 4096;
/// The first version of TxnOffsetCommit with which a client speaks the second version of transactions.
const COMMIT_TRANSACTIONS_2: i16 = 5;

impl Broker {
    /// Takes note of how far a group has come.
    pub async fn commit_offsets(
        self: &Arc<Self>,
        request: OffsetCommitRequest,
    ) -> OffsetCommitResponse {
        let topics = request.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| {
                (
                    partition.partition_index,
                    Committed {
                        offset: Offset(partition.committed_offset),
                        leader_epoch: partition.committed_leader_epoch,
                        metadata: partition
                            .committed_metadata
                            .as_deref()
                            .unwrap_or("")
                            .to_owned(),
                    },
                )
            });
            (topic.name.clone(), partitions.collect())
        });
        let topics: Vec<Wanted> = topics.collect();
        let who = Speaker {
            generation: request.generation_id_or_member_epoch,
            member: &request.member_id,
            instance: request.group_instance_id.as_deref(),
        };
        let committed = self.commit(&request.group_id, &topics, who, None).await;
        let code = committed.err().map_or(0, |error| error.code());
        let topics = topics.into_iter().map(|(name, partitions)| {
            let partitions = partitions.into_iter().map(|(index, _)| {
                OffsetCommitResponsePartition::default()
                    .with_partition_index(index)
                    .with_error_code(code)
            });
            OffsetCommitResponseTopic::default()
                .with_name(name)
                .with_partitions(partitions.collect())
        });
        OffsetCommitResponse::default().with_topics(topics.collect())
    }

    /// Takes note of how far a group will have come once a transaction commits.
    pub async fn commit_offsets_in_transaction(
        self: &Arc<Self>,
        request: TxnOffsetCommitRequest,
        version: i16,
    ) -> TxnOffsetCommitResponse {
        let topics = request.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| {
                (
                    partition.partition_index,
                    Committed {
                        offset: Offset(partition.committed_offset),
                        leader_epoch: partition.committed_leader_epoch,
                        metadata: partition
                            .committed_metadata
                            .as_deref()
                            .unwrap_or("")
                            .to_owned(),
                    },
                )
            });
            (topic.name.clone(), partitions.collect())
        });
        let topics: Vec<Wanted> = topics.collect();
        // Before version 3 there were no members in it.
        let who = Speaker {
            generation: if version < 3 {
                -1
            } else {
                request.generation_id
            },
            member: &request.member_id,
            instance: request.group_instance_id.as_deref(),
        };
        let by = Identity {
            producer: ProducerId(request.producer_id.0),
            epoch: ProducerEpoch(request.producer_epoch),
            sequence: Sequence(-1),
            transactional: true,
        };
        let speaks = match version >= COMMIT_TRANSACTIONS_2 {
            true => TransactionVersion::V2,
            false => TransactionVersion::V1,
        };
        let within = (by, request.transactional_id.to_string(), speaks);
        let within = Some(within);
        let committed = (self.commit(&request.group_id, &topics, who, within)).await;
        let code = committed.err().map_or(0, |error| error.code());
        let topics = topics.into_iter().map(|(name, partitions)| {
            let partitions = partitions.into_iter().map(|(index, _)| {
                TxnOffsetCommitResponsePartition::default()
                    .with_partition_index(index)
                    .with_error_code(code)
            });
            TxnOffsetCommitResponseTopic::default()
                .with_name(name)
                .with_partitions(partitions.collect())
        });
        TxnOffsetCommitResponse::default().with_topics(topics.collect())
    }

    async fn commit(
        self: &Arc<Self>,
        group: &str,
        topics: &[Wanted],
        who: Speaker<'_>,
        within: Option<(Identity, String, TransactionVersion)>,
    ) -> Result<(), ResponseError> {
        let coordinator = self.coordinator_of_group(group).await?;
        let mut positions = topics.iter().flat_map(|(_, partitions)| partitions);
        if positions.any(|(_, position)| position.metadata.len() > METADATA_BYTES_MAX) {
            return Err(ResponseError::OffsetMetadataTooLarge);
        }
        if bytes_at_least(group, topics) > self.config.message_bytes_max {
            return Err(ResponseError::InvalidCommitOffsetSize);
        }
        let seats = &coordinator.seats;
        let is_empty = topics.iter().all(|(_, partitions)| partitions.is_empty());
        match &within {
            None => seats.change(group, |group| group.check_commit(who))?,
            Some(_) if is_empty => seats.change(group, |group| group.check_transactional(who))?,
            // From here on it may come into the log, whoever joins meanwhile: who asks for stable positions has to
            // wait until it is there, or is not.
            Some(_) => seats.stage(group, who)?,
        }
        if is_empty {
            return Ok(());
        }
        let (entries, broker, group) = (entries_of(group, topics), self.clone(), group.to_owned());
        // The count must be taken back whatever becomes of the connection.
        let committed = to_its_end(async move {
            let seats = &coordinator.seats;
            let Some((by, id, version)) = within else {
                let written = broker.write_entries(&coordinator, &entries, Identity::NOBODY, None);
                written.await?;
                seats.keep(&group);
                return Ok(());
            };
            let written = broker
                .write_entries(&coordinator, &entries, by, Some((id, version)))
                .await;
            seats.unstage(&group);
            written
        });
        committed.await.map_err(|error| match error {
            ResponseError::MessageTooLarge => ResponseError::InvalidCommitOffsetSize,
            error => error,
        })
    }

    /// How far groups have come.
    pub async fn fetch_offsets(
        self: &Arc<Self>,
        request: OffsetFetchRequest,
        version: i16,
    ) -> OffsetFetchResponse {
        let stable = request.require_stable;
        let answer = OffsetFetchResponse::default();
        if version >= 8 {
            let mut groups = Vec::new();
            for group in request.groups {
                let wanted = group.topics.map(|topics| {
                    let topics = topics.into_iter();
                    topics
                        .map(|topic| (topic.name, topic.partition_indexes))
                        .collect()
                });
                let found = self.positions(&group.group_id, wanted, stable).await;
                let response =
                    OffsetFetchResponseGroup::default().with_group_id(group.group_id.clone());
                groups.push(match found {
                    Err(error) => response.with_error_code(error.code()),
                    Ok(topics) => {
                        let topics = topics.into_iter().map(|(name, partitions)| {
                            let partitions = partitions.into_iter().map(|found| {
                                OffsetFetchResponsePartitions::default()
                                    .with_partition_index(found.index)
                                    .with_committed_offset(found.offset)
                                    .with_committed_leader_epoch(found.leader_epoch)
                                    .with_metadata(Some(StrBytes::from_string(found.metadata)))
                                    .with_error_code(found.error)
                            });
                            OffsetFetchResponseTopics::default()
                                .with_name(name)
                                .with_partitions(partitions.collect())
                        });
                        response.with_topics(topics.collect())
                    }
                });
            }
            return answer.with_groups(groups);
        }
        let wanted = request.topics.map(|topics| {
            let topics = topics.into_iter();
            topics
                .map(|topic| (topic.name, topic.partition_indexes))
                .collect()
        });
        match self.positions(&request.group_id, wanted, stable).await {
            Err(error) => answer.with_error_code(error.code()),
            Ok(topics) => {
                let topics = topics.into_iter().map(|(name, partitions)| {
                    let partitions = partitions.into_iter().map(|found| {
                        OffsetFetchResponsePartition::default()
                            .with_partition_index(found.index)
                            .with_committed_offset(found.offset)
                            .with_committed_leader_epoch(found.leader_epoch)
                            .with_metadata(Some(StrBytes::from_string(found.metadata)))
                            .with_error_code(found.error)
                    });
                    OffsetFetchResponseTopic::default()
                        .with_name(name)
                        .with_partitions(partitions.collect())
                });
                answer.with_topics(topics.collect())
            }
        }
    }

    async fn positions(
        self: &Arc<Self>,
        group: &str,
        wanted: Option<Vec<(TopicName, Vec<i32>)>>,
        stable: bool,
    ) -> Result<Vec<(TopicName, Vec<Position>)>, ResponseError> {
        let coordinator = self.coordinator_of_group(group).await?;
        let staging = {
            let groups = coordinator.seats.lock();
            groups.get(group).is_some_and(|seat| seat.staging > 0)
        };
        Ok(coordinator.fold.look(|offsets| {
            let wanted = wanted.unwrap_or_else(|| {
                let mut all = BTreeMap::<String, Vec<i32>>::new();
                for (of, _) in offsets.of_group(group) {
                    all.entry(of.topic.clone())
                        .or_default()
                        .push(of.partition.0);
                }
                let all = all.into_iter();
                all.map(|(topic, indexes)| (TopicName(StrBytes::from_string(topic)), indexes))
                    .collect()
            });
            let topics = wanted.into_iter().map(|(topic, indexes)| {
                let positions = indexes.into_iter().map(|index| {
                    let of = TopicPartition::new(&topic, PartitionId(index));
                    let unstable = stable && (staging || offsets.is_pending(group, &of));
                    match offsets.get(group, &of) {
                        _ if unstable => Position {
                            error: ResponseError::UnstableOffsetCommit.code(),
                            ..Position::none(index)
                        },
                        None => Position::none(index),
                        Some(known) => Position {
                            index,
                            offset: known.offset.0,
                            leader_epoch: known.leader_epoch,
                            metadata: known.metadata.clone(),
                            error: 0,
                        },
                    }
                });
                let positions = positions.collect();
                (topic, positions)
            });
            topics.collect()
        }))
    }
}

/// A topic's partitions with the positions that somebody wants to commit.
type Wanted = (TopicName, Vec<(i32, Committed)>);

/// What a record of a position takes besides its names, at least.
const POSITION_BYTES: usize = 100;

/// What the records of a commit take at least: each has the names of its group, twice, and of its topic. A small
/// request can ask for far more than a batch may hold.
fn bytes_at_least(group: &str, topics: &[Wanted]) -> usize {
    let topics = topics.iter().map(|(topic, partitions)| {
        let each = POSITION_BYTES + 2 * group.len() + topic.len();
        let metadata = partitions.iter();
        let metadata: usize = metadata.map(|(_, position)| position.metadata.len()).sum();
        partitions.len() * each + metadata
    });
    topics.sum()
}

fn entries_of(group: &str, topics: &[Wanted]) -> Vec<Entry> {
    let positions = topics.iter().flat_map(|(topic, partitions)| {
        partitions.iter().map(|(index, position)| Entry::Position {
            group: group.to_owned(),
            of: TopicPartition::new(topic, PartitionId(*index)),
            position: Some(position.clone()),
        })
    });
    positions.collect()
}

/// A position as it is told.
struct Position {
    index: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: String,
    error: i16,
}

impl Position {
    fn none(index: i32) -> Self {
        Position {
            index,
            offset: -1,
            leader_epoch: -1,
            metadata: String::new(),
            error: 0,
        }
    }
}
