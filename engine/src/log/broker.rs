//! A broker: the partitions that it leads, and its answer to each request.
//!
//! | part | is |
//! |---|---|
//! | [`data`] | produce, fetch |
//! | [`bounds`] | offsets by time and epoch, records that are deleted, sizes |
//! | [`catalog`] | topics, brokers, versions; what topics are configured with |
//! | `deletion` | the end of a topic, at all brokers |
//! | `kept`, `notes`, `producer_ids` | what is kept beside the partitions; what is noted of each of them |
//! | `slots` | the partitions that are open, or being opened |
//! | [`transactions`] | the coordinator of transactional ids: decisions, markers, time-outs |
//! | [`groups`] | the coordinator of groups: members, positions |
//! | `weight` | how much answers take that are longer than their questions |
//!
//! Errors of its disk that leave a file in an unknown state end the broker: whoever runs it starts it
//! again, and it opens its partitions anew.

pub mod bounds;
pub mod catalog;
pub mod data;
mod deletion;
pub mod groups;
mod notes;
mod producer_ids;
mod kept;
mod slots;
pub mod transactions;
mod weight;

pub use self::notes::STOPPED_FILE;
use self::{kept::Kept, notes::Notes, producer_ids::ProducerIds, slots::Slots};
use super::{
    cluster::Cluster,
    configs::Effective,
    connection::{CallError, SharedConnection},
    partition::{self, Expected, Ground, Partition},
    reserve::Reserve,
    room::Rooms,
    server,
    topics::{self, is_internal, Topics, OFFSETS_TOPIC, TRANSACTIONS_TOPIC},
    unpacking::Unpacking,
    LogError, TopicPartition,
};
use crate::{
    host::{Host, Listener},
    ids::{BrokerId, PartitionId},
    part::Part,
    watched::Watched,
};
use futures::{future::BoxFuture, select_biased, FutureExt};
use kafka_protocol::{error::ResponseError, protocol::Request};
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::Future,
    io,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex, Notify},
    time::Instant,
};
use uuid::Uuid;

/// How a broker is set up.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Which of `brokers` this is.
    pub id: BrokerId,
    /// `HOST:PORT` of all brokers of the cluster, in the order of their ids.
    pub brokers: Vec<String>,
    /// A segment that is at least this large is followed by a new one. This and what follows holds for topics that are
    /// not configured otherwise.
    pub segment_bytes: u64,
    /// A batch is not larger, in bytes.
    pub message_bytes_max: usize,
    /// A partition that is larger loses its oldest segments; nothing: none does.
    pub retention_bytes: Option<u64>,
    /// A segment all of whose records are older goes; nothing: none does.
    pub retention: Option<Duration>,
    /// Whether a topic is created when a client first asks for it, and allows that.
    pub auto_create_topics: bool,
    /// Partitions of each of the coordinators' topics. Cannot be changed once there is data.
    pub coordinators: i32,
    /// What is known of a producer, or a transactional id, that was silent for longer is forgotten (KIP-854).
    pub producer_retention: Duration,
    /// So much room is held back for what frees room, should the disk be full.
    pub reserve_bytes: usize,
    /// Partitions whose folders were moved away: what is noted of them is forgotten, and they begin anew.
    pub without: Vec<TopicPartition>,
    /// Transactions may not take longer.
    pub transaction_max_timeout: Duration,
    /// A connection on which no request has come for so long is closed: its peer may be gone without a word.
    pub connection_idle: Duration,
    /// Half a request, and half an answer, are given up after so long without the rest.
    pub request_timeout: Duration,
    /// So many connections at a time: each is an open file.
    pub connections_max: usize,
    /// The memory that requests and answers in flight take together, see [`super::room`].
    pub memory_bytes: usize,
    /// Between two looks for what is overdue: transactions, members, segments.
    pub tick: Duration,
}

impl BrokerConfig {
    /// Broker `id` of `brokers`, with Kafka's defaults.
    pub fn new(id: BrokerId, brokers: Vec<String>) -> Self {
        let defaults = Effective::default();
        BrokerConfig {
            id,
            coordinators: brokers.len() as i32,
            brokers,
            segment_bytes: defaults.segment_bytes,
            message_bytes_max: defaults.message_bytes_max,
            retention_bytes: defaults.retention_bytes,
            retention: defaults.retention,
            auto_create_topics: false,
            producer_retention: Duration::from_secs(7 * 24 * 3600),
            reserve_bytes: 1 << 20,
            without: Vec::new(),
            transaction_max_timeout: Duration::from_secs(15 * 60),
            connection_idle: Duration::from_secs(10 * 60),
            request_timeout: Duration::from_secs(30),
            connections_max: 10_000,
            memory_bytes: 192 << 20,
            tick: Duration::from_millis(250),
        }
    }

    /// What holds for topics that are not configured otherwise.
    pub fn defaults(&self) -> Effective {
        Effective {
            segment_bytes: self.segment_bytes,
            message_bytes_max: self.message_bytes_max,
            log_append_time: false,
            retention_bytes: self.retention_bytes,
            retention: self.retention,
        }
    }
}

/// Why a broker ended.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Its disk failed, or holds damaged data.
    #[error("{0}")]
    Log(Arc<LogError>),
    /// Its port, or a small file of its own.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<LogError> for BrokerError {
    fn from(error: LogError) -> Self {
        BrokerError::Log(Arc::new(error))
    }
}

/// A broker that runs.
pub struct Broker {
    pub(super) config: BrokerConfig,
    host: Host,
    topics: Topics,
    /// Those that are open, or being opened.
    slots: Slots,
    transactions: Mutex<BTreeMap<i32, Arc<transactions::Coordinator>>>,
    groups: Mutex<BTreeMap<i32, Arc<groups::Coordinator>>>,
    producer_ids: Mutex<ProducerIds>,
    notes: Notes,
    ground: Ground,
    reserve: Arc<Reserve>,
    /// All partitions that were used before were opened.
    opened: Watched<bool>,
    /// No partition is opened any more.
    stopped: AtomicBool,
    /// Held by who removes deleted topics.
    deleting: Mutex<()>,
    /// Held by who has partitions do as their topics are configured.
    configuring: Mutex<()>,
    /// A deleted topic is still there somewhere.
    deletion_left: Notify,
    /// Set once, by what makes the broker end.
    fatal: Watched<Option<Arc<LogError>>>,
    peers: Cluster,
    peer_connections: Mutex<BTreeMap<usize, SharedConnection>>,
    started: Instant,
    unpacking: Unpacking,
    pub(super) rooms: Rooms,
}

/// A broker that has its port, and does not answer yet.
pub struct Bound {
    broker: Arc<Broker>,
    listener: Box<dyn Listener>,
}

impl Bound {
    /// Where it listens: `HOST:PORT`.
    pub fn address(&self) -> &str {
        let config = &self.broker.config;
        &config.brokers[config.id.0 as usize]
    }

    /// See [`Broker::run`].
    pub async fn run(self) -> Result<(), BrokerError> {
        self.run_until(std::future::pending()).await
    }

    /// Runs until `stop` is done, or like [`Broker::run`]. When it returns `Ok`, everything that was appended is durable,
    /// and noted: the next start knows what must be there.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), BrokerError> {
        let Bound { broker, listener } = self;
        let ended = {
            // Each is a task of its own: together they would all be asked whenever one of them goes on.
            let _parts = broker.clone().begin_parts();
            let serve = server::serve(broker.clone(), listener);
            let stop = stop.fuse();
            futures::pin_mut!(stop);
            select_biased! {
                error = broker.fatal.wait_for(Option::is_some).fuse() => {
                    BrokerError::Log(error.expect("is some"))
                }
                error = serve.fuse() => error.into(),
                () = stop => return Ok(broker.stop().await?),
            }
        };
        tracing::error!(name: "broker.failed", error = %ended);
        Err(ended)
    }
}

/// An answer that may still have to wait, for a sync or for records.
pub type Later<T> = BoxFuture<'static, T>;

impl Broker {
    /// Runs a broker until its disk fails. Damage of a partition shows when it is opened, which all are soon
    /// after the start.
    pub async fn run(host: Host, config: BrokerConfig) -> Result<(), BrokerError> {
        Broker::bind(host, config).await?.run().await
    }

    /// Takes the port, and reads the small files. Port 0 takes a free one, if there is one broker only.
    pub async fn bind(host: Host, mut config: BrokerConfig) -> Result<Bound, BrokerError> {
        let own = &mut config.brokers[config.id.0 as usize];
        let listener = host.net.listen(own).await?;
        if let Some(host) = own.strip_suffix(":0") {
            *own = format!("{host}:{}", listener.port());
        }
        let reserve = Reserve::new(host.disk.clone(), config.reserve_bytes);
        let Kept {
            topics,
            producer_ids,
            notes,
        } = Kept::open(&host.disk, &reserve).await?;
        notes.forget(&*host.disk, &config.without).await?;
        reserve.fill().await;
        if config.id.0 == 0 {
            let from = format!("{}/{}", host.instance, host.clock.now_ms());
            let name = topics::random_looking(&from).simple().to_string();
            topics.name_cluster(&name).await?;
        }
        let ground = Ground::new(&host, reserve.clone());
        let peers = Cluster::new(host.clone(), config.brokers.clone());
        let rooms = Rooms::new(config.memory_bytes);
        let broker = Arc::new(Broker {
            config,
            host,
            topics,
            slots: Slots::default(),
            transactions: Mutex::default(),
            groups: Mutex::default(),
            producer_ids: Mutex::new(producer_ids),
            notes,
            ground,
            reserve,
            opened: Watched::new(false),
            stopped: AtomicBool::new(false),
            deleting: Mutex::default(),
            configuring: Mutex::default(),
            deletion_left: Notify::new(),
            fatal: Watched::new(None),
            peers,
            peer_connections: Mutex::default(),
            started: Instant::now(),
            unpacking: Unpacking::new(),
            rooms,
        });
        Ok(Bound { broker, listener })
    }

    /// Ends the partitions, and notes durably where: nothing is appended from here on.
    async fn stop(&self) -> Result<(), LogError> {
        let _deleting = self.deleting.lock().await;
        self.stopped.store(true, Ordering::Relaxed);
        let mut ended = Vec::new();
        for (of, _, partition) in self.slots.open().await {
            if let Some(note) = partition.stop().await? {
                ended.push((of, note));
            }
        }
        self.notes.write_stopped(&*self.host.disk, ended).await
    }

    /// What a broker does without being asked.
    fn begin_parts(self: Arc<Self>) -> [Part; 3] {
        let (house, deleting, refreshed) = (self.clone(), self.clone(), self);
        [
            async move { house.fail(house.clone().keep_house().await) }.boxed(),
            async move { deleting.fail(deleting.clone().keep_deleting().await) }.boxed(),
            async move { match refreshed.keep_refreshed().await {} }.boxed(),
        ]
        .map(|part| Part(tokio::spawn(part)))
    }

    /// Goes on with what a crash has interrupted, then looks for what is overdue, for ever.
    async fn keep_house(self: Arc<Self>) -> LogError {
        if let Err(error) = self.resume().await {
            return error;
        }
        if let Err(error) = self.open_all().await {
            return error;
        }
        self.opened.update(|opened| *opened = true);
        let (mut retained, mut filled) = (Instant::now(), Instant::now());
        loop {
            tokio::time::sleep(self.config.tick).await;
            self.end_overdue_transactions().await;
            self.expire_members().await;
            if retained.elapsed() >= self.config.tick * 4 {
                self.retain().await;
                self.note_partitions().await;
                if self.reserve.is_gone().await || filled.elapsed() >= RESERVE_PAUSE {
                    self.reserve.fill().await;
                    filled = Instant::now();
                }
                retained = Instant::now();
            }
        }
    }

    /// Asks the first broker what has changed, for ever. It may not answer for a while: nothing else waits for that.
    async fn keep_refreshed(self: Arc<Self>) -> Infallible {
        loop {
            tokio::time::sleep(self.config.tick * 20).await;
            self.refresh().await;
        }
    }

    /// Opens the coordinators that this broker has been before: what they had decided is to be finished.
    async fn resume(self: &Arc<Self>) -> Result<(), LogError> {
        for topic in [OFFSETS_TOPIC, TRANSACTIONS_TOPIC] {
            for index in self.coordinated(topic) {
                let of = TopicPartition::new(topic, PartitionId(index));
                let folder = folder_of(&of);
                let files = self.host.disk.list(&folder).await;
                let is_new = files.map_err(LogError::io(&folder))?.is_empty();
                if is_new && self.notes.expected(&of) == Expected::Nothing {
                    continue;
                }
                // An error of theirs has ended the broker.
                let _ = match topic {
                    OFFSETS_TOPIC => self.group_coordinator(index).await.map(drop),
                    _ => self.transaction_coordinator(index).await.map(drop),
                };
            }
        }
        Ok(())
    }

    /// Opens all partitions that are led here and were used: damage shows now, not when somebody asks for them.
    async fn open_all(self: &Arc<Self>) -> Result<(), LogError> {
        for (topic, known) in self.topics.all().await {
            let folder = format!("{LOG_FOLDER}/{topic}");
            let used = self.host.disk.folders(&folder).await;
            let used: BTreeSet<String> =
                (used.map_err(LogError::io(&folder))?.into_iter()).collect();
            for index in 0..known.partitions {
                let of = TopicPartition::new(&topic, PartitionId(index));
                if !self.is_here(&of) {
                    continue;
                }
                let is_used = used.contains(&index.to_string());
                if is_used || self.notes.expected(&of) != Expected::Nothing {
                    // An error has ended the broker.
                    let _ = self.partition(&of).await;
                }
            }
        }
        Ok(())
    }

    async fn retain(self: &Arc<Self>) {
        let mut open = self.slots.open().await;
        open.retain(|(key, ..)| !is_internal(&key.topic));
        let now = self.host.clock.now_ms();
        let silent_since = now.saturating_sub(self.config.producer_retention.as_millis() as i64);
        for (key, _, partition) in open {
            let retained = to_its_end(async move { partition.retain(now, silent_since).await });
            match retained.await {
                Ok(()) => {}
                Err(partition::AppendError::Log(error)) => self.fail(error),
                // It is tried again; the reserve has said that the disk is full.
                Err(error) => tracing::info!(name: "broker.retention-waits", %key, %error),
            }
        }
    }

    fn fail(&self, error: LogError) {
        self.fatal.update(|fatal| {
            fatal.get_or_insert_with(|| Arc::new(error));
        });
    }

    /// Milliseconds since this broker began: what members' silence is measured with.
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn leader_of(&self, of: &TopicPartition) -> usize {
        topics::leader(&of.topic, of.partition, self.config.brokers.len())
    }

    /// The partitions of a coordinators' topic that are led here.
    fn coordinated(&self, topic: &str) -> Vec<i32> {
        let here = |index: &i32| self.is_here(&TopicPartition::new(topic, PartitionId(*index)));
        (0..self.config.coordinators).filter(here).collect()
    }

    fn is_here(&self, of: &TopicPartition) -> bool {
        self.leader_of(of) == self.config.id.0 as usize
    }

    /// The partition, opened if need be; an error code if it is not led here.
    async fn partition(
        self: &Arc<Self>,
        of: &TopicPartition,
    ) -> Result<Arc<Partition>, ResponseError> {
        self.partition_of(of, None).await
    }

    /// Like [`Broker::partition`], if its topic has this id; `UnknownTopicId` if another one has its name by now.
    async fn partition_of(
        self: &Arc<Self>,
        of: &TopicPartition,
        id: Option<Uuid>,
    ) -> Result<Arc<Partition>, ResponseError> {
        let mut count = self.partition_count(&of.topic).await?;
        if of.partition.0 >= count && self.config.id.0 != 0 && !is_internal(&of.topic) {
            // There may be more of them by now.
            count = self.learn(of.topic.as_str().into()).await?.1.partitions;
        }
        if !(0..count).contains(&of.partition.0) {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        if !self.is_here(of) {
            return Err(ResponseError::NotLeaderOrFollower);
        }
        let (open_id, open) = match self.slots.get(of).await {
            Some(known) => known,
            None => to_its_end(self.clone().open_partition(of.clone())).await?,
        };
        match id.is_none_or(|id| id == open_id) {
            true => Ok(open),
            false => Err(ResponseError::UnknownTopicId),
        }
    }

    /// Asks another broker.
    async fn ask<R: Request>(
        &self,
        broker: usize,
        request: &R,
        version: i16,
    ) -> Result<R::Response, CallError> {
        let known = self.peer_connections.lock().await.get(&broker).cloned();
        let connection = match known.filter(|known| !known.is_closed()) {
            Some(known) => known,
            None => {
                let connection = self.peers.connect(&self.config.brokers[broker]).await?;
                let mut all = self.peer_connections.lock().await;
                all.insert(broker, connection.clone());
                connection
            }
        };
        let answer = connection.call_at(request, version).await;
        if answer.is_err() {
            self.peer_connections.lock().await.remove(&broker);
        }
        answer
    }
}

/// Between two looks whether the reserve is there.
const RESERVE_PAUSE: Duration = Duration::from_secs(60);

/// A folder for each topic, with one for each partition that was used.
const LOG_FOLDER: &str = "log";

fn folder_of(of: &TopicPartition) -> String {
    format!("{LOG_FOLDER}/{}/{}", of.topic, of.partition)
}

/// Does something to the disk that must not stop in the middle, even if the connection that asked for it
/// goes away: a write that nobody waits for any more could still run when the next one begins.
pub(super) async fn to_its_end<T: Send + 'static>(
    work: impl std::future::Future<Output = T> + Send + 'static,
) -> T {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => panic!("a request panicked"),
        // The runtime is shutting down.
        Err(_) => std::future::pending().await,
    }
}
