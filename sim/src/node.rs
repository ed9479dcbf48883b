//! Nodes: simulated machines, their incarnations, and their steps.
//!
//! Every network and disk operation of a node is a numbered step. A step of an incarnation that has
//! died is refused at once, although the poll that makes it may still run to its next await: so a
//! crash at a step is exact.

use crate::{
    clock::Clock,
    disk::{Disk, Disks},
    fault::{Fault, Trigger, What},
    net::{Listener, Net, Stream},
    trace::{OwnedValue, Trace, Value},
    witness::Said,
};
use madsim::time::TimeHandle;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

/// A node's place in the list of nodes.
pub(crate) type NodeIndex = u16;

/// One incarnation of a node, as seen by the program that runs on it: its way to everything outside.
#[derive(Clone)]
pub struct Host {
    pub(crate) id: HostId,
    pub(crate) name: Arc<str>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) net: Arc<Net>,
    pub(crate) disks: Arc<Disks>,
}

/// Which incarnation of which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostId {
    pub node: NodeIndex,
    pub incarnation: u64,
}

impl Host {
    /// The node's name, which is also its address: `connect("NAME:PORT")`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often the node was started before.
    pub fn incarnation(&self) -> u64 {
        self.id.incarnation
    }

    /// Connects to `NAME:PORT`. Hangs as a real connect does when nothing comes back: for as long as
    /// the operating system tries, 20 seconds.
    pub async fn connect(&self, address: &str) -> io::Result<Stream> {
        self.net.connect(self, address).await
    }

    /// Listens on a port of this node.
    pub fn listen(&self, port: u16) -> io::Result<Listener> {
        self.net.listen(self, port)
    }

    /// The node's disk.
    pub fn disk(&self) -> Disk {
        Disk::new(self.clone())
    }

    /// A number that no other incarnation of a node draws.
    pub fn draw(&self) -> u128 {
        let key = u64::from(self.id.node) << 32 | self.id.incarnation;
        let mut stream = self.net.seed().stream("entropy", key);
        u128::from(stream.next()) << 64 | u128::from(stream.next())
    }

    /// The node's wall clock.
    pub fn clock(&self) -> Clock {
        Clock::new(self.clone())
    }
}

/// All nodes of a world, and the faults that wait for their steps and events.
pub(crate) struct Nodes {
    inner: Mutex<Inner>,
    pub(crate) trace: Trace,
    pub(crate) time: OnceLock<TimeHandle>,
    strike: Mutex<Option<Strike>>,
    watcher: Mutex<Option<Watcher>>,
}

/// What lets a fault strike: the world.
type Strike = Arc<dyn Fn(&What) + Send + Sync>;
/// What watches the program under test.
type Watcher = Arc<dyn Fn(&Said<'_>) + Send + Sync>;

struct Inner {
    nodes: Vec<Node>,
    by_madsim: BTreeMap<madsim::task::NodeId, NodeIndex>,
    armed: bool,
}

struct Node {
    name: Arc<str>,
    incarnation: u64,
    state: State,
    /// For how long its incarnations before this one ran, together.
    ran: Duration,
    /// When this one began.
    began: Duration,
    steps: u64,
    /// Faults that wait for a step, the last one first.
    at_step: Vec<(u64, What)>,
    at_event: Vec<(String, u64, What)>,
    events: BTreeMap<&'static str, u64>,
}

/// Whether a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its process runs, or is paused.
    Up,
    /// Its process is dead, its kernel lives: connections are refused.
    Down,
    /// It has no power: nothing answers.
    Off,
}

/// The operation came from an incarnation that is dead: it has no effect and no answer.
#[derive(Debug)]
pub(crate) struct Dead;

impl Nodes {
    pub(crate) fn new(keep_trace: bool) -> Self {
        Nodes {
            inner: Mutex::new(Inner {
                nodes: Vec::new(),
                by_madsim: BTreeMap::new(),
                armed: true,
            }),
            trace: Trace::new(keep_trace),
            time: OnceLock::new(),
            strike: Mutex::default(),
            watcher: Mutex::default(),
        }
    }

    pub(crate) fn watch(&self, watcher: impl Fn(&Said<'_>) + Send + Sync + 'static) {
        *self.watcher.lock().expect("watcher") = Some(Arc::new(watcher));
    }

    pub(crate) fn on_strike(&self, strike: impl Fn(&What) + Send + Sync + 'static) {
        *self.strike.lock().expect("strike") = Some(Arc::new(strike));
    }

    /// Lets go of the world, which holds on to the nodes.
    pub(crate) fn forget_world(&self) {
        *self.strike.lock().expect("strike") = None;
        *self.watcher.lock().expect("watcher") = None;
    }

    /// Virtual time since the start of the run.
    pub(crate) fn now(&self) -> Duration {
        self.time.get().expect("the run has begun").elapsed()
    }

    pub(crate) fn add(&self, name: &str) -> NodeIndex {
        let mut inner = self.inner.lock().expect("nodes");
        assert!(
            inner.nodes.iter().all(|node| *node.name != *name),
            "two nodes are called `{name}`"
        );
        let name: Arc<str> = name.into();
        self.trace.name_node(name.clone());
        inner.nodes.push(Node {
            name,
            incarnation: 0,
            state: State::Up,
            ran: Duration::ZERO,
            began: Duration::ZERO,
            steps: 0,
            at_step: Vec::new(),
            at_event: Vec::new(),
            events: BTreeMap::new(),
        });
        (inner.nodes.len() - 1) as NodeIndex
    }

    pub(crate) fn joined(&self, node: NodeIndex, id: madsim::task::NodeId) {
        let mut inner = self.inner.lock().expect("nodes");
        inner.by_madsim.insert(id, node);
    }

    pub(crate) fn find(&self, name: &str) -> Option<NodeIndex> {
        let inner = self.inner.lock().expect("nodes");
        let index = inner.nodes.iter().position(|node| *node.name == *name)?;
        Some(index as NodeIndex)
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.lock().expect("nodes").nodes.len()
    }

    pub(crate) fn name(&self, node: NodeIndex) -> Arc<str> {
        self.inner.lock().expect("nodes").nodes[node as usize]
            .name
            .clone()
    }

    pub(crate) fn state(&self, node: NodeIndex) -> State {
        self.inner.lock().expect("nodes").nodes[node as usize].state
    }

    pub(crate) fn incarnation(&self, node: NodeIndex) -> u64 {
        self.inner.lock().expect("nodes").nodes[node as usize].incarnation
    }

    pub(crate) fn is_alive(&self, host: HostId) -> bool {
        let inner = self.inner.lock().expect("nodes");
        let node = &inner.nodes[host.node as usize];
        node.state == State::Up && node.incarnation == host.incarnation
    }

    /// For how long its process has run, all incarnations together.
    pub(crate) fn has_run(&self, node: NodeIndex) -> Duration {
        let inner = self.inner.lock().expect("nodes");
        let node = &inner.nodes[node as usize];
        match node.state {
            State::Up => node.ran + (self.now() - node.began),
            State::Down | State::Off => node.ran,
        }
    }

    /// Ends the incarnation that runs, if one does.
    pub(crate) fn stop(&self, node: NodeIndex, state: State) -> bool {
        let mut inner = self.inner.lock().expect("nodes");
        let node = &mut inner.nodes[node as usize];
        let was_up = node.state == State::Up;
        if was_up {
            node.ran += self.now() - node.began;
        }
        node.state = state;
        was_up
    }

    /// Begins the next incarnation.
    pub(crate) fn start(&self, node: NodeIndex) {
        let mut inner = self.inner.lock().expect("nodes");
        let node = &mut inner.nodes[node as usize];
        assert_ne!(node.state, State::Up, "{} runs already", node.name);
        node.state = State::Up;
        node.began = self.now();
        node.incarnation += 1;
    }

    /// Lets `faults` wait for their step or event; those that wait for a time are not taken.
    pub(crate) fn arm(&self, faults: &[Fault]) {
        let mut inner = self.inner.lock().expect("nodes");
        for fault in faults {
            let (node, what) = match &fault.at {
                Trigger::Time(_) => continue,
                Trigger::Step { node, .. } | Trigger::Event { node, .. } => (node, &fault.what),
            };
            let found = inner.nodes.iter_mut().find(|known| *known.name == **node);
            let known = found.expect("the plan was checked against the shape");
            match &fault.at {
                Trigger::Time(_) => {}
                Trigger::Step { n, .. } => known.at_step.push((*n, what.clone())),
                Trigger::Event { name, n, .. } => {
                    known.at_event.push((name.clone(), *n, what.clone()));
                }
            }
        }
        for node in &mut inner.nodes {
            node.at_step.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
        }
    }

    /// From now on nothing strikes at steps or events.
    pub(crate) fn disarm(&self) {
        self.inner.lock().expect("nodes").armed = false;
    }

    /// Numbers an operation of `host`, lets what waits for it strike, and traces it.
    pub(crate) fn step(
        &self,
        host: HostId,
        name: &str,
        fields: &[(&str, Value<'_>)],
    ) -> Result<(), Dead> {
        let mut due = Vec::new();
        {
            let mut inner = self.inner.lock().expect("nodes");
            let armed = inner.armed;
            let node = &mut inner.nodes[host.node as usize];
            if node.state != State::Up || node.incarnation != host.incarnation {
                return Err(Dead);
            }
            node.steps += 1;
            while node.at_step.last().is_some_and(|(n, _)| *n <= node.steps) {
                due.extend(node.at_step.pop().filter(|_| armed));
            }
        }
        for (_, what) in &due {
            self.strike(what);
        }
        if !due.is_empty() && !self.is_alive(host) {
            return Err(Dead);
        }
        self.trace.record(self.now(), host.node, name, fields);
        Ok(())
    }

    /// Something that the world does to a node, not the node itself.
    pub(crate) fn note(&self, node: NodeIndex, name: &str, fields: &[(&str, Value<'_>)]) {
        self.trace.record(self.now(), node, name, fields);
    }

    /// A named event of the program under test, on the node whose task is running.
    pub(crate) fn engine_event(&self, name: &'static str, fields: &[(&'static str, OwnedValue)]) {
        let mut due = Vec::new();
        let (node, name_of_node, incarnation) = {
            let mut inner = self.inner.lock().expect("nodes");
            let armed = inner.armed;
            let Some(&index) = inner.by_madsim.get(&madsim::plugin::node()) else {
                return;
            };
            let node = &mut inner.nodes[index as usize];
            if node.state != State::Up {
                return;
            }
            let count = node.events.entry(name).or_default();
            *count += 1;
            for (event, n, what) in &node.at_event {
                if armed && event == name && n == count {
                    due.push(what.clone());
                }
            }
            (index, node.name.clone(), node.incarnation)
        };
        let fields: Vec<_> = fields
            .iter()
            .map(|(key, value)| (*key, value.borrow()))
            .collect();
        self.trace.record(self.now(), node, name, &fields);
        self.trace.count(name);
        let watcher = self.watcher.lock().expect("watcher").clone();
        if let Some(watcher) = watcher {
            watcher(&Said {
                at: self.now(),
                node: &name_of_node,
                incarnation,
                name,
                fields: &fields,
            });
        }
        for what in &due {
            self.strike(what);
        }
    }

    fn strike(&self, what: &What) {
        let strike = self.strike.lock().expect("strike").clone();
        strike.expect("the run has begun, and not ended")(what);
    }
}
