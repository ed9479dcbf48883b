//! Records in and out: produce, fetch.

use super::{is_internal, to_its_end, Broker, Later};
use crate::{
    ids::{Offset, PartitionId},
    log::{
        partition::{AppendError, Appended, Isolation, Partition, Portion, Reading},
        peer::Peer,
        room::{Purse, Stake},
        transactions::TransactionVersion,
        LogError, TopicPartition,
    },
    wire::{
        oversize::Oversized,
        validate::{Checked, Checking, Refusal},
    },
};
use bytes::Bytes;
use futures::{select_biased, FutureExt};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        fetch_request::FetchTopic,
        fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData},
        produce_response::{PartitionProduceResponse, TopicProduceResponse},
        FetchRequest, FetchResponse, ProduceRequest, ProduceResponse,
    },
    protocol::StrBytes,
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// The first version of Produce with which a client speaks the second version of transactions.
const PRODUCE_TRANSACTIONS_2: i16 = 12;
/// The first version of Fetch that names topics by their ids.
const FETCH_BY_ID: i16 = 13;

/// The records of one response take no more than this, whatever is asked for, but for a batch that is larger by
/// itself. (Kafka's broker has a `fetch.max.bytes`, too, of 55 MiB; here several have room at a time.)
const FETCH_BYTES_MAX: usize = 16 << 20;

type Waiting = Result<(Arc<Partition>, Appended), ResponseError>;

impl Broker {
    /// Appends, in the order in which it is called; the answer waits for the sync.
    pub async fn produce(
        self: &Arc<Self>,
        request: ProduceRequest,
        version: i16,
    ) -> Later<ProduceResponse> {
        let transaction = request.transactional_id.as_ref().map(|id| {
            let speaks = match version >= PRODUCE_TRANSACTIONS_2 {
                true => TransactionVersion::V2,
                false => TransactionVersion::V1,
            };
            (id.to_string(), speaks)
        });
        let mut waiting = Vec::new();
        for topic in request.topic_data {
            let mut partitions = Vec::new();
            for data in topic.partition_data {
                let to = TopicPartition::new(&topic.name, PartitionId(data.index));
                let records = data.records.unwrap_or_default();
                let appended = match request.acks {
                    // What their coordinators write there is theirs alone.
                    _ if is_internal(&to.topic) => Err(ResponseError::InvalidTopicException),
                    -1..=1 => match self.check(records, version, transaction.is_some()).await {
                        Ok(batch) => self.append(&to, &batch, transaction.as_ref()).await,
                        Err(error) => Err(error),
                    },
                    _ => Err(ResponseError::InvalidRequiredAcks),
                };
                partitions.push((data.index, appended));
            }
            waiting.push((topic.name, partitions));
        }
        async move {
            let mut responses = Vec::new();
            for (name, partitions) in waiting {
                let mut answers = Vec::new();
                for (index, appended) in partitions {
                    let answer = PartitionProduceResponse::default()
                        .with_index(index)
                        .with_log_append_time_ms(-1)
                        .with_log_start_offset(-1);
                    let time = appended.as_ref().ok().and_then(|(_, a)| a.append_time_ms);
                    answers.push(match durable(appended).await {
                        Ok(base) => answer
                            .with_base_offset(base.map_or(-1, |base| base.0))
                            .with_log_append_time_ms(time.unwrap_or(-1)),
                        Err(error) => answer.with_error_code(error.code()).with_base_offset(-1),
                    });
                }
                let response = TopicProduceResponse::default().with_name(name);
                responses.push(response.with_partition_responses(answers));
            }
            ProduceResponse::default().with_responses(responses)
        }
        .boxed()
    }

    /// Checks a batch of a client before it is kept, with the errors that Apache Kafka gives.
    async fn check(
        &self,
        records: Bytes,
        version: i16,
        is_in_transaction: bool,
    ) -> Result<Checked, ResponseError> {
        let newest_ms = self.host.clock.now_ms().saturating_add(FUTURE_MS_MAX);
        let mut checking = Checking::begin(records, newest_ms).map_err(code_of)?;
        if checking.codec() == ZSTD && version < PRODUCE_ZSTD {
            return Err(ResponseError::UnsupportedCompressionType);
        }
        if checking.is_transactional() && !is_in_transaction {
            // Whoever names no transactional id has no right to any.
            return Err(ResponseError::TransactionalIdAuthorizationFailed);
        }
        let _room = match checking.bytes() {
            0 => None,
            bytes => Some(self.unpacking.take(bytes).await),
        };
        loop {
            if let Some(checked) = checking.go_on().map_err(code_of)? {
                return Ok(checked);
            }
            // It is a large one: others are served meanwhile.
            tokio::task::yield_now().await;
        }
    }

    /// Appends a batch. One that begins a transaction here is verified with its coordinator first (KIP-890),
    /// and once more if meanwhile a marker came: it may have been that of the transaction before, or of this.
    pub(super) async fn append(
        self: &Arc<Self>,
        to: &TopicPartition,
        batch: &Checked,
        transaction: Option<&(String, TransactionVersion)>,
    ) -> Waiting {
        let partition = self.partition(to).await?;
        let mut guard = None;
        loop {
            let (appending, appended) = (partition.clone(), batch.clone());
            let now = self.host.clock.now_ms();
            let appended = to_its_end(async move { appending.append(&appended, guard, now).await });
            let appended = appended.await;
            match appended {
                Ok(appended) => return Ok((partition, appended)),
                Err(AppendError::Verify(needed)) => {
                    let (id, version) = transaction.ok_or(ResponseError::InvalidTxnState)?;
                    let who = (batch.header().producer, batch.header().epoch);
                    self.join_transaction(id, who, to, *version).await?;
                    guard = Some(needed);
                }
                Err(AppendError::Batch(_)) => return Err(ResponseError::CorruptMessage),
                Err(AppendError::TooLarge { .. }) => return Err(ResponseError::MessageTooLarge),
                Err(AppendError::OutOfOrder) => {
                    return Err(ResponseError::OutOfOrderSequenceNumber)
                }
                Err(AppendError::UnknownProducer) => return Err(ResponseError::UnknownProducerId),
                Err(AppendError::Fenced) => return Err(ResponseError::InvalidProducerEpoch),
                Err(AppendError::NotTransactional) => return Err(ResponseError::InvalidTxnState),
                Err(AppendError::Deleted) => return Err(ResponseError::UnknownTopicOrPartition),
                Err(AppendError::Stopped) => return Err(ResponseError::NotLeaderOrFollower),
                Err(AppendError::NotStored(_)) => return Err(ResponseError::KafkaStorageError),
                Err(AppendError::Log(error)) => {
                    self.fail(error);
                    return Err(ResponseError::KafkaStorageError);
                }
            }
        }
    }

    /// Reads, waiting for at least a byte if nothing is there yet, and nobody else needs what it takes.
    pub fn fetch(
        self: &Arc<Self>,
        mut request: FetchRequest,
        version: i16,
        working: &Stake,
        peer: &Arc<Peer>,
    ) -> Later<(FetchResponse, Purse)> {
        let (broker, working, mut purse) = (self.clone(), working.clone(), Purse::of(peer));
        name_each_once(&mut request.topics);
        async move {
            let response = FetchResponse::default();
            if request.session_id != 0 {
                let code = ResponseError::FetchSessionIdNotFound.code();
                return (response.with_error_code(code), purse);
            }
            let (topics, bytes) = broker.fetch_once(&request, version, &mut purse).await;
            if bytes > 0 || request.min_bytes <= 0 || has_error(&topics) {
                return (response.with_responses(topics), purse);
            }
            let wait = Duration::from_millis(request.max_wait_ms.clamp(0, 60_000) as u64);
            let enough = working.waits_for_records();
            select_biased! {
                () = broker.wait_readable(&request, version).fuse() => {}
                () = enough.notified().fuse() => {}
                () = tokio::time::sleep(wait).fuse() => {}
            }
            working.waits_for_us();
            let (topics, _) = broker.fetch_once(&request, version, &mut purse).await;
            (response.with_responses(topics), purse)
        }
        .boxed()
    }

    async fn fetch_once(
        self: &Arc<Self>,
        request: &FetchRequest,
        version: i16,
        purse: &mut Purse,
    ) -> (Vec<FetchableTopicResponse>, usize) {
        let isolation = isolation_of(request.isolation_level);
        let bytes_max = (request.max_bytes.max(0) as usize).min(FETCH_BYTES_MAX);
        let (mut topics, mut total) = (Vec::new(), 0);
        for topic in &request.topics {
            let mut answers = Vec::new();
            for wanted in &topic.partitions {
                let left = bytes_max.saturating_sub(total);
                let bytes = left.min(wanted.partition_max_bytes.max(0) as usize);
                let portion = match total {
                    0 => Portion::AtLeastOneBatch(bytes),
                    _ => Portion::AtMost(bytes),
                };
                let offset = Offset(wanted.fetch_offset);
                let read = match self.fetched(topic, wanted.partition, version).await {
                    Ok(partition) => {
                        self.read(&partition, offset, portion, isolation, purse)
                            .await
                    }
                    Err(error) => Err(error),
                };
                let answer = PartitionData::default()
                    .with_partition_index(wanted.partition)
                    .with_preferred_read_replica((-1).into());
                answers.push(match read {
                    Ok(reading) => {
                        total += reading.records.len();
                        let aborted = reading.aborted.iter().map(|aborted| {
                            AbortedTransaction::default()
                                .with_producer_id(aborted.producer.0.into())
                                .with_first_offset(aborted.first.0)
                        });
                        let aborted =
                            (isolation == Isolation::ReadCommitted).then(|| aborted.collect());
                        answer
                            .with_high_watermark(reading.bounds.high_watermark.0)
                            .with_last_stable_offset(reading.bounds.stable.0)
                            .with_log_start_offset(reading.bounds.start.0)
                            .with_aborted_transactions(aborted)
                            .with_records(Some(reading.records))
                    }
                    Err(error) => answer
                        .with_error_code(error.code())
                        .with_high_watermark(-1)
                        .with_last_stable_offset(-1)
                        .with_log_start_offset(-1)
                        .with_records(Some(Bytes::new())),
                });
            }
            let response = FetchableTopicResponse::default()
                .with_topic(topic.topic.clone())
                .with_topic_id(topic.topic_id);
            topics.push(response.with_partitions(answers));
        }
        (topics, total)
    }

    /// The partition that a fetch asks for: of a topic by its name, or by its id (KIP-516).
    async fn fetched(
        self: &Arc<Self>,
        topic: &FetchTopic,
        index: i32,
        version: i16,
    ) -> Result<Arc<Partition>, ResponseError> {
        if version < FETCH_BY_ID {
            let of = TopicPartition::new(&topic.topic, PartitionId(index));
            return self.partition(&of).await;
        }
        let name = self.name_of(topic.topic_id).await?;
        let of = TopicPartition::new(&name, PartitionId(index));
        self.partition_of(&of, Some(topic.topic_id)).await
    }

    async fn read(
        self: &Arc<Self>,
        partition: &Partition,
        offset: Offset,
        portion: Portion,
        isolation: Isolation,
        purse: &mut Purse,
    ) -> Result<Reading, ResponseError> {
        let found = partition.find(offset, portion, isolation).await;
        let found = found.ok_or(ResponseError::OffsetOutOfRange)?;
        // Once as records, and once more as the answer.
        let bytes = 2 * found.bytes();
        if bytes > 0 && !purse.pay(&self.rooms.leaving, bytes).await {
            return Ok(found.without_records());
        }
        match found.read().await {
            Ok(reading) => Ok(reading),
            Err(LogError::Io { .. }) => Err(ResponseError::KafkaStorageError),
            Err(damage) => {
                self.fail(damage);
                Err(ResponseError::KafkaStorageError)
            }
        }
    }

    async fn wait_readable(self: &Arc<Self>, request: &FetchRequest, version: i16) {
        let isolation = isolation_of(request.isolation_level);
        let mut waits = Vec::new();
        for topic in &request.topics {
            for wanted in &topic.partitions {
                if let Ok(partition) = self.fetched(topic, wanted.partition, version).await {
                    let offset = Offset(wanted.fetch_offset);
                    let wait = async move { partition.wait_readable(offset, isolation).await };
                    waits.push(wait.boxed());
                }
            }
        }
        if waits.is_empty() {
            return;
        }
        futures::future::select_all(waits).await;
    }
}

/// The number of zstd in a batch's attributes, and the first version of Produce that may carry it (KIP-110).
const ZSTD: i16 = 4;
const PRODUCE_ZSTD: i16 = 7;

/// Records may come from so far in the future: Kafka's default of `message.timestamp.after.max.ms` (KIP-1030).
const FUTURE_MS_MAX: i64 = 3_600_000;

fn code_of(refusal: Refusal) -> ResponseError {
    match refusal {
        Refusal::Corrupt(_) => ResponseError::CorruptMessage,
        Refusal::Invalid(_) | Refusal::Packed(_) => ResponseError::InvalidRecord,
        Refusal::Codec(_) => ResponseError::UnsupportedCompressionType,
        Refusal::TooLarge => ResponseError::MessageTooLarge,
        Refusal::Timestamp { .. } => ResponseError::InvalidTimestamp,
        Refusal::Epoch(_) => ResponseError::InvalidProducerEpoch,
    }
}

/// The answer to a request to produce that was larger than a frame may be.
pub fn too_large(request: Oversized) -> ProduceResponse {
    let topics = request.topics.into_iter().map(|(name, indexes)| {
        let partitions = indexes.into_iter().map(|index| {
            PartitionProduceResponse::default()
                .with_index(index)
                .with_error_code(ResponseError::MessageTooLarge.code())
                .with_base_offset(-1)
                .with_log_append_time_ms(-1)
                .with_log_start_offset(-1)
        });
        TopicProduceResponse::default()
            .with_name(StrBytes::from_string(name).into())
            .with_partition_responses(partitions.collect())
    });
    ProduceResponse::default().with_responses(topics.collect())
}

pub(super) fn isolation_of(level: i8) -> Isolation {
    match level {
        0 => Isolation::ReadUncommitted,
        _ => Isolation::ReadCommitted,
    }
}

/// Waits until what was appended, now or earlier, is durable: a duplicate is not acknowledged earlier
/// than the batch that it repeats.
pub(super) async fn durable(appended: Waiting) -> Result<Option<Offset>, ResponseError> {
    let (partition, appended) = appended?;
    match partition.wait_synced(appended.end_offset).await {
        Ok(()) => {
            partition.acknowledge(appended.end_offset);
            Ok(appended.base_offset)
        }
        Err(_) => Err(ResponseError::KafkaStorageError),
    }
}

/// A partition that is named more than once counts once, with what is said of it last: Kafka's broker, too,
/// makes a map of what a request names. (Otherwise a small request would ask for its records thousands of times.)
fn name_each_once(topics: &mut [FetchTopic]) {
    let mut named = BTreeSet::new();
    for topic in topics.iter_mut().rev() {
        topic.partitions.reverse();
        let which = |index| (topic.topic.clone(), topic.topic_id, index);
        (topic.partitions).retain(|wanted| named.insert(which(wanted.partition)));
        topic.partitions.reverse();
    }
    let left: usize = topics.iter().map(|topic| topic.partitions.len()).sum();
    assert_eq!(left, named.len(), "each partition is named once");
}

fn has_error(topics: &[FetchableTopicResponse]) -> bool {
    let mut partitions = topics.iter().flat_map(|topic| &topic.partitions);
    partitions.any(|partition| partition.error_code != 0)
}
