//! A client's connection: requests are written in the order in which they are made, and their responses
//! come back in that order. When it breaks, the outcome of everything in flight is unknown.

use super::broker::catalog::TRANSACTION_VERSION;
use crate::{
    host::{Connection as Wire, Host},
    wire::{
        api_of,
        frame::{self, decode_response, encode_request, garbage},
    },
};
use bytes::Bytes;
use futures::{select_biased, FutureExt};
use kafka_protocol::{
    messages::ApiVersionsRequest,
    protocol::{Request, StrBytes},
};
use std::{
    collections::BTreeMap,
    future::Future,
    io,
    sync::{
        atomic::{AtomicI32, Ordering},
        Arc,
    },
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    sync::{mpsc, oneshot},
};

/// The version in which a broker is asked what it speaks: all since Kafka 2.4 know it.
const API_VERSIONS: i16 = 3;

/// Why there is no response. Whether the request had an effect is unknown.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke, or was never made.
    #[error("connection: {0}")]
    Broken(#[from] io::Error),
}

/// A connection to a broker. Dropping it closes it.
pub struct Connection {
    calls: mpsc::UnboundedSender<Call>,
    next: AtomicI32,
    timeout: Duration,
    /// Of each request that both sides speak, the newest version.
    versions: BTreeMap<i16, i16>,
    /// Whether the cluster has the second version of transactions (KIP-890).
    transactions_2: bool,
}

struct Call {
    frame: Bytes,
    correlation: i32,
    answer: oneshot::Sender<Bytes>,
}

impl Connection {
    /// Connects to a broker, and checks that it speaks what we speak.
    pub async fn open(host: &Host, address: &str, timeout: Duration) -> Result<Self, CallError> {
        let opened = async {
            let wire = host.net.connect(address).await?;
            let (calls, receiver) = mpsc::unbounded_channel();
            tokio::spawn(drive(wire, receiver));
            let mut connection = Connection {
                calls,
                next: AtomicI32::new(0),
                timeout,
                versions: [(ApiVersionsRequest::KEY, API_VERSIONS)].into(),
                transactions_2: false,
            };
            let request = ApiVersionsRequest::default()
                .with_client_software_name(StrBytes::from_static_str("seedbed"))
                .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
            let answer = connection.call(&request).await?;
            for ours in crate::wire::APIS {
                let mut all = answer.api_keys.iter();
                if let Some(theirs) = all.find(|api| api.api_key == ours.key as i16) {
                    let newest = theirs.max_version.min(ours.version_max);
                    if newest >= ours.flexible.max(theirs.min_version) {
                        connection.versions.insert(theirs.api_key, newest);
                    }
                }
            }
            let mut features = answer.finalized_features.iter();
            connection.transactions_2 = features.any(|feature| {
                feature.name.as_str() == TRANSACTION_VERSION && feature.max_version_level >= 2
            });
            Ok(connection)
        };
        let opened = tokio::time::timeout(timeout, opened).await;
        opened.unwrap_or(Err(CallError::Timeout(timeout)))
    }

    /// Makes a request now; the future is its response. The broker gets requests in the order of the
    /// calls, not of the awaits.
    pub fn call<R: Request>(
        &self,
        request: &R,
    ) -> impl Future<Output = Result<R::Response, CallError>> + Send + 'static {
        self.call_at(request, i16::MAX)
    }

    /// Whether the cluster has the second version of transactions (KIP-890).
    pub fn has_transactions_2(&self) -> bool {
        self.transactions_2
    }

    /// Like [`Connection::call`], in no newer version than `version_max`.
    pub fn call_at<R: Request>(
        &self,
        request: &R,
        version_max: i16,
    ) -> impl Future<Output = Result<R::Response, CallError>> + Send + 'static {
        let spoken = self.versions.get(&R::KEY).copied();
        let flexible = api_of(R::KEY).map_or(0, |api| api.flexible);
        let spoken = spoken.map(|newest| newest.min(version_max));
        let spoken = spoken.filter(|version| *version >= flexible);
        let version = spoken.unwrap_or(-1);
        let correlation = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, response) = oneshot::channel();
        let frame = match spoken {
            None => Err(garbage(format!(
                "the broker does not speak request {}",
                R::KEY
            ))),
            Some(version) => encode_request(request, version, correlation),
        };
        let sent = frame.and_then(|frame| {
            let call = Call {
                frame,
                correlation,
                answer,
            };
            self.calls
                .send(call)
                .map_err(|_| io::ErrorKind::BrokenPipe.into())
        });
        let timeout = self.timeout;
        async move {
            sent?;
            match tokio::time::timeout(timeout, response).await {
                Err(_) => Err(CallError::Timeout(timeout)),
                Ok(Err(_)) => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
                Ok(Ok(frame)) => Ok(decode_response::<R>(&frame, version)?),
            }
        }
    }

    /// Whether a call would fail for certain.
    pub fn is_closed(&self) -> bool {
        self.calls.is_closed()
    }
}

/// Writes calls and hands out responses until either ends; pending calls then learn that it broke.
async fn drive(wire: Box<dyn Wire>, mut calls: mpsc::UnboundedReceiver<Call>) {
    let (mut reader, mut writer) = tokio::io::split(wire);
    let (pending, mut waiting) = mpsc::unbounded_channel::<(i32, oneshot::Sender<Bytes>)>();
    let write = async {
        while let Some(call) = calls.recv().await {
            if pending.send((call.correlation, call.answer)).is_err() {
                return Ok(());
            }
            writer.write_all(&call.frame).await?;
        }
        Ok::<_, io::Error>(())
    };
    let read = async {
        while let Some(frame) = frame::read_frame(&mut reader).await? {
            let correlation = frame
                .first_chunk::<4>()
                .map(|bytes| i32::from_be_bytes(*bytes));
            let Some((asked, answer)) = waiting.recv().await else {
                return Ok(());
            };
            if correlation != Some(asked) {
                return Err(garbage("a response out of order"));
            }
            // Who asked may have stopped waiting.
            let _ = answer.send(frame);
        }
        Ok(())
    };
    let (write, read) = (write.fuse(), read.fuse());
    futures::pin_mut!(write, read);
    let ended = select_biased! {
        ended = write => ended,
        ended = read => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection broke");
    }
}

/// A connection that several tasks use.
pub type SharedConnection = Arc<Connection>;
