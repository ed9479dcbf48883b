//! Transactions and producers, for people (KIP-664).

use crate::{
    ids::PartitionId,
    log::{
        broker::{Broker, TRANSACTIONS_TOPIC},
        cluster::name,
        transactions::Transactional,
        TopicPartition,
    },
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        describe_producers_response::{
            PartitionResponse, ProducerState, TopicResponse as ProducersOfTopic,
        },
        describe_transactions_response::{TopicData, TransactionState},
        list_transactions_response::TransactionState as ListedTransaction,
        DescribeProducersRequest, DescribeProducersResponse, DescribeTransactionsRequest,
        DescribeTransactionsResponse, ListTransactionsRequest, ListTransactionsResponse,
    },
    protocol::StrBytes,
};
use std::sync::Arc;

impl Broker {
    /// What is known of transactional ids (KIP-664).
    pub async fn describe_transactions(
        self: &Arc<Self>,
        request: DescribeTransactionsRequest,
    ) -> DescribeTransactionsResponse {
        let mut states = Vec::new();
        for id in request.transactional_ids {
            let known = match self.coordinator_for(&id).await {
                Ok(coordinator) => coordinator
                    .get(&id)
                    .ok_or(ResponseError::TransactionalIdNotFound),
                Err(error) => Err(error),
            };
            let answer = TransactionState::default().with_transactional_id(id);
            states.push(match known {
                Err(error) => answer.with_error_code(error.code()),
                Ok(known) => {
                    let topics = known.partitions.iter().map(|partition| {
                        TopicData::default()
                            .with_topic(name(&partition.topic))
                            .with_partitions(vec![partition.partition.0])
                    });
                    answer
                        .with_transaction_state(StrBytes::from_string(format!("{:?}", known.state)))
                        .with_transaction_timeout_ms(known.timeout_ms)
                        .with_transaction_start_time_ms(known.started_ms)
                        .with_producer_id(known.producer.0.into())
                        .with_producer_epoch(known.epoch.0)
                        .with_topics(topics.collect())
                }
            });
        }
        DescribeTransactionsResponse::default().with_transaction_states(states)
    }

    /// The transactional ids that this broker coordinates (KIP-664).
    pub async fn list_transactions(
        self: &Arc<Self>,
        request: ListTransactionsRequest,
    ) -> ListTransactionsResponse {
        // All that are here, loaded or not: what is missing would be taken for what never was.
        let mut open = Vec::new();
        for index in self.coordinated(TRANSACTIONS_TOPIC) {
            let Ok(coordinator) = self.transaction_coordinator(index).await else {
                let loading = ResponseError::CoordinatorLoadInProgress.code();
                return ListTransactionsResponse::default().with_error_code(loading);
            };
            open.push(coordinator);
        }
        let mut states = Vec::new();
        for coordinator in open {
            let all: Vec<(String, Transactional)> = coordinator.fold.look(|all| {
                all.iter()
                    .map(|(id, known)| (id.clone(), known.clone()))
                    .collect()
            });
            for (id, known) in all {
                let state = format!("{:?}", known.state);
                let filters = (&request.state_filters, &request.producer_id_filters);
                let wanted = (filters.0.is_empty() || filters.0.iter().any(|f| **f == *state))
                    && (filters.1.is_empty() || filters.1.iter().any(|f| f.0 == known.producer.0));
                if wanted {
                    states.push(
                        ListedTransaction::default()
                            .with_transactional_id(StrBytes::from_string(id).into())
                            .with_producer_id(known.producer.0.into())
                            .with_transaction_state(StrBytes::from_string(state)),
                    );
                }
            }
        }
        ListTransactionsResponse::default().with_transaction_states(states)
    }

    /// The producers of partitions, and which transactions of theirs are open (KIP-664).
    pub async fn describe_producers(
        self: &Arc<Self>,
        request: DescribeProducersRequest,
    ) -> DescribeProducersResponse {
        let mut topics = Vec::new();
        for topic in request.topics {
            let mut partitions = Vec::new();
            for index in topic.partition_indexes {
                let of = TopicPartition::new(&topic.name, PartitionId(index));
                let answer = PartitionResponse::default().with_partition_index(index);
                partitions.push(match self.partition(&of).await {
                    Err(error) => answer.with_error_code(error.code()),
                    Ok(partition) => {
                        let producers = partition.producers().await.into_iter().map(|known| {
                            ProducerState::default()
                                .with_producer_id(known.producer.0.into())
                                .with_producer_epoch(known.epoch.0.into())
                                .with_last_sequence(known.last_sequence.map_or(-1, |last| last.0))
                                .with_last_timestamp(known.last_ms)
                                .with_coordinator_epoch(known.number)
                                .with_current_txn_start_offset(known.open.map_or(-1, |o| o.0))
                        });
                        answer.with_active_producers(producers.collect())
                    }
                });
            }
            topics.push(
                ProducersOfTopic::default()
                    .with_name(topic.name)
                    .with_partitions(partitions),
            );
        }
        DescribeProducersResponse::default().with_topics(topics)
    }
}
