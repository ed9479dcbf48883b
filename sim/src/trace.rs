//! The trace: every step, delivery, disk operation, process event, fault and engine event of a run,
//! in order, as canonical bytes, hashed as it goes into the digest; kept as text only when asked for.
//!
//! An event's bytes hold its virtual time, its node's index, its name and its fields; no wall time,
//! address, thread id or task id. The subscriber that turns `tracing` events into trace events lives
//! here too: any event with an explicit name (`tracing::info!(name: "sink.prepared", …)`) is one.

use crate::node::{NodeIndex, Nodes};
use serde::{Deserialize, Serialize};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    fmt::Write as _,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use tracing::{
    field::{Field, Visit},
    span, Dispatch, Event, Metadata, Subscriber,
};
use xxhash_rust::xxh3::Xxh3;

/// The hash of a whole trace. Equal digests mean equal runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u128);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A field of a trace event.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A count, an offset, a duration in nanoseconds.
    Num(u64),
    /// A path, a peer, a reason.
    Text(&'a str),
}

/// What the world did, as it does it.
pub struct Trace {
    inner: Mutex<Inner>,
}

struct Inner {
    hasher: Xxh3,
    events: u64,
    counts: BTreeMap<String, u64>,
    kept: Option<String>,
    /// The names of the nodes, for the text.
    nodes: Vec<Arc<str>>,
    /// The canonical bytes of the event that is being added.
    bytes: Vec<u8>,
}

impl Trace {
    pub(crate) fn new(keep: bool) -> Self {
        Trace {
            inner: Mutex::new(Inner {
                hasher: Xxh3::new(),
                events: 0,
                counts: BTreeMap::new(),
                kept: keep.then(String::new),
                nodes: Vec::new(),
                bytes: Vec::new(),
            }),
        }
    }

    /// A node joins; its index is the next one.
    pub(crate) fn name_node(&self, name: Arc<str>) {
        self.inner.lock().expect("trace").nodes.push(name);
    }

    /// Adds an event of the node with this index.
    pub(crate) fn record(
        &self,
        now: Duration,
        node: NodeIndex,
        name: &str,
        fields: &[(&str, Value<'_>)],
    ) {
        let mut inner = self.inner.lock().expect("trace");
        let inner = &mut *inner;
        inner.events += 1;
        let bytes = &mut inner.bytes;
        bytes.clear();
        bytes.extend((now.as_nanos() as u64).to_le_bytes());
        bytes.extend(node.to_le_bytes());
        bytes.extend(name.as_bytes());
        for (key, value) in fields {
            bytes.extend(key.as_bytes());
            match value {
                Value::Num(num) => bytes.extend(num.to_le_bytes()),
                Value::Text(text) => {
                    bytes.extend((text.len() as u32).to_le_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
        inner.hasher.update(bytes);
        if let Some(kept) = &mut inner.kept {
            let (seconds, nanos) = (now.as_secs(), now.subsec_nanos());
            let node = inner
                .nodes
                .get(usize::from(node))
                .map_or("world", |name| name);
            write!(kept, "{seconds}.{nanos:09} {node} {name}").expect("to a string");
            for (key, value) in fields {
                match value {
                    Value::Num(num) => write!(kept, " {key}={num}"),
                    Value::Text(text) => write!(kept, " {key}={text:?}"),
                }
                .expect("to a string");
            }
            kept.push('\n');
        }
    }

    /// Counts something that the summary shows: a fault that struck, an engine event.
    pub(crate) fn count(&self, name: &str) {
        let mut inner = self.inner.lock().expect("trace");
        match inner.counts.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(inner.counts.insert(name.to_owned(), 1)),
        }
    }

    pub(crate) fn finish(&self) -> Finished {
        let mut inner = self.inner.lock().expect("trace");
        Finished {
            digest: Digest(inner.hasher.digest128()),
            events: inner.events,
            counts: std::mem::take(&mut inner.counts),
            text: inner.kept.take(),
        }
    }
}

/// A trace that has ended.
pub(crate) struct Finished {
    pub digest: Digest,
    pub events: u64,
    pub counts: BTreeMap<String, u64>,
    pub text: Option<String>,
}

thread_local! {
    static NODES: RefCell<Option<Arc<Nodes>>> = const { RefCell::new(None) };
    static POLLS: Cell<u64> = const { Cell::new(0) };
    static POLLS_AT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// More polls than this within one virtual millisecond are a livelock.
const POLLS_PER_MS_MAX: u64 = 2_000_000;

/// What a panic says when the poll budget is spent; the run is then `stuck`.
pub(crate) const POLL_BUDGET: &str = "poll budget spent";

/// Runs `body` with this thread's named `tracing` events going to `nodes`.
pub(crate) fn listening<T>(nodes: &Arc<Nodes>, body: impl FnOnce() -> T) -> T {
    static DISPATCH: OnceLock<Dispatch> = OnceLock::new();
    let dispatch = DISPATCH.get_or_init(|| Dispatch::new(Listener));
    NODES.with(|cell| *cell.borrow_mut() = Some(nodes.clone()));
    POLLS.with(|cell| cell.set(0));
    tracing::dispatcher::with_default(dispatch, body)
}

/// Forgets the run of this thread.
pub(crate) fn deaf() {
    NODES.with(|cell| *cell.borrow_mut() = None);
}

/// Turns named `tracing` events into trace events, and counts polls: madsim enters a span named
/// `task` for each of them.
struct Listener;

impl Subscriber for Listener {
    fn register_callsite(
        &self,
        metadata: &'static Metadata<'static>,
    ) -> tracing::subscriber::Interest {
        if self.enabled(metadata) {
            tracing::subscriber::Interest::always()
        } else {
            tracing::subscriber::Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.is_span() {
            metadata.name() == "task" && metadata.target().starts_with("madsim")
        } else {
            // An event without a name of its own is called after its file and line.
            !metadata.name().starts_with("event ") && !metadata.target().starts_with("madsim")
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let nodes = NODES.with(|cell| cell.borrow().clone());
        if let Some(nodes) = nodes {
            let mut fields = Fields::default();
            event.record(&mut fields);
            nodes.engine_event(event.metadata().name(), &fields.0);
        }
    }

    fn enter(&self, _: &span::Id) {
        let polls = POLLS.with(|cell| {
            cell.set(cell.get() + 1);
            cell.get()
        });
        if polls.is_multiple_of(POLLS_PER_MS_MAX) {
            let now =
                madsim::time::TimeHandle::try_current().map_or(Duration::ZERO, |t| t.elapsed());
            let before = POLLS_AT.with(|cell| cell.replace(now));
            // A poll takes 50 to 100 virtual nanoseconds, and nothing but polls passed the time.
            let busy = Duration::from_nanos(POLLS_PER_MS_MAX * 110);
            if now.saturating_sub(before) < busy {
                panic!("{POLL_BUDGET}: {POLLS_PER_MS_MAX} polls, and nothing waits for time");
            }
        }
    }

    fn exit(&self, _: &span::Id) {}
}

/// The fields of one event, in the order in which they were written.
#[derive(Default)]
struct Fields(Vec<(&'static str, OwnedValue)>);

/// A field that outlives its `tracing` event.
pub(crate) enum OwnedValue {
    Num(u64),
    Text(String),
}

impl OwnedValue {
    pub(crate) fn borrow(&self) -> Value<'_> {
        match self {
            OwnedValue::Num(num) => Value::Num(*num),
            OwnedValue::Text(text) => Value::Text(text),
        }
    }
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), OwnedValue::Num(value)));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), OwnedValue::Num(value as u64)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0
            .push((field.name(), OwnedValue::Text(value.to_owned())));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0
            .push((field.name(), OwnedValue::Text(format!("{value:?}"))));
    }
}

/// Where two traces part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parting {
    /// The line, counted from 1.
    pub line: usize,
    /// The lines that led to it, the same in both.
    pub before: Vec<String>,
    /// What the first trace says there; nothing if it has ended.
    pub left: Option<String>,
    /// What the second trace says there; nothing if it has ended.
    pub right: Option<String>,
}

/// The first line in which two traces differ, with up to ten lines that led to it.
///
/// ```
/// let parting = sim::trace::parting("a\nb\nc\n", "a\nb\nx\n").unwrap();
/// assert_eq!(parting.line, 3);
/// assert_eq!(parting.left.as_deref(), Some("c"));
/// assert!(sim::trace::parting("a\n", "a\n").is_none());
/// ```
pub fn parting(left: &str, right: &str) -> Option<Parting> {
    let (mut left, mut right) = (left.lines(), right.lines());
    let mut before = std::collections::VecDeque::new();
    let mut line = 0;
    loop {
        line += 1;
        match (left.next(), right.next()) {
            (None, None) => return None,
            (a, b) if a == b => {
                if before.len() == 10 {
                    before.pop_front();
                }
                before.extend(a.map(str::to_owned));
            }
            (a, b) => {
                return Some(Parting {
                    line,
                    before: before.into(),
                    left: a.map(str::to_owned),
                    right: b.map(str::to_owned),
                })
            }
        }
    }
}
