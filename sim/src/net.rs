//! The network: connections between nodes, as TCP shows them to a program.
//!
//! What a link does to bytes, in the order in which it is asked:
//!
//! | state of the link | bytes in flight | bytes written now | new connections |
//! |---|---|---|---|
//! | healthy | arrive after a latency with a heavy tail, in order, in pieces cut anywhere | likewise | after a round trip |
//! | cut | wait for the heal; lost if their sender closes or loses power | wait | hang |
//! | held | wait for the release, whatever becomes of their sender | wait | pass |
//! | its peer crashed | arrive, then FIN, or RST if the peer had not read everything | answered by RST | refused |
//! | its peer lost power | arrive | vanish; answered by RST once the peer is back | hang |
//!
//! A connection takes a window of bytes, then its writer waits. Half of it can be closed. Loopback
//! is never disturbed.

mod listener;
mod pipe;
mod stream;

pub use listener::Listener;
pub use stream::Stream;

use crate::{
    node::{Dead, Host, HostId, NodeIndex, Nodes, State},
    plan::NetProfile,
    trace::Value,
    Seed,
};
use listener::Port;
use madsim::{plugin::Simulator, rand::GlobalRng, time::TimeHandle, Config};
use pipe::{Pipe, Segment};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

/// How long an operating system tries to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// The network of a world: a madsim plugin, so that it lives and dies with its runtime.
pub struct Net {
    inner: Mutex<Inner>,
}

struct Inner {
    seed: Seed,
    profile: NetProfile,
    nodes: Option<Arc<Nodes>>,
    ports: BTreeMap<(NodeIndex, u16), Port>,
    conns: BTreeMap<u64, Conn>,
    next_conn: u64,
    conns_of_link: BTreeMap<(NodeIndex, NodeIndex), u64>,
    links: BTreeMap<(NodeIndex, NodeIndex), Link>,
}

/// What is wrong with one direction between two nodes; counts, since faults overlap.
#[derive(Default)]
struct Link {
    cut: u32,
    held: u32,
    hang: u32,
    lose_next: bool,
}

/// A connection: two ends, and a pipe from each of them to the other.
struct Conn {
    ends: [End; 2],
    /// `pipes[i]` carries what end `i` has written.
    pipes: [Pipe; 2],
}

struct End {
    host: HostId,
    /// Its stream exists, and its incarnation has not ended.
    open: bool,
}

impl Simulator for Net {
    fn new(_: &GlobalRng, _: &TimeHandle, _: &Config) -> Self {
        Net {
            inner: Mutex::new(Inner {
                seed: Seed(0),
                profile: NetProfile::default(),
                nodes: None,
                ports: BTreeMap::new(),
                conns: BTreeMap::new(),
                next_conn: 0,
                conns_of_link: BTreeMap::new(),
                links: BTreeMap::new(),
            }),
        }
    }
}

impl Net {
    pub(crate) fn configure(&self, seed: Seed, profile: NetProfile, nodes: Arc<Nodes>) {
        let mut inner = self.lock();
        inner.seed = seed;
        inner.profile = profile;
        inner.nodes = Some(nodes);
    }

    pub(crate) fn seed(&self) -> Seed {
        self.lock().seed
    }

    /// Lets go of all connections, and of whoever waits for them.
    pub(crate) fn forget(&self) {
        let mut inner = self.lock();
        let ended = (
            std::mem::take(&mut inner.conns),
            std::mem::take(&mut inner.ports),
        );
        // Whoever waited may have been the last to hold something that asks the network.
        drop(inner);
        drop(ended);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("net")
    }

    pub(crate) fn listen(self: &Arc<Self>, host: &Host, port: u16) -> io::Result<Listener> {
        let mut inner = self.lock();
        if !host.nodes.is_alive(host.id) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let key = (host.id.node, port);
        if inner.ports.contains_key(&key) {
            let text = format!("{}:{port} is taken", host.name());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        inner.ports.insert(key, Port::default());
        Ok(Listener::new(host.clone(), port))
    }

    pub(crate) async fn connect(self: &Arc<Self>, host: &Host, to: &str) -> io::Result<Stream> {
        let (peer, port) = resolve(&host.nodes, to)?;
        if let Err(Dead) = host
            .nodes
            .step(host.id, "net.connect", &[("to", Value::Text(to))])
        {
            return std::future::pending().await;
        }
        let deadline = host.nodes.now() + CONNECT_TIMEOUT;
        let mut backoff = Duration::from_secs(1);
        let mut hangs = false;
        loop {
            let round_trip = self.lock().handshake(host.id.node, peer);
            if let Some(round_trip) = round_trip {
                sleep(round_trip).await;
                if self.lock().handshake(host.id.node, peer).is_some() {
                    break;
                }
            }
            // A lost SYN is sent again after 1, 2, 4, … seconds.
            let now = host.nodes.now();
            if !std::mem::replace(&mut hangs, true) {
                host.nodes.trace.count("connect-hang");
            }
            if now >= deadline {
                let text = format!("connecting to {to} timed out");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            sleep(backoff.min(deadline - now)).await;
            backoff *= 2;
        }
        if !host.nodes.is_alive(host.id) {
            return std::future::pending().await;
        }
        let number = self.lock().open(host.id, (peer, port))?;
        Ok(Stream::new(host.clone(), number, 0))
    }

    /// The process of `node` has died. Its kernel closes what it had open.
    pub(crate) fn crash(&self, node: NodeIndex) {
        self.lock().end_all(node, false);
    }

    /// The machine `node` has lost power. Nobody is told.
    pub(crate) fn power_loss(&self, node: NodeIndex) {
        self.lock().end_all(node, true);
    }

    pub(crate) fn cut(&self, from: NodeIndex, to: NodeIndex) {
        self.lock().links.entry((from, to)).or_default().cut += 1;
    }

    pub(crate) fn heal(&self, from: NodeIndex, to: NodeIndex) {
        let mut inner = self.lock();
        let link = inner.links.entry((from, to)).or_default();
        link.cut = link.cut.saturating_sub(1);
        inner.go_on(from, to);
    }

    pub(crate) fn hold(&self, from: NodeIndex, to: NodeIndex) {
        self.lock().links.entry((from, to)).or_default().held += 1;
    }

    pub(crate) fn release(&self, from: NodeIndex, to: NodeIndex) {
        let mut inner = self.lock();
        let link = inner.links.entry((from, to)).or_default();
        link.held = link.held.saturating_sub(1);
        inner.go_on(from, to);
    }

    pub(crate) fn hang(&self, from: NodeIndex, to: NodeIndex) {
        self.lock().links.entry((from, to)).or_default().hang += 1;
    }

    pub(crate) fn unhang(&self, from: NodeIndex, to: NodeIndex) {
        let mut inner = self.lock();
        let link = inner.links.entry((from, to)).or_default();
        link.hang = link.hang.saturating_sub(1);
    }

    pub(crate) fn lose_next_answer(&self, client: NodeIndex, server: NodeIndex) {
        self.lock()
            .links
            .entry((server, client))
            .or_default()
            .lose_next = true;
    }

    /// Resets all connections between two nodes; how many there were.
    pub(crate) fn reset(&self, a: NodeIndex, b: NodeIndex) -> usize {
        let mut inner = self.lock();
        let between: Vec<u64> = inner.conns_between(a, b);
        for number in &between {
            inner.reset_conn(*number);
        }
        between.len()
    }

    /// Takes back all that is wrong with any link.
    pub(crate) fn heal_all(&self) {
        let mut inner = self.lock();
        let links: Vec<_> = std::mem::take(&mut inner.links).into_keys().collect();
        for (from, to) in links {
            inner.go_on(from, to);
        }
    }
}

impl Inner {
    fn now(&self) -> Duration {
        self.nodes.as_ref().expect("configured").now()
    }

    fn is_cut(&self, from: NodeIndex, to: NodeIndex) -> bool {
        from != to && self.links.get(&(from, to)).is_some_and(|link| link.cut > 0)
    }

    fn is_blocked(&self, from: NodeIndex, to: NodeIndex) -> bool {
        from != to
            && !self.links.is_empty()
            && (self.links.get(&(from, to))).is_some_and(|link| link.cut > 0 || link.held > 0)
    }

    /// How long SYN and its answer take; nothing if they do not arrive.
    fn handshake(&self, from: NodeIndex, to: NodeIndex) -> Option<Duration> {
        let nodes = self.nodes.as_ref().expect("configured");
        let hangs = self
            .links
            .get(&(from, to))
            .is_some_and(|link| link.hang > 0);
        if from != to
            && (hangs
                || self.is_cut(from, to)
                || self.is_cut(to, from)
                || nodes.state(to) == State::Off)
        {
            return None;
        }
        Some(Duration::from_micros(2 * self.profile.latency_us))
    }

    fn open(&mut self, client: HostId, server: (NodeIndex, u16)) -> io::Result<u64> {
        let nodes = self.nodes.clone().expect("configured");
        let Some(port) = self.ports.get_mut(&server) else {
            let text = format!("{}:{} refused", nodes.name(server.0), server.1);
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, text));
        };
        let number = self.next_conn;
        self.next_conn += 1;
        port.queue.push_back(number);
        port.waker.take().into_iter().for_each(|waker| waker.wake());
        let nth = self
            .conns_of_link
            .entry((client.node, server.0))
            .or_default();
        *nth += 1;
        let key = u64::from(client.node) << 48 | u64::from(server.0) << 32 | *nth << 1;
        let host = HostId {
            node: server.0,
            incarnation: nodes.incarnation(server.0),
        };
        let end = |host| End { host, open: true };
        // Some links are long: each direction takes from a half to twice the mean, always.
        let link = u64::from(client.node) << 16 | u64::from(server.0);
        let mut lengths = self.seed.stream("link", link);
        let mut pipe = |side| {
            let mean_us = self.profile.latency_us * (50 + lengths.below(150)) / 100;
            Pipe::new(self.seed.stream("net", key | side), mean_us)
        };
        let conn = Conn {
            ends: [end(client), end(host)],
            pipes: [pipe(0), pipe(1)],
        };
        self.conns.insert(number, conn);
        Ok(number)
    }

    fn conns_between(&self, a: NodeIndex, b: NodeIndex) -> Vec<u64> {
        let between = self.conns.iter().filter(|(_, conn)| {
            let nodes = [conn.ends[0].host.node, conn.ends[1].host.node];
            nodes == [a, b] || nodes == [b, a]
        });
        between.map(|(number, _)| *number).collect()
    }

    /// Ends the connections of a node's incarnation.
    fn end_all(&mut self, node: NodeIndex, power: bool) {
        self.ports.retain(|key, _| key.0 != node);
        let of_node = |end: &End| end.host.node == node && end.open;
        let numbers: Vec<(u64, usize)> = (self.conns.iter())
            .flat_map(|(number, conn)| {
                let sides = [0, 1].into_iter().filter(|side| of_node(&conn.ends[*side]));
                sides.map(|side| (*number, side)).collect::<Vec<_>>()
            })
            .collect();
        for (number, side) in numbers {
            if power {
                self.vanish(number, side);
            } else {
                self.close(number, side);
            }
        }
    }

    /// Closes one end as a kernel does: FIN after what was written, or RST if not all was read.
    fn close(&mut self, number: u64, side: usize) {
        let now = self.now();
        let Some(conn) = self.conns.get(&number) else {
            return;
        };
        let (node, peer) = (conn.ends[side].host.node, conn.ends[1 - side].host.node);
        let cut = self.is_cut(node, peer);
        let conn = self.conns.get_mut(&number).expect("just found");
        conn.ends[side].open = false;
        let unread = conn.pipes[1 - side].has_unread(now);
        conn.pipes[1 - side].become_void();
        let last = if unread { Segment::Reset } else { Segment::Fin };
        if cut {
            // The kernel gives up: what has not arrived never does. The peer is not told either.
            conn.pipes[side].drop_in_flight(now);
        } else if !conn.pipes[side].is_finished() {
            conn.pipes[side].push(now, Duration::from_micros(self.profile.latency_us), last);
        }
        self.forget_if_closed(number);
    }

    /// One end lost power: what is on the wire arrives, unless a cut keeps it.
    fn vanish(&mut self, number: u64, side: usize) {
        let now = self.now();
        let Some(conn) = self.conns.get(&number) else {
            return;
        };
        let (node, peer) = (conn.ends[side].host.node, conn.ends[1 - side].host.node);
        let cut = self.is_cut(node, peer);
        let nodes = self.nodes.clone().expect("configured");
        let conn = self.conns.get_mut(&number).expect("just found");
        conn.ends[side].open = false;
        conn.pipes[1 - side].become_void();
        if cut {
            conn.pipes[side].drop_in_flight(now);
        }
        if conn.ends[1 - side].open {
            nodes.trace.count("half-open");
        }
        self.forget_if_closed(number);
    }

    fn forget_if_closed(&mut self, number: u64) {
        let conn = &self.conns[&number];
        if !conn.ends[0].open && !conn.ends[1].open {
            self.conns.remove(&number);
        }
    }

    /// Both ends see a reset.
    fn reset_conn(&mut self, number: u64) {
        let now = self.now();
        let latency = Duration::from_micros(self.profile.latency_us);
        if let Some(conn) = self.conns.get_mut(&number) {
            for pipe in &mut conn.pipes {
                pipe.drop_in_flight(Duration::MAX);
                pipe.become_void();
                pipe.push(now, latency, Segment::Reset);
            }
        }
    }

    /// A link passes bytes again: what waited arrives after a retransmission.
    fn go_on(&mut self, from: NodeIndex, to: NodeIndex) {
        if self.is_blocked(from, to) {
            return;
        }
        let now = self.now();
        let latency = Duration::from_micros(self.profile.latency_us);
        for conn in self.conns.values_mut() {
            for side in 0..2 {
                let ends = (conn.ends[side].host.node, conn.ends[1 - side].host.node);
                if ends == (from, to) {
                    conn.pipes[side].delay_until(now + latency);
                }
            }
        }
    }
}

fn resolve(nodes: &Nodes, address: &str) -> io::Result<(NodeIndex, u16)> {
    let wrong = |why: &str| {
        let text = format!("`{address}` is not an address: {why}");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let (name, port) = address.rsplit_once(':').ok_or_else(|| wrong("no port"))?;
    let port = port.parse().map_err(|_| wrong("the port is no number"))?;
    let node = nodes.find(name).ok_or_else(|| wrong("no such node"))?;
    Ok((node, port))
}

/// Sleeps for less than madsim's minimum of a millisecond, too.
pub(crate) async fn sleep(duration: Duration) {
    let time = TimeHandle::current();
    let deadline = time.now_instant() + duration;
    let mut sleep = Box::pin(time.sleep(duration));
    sleep.as_mut().reset(deadline);
    sleep.await;
}

/// Whether this thread is inside its run. What a run leaves when it panics is dropped after its runtime.
fn is_running() -> bool {
    TimeHandle::try_current().is_some()
}

/// Connections that wait to be accepted.
type AcceptQueue = VecDeque<u64>;
