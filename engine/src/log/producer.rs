//! The idempotent producer: batches per partition, up to five in flight, sent again until the broker
//! says where they are (KIP-98).
//!
//! After any error everything in flight is sent again, in order, under its old sequences; the broker
//! recognises what it has. A batch without an answer for too long has an *unknown* outcome, and ends
//! its lane: whatever was sent after it must not be acknowledged in its place.

use super::{
    cluster::{may_change, name, Cluster, BACKOFF},
    connection::{CallError, SharedConnection},
    transactions::TransactionVersion,
    TopicPartition,
};
use crate::{
    ids::{Offset, ProducerEpoch, ProducerId, Sequence},
    record::NewRecord,
    wire::batch::{self, Identity},
};
use bytes::Bytes;
use futures::{future::BoxFuture, select_biased, FutureExt};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        produce_request::{PartitionProduceData, TopicProduceData},
        InitProducerIdRequest, ProduceRequest, ProduceResponse,
    },
    protocol::StrBytes,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// As many as the broker can recognise when they are sent again.
const IN_FLIGHT_MAX: usize = super::producers::BATCHES_REMEMBERED;

/// The newest version of Produce within a transaction of the first version.
const PRODUCE_TRANSACTIONS_1: i16 = 11;

/// How a producer batches and waits.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// A batch is sent when it has so many records…
    pub batch_records_max: usize,
    /// …or when this much time has passed since its first one.
    pub linger: Duration,
    /// After this long without an answer a batch's outcome is unknown.
    pub delivery_timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        ProducerConfig {
            batch_records_max: 500,
            linger: Duration::from_millis(5),
            delivery_timeout: Duration::from_secs(120),
        }
    }
}

/// What became of a record that is not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// It may be in the log, or get there yet. The producer is of no more use; a new one starts afresh.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// It is not in the log, and never will be.
    #[error("not sent: {0}")]
    NotSent(String),
}

/// Where a record is; unknown if its batch was a duplicate from long ago.
pub type Delivered = Result<Option<Offset>, SendError>;

/// An idempotent producer. Dropping it drops what it has not sent.
pub struct Producer(Lanes);

/// The lanes of a producer under one epoch: the batches of each partition, in their order.
pub(super) struct Lanes {
    cluster: Cluster,
    id: ProducerId,
    epoch: ProducerEpoch,
    within: Option<Within>,
    config: ProducerConfig,
    lanes: Mutex<BTreeMap<TopicPartition, mpsc::Sender<Order>>>,
}

/// The transactional id that batches belong to, and how it is spoken of.
#[derive(Clone, Debug)]
pub(super) struct Within {
    pub id: String,
    pub version: TransactionVersion,
}

struct Order {
    record: NewRecord,
    told: oneshot::Sender<Delivered>,
}

impl Order {
    fn bytes(&self) -> usize {
        let len = |field: &Option<Bytes>| field.as_ref().map_or(0, Bytes::len);
        let headers = self.record.headers.iter();
        let headers = headers.map(|(name, value)| name.len() + value.len());
        len(&self.record.key) + len(&self.record.value) + headers.sum::<usize>()
    }
}

/// A record is at most this large, or the records of a batch together: brokers take no batch of more than 1,048,588
/// bytes, unless they are told to.
pub const RECORD_BYTES_MAX: usize = 1_000_000;

impl Producer {
    /// A new producer with an id of its own. Tries until a broker gives it one.
    pub async fn new(cluster: Cluster, config: ProducerConfig) -> Producer {
        loop {
            if let Ok(connection) = cluster.connect_any().await {
                let request = InitProducerIdRequest::default()
                    .with_transactional_id(None)
                    .with_transaction_timeout_ms(i32::MAX)
                    .with_producer_id((-1).into())
                    .with_producer_epoch(-1);
                if let Ok(answer) = connection.call(&request).await {
                    if answer.error_code == 0 {
                        let id = ProducerId(answer.producer_id.0);
                        let epoch = ProducerEpoch(answer.producer_epoch);
                        return Producer(Lanes::new(cluster, (id, epoch), None, config));
                    }
                }
            }
            tokio::time::sleep(BACKOFF).await;
        }
    }

    /// Queues a record, waiting if too many are queued. The future tells where it is, and need not be
    /// awaited for it to be sent.
    pub async fn send(
        &self,
        to: &TopicPartition,
        record: NewRecord,
    ) -> impl std::future::Future<Output = Delivered> + Send + 'static {
        self.0.send(to, record).await
    }
}

impl Lanes {
    pub fn new(
        cluster: Cluster,
        (id, epoch): (ProducerId, ProducerEpoch),
        within: Option<Within>,
        config: ProducerConfig,
    ) -> Self {
        Lanes {
            cluster,
            id,
            epoch,
            within,
            config,
            lanes: Mutex::default(),
        }
    }

    /// See [`Producer::send`].
    pub async fn send(
        &self,
        to: &TopicPartition,
        record: NewRecord,
    ) -> impl std::future::Future<Output = Delivered> + Send + 'static {
        let lane = {
            let mut lanes = self.lanes.lock().expect("lanes");
            let lane = lanes
                .entry(to.clone())
                .or_insert_with(|| self.begin_lane(to));
            lane.clone()
        };
        let (told, delivered) = oneshot::channel();
        let queued = lane.send(Order { record, told }).await.is_ok();
        async move {
            match delivered.await {
                Ok(delivered) => delivered,
                Err(_) if queued => Err(SendError::Unknown("the producer has ended".into())),
                Err(_) => Err(SendError::NotSent("the producer has ended".into())),
            }
        }
    }

    fn begin_lane(&self, to: &TopicPartition) -> mpsc::Sender<Order> {
        let (sender, orders) = mpsc::channel(1024);
        let lane = Lane {
            cluster: self.cluster.clone(),
            to: to.clone(),
            id: self.id,
            epoch: self.epoch,
            within: self.within.clone(),
            config: self.config.clone(),
            next: Sequence(0),
            held: None,
            unacked: VecDeque::new(),
            connection: None,
        };
        tokio::spawn(lane.run(orders));
        sender
    }
}

/// The batches of one partition.
struct Lane {
    cluster: Cluster,
    to: TopicPartition,
    id: ProducerId,
    epoch: ProducerEpoch,
    within: Option<Within>,
    config: ProducerConfig,
    next: Sequence,
    /// What was too much for the newest batch.
    held: Option<Order>,
    /// Batches without an answer, in the order of their sequences. Those in flight come first.
    unacked: VecDeque<Batch>,
    connection: Option<SharedConnection>,
}

struct Batch {
    bytes: Bytes,
    told: Vec<oneshot::Sender<Delivered>>,
    deadline: Instant,
    answer: Option<BoxFuture<'static, Result<ProduceResponse, CallError>>>,
}

/// What an answer means for the batch at the front.
enum Answer {
    At(Option<Offset>),
    Again(String),
    Fatal(String),
}

impl Lane {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut open = true;
        while open || !self.unacked.is_empty() {
            self.fly().await;
            let room = self.unacked.len() < IN_FLIGHT_MAX;
            let held = &mut self.held;
            let order = async {
                match (open && room, held.is_some()) {
                    (true, true) => held.take(),
                    (true, false) => orders.recv().await,
                    (false, _) => std::future::pending().await,
                }
            };
            let event = select_biased! {
                answer = front(&mut self.unacked).fuse() => Event::Answer(answer),
                order = order.fuse() => Event::Order(order),
            };
            match event {
                Event::Order(None) => open = false,
                Event::Order(Some(first)) => {
                    if !self.gather(first, &mut orders).await {
                        return self.end("a batch could not be built");
                    }
                }
                Event::Answer(answer) => match judge(answer) {
                    Answer::At(offset) => self.acknowledge(offset),
                    Answer::Fatal(why) => return self.end(&why),
                    Answer::Again(why) => {
                        if self.unacked[0].deadline <= Instant::now() {
                            return self.end(&why);
                        }
                        tracing::info!(name: "producer.retry", to = %self.to, why = %why);
                        self.ground();
                        tokio::time::sleep(BACKOFF).await;
                    }
                },
            }
        }
    }

    /// Sends what is not in flight.
    async fn fly(&mut self) {
        while self.unacked.iter().any(|batch| batch.answer.is_none()) {
            let connection = match self.connection.clone().filter(|open| !open.is_closed()) {
                Some(connection) => connection,
                None => {
                    // What was in flight on the old connection must come before what follows.
                    self.ground();
                    match self.cluster.share_leader(&self.to).await {
                        Ok(connection) => {
                            self.connection = Some(connection.clone());
                            connection
                        }
                        Err(error) => {
                            self.cluster.forget_leader(&self.to);
                            if self.unacked[0].deadline <= Instant::now() {
                                return self.give_up(&error.to_string());
                            }
                            tokio::time::sleep(BACKOFF).await;
                            continue;
                        }
                    }
                }
            };
            for batch in self
                .unacked
                .iter_mut()
                .filter(|batch| batch.answer.is_none())
            {
                let request = request(&self.to, self.within.as_ref(), batch.bytes.clone());
                let version = match &self.within {
                    Some(within) if within.version == TransactionVersion::V2 => i16::MAX,
                    _ => PRODUCE_TRANSACTIONS_1,
                };
                batch.answer = Some(connection.call_at(&request, version).boxed());
            }
        }
    }

    /// Nothing is in flight any more.
    fn ground(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.cluster.forget_connection(&connection);
        }
        for batch in &mut self.unacked {
            batch.answer = None;
        }
    }

    /// Makes a batch of the first order and those that come while it lingers. Whether that went well.
    async fn gather(&mut self, first: Order, orders: &mut mpsc::Receiver<Order>) -> bool {
        let mut bytes = first.bytes();
        let mut batch = vec![first];
        let until = Instant::now() + self.config.linger;
        while batch.len() < self.config.batch_records_max {
            match orders.try_recv() {
                Ok(order) => {
                    bytes += order.bytes();
                    if bytes > RECORD_BYTES_MAX {
                        self.held = Some(order);
                        break;
                    }
                    batch.push(order);
                }
                Err(_) if Instant::now() >= until || orders.is_closed() => break,
                Err(_) => tokio::time::sleep_until(until).await,
            }
        }
        let (records, told): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|order| (order.record, order.told))
            .unzip();
        let by = Identity {
            producer: self.id,
            epoch: self.epoch,
            sequence: self.next,
            transactional: self.within.is_some(),
        };
        let Ok(bytes) = batch::encode(&records, by) else {
            return false;
        };
        self.next = self.next.plus(records.len() as i32);
        self.unacked.push_back(Batch {
            bytes,
            told,
            deadline: Instant::now() + self.config.delivery_timeout,
            answer: None,
        });
        true
    }

    fn acknowledge(&mut self, base: Option<Offset>) {
        let batch = self.unacked.pop_front().expect("it was answered");
        for (index, told) in batch.told.into_iter().enumerate() {
            // Who sent it may not care.
            let _ = told.send(Ok(base.map(|base| base.plus(index as i64))));
        }
    }

    fn give_up(&mut self, why: &str) {
        for batch in self.unacked.drain(..) {
            for told in batch.told {
                let _ = told.send(Err(SendError::Unknown(why.to_owned())));
            }
        }
    }

    fn end(mut self, why: &str) {
        let (producer, epoch) = (self.id.0, self.epoch.0);
        tracing::info!(name: "producer.ended", to = %self.to, producer, epoch, why);
        self.give_up(why);
    }
}

enum Event {
    Order(Option<Order>),
    Answer(Result<ProduceResponse, CallError>),
}

/// The answer for the batch at the front; never, if nothing is in flight.
async fn front(unacked: &mut VecDeque<Batch>) -> Result<ProduceResponse, CallError> {
    match unacked.front_mut().and_then(|batch| batch.answer.as_mut()) {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

fn judge(answer: Result<ProduceResponse, CallError>) -> Answer {
    let response = match answer {
        Ok(response) => response,
        Err(error) => return Answer::Again(error.to_string()),
    };
    let partition = response
        .responses
        .first()
        .and_then(|topic| topic.partition_responses.first());
    let Some(partition) = partition else {
        return Answer::Again("an answer about nothing".into());
    };
    match ResponseError::try_from_code(partition.error_code) {
        None if partition.base_offset < 0 => Answer::At(None),
        None => Answer::At(Some(Offset(partition.base_offset))),
        Some(ResponseError::DuplicateSequenceNumber) => Answer::At(None),
        Some(error) if may_change(error) => Answer::Again(format!("{error:?}")),
        Some(error) => Answer::Fatal(format!("{error:?}")),
    }
}

fn request(to: &TopicPartition, within: Option<&Within>, batch: Bytes) -> ProduceRequest {
    let id = within.map(|within| StrBytes::from_string(within.id.clone()).into());
    let data = PartitionProduceData::default()
        .with_index(to.partition.0)
        .with_records(Some(batch));
    let topic = TopicProduceData::default()
        .with_name(name(&to.topic))
        .with_partition_data(vec![data]);
    ProduceRequest::default()
        .with_transactional_id(id)
        .with_acks(-1)
        .with_timeout_ms(3000)
        .with_topic_data(vec![topic])
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::produce_response::{
        PartitionProduceResponse, TopicProduceResponse,
    };

    fn judged(error: ResponseError) -> Answer {
        let partition = PartitionProduceResponse::default().with_error_code(error.code());
        let topic = TopicProduceResponse::default().with_partition_responses(vec![partition]);
        judge(Ok(ProduceResponse::default().with_responses(vec![topic])))
    }

    /// Found over Apache Kafka on a busy machine: the transaction before was still being ended.
    #[test]
    fn a_batch_that_comes_too_early_is_sent_again() {
        let answer = judged(ResponseError::ConcurrentTransactions);
        assert!(matches!(answer, Answer::Again(_)));
        let answer = judged(ResponseError::InvalidProducerEpoch);
        assert!(matches!(answer, Answer::Fatal(_)));
    }
}
