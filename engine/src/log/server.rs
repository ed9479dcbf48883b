//! A broker's connections: requests in, responses out in the same order.
//!
//! Requests of one connection begin in order, so that pipelined appends stay in order; their responses
//! may wait meanwhile, a bounded number of them. Whatever makes no sense closes the connection, and so does a peer
//! that stops in the middle of a request, or does not read its answers. What all of them take together is bounded:
//! see [`super::room`], [`super::door`].

use super::{
    broker::{data, Broker, Later},
    door::{Door, Guest},
    rarely::Rarely,
    room::{Hold, Peer, Purse, SMALL_BYTES},
};
use crate::{
    host::{Connection, Listener},
    wire::{
        self,
        frame::{self, decode_request, encode_response, garbage, Head, FRAME_BYTES_MAX},
        oversize::Oversized,
    },
};
use bytes::{Buf, Bytes, BytesMut};
use futures::{select_biased, FutureExt};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiKey, ApiVersionsRequest, DescribeConfigsRequest, DescribeGroupsRequest,
        DescribeProducersRequest, DescribeTransactionsRequest, MetadataRequest, OffsetFetchRequest,
        ProduceRequest,
    },
    protocol::Encodable,
};
use std::{collections::BTreeSet, future::Future, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
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

/// Warnings about peers.
#[derive(Default)]
struct Warnings {
    refused: Rarely,
    evicted: Rarely,
    turned_away: Rarely,
}

/// Accepts connections until that fails.
pub async fn serve(broker: Arc<Broker>, listener: Box<dyn Listener>) -> io::Error {
    let (door, warnings) = (
        Door::new(broker.config.connections_max),
        Arc::new(Warnings::default()),
    );
    loop {
        match listener.accept().await {
            Err(error) => return error,
            Ok((connection, peer)) => {
                let Some(guest) = door.enter() else {
                    if let Some(unsaid) = warnings.turned_away.say() {
                        let places = broker.config.connections_max;
                        tracing::warn!(name: "peer.turned-away", peer, places, unsaid, "too many connections");
                    }
                    continue;
                };
                let warnings = warnings.clone();
                // Boxed: it is large, and whoever spawns a task moves it around.
                let conversation = converse(broker.clone(), connection, guest).boxed();
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

async fn converse(
    broker: Arc<Broker>,
    connection: Box<dyn Connection>,
    guest: Guest,
) -> io::Result<()> {
    let peer = guest.peer().clone();
    let (mut reader, mut writer) = tokio::io::split(connection);
    let (sender, mut receiver) = mpsc::channel::<(Response, Hold)>(IN_FLIGHT_MAX);
    let read = async {
        while let Some(arrived) = arrive(&broker, &mut reader, &peer).await? {
            let (response, working) = match arrived {
                Arrived::Whole(request, arriving) => {
                    let elements = frame::elements_of(&request)?;
                    let weight = REQUEST_BYTES + request.len() + elements * ELEMENT_BYTES;
                    let working = broker.rooms.working.of(weight).take(weight, &peer).await;
                    drop(arriving);
                    (begin(&broker, request, &peer, weight).await?, working)
                }
                Arrived::TooLarge(request) => {
                    let room = broker.rooms.working.of(REQUEST_BYTES);
                    (refuse(request), room.take(REQUEST_BYTES, &peer).await)
                }
            };
            guest.heard();
            if sender.send((response, working)).await.is_err() {
                break;
            }
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
            let leaving = match answer.purse {
                Some(purse) => Leaving::Counted(purse),
                None => {
                    let room = broker.rooms.leaving.of(answer.bytes.len());
                    Leaving::Held(room.take(answer.bytes.len(), &peer).await)
                }
            };
            drop(working);
            leave(&mut writer, answer.bytes, broker.config.request_timeout).await?;
            drop(leaving);
        }
        Ok::<_, io::Error>(())
    };
    let (read, write, evicted) = (read.fuse(), write.fuse(), peer.evicted().fuse());
    futures::pin_mut!(read, write, evicted);
    loop {
        select_biased! {
            () = evicted => return Err(io::ErrorKind::QuotaExceeded.into()),
            read = read => read?,
            written = write => return written,
        }
    }
}

/// Refuses what was too large to be read.
fn refuse(request: Oversized) -> Response {
    let (head, acks) = (request.head, request.acks);
    tracing::info!(name: "peer.too-large", "a request to produce was larger than a frame may be");
    match acks {
        0 => futures::future::ready(Ok(None)).boxed(),
        _ => ready(ApiKey::Produce, head, data::too_large(request)),
    }
}

/// What an answer takes until it is read.
#[expect(dead_code, reason = "held, and given back")]
enum Leaving {
    Counted(Purse),
    Held(Hold),
}

/// A request, as it has come.
enum Arrived {
    /// All of it, and what it takes.
    Whole(Bytes, Option<Hold>),
    /// It was too large, and is gone.
    TooLarge(Oversized),
}

/// Reads a request, with what it takes meanwhile. Nothing at the end of the stream.
async fn arrive(
    broker: &Broker,
    reader: &mut (impl AsyncRead + Unpin + Send),
    peer: &Arc<Peer>,
) -> io::Result<Option<Arrived>> {
    let config = &broker.config;
    let Some(bytes) = within(config.connection_idle, frame::read_length(reader)).await? else {
        return Ok(None);
    };
    if bytes > FRAME_BYTES_MAX {
        // Boxed: hardly any connection needs the room for it.
        let gone = Box::pin(frame::read_oversized(reader, bytes));
        let gone = within(config.connection_idle, gone).await?;
        return Ok(Some(Arrived::TooLarge(gone)));
    }
    let rest = async {
        let mut frame = BytesMut::with_capacity(bytes.min(UNASKED_BYTES));
        frame::read_until(reader, &mut frame, bytes.min(UNASKED_BYTES)).await?;
        if bytes <= UNASKED_BYTES {
            return Ok(Arrived::Whole(frame.freeze(), None));
        }
        let room = broker.rooms.arriving.of(bytes);
        if bytes > SMALL_BYTES {
            // All of it at once: two halves of large ones would wait for each other.
            let hold = room.take(bytes, peer).await;
            frame.reserve(bytes - frame.len());
            frame::read_until(reader, &mut frame, bytes).await?;
            return Ok(Arrived::Whole(frame.freeze(), Some(hold)));
        }
        let mut hold = room.take(UNASKED_BYTES, peer).await;
        while frame.len() < bytes {
            let more = (bytes - frame.len()).min(STEP_BYTES);
            hold.grow(more).await;
            let until = frame.len() + more;
            frame::read_until(reader, &mut frame, until).await?;
        }
        Ok::<_, io::Error>(Arrived::Whole(frame.freeze(), Some(hold)))
    };
    within(config.request_timeout.min(config.connection_idle), rest)
        .await
        .map(Some)
}

/// Writes an answer, as long as somebody reads it.
async fn leave(
    writer: &mut (impl AsyncWrite + Unpin),
    mut bytes: Bytes,
    patience: Duration,
) -> io::Result<()> {
    while bytes.has_remaining() {
        match within(patience, writer.write(&bytes)).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes.advance(written),
        }
    }
    Ok(())
}

async fn within<T>(time: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let done = timeout(time, work).await;
    done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Begins a request, which weighs so much with what it is answered about each of its elements. What has to happen in
/// order has happened when it returns.
async fn begin(
    broker: &Arc<Broker>,
    request: Bytes,
    peer: &Arc<Peer>,
    weight: usize,
) -> io::Result<Response> {
    let head = frame::peek_head(&request)?;
    let Some(api) = wire::api_of(head.key) else {
        return Err(garbage(format!("request {} is not served", head.key)));
    };
    let version = head.version;
    if !(api.version_min..=api.version_max).contains(&version) {
        if api.key == ApiKey::ApiVersions {
            // A client that is newer than we are learns what we know, in the oldest format.
            let answer = broker.api_versions(ResponseError::UnsupportedVersion.code());
            return Ok(ready(api.key, Head { version: 0, ..head }, answer));
        }
        return Err(garbage(format!(
            "{:?} version {version} is not served",
            api.key
        )));
    }
    // What may wait, or must not delay what comes after it, is answered later.
    macro_rules! answer {
        (now $request:ident => $answer:expr) => {{
            let $request = decode_request(&request, version)?;
            ready(api.key, head, $answer)
        }};
        (later $request:ident => $answer:expr) => {{
            let $request = decode_request(&request, version)?;
            later(api.key, head, $answer)
        }};
        (soon $request:ident, $broker:ident => $answer:expr) => {{
            let $request = decode_request(&request, version)?;
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
            decode_request::<ApiVersionsRequest>(&request, version)?;
            ready(api.key, head, broker.api_versions(0))
        }
        ApiKey::Produce => {
            let request = decode_request::<ProduceRequest>(&request, version)?;
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
            let fetched = broker.fetch(decode_request(&request, version)?, version, peer);
            counted_later(ApiKey::Fetch, head, fetched)
        }
        ApiKey::ListOffsets => answer!(soon asked, broker => broker.list_offsets(asked, version)),
        ApiKey::OffsetForLeaderEpoch => {
            answer!(soon asked, broker => broker.offset_for_leader_epoch(asked))
        }
        ApiKey::DeleteRecords => answer!(soon asked, broker => broker.delete_records(asked)),
        ApiKey::DescribeLogDirs => {
            let asked = decode_request(&request, version)?;
            answer!(weighed asked, broker, broker.weigh_log_dirs(&asked).await
                => broker.describe_log_dirs(asked))
        }
        ApiKey::Metadata => {
            let mut asked: MetadataRequest = decode_request(&request, version)?;
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
            let mut asked: DescribeConfigsRequest = decode_request(&request, version)?;
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
            let client = frame::client_of(&request);
            let asked = decode_request(&request, version)?;
            counted_later(
                api.key,
                head,
                broker.join_group(asked, version, client, peer),
            )
        }
        ApiKey::SyncGroup => answer!(later asked => broker.sync_group(asked)),
        ApiKey::Heartbeat => answer!(soon asked, broker => broker.heartbeat(asked)),
        ApiKey::LeaveGroup => answer!(soon asked, broker => broker.leave_group(asked, version)),
        ApiKey::OffsetCommit => answer!(soon asked, broker => broker.commit_offsets(asked)),
        ApiKey::OffsetFetch => {
            let mut asked: OffsetFetchRequest = decode_request(&request, version)?;
            positions_once(&mut asked);
            answer!(weighed asked, broker, broker.weigh_positions(&asked).await
                => broker.fetch_offsets(asked, version))
        }
        ApiKey::ListGroups => {
            let asked = decode_request(&request, version)?;
            answer!(weighed asked, broker, broker.weigh_all_groups().await
                => broker.list_groups(asked))
        }
        ApiKey::DescribeGroups => {
            let mut asked: DescribeGroupsRequest = decode_request(&request, version)?;
            once([&mut asked.groups], Clone::clone);
            answer!(weighed asked, broker, broker.weigh_groups(&asked).await
                => broker.describe_groups(asked))
        }
        ApiKey::OffsetDelete => answer!(soon asked, broker => broker.delete_offsets(asked)),
        ApiKey::DeleteGroups => answer!(soon asked, broker => broker.delete_groups(asked)),
        ApiKey::DescribeTransactions => {
            let mut asked: DescribeTransactionsRequest = decode_request(&request, version)?;
            once([&mut asked.transactional_ids], Clone::clone);
            answer!(weighed asked, broker, broker.weigh_transactions(&asked).await
                => broker.describe_transactions(asked))
        }
        ApiKey::ListTransactions => {
            let asked = decode_request(&request, version)?;
            answer!(weighed asked, broker, broker.weigh_all_transactions().await
                => broker.list_transactions(asked))
        }
        ApiKey::DescribeProducers => {
            let mut asked: DescribeProducersRequest = decode_request(&request, version)?;
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
