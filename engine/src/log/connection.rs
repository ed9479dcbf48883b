//! A client's connection: requests are written in the order in which they are made, and their responses
//! come back in that order. When it breaks, the outcome of everything in flight is unknown.

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
            let connection = Connection {
                calls,
                next: AtomicI32::new(0),
                timeout,
            };
            let request = ApiVersionsRequest::default()
                .with_client_software_name(StrBytes::from_static_str("seedbed"))
                .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
            let answer = connection.call(&request).await?;
            for ours in crate::wire::APIS {
                let theirs = answer
                    .api_keys
                    .iter()
                    .find(|api| api.api_key == ours.key as i16);
                if theirs.is_none_or(|api| api.max_version < ours.version_max) {
                    let text = format!(
                        "{address} does not speak {:?} {}",
                        ours.key, ours.version_max
                    );
                    return Err(garbage(text).into());
                }
            }
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
        let version = api_of(R::KEY)
            .expect("we ask only what we speak")
            .version_max;
        let correlation = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, response) = oneshot::channel();
        let sent = encode_request(request, version, correlation).and_then(|frame| {
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
