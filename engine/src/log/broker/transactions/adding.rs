//! What belongs to a transaction: partitions and positions are added, and leaders ask whether they were.

use super::{Cause, Step, ADD_PARTITIONS_VERSION, JOIN_PAUSE, JOIN_TRIES};
use crate::{
    ids::{PartitionId, ProducerEpoch, ProducerId},
    log::{
        broker::{Broker, OFFSETS_TOPIC, TRANSACTIONS_TOPIC},
        cluster::name,
        transactions::{self, TransactionVersion},
        TopicPartition,
    },
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        add_partitions_to_txn_request::{AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction},
        add_partitions_to_txn_response::{
            AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult,
            AddPartitionsToTxnTopicResult,
        },
        AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest,
        AddPartitionsToTxnResponse,
    },
    protocol::StrBytes,
};
use std::{collections::BTreeSet, sync::Arc};

impl Broker {
    /// Adds partitions to a transaction, or says whether they belong to it.
    pub async fn add_partitions(
        self: &Arc<Self>,
        request: AddPartitionsToTxnRequest,
        version: i16,
    ) -> AddPartitionsToTxnResponse {
        let answer = AddPartitionsToTxnResponse::default();
        if version < 4 {
            let topics = request.v3_and_below_topics;
            let who = (
                ProducerId(request.v3_and_below_producer_id.0),
                ProducerEpoch(request.v3_and_below_producer_epoch),
            );
            let added = self
                .add_to_transaction(&request.v3_and_below_transactional_id, who, &topics, false)
                .await;
            return answer.with_results_by_topic_v3_and_below(results_of(&topics, added));
        }
        let mut results = Vec::new();
        for asked in request.transactions {
            let who = (
                ProducerId(asked.producer_id.0),
                ProducerEpoch(asked.producer_epoch),
            );
            let added = self
                .add_to_transaction(
                    &asked.transactional_id,
                    who,
                    &asked.topics,
                    asked.verify_only,
                )
                .await;
            results.push(
                AddPartitionsToTxnResult::default()
                    .with_transactional_id(asked.transactional_id)
                    .with_topic_results(results_of(&asked.topics, added)),
            );
        }
        answer.with_results_by_transaction(results)
    }

    async fn add_to_transaction(
        self: &Arc<Self>,
        id: &str,
        who: (ProducerId, ProducerEpoch),
        topics: &[AddPartitionsToTxnTopic],
        verify_only: bool,
    ) -> Result<(), ResponseError> {
        let partitions = topics.iter().flat_map(|topic| {
            let indexes = topic.partitions.iter();
            indexes.map(|index| TopicPartition::new(&topic.name, PartitionId(*index)))
        });
        let partitions: BTreeSet<TopicPartition> = partitions.collect();
        for partition in &partitions {
            let count = self.partition_count(&partition.topic).await?;
            if !(0..count).contains(&partition.partition.0) {
                return Err(ResponseError::UnknownTopicOrPartition);
            }
        }
        let coordinator = self.coordinator_for(id).await?;
        if verify_only {
            let known = coordinator.get(id);
            for partition in &partitions {
                transactions::verify(known.as_ref(), who, partition)?;
            }
            return Ok(());
        }
        let settled = self.settle(&coordinator, id, Cause::Adding, move |known, now| {
            let next = transactions::add(known, who, &partitions, now)?;
            Ok(next.map_or(Step::Stay, |next| Step::Become(Some(next))))
        });
        settled.await.map(drop)
    }

    /// A leader asks the coordinator whether a producer may write to one of its partitions; in the second
    /// version of transactions, this is what makes the partition a part of the transaction.
    pub(in crate::log::broker) async fn join_transaction(
        self: &Arc<Self>,
        id: &str,
        who: (ProducerId, ProducerEpoch),
        to: &TopicPartition,
        version: TransactionVersion,
    ) -> Result<(), ResponseError> {
        let topic = AddPartitionsToTxnTopic::default()
            .with_name(name(&to.topic))
            .with_partitions(vec![to.partition.0]);
        let key = TopicPartition::new(TRANSACTIONS_TOPIC, self.coordinator_of(id));
        for _ in 0..JOIN_TRIES {
            let verify_only = version == TransactionVersion::V1;
            let joined = if self.is_here(&key) {
                self.add_to_transaction(id, who, std::slice::from_ref(&topic), verify_only)
                    .await
            } else {
                let transaction = AddPartitionsToTxnTransaction::default()
                    .with_transactional_id(StrBytes::from_string(id.to_owned()).into())
                    .with_producer_id(who.0 .0.into())
                    .with_producer_epoch(who.1 .0)
                    .with_verify_only(verify_only)
                    .with_topics(vec![topic.clone()]);
                let request =
                    AddPartitionsToTxnRequest::default().with_transactions(vec![transaction]);
                let leader = self.leader_of(&key);
                match self.ask(leader, &request, ADD_PARTITIONS_VERSION).await {
                    // Retriable: nothing was appended.
                    Err(_) => return Err(ResponseError::NotEnoughReplicas),
                    Ok(answer) => only_result(&answer),
                }
            };
            match joined {
                Ok(()) => {
                    tracing::info!(name: "transaction.joined", id, partition = %to);
                    return Ok(());
                }
                Err(ResponseError::ConcurrentTransactions) => {
                    tokio::time::sleep(JOIN_PAUSE).await;
                }
                Err(ResponseError::ProducerFenced) => {
                    return Err(ResponseError::InvalidProducerEpoch)
                }
                Err(
                    ResponseError::NotCoordinator
                    | ResponseError::CoordinatorNotAvailable
                    | ResponseError::KafkaStorageError
                    | ResponseError::LeaderNotAvailable,
                ) => return Err(ResponseError::NotEnoughReplicas),
                Err(error) => return Err(error),
            }
        }
        Err(ResponseError::ConcurrentTransactions)
    }

    /// Adds the positions of a group to a transaction.
    pub async fn add_offsets(
        self: &Arc<Self>,
        request: AddOffsetsToTxnRequest,
    ) -> AddOffsetsToTxnResponse {
        let who = (
            ProducerId(request.producer_id.0),
            ProducerEpoch(request.producer_epoch),
        );
        let topic = AddPartitionsToTxnTopic::default()
            .with_name(name(OFFSETS_TOPIC))
            .with_partitions(vec![self.coordinator_of(&request.group_id).0]);
        let added = self
            .add_to_transaction(&request.transactional_id, who, &[topic], false)
            .await;
        let code = added.err().map_or(0, |error| error.code());
        AddOffsetsToTxnResponse::default().with_error_code(code)
    }
}

fn results_of(
    topics: &[AddPartitionsToTxnTopic],
    added: Result<(), ResponseError>,
) -> Vec<AddPartitionsToTxnTopicResult> {
    let code = added.err().map_or(0, |error| error.code());
    let topics = topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|index| {
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*index)
                .with_partition_error_code(code)
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name.clone())
            .with_results_by_partition(partitions.collect())
    });
    topics.collect()
}

fn only_result(answer: &AddPartitionsToTxnResponse) -> Result<(), ResponseError> {
    if let Some(error) = ResponseError::try_from_code(answer.error_code) {
        return Err(error);
    }
    let results = answer.results_by_transaction.iter();
    let topics = results.flat_map(|result| &result.topic_results);
    let mut partitions = topics.flat_map(|topic| &topic.results_by_partition);
    let only = partitions.next().ok_or(ResponseError::UnknownServerError)?;
    ResponseError::try_from_code(only.partition_error_code).map_or(Ok(()), Err)
}
