//! Where a partition begins and ends: offsets by time and by epoch, records that are deleted, bytes on the disk.

use super::{data::isolation_of, is_internal, to_its_end, Broker};
use crate::{
    ids::{Offset, PartitionId},
    log::{
        partition::{AppendError, Isolation},
        LogError, TopicPartition,
    },
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult},
        describe_log_dirs_response::{
            DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
        },
        list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
        offset_for_leader_epoch_request::OffsetForLeaderPartition,
        offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult},
        DeleteRecordsRequest, DeleteRecordsResponse, DescribeLogDirsRequest,
        DescribeLogDirsResponse, ListOffsetsRequest, ListOffsetsResponse,
        OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
    },
    protocol::StrBytes,
};
use std::{collections::BTreeMap, sync::Arc};

/// A partition has the same leader for ever.
const LEADER_EPOCH: i32 = 0;
/// The first version of ListOffsets that tells a leader's epoch.
const LEADER_EPOCHS: i16 = 4;

/// What a client can ask for instead of a time, and since which version.
mod times {
    pub const LATEST: (i64, i16) = (-1, 1);
    pub const EARLIEST: (i64, i16) = (-2, 1);
    pub const NEWEST: (i64, i16) = (-3, 7);
    pub const EARLIEST_LOCAL: (i64, i16) = (-4, 8);
    pub const LATEST_TIERED: (i64, i16) = (-5, 9);
}

impl Broker {
    /// Offsets by time, or by one of the names that stand for a time.
    pub async fn list_offsets(
        self: &Arc<Self>,
        request: ListOffsetsRequest,
        version: i16,
    ) -> ListOffsetsResponse {
        let isolation = isolation_of(request.isolation_level);
        let mut topics = Vec::new();
        for topic in request.topics {
            let mut answers = Vec::new();
            for wanted in topic.partitions {
                let of = TopicPartition::new(&topic.name, PartitionId(wanted.partition_index));
                let found = self.find_offset(&of, wanted.timestamp, isolation, version);
                let answer = ListOffsetsPartitionResponse::default()
                    .with_partition_index(wanted.partition_index)
                    .with_timestamp(-1)
                    .with_leader_epoch(-1)
                    .with_offset(-1);
                answers.push(match found.await {
                    Err(error) => answer.with_error_code(error.code()),
                    Ok(None) => answer,
                    Ok(Some((offset, time_ms))) => answer
                        .with_offset(offset.0)
                        .with_timestamp(time_ms)
                        .with_leader_epoch(match version >= LEADER_EPOCHS {
                            true => LEADER_EPOCH,
                            false => -1,
                        }),
                });
            }
            let response = ListOffsetsTopicResponse::default().with_name(topic.name);
            topics.push(response.with_partitions(answers));
        }
        ListOffsetsResponse::default().with_topics(topics)
    }

    /// An offset, and the time of the record that is there, if it was found by its time.
    async fn find_offset(
        self: &Arc<Self>,
        of: &TopicPartition,
        time_ms: i64,
        isolation: Isolation,
        version: i16,
    ) -> Result<Option<(Offset, i64)>, ResponseError> {
        let partition = self.partition(of).await?;
        let bounds = partition.bounds().await;
        let is_asked = |(name, since): (i64, i16)| time_ms == name && version >= since;
        let found = if is_asked(times::EARLIEST) || is_asked(times::EARLIEST_LOCAL) {
            return Ok(Some((bounds.start, -1)));
        } else if is_asked(times::LATEST) {
            return Ok(Some((bounds.until(isolation), -1)));
        } else if is_asked(times::LATEST_TIERED) {
            // All records are here, and none in a second tier (KIP-405).
            return Ok(None);
        } else if is_asked(times::NEWEST) {
            partition.find_newest(&self.unpacking).await
        } else if time_ms >= 0 {
            partition.find_time(time_ms, &self.unpacking).await
        } else {
            return Err(ResponseError::UnsupportedVersion);
        };
        match found {
            Ok(found) => Ok(found.filter(|(offset, _)| *offset < bounds.until(isolation))),
            Err(LogError::Io { .. }) => Err(ResponseError::KafkaStorageError),
            Err(error) => {
                self.fail(error);
                Err(ResponseError::KafkaStorageError)
            }
        }
    }

    /// Where the records of a leader's epoch end (KIP-320): there is one, and it lasts.
    pub async fn offset_for_leader_epoch(
        self: &Arc<Self>,
        request: OffsetForLeaderEpochRequest,
    ) -> OffsetForLeaderEpochResponse {
        let mut topics = Vec::new();
        for topic in request.topics {
            let mut answers = Vec::new();
            for wanted in topic.partitions {
                let of = TopicPartition::new(&topic.topic, PartitionId(wanted.partition));
                let answer = EpochEndOffset::default()
                    .with_partition(wanted.partition)
                    .with_leader_epoch(-1)
                    .with_end_offset(-1);
                answers.push(match self.end_of_epoch(&of, &wanted).await {
                    Err(error) => answer.with_error_code(error.code()),
                    Ok(None) => answer,
                    Ok(Some(end)) => answer
                        .with_leader_epoch(LEADER_EPOCH)
                        .with_end_offset(end.0),
                });
            }
            let result = OffsetForLeaderTopicResult::default().with_topic(topic.topic);
            topics.push(result.with_partitions(answers));
        }
        OffsetForLeaderEpochResponse::default().with_topics(topics)
    }

    async fn end_of_epoch(
        self: &Arc<Self>,
        of: &TopicPartition,
        wanted: &OffsetForLeaderPartition,
    ) -> Result<Option<Offset>, ResponseError> {
        let partition = self.partition(of).await?;
        match wanted.current_leader_epoch {
            -1 | LEADER_EPOCH => {}
            i32::MIN..LEADER_EPOCH => return Err(ResponseError::FencedLeaderEpoch),
            _ => return Err(ResponseError::UnknownLeaderEpoch),
        }
        match wanted.leader_epoch {
            LEADER_EPOCH => Ok(Some(partition.bounds().await.high_watermark)),
            _ => Ok(None),
        }
    }

    /// Deletes the records before an offset; -1 deletes all that are there.
    pub async fn delete_records(
        self: &Arc<Self>,
        request: DeleteRecordsRequest,
    ) -> DeleteRecordsResponse {
        let mut topics = Vec::new();
        for topic in request.topics {
            let mut answers = Vec::new();
            for wanted in topic.partitions {
                let of = TopicPartition::new(&topic.name, PartitionId(wanted.partition_index));
                let until = (wanted.offset != -1).then_some(Offset(wanted.offset));
                let answer = DeleteRecordsPartitionResult::default()
                    .with_partition_index(wanted.partition_index)
                    .with_low_watermark(-1);
                answers.push(match self.delete_until(&of, until).await {
                    Err(error) => answer.with_error_code(error.code()),
                    Ok(start) => answer.with_low_watermark(start.0),
                });
            }
            let result = DeleteRecordsTopicResult::default().with_name(topic.name);
            topics.push(result.with_partitions(answers));
        }
        DeleteRecordsResponse::default().with_topics(topics)
    }

    async fn delete_until(
        self: &Arc<Self>,
        of: &TopicPartition,
        until: Option<Offset>,
    ) -> Result<Offset, ResponseError> {
        if is_internal(&of.topic) {
            return Err(ResponseError::InvalidTopicException);
        }
        let partition = self.partition(of).await?;
        let deleted = to_its_end(async move { partition.delete_until(until).await });
        match deleted.await {
            Ok(start) => start.ok_or(ResponseError::OffsetOutOfRange),
            Err(AppendError::Deleted) => Err(ResponseError::UnknownTopicOrPartition),
            Err(AppendError::Stopped) => Err(ResponseError::NotLeaderOrFollower),
            Err(AppendError::Log(error)) => {
                self.fail(error);
                Err(ResponseError::KafkaStorageError)
            }
            Err(_) => Err(ResponseError::KafkaStorageError),
        }
    }

    /// The bytes of the partitions that are here: of those that are asked about, or of all.
    pub async fn describe_log_dirs(
        self: &Arc<Self>,
        request: DescribeLogDirsRequest,
    ) -> DescribeLogDirsResponse {
        let wanted: Vec<(String, Vec<i32>)> = match request.topics {
            Some(topics) => {
                let topics = topics.into_iter();
                topics
                    .map(|topic| (topic.topic.to_string(), topic.partitions))
                    .collect()
            }
            None => {
                let all = self.topics.all().await.into_iter();
                all.map(|(name, topic)| (name, (0..topic.partitions).collect()))
                    .collect()
            }
        };
        let mut found = BTreeMap::<String, BTreeMap<i32, u64>>::new();
        for (topic, indexes) in wanted {
            for index in indexes {
                // What is elsewhere, or nowhere, is not told of.
                let of = TopicPartition::new(&topic, PartitionId(index));
                if let Ok(partition) = self.partition(&of).await {
                    let of_topic = found.entry(topic.clone()).or_default();
                    of_topic.insert(index, partition.bytes().await);
                }
            }
        }
        let topics = found.into_iter().map(|(topic, partitions)| {
            let partitions = partitions.into_iter().map(|(index, bytes)| {
                DescribeLogDirsPartition::default()
                    .with_partition_index(index)
                    .with_partition_size(bytes as i64)
            });
            DescribeLogDirsTopic::default()
                .with_name(StrBytes::from_string(topic).into())
                .with_partitions(partitions.collect())
        });
        // How much the disk could hold is not known here.
        let result = DescribeLogDirsResult::default()
            .with_log_dir(StrBytes::from_static_str(super::LOG_FOLDER))
            .with_topics(topics.collect())
            .with_total_bytes(-1)
            .with_usable_bytes(-1);
        DescribeLogDirsResponse::default().with_results(vec![result])
    }
}
