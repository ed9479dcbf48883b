//! How much memory answers take that are longer than their questions, as it is known before they are built: with what
//! they become once they are encoded.

use super::{catalog::configs::BROKER, Broker, OFFSETS_TOPIC, TRANSACTIONS_TOPIC};
use crate::{
    ids::PartitionId,
    log::{configs::KEYS, topics::Topic, transactions::Transactional, TopicPartition},
};
use kafka_protocol::messages::{
    DescribeConfigsRequest, DescribeGroupsRequest, DescribeLogDirsRequest,
    DescribeProducersRequest, DescribeTransactionsRequest, MetadataRequest, OffsetFetchRequest,
};
use std::sync::Arc;

/// What a named thing takes besides its name: a topic, a partition, a group, a member, a producer, a transactional id.
const THING_BYTES: usize = 512;
/// What one configuration takes, with its synonyms.
const CONFIG_BYTES: usize = 1 << 10;

impl Broker {
    /// Topics and their partitions: those that are named, or all.
    pub async fn weigh_metadata(&self, request: &MetadataRequest) -> usize {
        let Some(named) = &request.topics else {
            return self.weigh_topics().await;
        };
        let mut bytes = 0;
        for topic in named {
            let name = match &topic.name {
                Some(name) => Some(name.to_string()),
                None => self.topics.name_of(topic.topic_id).await,
            };
            if let Some(name) = name {
                let known = self.topics.get(&name).await;
                bytes += known.map_or(0, |topic| weight_of(&name, &topic));
            }
        }
        bytes
    }

    /// The bytes of partitions: of those that are named, which weigh what their names do, or of all.
    pub async fn weigh_log_dirs(&self, request: &DescribeLogDirsRequest) -> usize {
        match request.topics {
            Some(_) => 0,
            None => self.weigh_topics().await,
        }
    }

    async fn weigh_topics(&self) -> usize {
        let all = self.topics.all().await;
        all.iter().map(|(name, topic)| weight_of(name, topic)).sum()
    }

    /// All that each of the named can be configured with, if it is there.
    pub async fn weigh_configs(&self, request: &DescribeConfigsRequest) -> usize {
        let mut bytes = 0;
        for resource in &request.resources {
            let of_broker = resource.resource_type == BROKER;
            if of_broker || self.topics.get(&resource.resource_name).await.is_some() {
                bytes += KEYS.len() * CONFIG_BYTES;
            }
        }
        bytes
    }

    /// All groups that are here.
    pub async fn weigh_all_groups(self: &Arc<Self>) -> usize {
        let mut bytes = 0;
        for index in self.coordinated(OFFSETS_TOPIC) {
            if let Ok(coordinator) = self.group_coordinator(index).await {
                let seats = coordinator.seats.lock();
                let each = seats.iter().map(|(name, seat)| {
                    THING_BYTES + 2 * (name.len() + seat.group.protocol_type().len())
                });
                bytes += each.sum::<usize>();
            }
        }
        bytes
    }

    /// The named groups, with their members and what these say.
    pub async fn weigh_groups(self: &Arc<Self>, request: &DescribeGroupsRequest) -> usize {
        let mut bytes = 0;
        for name in &request.groups {
            if let Ok(coordinator) = self.coordinator_of_group(name).await {
                let seats = coordinator.seats.lock();
                let seat = seats.get(name.as_str());
                bytes += seat.map_or(0, |seat| THING_BYTES + 2 * seat.group.bytes());
            }
        }
        bytes
    }

    /// The positions of groups: of the partitions that are named, or all.
    pub async fn weigh_positions(self: &Arc<Self>, request: &OffsetFetchRequest) -> usize {
        let single = (
            &request.group_id,
            request.topics.as_ref().map(|topics| {
                let named = topics.iter();
                named
                    .map(|topic| (&topic.name, &topic.partition_indexes))
                    .collect::<Vec<_>>()
            }),
        );
        let several = request.groups.iter().map(|group| {
            let named = group.topics.as_ref().map(|topics| {
                let named = topics.iter();
                named
                    .map(|topic| (&topic.name, &topic.partition_indexes))
                    .collect()
            });
            (&group.group_id, named)
        });
        let mut bytes = 0;
        for (group, named) in several.chain([single]) {
            let Ok(coordinator) = self.coordinator_of_group(group).await else {
                continue;
            };
            bytes += coordinator.fold.look(|offsets| match &named {
                None => {
                    let all = offsets.of_group(group);
                    let each = all.map(|(of, position)| {
                        THING_BYTES + 2 * (of.topic.len() + position.metadata.len())
                    });
                    each.sum::<usize>()
                }
                Some(named) => {
                    let each = named.iter().flat_map(|(topic, indexes)| {
                        indexes.iter().filter_map(|index| {
                            let of = TopicPartition::new(topic, PartitionId(*index));
                            offsets
                                .get(group, &of)
                                .map(|known| 2 * known.metadata.len())
                        })
                    });
                    each.sum()
                }
            });
        }
        bytes
    }

    /// All transactional ids that are here.
    pub async fn weigh_all_transactions(self: &Arc<Self>) -> usize {
        let mut bytes = 0;
        for index in self.coordinated(TRANSACTIONS_TOPIC) {
            if let Ok(coordinator) = self.transaction_coordinator(index).await {
                // They are copied with all that is known of them.
                let each = |(id, known): (&String, &Transactional)| 3 * id.len() + weight_in(known);
                bytes += coordinator
                    .fold
                    .look(|all| all.iter().map(each).sum::<usize>());
            }
        }
        bytes
    }

    /// The named transactional ids, with the partitions of their transactions.
    pub async fn weigh_transactions(
        self: &Arc<Self>,
        request: &DescribeTransactionsRequest,
    ) -> usize {
        let mut bytes = 0;
        for id in &request.transactional_ids {
            if let Ok(coordinator) = self.coordinator_for(id).await {
                bytes += coordinator
                    .fold
                    .look(|all| all.get(id).map_or(0, weight_in));
            }
        }
        bytes
    }

    /// The producers of the named partitions.
    pub async fn weigh_producers(self: &Arc<Self>, request: &DescribeProducersRequest) -> usize {
        let mut bytes = 0;
        for topic in &request.topics {
            for index in &topic.partition_indexes {
                let of = TopicPartition::new(&topic.name, PartitionId(*index));
                if let Ok(partition) = self.partition(&of).await {
                    bytes += THING_BYTES * partition.producer_count().await;
                }
            }
        }
        bytes
    }
}

fn weight_of(name: &str, topic: &Topic) -> usize {
    THING_BYTES * (1 + topic.partitions as usize) + 3 * name.len()
}

fn weight_in(known: &Transactional) -> usize {
    let partitions = known.partitions.iter();
    let partitions: usize = partitions.map(|of| THING_BYTES + 3 * of.topic.len()).sum();
    THING_BYTES + partitions
}
