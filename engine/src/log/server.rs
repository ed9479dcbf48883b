//! A broker's connections: requests in, responses out in the same order.
//!
//! Requests of one connection begin in order, so that pipelined appends stay in order; their responses
//! may wait meanwhile, a bounded number of them. Whatever makes no sense closes the connection.

use super::broker::{data, Broker, Later};
use crate::{
    host::{Connection, Listener},
    wire::{
        self,
        frame::{self, decode_request, encode_response, garbage, Head, Incoming},
        oversize::Oversized,
    },
};
use bytes::Bytes;
use futures::{select_biased, FutureExt};
use kafka_protocol::{
    error::ResponseError,
    messages::{ApiKey, ApiVersionsRequest, ProduceRequest},
    protocol::Encodable,
};
use std::{io, sync::Arc};
use tokio::{io::AsyncWriteExt, sync::mpsc, time::timeout};

/// Requests of one connection that may wait for their response.
const IN_FLIGHT_MAX: usize = 16;

/// Accepts connections until that fails.
pub async fn serve(broker: Arc<Broker>, listener: Box<dyn Listener>) -> io::Error {
    loop {
        match listener.accept().await {
            Err(error) => return error,
            Ok((connection, peer)) => {
                let broker = broker.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(broker, connection).await {
                        match error.kind() {
                            io::ErrorKind::InvalidData => {
                                tracing::warn!(name: "peer.refused", peer, %error, "what it sends makes no sense");
                            }
                            io::ErrorKind::TimedOut => {
                                tracing::info!(name: "peer.idle", peer, "silent for too long");
                            }
                            _ => tracing::debug!(peer, %error, "connection closed"),
                        }
                    }
                });
            }
        }
    }
}

/// The bytes of a response; nothing if the request wants none.
type Response = Later<io::Result<Option<Bytes>>>;

async fn converse(broker: Arc<Broker>, connection: Box<dyn Connection>) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let (sender, mut receiver) = mpsc::channel::<Response>(IN_FLIGHT_MAX);
    let read = async {
        let idle = broker.config.connection_idle;
        let silent = |_| io::Error::from(io::ErrorKind::TimedOut);
        while let Some(request) = timeout(idle, frame::read_request(&mut reader))
            .await
            .map_err(silent)??
        {
            let response = match request {
                Incoming::Whole(request) => begin(&broker, request).await?,
                Incoming::TooLarge(request) => refuse(request),
            };
            if sender.send(response).await.is_err() {
                break;
            }
        }
        // What was begun is still answered: the peer may have closed only its half.
        drop(sender);
        Ok::<_, io::Error>(())
    };
    let write = async {
        while let Some(response) = receiver.recv().await {
            if let Some(bytes) = response.await? {
                writer.write_all(&bytes).await?;
            }
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
fn refuse(request: Oversized) -> Response {
    let (head, acks) = (request.head, request.acks);
    tracing::info!(name: "peer.too-large", "a request to produce was larger than a frame may be");
    match acks {
        0 => futures::future::ready(Ok(None)).boxed(),
        _ => ready(ApiKey::Produce, head, data::too_large(request)),
    }
}

/// Begins a request: what has to happen in order has happened when it returns.
async fn begin(broker: &Arc<Broker>, request: Bytes) -> io::Result<Response> {
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
    // What may wait, or must not delay what comes behind it, is answered later.
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
        ApiKey::Fetch => answer!(later asked => broker.fetch(asked, version)),
        ApiKey::ListOffsets => answer!(soon asked, broker => broker.list_offsets(asked, version)),
        ApiKey::OffsetForLeaderEpoch => {
            answer!(soon asked, broker => broker.offset_for_leader_epoch(asked))
        }
        ApiKey::DeleteRecords => answer!(soon asked, broker => broker.delete_records(asked)),
        ApiKey::DescribeLogDirs => answer!(soon asked, broker => broker.describe_log_dirs(asked)),
        ApiKey::Metadata => answer!(soon asked, broker => broker.metadata(asked, version)),
        ApiKey::CreateTopics => answer!(soon asked, broker => broker.create_topics(asked)),
        ApiKey::DeleteTopics => answer!(soon asked, broker => broker.delete_topics(asked)),
        ApiKey::CreatePartitions => {
            answer!(soon asked, broker => broker.create_partitions(asked))
        }
        ApiKey::DescribeCluster => answer!(soon asked, broker => broker.describe_cluster(asked)),
        ApiKey::DescribeConfigs => answer!(soon asked, broker => broker.describe_configs(asked)),
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
            answer!(later asked => broker.join_group(asked, version, client))
        }
        ApiKey::SyncGroup => answer!(later asked => broker.sync_group(asked)),
        ApiKey::Heartbeat => answer!(soon asked, broker => broker.heartbeat(asked)),
        ApiKey::LeaveGroup => answer!(soon asked, broker => broker.leave_group(asked, version)),
        ApiKey::OffsetCommit => answer!(soon asked, broker => broker.commit_offsets(asked)),
        ApiKey::OffsetFetch => answer!(soon asked, broker => broker.fetch_offsets(asked, version)),
        ApiKey::ListGroups => answer!(soon asked, broker => broker.list_groups(asked)),
        ApiKey::DescribeGroups => answer!(soon asked, broker => broker.describe_groups(asked)),
        ApiKey::OffsetDelete => answer!(soon asked, broker => broker.delete_offsets(asked)),
        ApiKey::DeleteGroups => answer!(soon asked, broker => broker.delete_groups(asked)),
        ApiKey::DescribeTransactions => {
            answer!(soon asked, broker => broker.describe_transactions(asked))
        }
        ApiKey::ListTransactions => answer!(soon asked, broker => broker.list_transactions(asked)),
        ApiKey::DescribeProducers => {
            answer!(soon asked, broker => broker.describe_producers(asked))
        }
        other => return Err(garbage(format!("{other:?} is not served"))),
    };
    Ok(response)
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

fn answer<M: Encodable>(key: ApiKey, head: Head, message: &M) -> io::Result<Option<Bytes>> {
    let bytes = encode_response(key, head.version, head.correlation, message);
    // Our fault, and not the peer's: this version cannot say what is to be said.
    let bytes = bytes.inspect_err(|error| {
        tracing::error!(name: "broker.answer-failed", ?key, version = head.version, %error);
    });
    bytes.map(Some)
}
