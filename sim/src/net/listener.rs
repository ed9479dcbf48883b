//! Listening on a port.

use super::{is_running, AcceptQueue, Stream};
use crate::{node::Host, trace::Value};
use std::{
    future::poll_fn,
    io,
    task::{Poll, Waker},
};

#[derive(Default)]
pub(super) struct Port {
    pub queue: AcceptQueue,
    pub waker: Option<Waker>,
}

/// Accepts the connections to one port of a node. Dropping it frees the port.
pub struct Listener {
    host: Host,
    port: u16,
}

impl Listener {
    pub(super) fn new(host: Host, port: u16) -> Self {
        Listener { host, port }
    }

    /// The next connection, and its address.
    pub async fn accept(&self) -> io::Result<(Stream, String)> {
        let number = poll_fn(|cx| {
            let mut inner = self.host.net.lock();
            let port = inner.ports.get_mut(&(self.host.id.node, self.port));
            match port {
                Some(port) if self.host.nodes.is_alive(self.host.id) => {
                    if let Some(number) = port.queue.pop_front() {
                        return Poll::Ready(number);
                    }
                    port.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Pending,
            }
        })
        .await;
        let peer = {
            let inner = self.host.net.lock();
            let conn = inner.conns.get(&number);
            conn.map(|conn| self.host.nodes.name(conn.ends[0].host.node))
        };
        let name = peer.as_deref().unwrap_or("gone");
        let fields = [("from", Value::Text(name)), ("conn", Value::Num(number))];
        if self
            .host
            .nodes
            .step(self.host.id, "net.accept", &fields)
            .is_err()
        {
            return std::future::pending().await;
        }
        Ok((Stream::new(self.host.clone(), number, 1), name.to_owned()))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if is_running() && self.host.nodes.is_alive(self.host.id) {
            let mut inner = self.host.net.lock();
            let waiting = inner.ports.remove(&(self.host.id.node, self.port));
            for number in waiting.into_iter().flat_map(|port| port.queue) {
                inner.close(number, 1);
            }
        }
    }
}
