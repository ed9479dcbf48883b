//! Forgetting positions of a group that lives on (KIP-496).

use crate::{
    ids::PartitionId,
    log::{broker::Broker, groups::Phase, member, offsets::Entry, TopicPartition},
    wire::batch::Identity,
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic},
        OffsetDeleteRequest, OffsetDeleteResponse,
    },
};
use std::{collections::BTreeSet, sync::Arc};

/// What members of a group of consumers say of its kind.
const CONSUMERS: &str = "consumer";

impl Broker {
    /// Forgets how far a group has come in partitions of topics that none of its members reads.
    pub async fn delete_offsets(
        self: &Arc<Self>,
        request: OffsetDeleteRequest,
    ) -> OffsetDeleteResponse {
        let mut topics = Vec::new();
        let mut left = Vec::new();
        let read = match self.read_by(&request.group_id).await {
            Err(error) => return OffsetDeleteResponse::default().with_error_code(error.code()),
            Ok(read) => read,
        };
        for topic in &request.topics {
            let mut answers = Vec::new();
            for partition in &topic.partitions {
                let of = TopicPartition::new(&topic.name, PartitionId(partition.partition_index));
                let refused = match self.partition_count(&of.topic).await {
                    Err(error) => Some(error),
                    Ok(count) if !(0..count).contains(&of.partition.0) => {
                        Some(ResponseError::UnknownTopicOrPartition)
                    }
                    Ok(_) if read.contains(&of.topic) => {
                        Some(ResponseError::GroupSubscribedToTopic)
                    }
                    Ok(_) => None,
                };
                if refused.is_none() {
                    left.push(of);
                }
                answers.push(
                    OffsetDeleteResponsePartition::default()
                        .with_partition_index(partition.partition_index)
                        .with_error_code(refused.map_or(0, |error| error.code())),
                );
            }
            let answer = OffsetDeleteResponseTopic::default().with_name(topic.name.clone());
            topics.push(answer.with_partitions(answers));
        }
        match self.forget_positions(&request.group_id, left).await {
            Err(error) => OffsetDeleteResponse::default().with_error_code(error.code()),
            Ok(()) => OffsetDeleteResponse::default().with_topics(topics),
        }
    }

    /// The topics that the members of a group read.
    async fn read_by(self: &Arc<Self>, group: &str) -> Result<BTreeSet<String>, ResponseError> {
        let coordinator = self.coordinator_of_group(group).await?;
        let groups = coordinator.seats.lock();
        let seat = groups.get(group).ok_or(ResponseError::GroupIdNotFound)?;
        if seat.group.phase() == Phase::Empty {
            return Ok(BTreeSet::new());
        }
        if seat.group.protocol_type() != CONSUMERS {
            return Err(ResponseError::NonEmptyGroup);
        }
        let said = seat.group.members().map(|(_, _, _, metadata, _)| metadata);
        // While a group is being prepared, and has no protocol yet, nobody knows what its members will read.
        let topics: Option<Vec<Vec<String>>> = said.map(member::topics_of).collect();
        let topics = topics.ok_or(ResponseError::RebalanceInProgress)?;
        Ok(topics.into_iter().flatten().collect())
    }

    async fn forget_positions(
        self: &Arc<Self>,
        group: &str,
        left: Vec<TopicPartition>,
    ) -> Result<(), ResponseError> {
        let coordinator = self.coordinator_of_group(group).await?;
        let entries: Vec<Entry> = coordinator.fold.look(|offsets| {
            let known = left.into_iter();
            let known = known.filter(|of| offsets.get(group, of).is_some());
            let gone = known.map(|of| Entry::Position {
                group: group.to_owned(),
                of,
                position: None,
            });
            gone.collect()
        });
        match entries.is_empty() {
            true => Ok(()),
            false => {
                self.write_entries(&coordinator, &entries, Identity::NOBODY, None)
                    .await
            }
        }
    }
}
