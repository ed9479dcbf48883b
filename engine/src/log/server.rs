//! A broker's connections: requests in, responses out in the same order.
//!
//! Requests of one connection begin in order, so that pipelined appends stay in order; their responses
//! may wait meanwhile, a bounded number of them. Whatever makes no sense closes the connection, and so does a peer
//! that stops in the middle of a request, or does not read its answers. What all of them take together is bounded:
//! see [`super::room`], [`super::door`].

use super::{
    broker::{data, Broker, Later},
    door::{Door, Guest},
    peer::Peer,
    rarely::Rarely,
    room::{Hold, Purse, Stake, SMALL_BYTES},
};
use crate::{
    host::{Connection, Listener},
    wire::{
        self,
        frame::{self, encode_response, garbage, Head, Walked, FRAME_BYTES_MAX},
        oversize::{self, Oversized},
        Api,
    },
};
use bytes::{Buf, Bytes, BytesMut};
use futures::{
    select_biased,
    stream::{AbortRegistration, Abortable},
    FutureExt,
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiKey, ApiVersionsRequest, DescribeConfigsRequest, DescribeGroupsRequest,
        DescribeProducersRequest, DescribeTransactionsRequest, MetadataRequest, OffsetFetchRequest,
        ProduceRequest,
    },
    protocol::Encodable,
};
use std::{collections::BTreeSet, convert::Infallible, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::sleep,
};

/// Requests of one connection that may wait for their response.
const IN_FLIGHT_MAX: usize = 16;

/// So much of a frame is read before memory is asked for: most requests are smaller.
const UNASKED_BYTES: usize = 8 << 10;
/// After that, so much at a time.
const STEP_BYTES: usize = 64 << 10;
/// What an element of a request, and what it is answered, take once they are decoded.
const ELEMENT_BYTES: usize = 512;
/// What a request takes besides.
const REQUEST_BYTES: usize = 1 << 10;

/// Between two looks at everybody. Whoever is late is sent away up to twice so much later: that costs less than a timer
/// for each request.
const LOOK: Duration = Duration::from_secs(1);

/// Warnings about peers.
#[derive(Default)]
struct Warnings {
    refused: Rarely,
    evicted: Rarely,
    turned_away: Rarely,
}

/// Accepts connections until that fails.
pub async fn serve(broker: Arc<Broker>, listener: Box<dyn Listener>) -> io::Error {
    let door = Door::new(broker.config.connections_max);
    let looks = look(&broker, &door).fuse();
    let accepts = accept(broker.clone(), listener, &door).fuse();
    futures::pin_mut!(looks, accepts);
    select_biased! {
        never = looks => match never {},
        error = accepts => error,
    }
}

/// Looks after the guests, for ever.
async fn look(broker: &Broker, door: &Door) -> Infallible {
    loop {
        sleep(LOOK).await;
        door.look();
        broker.rooms.look();
    }
}

async fn accept(broker: Arc<Broker>, listener: Box<dyn Listener>, door: &Arc<Door>) -> io::Error {
    let warnings = Arc::new(Warnings::default());
    loop {
        match listener.accept().await {
            Err(error) => return error,
            Ok((connection, peer)) => {
                let Some((guest, departure)) = door.enter() else {
                    if let Some(unsaid) = warnings.turned_away.say() {
                        let places = broker.config.connections_max;
                        tracing::warn!(name: "peer.turned-away", peer, places, unsaid, "too many connections");
                    }
                    continue;
                };
                let warnings = warnings.clone();
                // Boxed: it is large, and whoever spawns a task moves it around.
                let conversation = entertain(broker.clone(), connection, guest, departure).boxed();
                tokio::spawn(async move {
                    if let Err(error) = conversation.await {
                        warnings.tell(&peer, &error);
                    }
                });
            }
        }
    }
}

impl Warnings {
    fn tell(&self, peer: &str, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::InvalidData => {
                if let Some(unsaid) = self.refused.say() {
                    tracing::warn!(name: "peer.refused", peer, %error, unsaid, "what it sends makes no sense");
                }
            }
            io::ErrorKind::QuotaExceeded => {
                if let Some(unsaid) = self.evicted.say() {
                    tracing::warn!(name: "peer.evicted", peer, unsaid, "others needed what it held");
                }
            }
            io::ErrorKind::TimedOut => {
                tracing::info!(name: "peer.idle", peer, "silent for too long");
            }
            _ => tracing::debug!(peer, %error, "connection closed"),
        }
    }
}

/// The bytes of a response; nothing if the request wants none.
type Response = Later<io::Result<Option<Answer>>>;

struct Answer {
    bytes: Bytes,
    /// What it takes, if that was counted before it was there.
    purse: Option<Purse>,
}

/// Converses with a guest until one of the two has enough, or it has to go.
async fn entertain(
    broker: Arc<Broker>,
    connection: Box<dyn Connection>,
    guest: Guest,
    departure: AbortRegistration,
) -> io::Result<()> {
    let peer = guest.peer();
    let conversation = Abortable::new(converse(broker, connection, peer), departure).await;
    conversation.unwrap_or_else(|_| Err(peer.farewell()))
}

async fn converse(
    broker: Arc<Broker>,
    connection: Box<dyn Connection>,
    peer: &Arc<Peer>,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let (sender, mut receiver) = mpsc::channel::<(Response, Hold)>(IN_FLIGHT_MAX);
    let (idle, patience) = (broker.config.connection_idle, broker.config.request_timeout);
    peer.says_within(Some(idle));
    let read = async {
        while let Some(arrived) = arrive(&broker, &mut reader, peer).await? {
            let begun = match arrived {
                Arrived::Whole(request, arriving) => {
                    begin(&broker, request, arriving, peer).await?
                }
                Arrived::TooLarge(request, arriving) => {
                    refuse(&broker, request, arriving, peer).await
                }
            };
            if sender.send(begun).await.is_err() {
                break;
            }
            peer.is_heard(idle);
        }
        // What was begun is still answered: the peer may have closed only its half.
        drop(sender);
        Ok::<_, io::Error>(())
    };
    let write = async {
        while let Some((response, working)) = receiver.recv().await {
            let Some(answer) = response.await? else {
                continue;
            };
            let mut bytes = answer.bytes;
            // What can be written at once takes no room.
            if let Some(written) = writer.write(&bytes).now_or_never() {
                bytes.advance(written?);
            }
            if bytes.is_empty() {
                continue;
            }
            let mut leaving = answer.purse.unwrap_or_else(|| Purse::of(peer));
            leaving.cover(&broker.rooms.leaving, bytes.len()).await;
            leaving.waits_for_peers();
            drop(working);
            leave(&mut writer, bytes, patience, peer).await?;
            drop(leaving);
        }
        Ok::<_, io::Error>(())
    };
    let (read, write) = (read.fuse(), write.fuse());
    futures::pin_mut!(read, write);
    select_biased! {
        read = read => {
            read?;
            write.await
        }
        written = write => written,
    }
}

/// Refuses what was too large to be read.
async fn refuse(
    broker: &Broker,
    request: Oversized,
    arriving: Hold,
    peer: &Arc<Peer>,
) -> (Response, Hold) {
    let (head, acks) = (request.head, request.acks);
    tracing::info!(name: "peer.too-large", "a request to produce was larger than a frame may be");
    let partitions: usize = request
        .topics
        .iter()
        .map(|(_, indexes)| indexes.len())
        .sum();
    let weight = REQUEST_BYTES + partitions * ELEMENT_BYTES;
    let working = broker.rooms.working.of(weight).take(weight, peer).await;
    drop(arriving);
    let response = match acks {
        0 => futures::future::ready(Ok(None)).boxed(),
        _ => ready(ApiKey::Produce, head, data::too_large(request)),
    };
    (response, working)
}

/// A request, as it has come.
enum Arrived {
    /// All of it, and what it takes.
    Whole(Bytes, Option<Hold>),
    /// It was too large, and is gone; what is left of it takes this.
    TooLarge(Oversized, Hold),
}

/// Reads a request, with what it takes meanwhile. Nothing at the end of the stream.
async fn arrive(
    broker: &Broker,
    reader: &mut (impl AsyncRead + Unpin + Send),
    peer: &Arc<Peer>,
) -> io::Result<Option<Arrived>> {
    let config = &broker.config;
    let Some(bytes) = frame::read_length(reader).await? else {
        peer.says_within(None);
        return Ok(None);
    };
    let patience = config.request_timeout.min(config.connection_idle);
    peer.says_within(Some(patience));
    let arrived = match bytes {
        ..=UNASKED_BYTES => {
            let mut frame = BytesMut::with_capacity(bytes);
            frame::read_until(reader, &mut frame, bytes).await?;
            Arrived::Whole(frame.freeze(), None)
        }
        // Boxed: hardly any request needs the room for it.
        _ => {
            arrive_at_length(broker, reader, bytes, peer)
                .boxed()
                .await?
        }
    };
    peer.says_within(None);
    Ok(Some(arrived))
}

/// Reads a request for which memory is asked.
async fn arrive_at_length(
    broker: &Broker,
    reader: &mut (impl AsyncRead + Unpin + Send),
    bytes: usize,
    peer: &Arc<Peer>,
) -> io::Result<Arrived> {
    if bytes > FRAME_BYTES_MAX {
        let most = oversize::KEPT_BYTES_MAX;
        let hold = broker.rooms.arriving.of(most).take(most, peer).await;
        let gone = frame::read_oversized(reader, bytes).await?;
        hold.stake().waits_for_us();
        return Ok(Arrived::TooLarge(gone, hold));
    }
    let mut frame = BytesMut::with_capacity(UNASKED_BYTES);
    frame::read_until(reader, &mut frame, UNASKED_BYTES).await?;
    let room = broker.rooms.arriving.of(bytes);
    let hold = if bytes > SMALL_BYTES {
        // All of it at once: two halves of large ones would wait for each other.
        let hold = room.take(bytes, peer).await;
        frame.reserve(bytes - frame.len());
        frame::read_until(reader, &mut frame, bytes).await?;
        hold
    } else {
        let mut hold = room.take(UNASKED_BYTES, peer).await;
        while frame.len() < bytes {
            let more = (bytes - frame.len()).min(STEP_BYTES);
            hold.grow(more).await;
            let until = frame.len() + more;
            frame::read_until(reader, &mut frame, until).await?;
        }
        hold
    };
    hold.stake().waits_for_us();
    Ok(Arrived::Whole(frame.freeze(), Some(hold)))
}

/// Writes an answer, as long as somebody reads it.
async fn leave(
    writer: &mut (impl AsyncWrite + Unpin),
    mut bytes: Bytes,
    patience: Duration,
    peer: &Peer,
) -> io::Result<()> {
    while bytes.has_remaining() {
        peer.takes_within(Some(patience));
        match writer.write(&bytes).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes.advance(written),
        }
    }
    peer.takes_within(None);
    Ok(())
}

/// Begins a request, with what it takes until it is answered: what has to happen in order has happened when it returns.
async fn begin(
    broker: &Arc<Broker>,
    request: Bytes,
    arriving: Option<Hold>,
    peer: &Arc<Peer>,
) -> io::Result<(Response, Hold)> {
    let head = frame::peek_head(&request)?;
    let Some(api) = wire::api_of(head.key) else {
        return Err(garbage(format!("request {} is not served", head.key)));
    };
    let bytes = request.len();
    let request = match (api.version_min..=api.version_max).contains(&head.version) {
        true => Some(frame::walk(request, api, head.version)?),
        false => None,
    };
    let elements = request.as_ref().map_or(0, Walked::elements);
    let weight = REQUEST_BYTES + bytes + elements * ELEMENT_BYTES;
    let working = broker.rooms.working.of(weight).take(weight, peer).await;
    drop(arriving);
    let response = match request {
        Some(request) => {
            answered(broker, api, head, request, weight, working.stake(), peer).await?
        }
        None if api.key == ApiKey::ApiVersions => {
            // A client that is newer than we are learns what we know, in the oldest format.
            let answer = broker.api_versions(ResponseError::UnsupportedVersion.code());
            ready(api.key, Head { version: 0, ..head }, answer)
        }
        None => {
            let (key, version) = (api.key, head.version);
            return Err(garbage(format!("{key:?} version {version} is not served")));
        }
    };
    Ok((response, working))
}

/// Answers a request, which weighs so much with what it is answered about each of its elements.
async fn answered(
    broker: &Arc<Broker>,
    api: Api,
    head: Head,
    request: Walked,
    weight: usize,
    working: &Stake,
    peer: &Arc<Peer>,
) -> io::Result<Response> {
    let version = head.version;
    // What may wait, or must not delay what comes after it, is answered later.
    macro_rules! answer {
        (now $request:ident => $answer:expr) => {{
            let $request = request.decode()?;
            ready(api.key, head, $answer)
        }};
        (later $request:ident => $answer:expr) => {{
            let $request = request.decode()?;
            later(api.key, head, $answer)
        }};
        (soon $request:ident, $broker:ident => $answer:expr) => {{
            let $request = request.decode()?;
            let $broker = broker.clone();
            later(api.key, head, async move { $answer.await }.boxed())
        }};
        // What may be far longer than its question is weighed, and has its memory, before it is built.
        (weighed $request:ident, $broker:ident, $bytes:expr => $answer:expr) => {{
            let ($broker, mut purse) = (broker.clone(), Purse::of(peer));
            let counted = async move {
                let bytes = weight + $bytes;
                purse.pay(&$broker.rooms.leaving, bytes).await;
                ($answer.await, purse)
            };
            counted_later(api.key, head, counted.boxed())
        }};
    }
    let response = match api.key {
        ApiKey::ApiVersions => {
            request.decode::<ApiVersionsRequest>()?;
            ready(api.key, head, broker.api_versions(0))
        }
        ApiKey::Produce => {
            let request = request.decode::<ProduceRequest>()?;
            let wants_answer = request.acks != 0;
            let response = broker.produce(request, version).await;
            match wants_answer {
                true => later(api.key, head, response),
                false => async move {
                    response.await;
                    Ok(None)
                }
                .boxed(),
            }
        }
        ApiKey::Fetch => {
            let fetched = broker.fetch(request.decode()?, version, working, peer);
            counted_later(ApiKey::Fetch, head, fetched)
        }
        ApiKey::ListOffsets => answer!(soon asked, broker => broker.list_offsets(asked, version)),
        ApiKey::OffsetForLeaderEpoch => {
            answer!(soon asked, broker => broker.offset_for_leader_epoch(asked))
        }
        ApiKey::DeleteRecords => answer!(soon asked, broker => broker.delete_records(asked)),
        ApiKey::DescribeLogDirs => {
            let asked = request.decode()?;
            answer!(weighed asked, broker, broker.weigh_log_dirs(&asked).await
                => broker.describe_log_dirs(asked))
        }
        ApiKey::Metadata => {
            let mut asked: MetadataRequest = request.decode()?;
            once(asked.topics.iter_mut(), |topic| {
                (topic.topic_id, topic.name.clone())
            });
            answer!(weighed asked, broker, broker.weigh_metadata(&asked).await
                => broker.metadata(asked, version))
        }
        ApiKey::CreateTopics => answer!(soon asked, broker => broker.create_topics(asked)),
        ApiKey::DeleteTopics => answer!(soon asked, broker => broker.delete_topics(asked)),
        ApiKey::CreatePartitions => {
            answer!(soon asked, broker => broker.create_partitions(asked))
        }
        ApiKey::DescribeCluster => answer!(soon asked, broker => broker.describe_cluster(asked)),
        ApiKey::DescribeConfigs => {
            let mut asked: DescribeConfigsRequest = request.decode()?;
            once([&mut asked.resources], |one| {
                (one.resource_type, one.resource_name.clone())
            });
            answer!(weighed asked, broker, broker.weigh_configs(&asked).await
                => broker.describe_configs(asked))
        }
        ApiKey::AlterConfigs => answer!(soon asked, broker => broker.alter_configs(asked)),
        ApiKey::IncrementalAlterConfigs => {
            answer!(soon asked, broker => broker.increment_configs(asked))
        }
        ApiKey::FindCoordinator => answer!(now asked => broker.find_coordinator(asked, version)),
        ApiKey::InitProducerId => answer!(soon asked, broker => broker.init_producer_id(asked)),
        ApiKey::AddPartitionsToTxn => {
            answer!(soon asked, broker => broker.add_partitions(asked, version))
        }
        ApiKey::AddOffsetsToTxn => answer!(soon asked, broker => broker.add_offsets(asked)),
        ApiKey::EndTxn => answer!(soon asked, broker => broker.end_transaction(asked, version)),
        ApiKey::WriteTxnMarkers => answer!(soon asked, broker => broker.write_markers(asked)),
        ApiKey::TxnOffsetCommit => {
            answer!(soon asked, broker => broker.commit_offsets_in_transaction(asked, version))
        }
        ApiKey::JoinGroup => {
            working.waits_for_peers();
            let joined = broker.join_group(request.decode()?, version, request.client(), peer);
            counted_later(api.key, head, joined)
        }
        ApiKey::SyncGroup => {
            working.waits_for_peers();
            answer!(later asked => broker.sync_group(asked))
        }
        ApiKey::Heartbeat => answer!(soon asked, broker => broker.heartbeat(asked)),
        ApiKey::LeaveGroup => answer!(soon asked, broker => broker.leave_group(asked, version)),
        ApiKey::OffsetCommit => answer!(soon asked, broker => broker.commit_offsets(asked)),
        ApiKey::OffsetFetch => {
            let mut asked: OffsetFetchRequest = request.decode()?;
            positions_once(&mut asked);
            answer!(weighed asked, broker, broker.weigh_positions(&asked).await
                => broker.fetch_offsets(asked, version))
        }
        ApiKey::ListGroups => {
            let asked = request.decode()?;
            answer!(weighed asked, broker, broker.weigh_all_groups().await
                => broker.list_groups(asked))
        }
        ApiKey::DescribeGroups => {
            let mut asked: DescribeGroupsRequest = request.decode()?;
            once([&mut asked.groups], Clone::clone);
            answer!(weighed asked, broker, broker.weigh_groups(&asked).await
                => broker.describe_groups(asked))
        }
        ApiKey::OffsetDelete => answer!(soon asked, broker => broker.delete_offsets(asked)),
        ApiKey::DeleteGroups => answer!(soon asked, broker => broker.delete_groups(asked)),
        ApiKey::DescribeTransactions => {
            let mut asked: DescribeTransactionsRequest = request.decode()?;
            once([&mut asked.transactional_ids], Clone::clone);
            answer!(weighed asked, broker, broker.weigh_transactions(&asked).await
                => broker.describe_transactions(asked))
        }
        ApiKey::ListTransactions => {
            let asked = request.decode()?;
            answer!(weighed asked, broker, broker.weigh_all_transactions().await
                => broker.list_transactions(asked))
        }
        ApiKey::DescribeProducers => {
            let mut asked: DescribeProducersRequest = request.decode()?;
            once([&mut asked.topics], |topic| topic.name.clone());
            let indexes = asked.topics.iter_mut();
            once(indexes.map(|topic| &mut topic.partition_indexes), |index| {
                *index
            });
            answer!(weighed asked, broker, broker.weigh_producers(&asked).await
                => broker.describe_producers(asked))
        }
        other => return Err(garbage(format!("{other:?} is not served"))),
    };
    Ok(response)
}

/// Keeps each name of a list once: what is answered may be far longer than the name.
fn once<'a, T: 'a, K: Ord>(
    lists: impl IntoIterator<Item = &'a mut Vec<T>>,
    name: impl Fn(&T) -> K,
) {
    for list in lists {
        let mut named = BTreeSet::new();
        list.retain(|one| named.insert(name(one)));
    }
}

/// Tells each position once: it may carry far more than its number.
fn positions_once(asked: &mut OffsetFetchRequest) {
    let mut named = BTreeSet::new();
    for topic in asked.topics.iter_mut().flatten() {
        let which = |index: &i32| (topic.name.clone(), *index);
        (topic.partition_indexes).retain(|index| named.insert(which(index)));
    }
    once([&mut asked.groups], |group| group.group_id.clone());
    for group in &mut asked.groups {
        let mut named = BTreeSet::new();
        for topic in group.topics.iter_mut().flatten() {
            let which = |index: &i32| (topic.name.clone(), *index);
            (topic.partition_indexes).retain(|index| named.insert(which(index)));
        }
    }
}

fn ready<M: Encodable>(key: ApiKey, head: Head, message: M) -> Response {
    futures::future::ready(answer(key, head, &message)).boxed()
}

fn later<M: Encodable + Send + 'static>(key: ApiKey, head: Head, message: Later<M>) -> Response {
    async move {
        let message = message.await;
        answer(key, head, &message)
    }
    .boxed()
}

/// Like [`later`], of what was counted before it was there.
fn counted_later<M: Encodable + Send + 'static>(
    key: ApiKey,
    head: Head,
    message: Later<(M, Purse)>,
) -> Response {
    async move {
        let (message, purse) = message.await;
        let answer = answer(key, head, &message)?;
        Ok(answer.map(|answer| Answer {
            purse: Some(purse),
            ..answer
        }))
    }
    .boxed()
}

fn answer<M: Encodable>(key: ApiKey, head: Head, message: &M) -> io::Result<Option<Answer>> {
    let bytes = encode_response(key, head.version, head.correlation, message);
    // Our fault, and not the peer's: this version cannot say what is to be said.
    let bytes = bytes.inspect_err(|error| {
        tracing::error!(name: "broker.answer-failed", ?key, version = head.version, %error);
    });
    bytes.map(|bytes| Some(Answer { bytes, purse: None }))
}
