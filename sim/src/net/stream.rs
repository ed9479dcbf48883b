//! One end of a connection.

use super::{
    is_running,
    pipe::{Arrived, Segment},
    Inner,
};
use crate::{
    node::{Host, State},
    trace::Value,
};
use bytes::Bytes;
use std::{
    io,
    pin::Pin,
    task::{ready, Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use xxhash_rust::xxh3::xxh3_64;

/// One end of a connection; like a `TcpStream`.
pub struct Stream {
    host: Host,
    conn: u64,
    side: usize,
}

impl Stream {
    pub(super) fn new(host: Host, conn: u64, side: usize) -> Self {
        Stream { host, conn, side }
    }

    /// The name of the node at the other end.
    pub fn peer(&self) -> Option<String> {
        let inner = self.host.net.lock();
        let conn = inner.conns.get(&self.conn)?;
        Some(
            self.host
                .nodes
                .name(conn.ends[1 - self.side].host.node)
                .to_string(),
        )
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let net = this.host.net.clone();
        let arrived = {
            let mut inner = net.lock();
            if !this.host.nodes.is_alive(this.host.id) {
                return Poll::Pending;
            }
            let now = inner.now();
            let Some(conn) = inner.conns.get(&this.conn) else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            let link = (conn.ends[1 - this.side].host.node, this.host.id.node);
            let blocked = inner.is_blocked(link.0, link.1);
            let conn = inner.conns.get_mut(&this.conn).expect("just found");
            let pipe = &mut conn.pipes[1 - this.side];
            let arrived = match blocked {
                true => Arrived::Nothing,
                false => pipe.take(now, buf.remaining()),
            };
            if let Arrived::Nothing = arrived {
                pipe.wait(cx.waker(), blocked);
            }
            arrived
        };
        let conn = ("conn", Value::Num(this.conn));
        match arrived {
            Arrived::Nothing => Poll::Pending,
            Arrived::Data(bytes) => {
                let hash = ("hash", Value::Num(xxh3_64(&bytes)));
                let fields = [conn, ("bytes", Value::Num(bytes.len() as u64)), hash];
                if this
                    .host
                    .nodes
                    .step(this.host.id, "net.recv", &fields)
                    .is_err()
                {
                    return Poll::Pending;
                }
                buf.put_slice(&bytes);
                Poll::Ready(Ok(()))
            }
            Arrived::End => Poll::Ready(Ok(())),
            Arrived::Reset => {
                this.host
                    .nodes
                    .note(this.host.id.node, "net.reset", &[conn]);
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let net = this.host.net.clone();
        let room = {
            let mut inner = net.lock();
            if !this.host.nodes.is_alive(this.host.id) {
                return Poll::Pending;
            }
            let window = inner.profile.window_bytes;
            ready!(inner.poll_room(this, window, cx))?
        };
        let part = &buf[..buf.len().min(room as usize)];
        let fields = [
            ("conn", Value::Num(this.conn)),
            ("bytes", Value::Num(part.len() as u64)),
        ];
        if this
            .host
            .nodes
            .step(this.host.id, "net.send", &fields)
            .is_err()
        {
            return Poll::Pending;
        }
        net.lock().send(this, part);
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut inner = this.host.net.lock();
        if !this.host.nodes.is_alive(this.host.id) {
            return Poll::Pending;
        }
        let now = inner.now();
        let latency = Duration::from_micros(inner.profile.latency_us);
        if let Some(conn) = inner.conns.get_mut(&this.conn) {
            conn.pipes[this.side].push(now, latency, Segment::Fin);
        }
        Poll::Ready(Ok(()))
    }
}

impl Inner {
    /// How many bytes the stream may write now.
    fn poll_room(
        &mut self,
        stream: &Stream,
        window: u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<u64>> {
        let now = self.now();
        let Some(conn) = self.conns.get_mut(&stream.conn) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if conn.pipes[1 - stream.side].reset_has_arrived(now) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let pipe = &mut conn.pipes[stream.side];
        if pipe.is_finished() && !pipe.is_void() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match pipe.room(window) {
            0 => {
                pipe.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            room => Poll::Ready(Ok(room)),
        }
    }

    /// Puts bytes on the wire.
    fn send(&mut self, stream: &Stream, bytes: &[u8]) {
        let now = self.now();
        let nodes = self.nodes.clone().expect("configured");
        let (mean, tail) = (self.profile.latency_us, self.profile.tail_per_mille);
        let split = self.profile.split_per_mille;
        // The step before may have reset the connection or closed the peer.
        let Some(conn) = self.conns.get_mut(&stream.conn) else {
            return;
        };
        let peer = conn.ends[1 - stream.side].host.node;
        let me = stream.host.id.node;
        if conn.pipes[stream.side].is_void() {
            // A host without power is silent; a kernel that knows no such connection answers RST.
            if nodes.state(peer) != State::Off {
                let latency = Duration::from_micros(2 * mean);
                conn.pipes[1 - stream.side].push(now, latency, Segment::Reset);
            }
            return;
        }
        if let Some(link) = self
            .links
            .get_mut(&(me, peer))
            .filter(|link| link.lose_next)
        {
            link.lose_next = false;
            nodes.trace.count("lost-ack");
            nodes.note(me, "fault.lost-ack", &[("conn", Value::Num(stream.conn))]);
            return self.reset_conn(stream.conn);
        }
        let pipe = &mut conn.pipes[stream.side];
        let (first, second) = bytes.split_at(pipe.split(bytes.len(), split));
        for part in [first, second] {
            if !part.is_empty() {
                let (latency, slow) = match me == peer {
                    true => (Duration::from_micros(20), false),
                    false => pipe.latency(tail),
                };
                if slow {
                    nodes.trace.count("heavy-tail");
                }
                pipe.push(now, latency, Segment::Data(Bytes::copy_from_slice(part)));
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // After a crash the kernel has closed it already, and this incarnation has no effects left. A run
        // that has panicked has no time in which its bytes could arrive: asking for it would panic again.
        if is_running() && self.host.nodes.is_alive(self.host.id) {
            self.host.net.lock().close(self.conn, self.side);
        }
    }
}
