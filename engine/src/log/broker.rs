//! A broker: the partitions that it leads, and its answer to each request.
//!
//! Errors of its disk that leave a file in an unknown state end the broker: whoever runs it starts it
//! again, and it opens its partitions anew.

use super::{
    cluster::Cluster,
    partition::{AppendError, Partition},
    server,
    topics::{self, Created, Topics},
    LogError, TopicPartition,
};
use crate::{
    host::{self, Host},
    ids::{BrokerId, Offset, PartitionId},
    watched::Watched,
    wire,
};
use bytes::Bytes;
use futures::{future::BoxFuture, select_biased, FutureExt};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        api_versions_response::ApiVersion,
        create_topics_response::CreatableTopicResult,
        fetch_response::{FetchableTopicResponse, PartitionData},
        list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
        metadata_response::{
            MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
        },
        produce_response::{PartitionProduceResponse, TopicProduceResponse},
        ApiVersionsResponse, CreateTopicsRequest, CreateTopicsResponse, FetchRequest,
        FetchResponse, InitProducerIdRequest, InitProducerIdResponse, ListOffsetsRequest,
        ListOffsetsResponse, MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse,
        ProducerId, TopicName,
    },
    protocol::StrBytes,
};
use std::{collections::BTreeMap, io, sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// How a broker is set up.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Which of `brokers` this is.
    pub id: BrokerId,
    /// `HOST:PORT` of all brokers of the cluster, in the order of their ids.
    pub brokers: Vec<String>,
    /// A segment that is at least this large is followed by a new one.
    pub segment_bytes: u64,
}

/// Why a broker ended.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Its disk failed, or holds damaged data.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its port, or a small file of its own.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A broker that runs.
pub struct Broker {
    config: BrokerConfig,
    host: Host,
    topics: Topics,
    partitions: Mutex<BTreeMap<TopicPartition, Arc<Partition>>>,
    producer_ids: Mutex<ProducerIds>,
    /// Set once, by what makes the broker end.
    fatal: Watched<Option<Arc<LogError>>>,
    peers: Cluster,
}

/// Producer ids are given out from blocks; a block is reserved durably before the first of it is used.
#[derive(Default)]
struct ProducerIds {
    next: i64,
    reserved: i64,
}

const PRODUCER_IDS_FILE: &str = "producer-ids";
const PRODUCER_IDS_PER_BLOCK: i64 = 1000;
/// Ids of different brokers differ in their upper bits.
const BROKER_SHIFT: u32 = 40;

/// An answer that may still have to wait, for a sync or for records.
pub type Later<T> = BoxFuture<'static, T>;

impl Broker {
    /// Runs a broker until its disk fails or its port is taken. Damage of a partition shows when it
    /// is opened, on its first request.
    pub async fn run(host: Host, config: BrokerConfig) -> Result<(), BrokerError> {
        let topics = Topics::open(host.disk.clone()).await?;
        let mut ids = ProducerIds::default();
        if let Some(bytes) = host::read_file(&*host.disk, PRODUCER_IDS_FILE).await? {
            let text = String::from_utf8_lossy(&bytes);
            let wrong = |_| {
                let text = format!("{PRODUCER_IDS_FILE}: `{text}` is not a number");
                io::Error::new(io::ErrorKind::InvalidData, text)
            };
            ids.reserved = text.trim().parse().map_err(wrong)?;
            ids.next = ids.reserved;
        }
        let listener = host
            .net
            .listen(&config.brokers[config.id.0 as usize])
            .await?;
        let peers = Cluster::new(host.clone(), config.brokers.clone());
        let broker = Arc::new(Broker {
            config,
            host,
            topics,
            partitions: Mutex::default(),
            producer_ids: Mutex::new(ids),
            fatal: Watched::new(None),
            peers,
        });
        let serve = server::serve(broker.clone(), listener);
        let ended = select_biased! {
            error = broker.fatal.wait_for(Option::is_some).fuse() => {
                BrokerError::Log(LogError::Io {
                    path: "log".into(),
                    source: io::Error::other(error.expect("is some").to_string()),
                })
            }
            error = serve.fuse() => error.into(),
        };
        tracing::error!(name: "broker.failed", error = %ended);
        Err(ended)
    }

    fn fail(&self, error: LogError) {
        self.fatal.update(|fatal| {
            fatal.get_or_insert_with(|| Arc::new(error));
        });
    }

    /// The partition, opened if need be; an error code if it is not led here.
    async fn partition(
        self: &Arc<Self>,
        topic: &str,
        partition: PartitionId,
    ) -> Result<Arc<Partition>, ResponseError> {
        let count = self.partition_count(topic).await?;
        if !(0..count).contains(&partition.0) {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        let leader = topics::leader(topic, partition, self.config.brokers.len());
        if leader != self.config.id.0 as usize {
            return Err(ResponseError::NotLeaderOrFollower);
        }
        let key = TopicPartition::new(topic, partition);
        if let Some(open) = self.partitions.lock().await.get(&key) {
            return Ok(open.clone());
        }
        to_its_end(self.clone().open_partition(key)).await
    }

    async fn open_partition(
        self: Arc<Self>,
        key: TopicPartition,
    ) -> Result<Arc<Partition>, ResponseError> {
        let mut partitions = self.partitions.lock().await;
        if let Some(open) = partitions.get(&key) {
            return Ok(open.clone());
        }
        let folder = format!("log/{}/{}", key.topic, key.partition);
        let disk = self.host.disk.clone();
        let opened = match Partition::open(disk, folder, self.config.segment_bytes).await {
            Ok(opened) => Arc::new(opened),
            Err(error) => {
                self.fail(error);
                return Err(ResponseError::KafkaStorageError);
            }
        };
        let (broker, syncing) = (self.clone(), opened.clone());
        tokio::spawn(async move {
            let error = syncing.keep_synced().await;
            broker.fail(error);
        });
        partitions.insert(key, opened.clone());
        Ok(opened)
    }

    /// How many partitions a topic has: known here, or asked of the first broker.
    async fn partition_count(self: &Arc<Self>, topic: &str) -> Result<i32, ResponseError> {
        if let Some(count) = self.topics.partitions(topic).await {
            return Ok(count);
        }
        if self.config.id.0 == 0 {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        let asked = self
            .peers
            .partitions_of(&self.config.brokers[0], topic)
            .await;
        match asked.map_err(|_| ResponseError::LeaderNotAvailable)? {
            None => Err(ResponseError::UnknownTopicOrPartition),
            Some(count) => {
                let added = self.add_topic(topic, count).await;
                added
                    .map(|_| count)
                    .map_err(|_| ResponseError::KafkaStorageError)
            }
        }
    }

    async fn add_topic(self: &Arc<Self>, topic: &str, count: i32) -> io::Result<Created> {
        let (broker, topic) = (self.clone(), topic.to_owned());
        to_its_end(async move { broker.topics.add(&topic, count).await }).await
    }

    /// What this broker can do.
    pub fn api_versions(&self, error_code: i16) -> ApiVersionsResponse {
        let keys = wire::APIS.iter().map(|api| {
            ApiVersion::default()
                .with_api_key(api.key as i16)
                .with_min_version(api.version_min)
                .with_max_version(api.version_max)
        });
        ApiVersionsResponse::default()
            .with_error_code(error_code)
            .with_api_keys(keys.collect())
    }

    /// Who leads what.
    pub async fn metadata(self: &Arc<Self>, request: MetadataRequest) -> MetadataResponse {
        let brokers = self.config.brokers.iter().enumerate().map(|(id, address)| {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
            MetadataResponseBroker::default()
                .with_node_id((id as i32).into())
                .with_host(StrBytes::from_string(host.to_owned()))
                .with_port(port.parse().unwrap_or(0))
        });
        let names: Vec<String> = match &request.topics {
            None => self
                .topics
                .all()
                .await
                .into_iter()
                .map(|(name, _)| name)
                .collect(),
            Some(topics) => {
                let names = topics.iter().filter_map(|topic| topic.name.as_ref());
                names.map(|name| name.to_string()).collect()
            }
        };
        let mut topics = Vec::new();
        for name in names {
            let answer = MetadataResponseTopic::default()
                .with_name(Some(TopicName(StrBytes::from_string(name.clone()))));
            topics.push(match self.partition_count(&name).await {
                Err(error) => answer.with_error_code(error.code()),
                Ok(count) => {
                    let partitions = (0..count).map(|index| self.partition_metadata(&name, index));
                    answer.with_partitions(partitions.collect())
                }
            });
        }
        MetadataResponse::default()
            .with_brokers(brokers.collect())
            .with_controller_id(0.into())
            .with_cluster_id(Some(StrBytes::from_static_str("seedbed")))
            .with_topics(topics)
    }

    fn partition_metadata(&self, topic: &str, index: i32) -> MetadataResponsePartition {
        let brokers = self.config.brokers.len();
        let leader = topics::leader(topic, PartitionId(index), brokers) as i32;
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(leader.into())
            .with_leader_epoch(0)
            .with_replica_nodes(vec![leader.into()])
            .with_isr_nodes(vec![leader.into()])
    }

    /// Creates topics: the first broker decides, the others pass the request on.
    pub async fn create_topics(
        self: &Arc<Self>,
        request: CreateTopicsRequest,
    ) -> CreateTopicsResponse {
        let mut results = Vec::new();
        for topic in request.topics {
            let name = topic.name.to_string();
            let partitions = if topic.num_partitions == -1 {
                1
            } else {
                topic.num_partitions
            };
            let error = self
                .create_topic(&name, partitions, request.validate_only)
                .await;
            results.push(
                CreatableTopicResult::default()
                    .with_name(topic.name)
                    .with_error_code(error.map_or(0, |error| error.code()))
                    .with_num_partitions(partitions)
                    .with_replication_factor(1),
            );
        }
        CreateTopicsResponse::default().with_topics(results)
    }

    async fn create_topic(
        self: &Arc<Self>,
        name: &str,
        count: i32,
        dry: bool,
    ) -> Option<ResponseError> {
        if !topics::is_legal_name(name) {
            return Some(ResponseError::InvalidTopicException);
        }
        if !(1..=10_000).contains(&count) {
            return Some(ResponseError::InvalidPartitions);
        }
        if self.config.id.0 != 0 {
            let asked = self
                .peers
                .create_topic_at(&self.config.brokers[0], name, count)
                .await;
            return match asked {
                Ok(code) => ResponseError::try_from_code(code),
                Err(_) => Some(ResponseError::RequestTimedOut),
            };
        }
        if dry {
            let there = self.topics.partitions(name).await;
            return there.map(|_| ResponseError::TopicAlreadyExists);
        }
        match self.add_topic(name, count).await {
            Ok(Created::New) => None,
            Ok(Created::Exists(_)) => Some(ResponseError::TopicAlreadyExists),
            Err(_) => Some(ResponseError::KafkaStorageError),
        }
    }

    /// An id that no producer has or had. Transactional ids are not served.
    pub async fn init_producer_id(
        self: &Arc<Self>,
        request: InitProducerIdRequest,
    ) -> InitProducerIdResponse {
        let answer = InitProducerIdResponse::default();
        let refused = |error: ResponseError| {
            let answer = InitProducerIdResponse::default().with_error_code(error.code());
            answer.with_producer_id(ProducerId(-1))
        };
        if request.transactional_id.is_some() {
            return refused(ResponseError::InvalidRequest);
        }
        match to_its_end(self.clone().next_producer_id()).await {
            Ok(id) => answer
                .with_producer_id(ProducerId(id))
                .with_producer_epoch(0),
            Err(_) => refused(ResponseError::CoordinatorNotAvailable),
        }
    }

    async fn next_producer_id(self: Arc<Self>) -> io::Result<i64> {
        let mut ids = self.producer_ids.lock().await;
        if ids.next == ids.reserved {
            // After an error the block may have been reserved; it is then reserved again.
            let reserved = ids.reserved + PRODUCER_IDS_PER_BLOCK;
            let text = reserved.to_string();
            host::replace_file(&*self.host.disk, PRODUCER_IDS_FILE, text.as_bytes()).await?;
            ids.reserved = reserved;
        }
        let id = i64::from(self.config.id.0) << BROKER_SHIFT | ids.next;
        ids.next += 1;
        Ok(id)
    }

    /// Appends, in the order in which it is called; the answer waits for the sync.
    pub async fn produce(self: &Arc<Self>, request: ProduceRequest) -> Later<ProduceResponse> {
        let mut waiting = Vec::new();
        for topic in request.topic_data {
            let mut partitions = Vec::new();
            for data in topic.partition_data {
                let index = PartitionId(data.index);
                let records = data.records.unwrap_or_default();
                let appended = self.append(&topic.name, index, request.acks, records).await;
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
                        .with_log_append_time_ms(-1);
                    answers.push(match durable(appended).await {
                        Ok(base) => answer.with_base_offset(base.map_or(-1, |base| base.0)),
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

    async fn append(
        self: &Arc<Self>,
        topic: &str,
        index: PartitionId,
        acks: i16,
        records: Bytes,
    ) -> Result<(Arc<Partition>, super::partition::Appended), ResponseError> {
        if !matches!(acks, -1..=1) {
            return Err(ResponseError::InvalidRequiredAcks);
        }
        let partition = self.partition(topic, index).await?;
        let appending = partition.clone();
        match to_its_end(async move { appending.append(&records).await }).await {
            Ok(appended) => Ok((partition, appended)),
            Err(AppendError::Batch(_)) => Err(ResponseError::CorruptMessage),
            Err(AppendError::OutOfOrder) => Err(ResponseError::OutOfOrderSequenceNumber),
            Err(AppendError::Fenced) => Err(ResponseError::InvalidProducerEpoch),
            Err(AppendError::NotStored(_)) => Err(ResponseError::KafkaStorageError),
            Err(AppendError::Log(error)) => {
                self.fail(error);
                Err(ResponseError::KafkaStorageError)
            }
        }
    }

    /// Reads, waiting for at least a byte if nothing is there yet.
    pub fn fetch(self: &Arc<Self>, request: FetchRequest) -> Later<FetchResponse> {
        let broker = self.clone();
        async move {
            let response = FetchResponse::default();
            if request.session_id != 0 {
                let code = ResponseError::FetchSessionIdNotFound.code();
                return response.with_error_code(code);
            }
            let (topics, bytes) = broker.fetch_once(&request).await;
            if bytes > 0 || request.min_bytes <= 0 || has_error(&topics) {
                return response.with_responses(topics);
            }
            let wait = Duration::from_millis(request.max_wait_ms.clamp(0, 60_000) as u64);
            select_biased! {
                () = broker.wait_readable(&request).fuse() => {}
                () = tokio::time::sleep(wait).fuse() => {}
            }
            let (topics, _) = broker.fetch_once(&request).await;
            response.with_responses(topics)
        }
        .boxed()
    }

    async fn fetch_once(
        self: &Arc<Self>,
        request: &FetchRequest,
    ) -> (Vec<FetchableTopicResponse>, usize) {
        let (mut topics, mut total) = (Vec::new(), 0);
        for topic in &request.topics {
            let mut answers = Vec::new();
            for wanted in &topic.partitions {
                let left = (request.max_bytes.max(0) as usize).saturating_sub(total);
                let bytes_max = left.min(wanted.partition_max_bytes.max(0) as usize);
                let index = PartitionId(wanted.partition);
                let offset = Offset(wanted.fetch_offset);
                let read = self.read(&topic.topic, index, offset, bytes_max).await;
                let answer = PartitionData::default().with_partition_index(wanted.partition);
                answers.push(match read {
                    Ok((records, end)) => {
                        total += records.len();
                        answer
                            .with_high_watermark(end.0)
                            .with_last_stable_offset(end.0)
                            .with_log_start_offset(0)
                            .with_aborted_transactions(None)
                            .with_preferred_read_replica((-1).into())
                            .with_records(Some(records))
                    }
                    Err(error) => answer
                        .with_error_code(error.code())
                        .with_high_watermark(-1)
                        .with_preferred_read_replica((-1).into())
                        .with_records(Some(Bytes::new())),
                });
            }
            let response = FetchableTopicResponse::default().with_topic(topic.topic.clone());
            topics.push(response.with_partitions(answers));
        }
        (topics, total)
    }

    async fn read(
        self: &Arc<Self>,
        topic: &str,
        index: PartitionId,
        offset: Offset,
        bytes_max: usize,
    ) -> Result<(Bytes, Offset), ResponseError> {
        let partition = self.partition(topic, index).await?;
        let end = partition.high_watermark();
        if offset.0 < 0 || offset > end {
            return Err(ResponseError::OffsetOutOfRange);
        }
        match partition.read(offset, bytes_max).await {
            Ok(records) => Ok((records, end)),
            Err(error @ LogError::Damaged { .. }) => {
                self.fail(error);
                Err(ResponseError::KafkaStorageError)
            }
            Err(LogError::Io { .. }) => Err(ResponseError::KafkaStorageError),
        }
    }

    async fn wait_readable(self: &Arc<Self>, request: &FetchRequest) {
        let mut waits = Vec::new();
        for topic in &request.topics {
            for wanted in &topic.partitions {
                let index = PartitionId(wanted.partition);
                if let Ok(partition) = self.partition(&topic.topic, index).await {
                    let offset = Offset(wanted.fetch_offset);
                    waits.push(async move { partition.wait_readable(offset).await }.boxed());
                }
            }
        }
        if waits.is_empty() {
            return;
        }
        futures::future::select_all(waits).await;
    }

    /// The first (timestamp -2) or the next (-1) offset; no other timestamp is served.
    pub async fn list_offsets(
        self: &Arc<Self>,
        request: ListOffsetsRequest,
    ) -> ListOffsetsResponse {
        let mut topics = Vec::new();
        for topic in request.topics {
            let mut answers = Vec::new();
            for wanted in topic.partitions {
                let index = PartitionId(wanted.partition_index);
                let offset = match (self.partition(&topic.name, index).await, wanted.timestamp) {
                    (Err(error), _) => Err(error),
                    (Ok(_), -2) => Ok(0),
                    (Ok(partition), -1) => Ok(partition.high_watermark().0),
                    (Ok(_), _) => Err(ResponseError::UnsupportedForMessageFormat),
                };
                let answer = ListOffsetsPartitionResponse::default()
                    .with_partition_index(wanted.partition_index)
                    .with_timestamp(-1);
                answers.push(match offset {
                    Ok(offset) => answer.with_offset(offset).with_leader_epoch(0),
                    Err(error) => answer.with_error_code(error.code()).with_offset(-1),
                });
            }
            let response = ListOffsetsTopicResponse::default().with_name(topic.name);
            topics.push(response.with_partitions(answers));
        }
        ListOffsetsResponse::default().with_topics(topics)
    }
}

/// Does something to the disk that must not stop in the middle, even if the connection that asked for it
/// goes away: a write that nobody waits for any more could still run when the next one begins.
async fn to_its_end<T: Send + 'static>(
    work: impl std::future::Future<Output = T> + Send + 'static,
) -> T {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => panic!("a request panicked"),
        // The runtime is shutting down.
        Err(_) => std::future::pending().await,
    }
}

/// Waits until what was appended, now or earlier, is durable: a duplicate is not acknowledged earlier
/// than the batch that it repeats.
async fn durable(
    appended: Result<(Arc<Partition>, super::partition::Appended), ResponseError>,
) -> Result<Option<Offset>, ResponseError> {
    let (partition, appended) = appended?;
    match partition.wait_synced(appended.end_offset).await {
        Ok(()) => Ok(appended.base_offset),
        Err(_) => Err(ResponseError::KafkaStorageError),
    }
}

fn has_error(topics: &[FetchableTopicResponse]) -> bool {
    let mut partitions = topics.iter().flat_map(|topic| &topic.partitions);
    partitions.any(|partition| partition.error_code != 0)
}
