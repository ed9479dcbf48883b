//! Pure: the operators and edges of a job, as its author writes them.
//!
//! ```
//! use engine::{graph::{Pipeline, Upstream}, ids::EventTime, sink::Row};
//!
//! // Words and when they were said, as "time word"; how often each was said per second.
//! let counts = Pipeline::read("words", Upstream::Once)
//!     .decode(|bytes| {
//!         let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
//!         let (time, word) = text.split_once(' ').ok_or("no space")?;
//!         Ok((time.parse::<i64>().map_err(|error| error.to_string())?, word.to_owned()))
//!     })
//!     .event_time(|(time, _)| EventTime(*time), 500)
//!     .filter(|(_, word)| !word.is_empty())
//!     .map(|(_, word)| word)
//!     .key_by(|word| word.clone())
//!     .tumbling(1000)
//!     .fold(|count: &mut u64, _| *count += 1)
//!     .rows(|word, start, count| Row::new(format!("{word}@{start}"), format!("{word} {count}")));
//! assert_eq!(counts.graph().describe(), "words > decode > event time > filter > map > by key > window > sink");
//! ```

pub use crate::guarantee::Upstream;

use crate::{
    guarantee::Deduplication,
    ids::EventTime,
    operator::{
        window::{Extent, Fired},
        Decode, Dedup, Filter, Map, Stage, Stamp,
    },
    record::Timed,
    sink::Row,
};
use serde::Serialize;
use std::{marker::PhantomData, sync::Arc};

/// The operators of a job, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// The topic that it reads.
    pub topic: String,
    /// Whether an event may be there more than once.
    pub upstream: Upstream,
    operators: Vec<&'static str>,
    lateness_ms: i64,
    dedup_ms: Option<i64>,
}

impl Graph {
    /// Whether events are told apart by their id, and for long enough.
    pub fn dedup(&self) -> Deduplication {
        match self.dedup_ms {
            None => Deduplication::None,
            Some(window_ms) if window_ms < self.lateness_ms => Deduplication::TooShort,
            Some(_) => Deduplication::Window,
        }
    }

    /// The operators in a line.
    pub fn describe(&self) -> String {
        format!("{} > {} > sink", self.topic, self.operators.join(" > "))
    }

    fn then(mut self, operator: &'static str) -> Self {
        self.operators.push(operator);
        self
    }
}

/// Where a pipeline begins.
pub struct Pipeline(());

impl Pipeline {
    /// Reads a topic.
    pub fn read(topic: &str, upstream: Upstream) -> Reading {
        Reading(Graph {
            topic: topic.to_owned(),
            upstream,
            operators: Vec::new(),
            lateness_ms: 0,
            dedup_ms: None,
        })
    }
}

/// A topic that is read.
pub struct Reading(Graph);

impl Reading {
    /// Turns payloads into values; what cannot be goes to the dead letters.
    pub fn decode<T, F>(self, decode: F) -> Stream<Decode<T, F>>
    where
        T: Send + 'static,
        F: Fn(&[u8]) -> Result<T, String> + Clone + Send + Sync + 'static,
    {
        Stream {
            graph: self.0.then("decode"),
            stage: Decode::new(decode),
        }
    }
}

/// Values, in the order of their partition.
pub struct Stream<S> {
    graph: Graph,
    stage: S,
}

impl<S: Stage> Stream<S> {
    /// Says when a value happened. Values may be `out_of_order_ms` behind the latest one of their
    /// partition; those further behind are late, and go to the dead letters.
    pub fn event_time<F>(self, time: F, out_of_order_ms: i64) -> Stream<Stamp<S, F>>
    where
        F: Fn(&S::Out) -> EventTime + Clone + Send + Sync + 'static,
    {
        self.event_time_with_lateness(time, out_of_order_ms, 0)
    }

    /// As [`Stream::event_time`]; but values may be behind by `lateness_ms` more. They still enter their window, and
    /// correct it if it has fired.
    pub fn event_time_with_lateness<F>(
        self,
        time: F,
        out_of_order_ms: i64,
        lateness_ms: i64,
    ) -> Stream<Stamp<S, F>>
    where
        F: Fn(&S::Out) -> EventTime + Clone + Send + Sync + 'static,
    {
        let mut graph = self.graph.then("event time");
        graph.lateness_ms = lateness_ms;
        Stream {
            graph,
            stage: Stamp::new(self.stage, time, out_of_order_ms, lateness_ms),
        }
    }
}

impl<T: Send + 'static, S: Stage<Out = Timed<T>>> Stream<S> {
    /// Keeps the values for which `keep` holds.
    pub fn filter<F>(self, keep: F) -> Stream<Filter<S, F>>
    where
        F: Fn(&T) -> bool + Clone + Send + Sync + 'static,
    {
        Stream {
            graph: self.graph.then("filter"),
            stage: Filter::new(self.stage, keep),
        }
    }

    /// Turns each value into another, which happened at the same time.
    pub fn map<U, F>(self, map: F) -> Stream<Map<S, F>>
    where
        U: Send + 'static,
        F: Fn(T) -> U + Clone + Send + Sync + 'static,
    {
        Stream {
            graph: self.graph.then("map"),
            stage: Map::new(self.stage, map),
        }
    }

    /// Keeps the first of each id, remembering it for `window_ms` of event time. The id is (key,
    /// event id), stamped where the event was made; events with the same key share a partition.
    pub fn dedup<I, F>(self, id: F, window_ms: i64) -> Stream<Dedup<S, I, F>>
    where
        I: Serialize + 'static,
        F: Fn(&T) -> I + Clone + Send + Sync + 'static,
    {
        let mut graph = self.graph.then("dedup");
        graph.dedup_ms = Some(window_ms);
        Stream {
            graph,
            stage: Dedup::new(self.stage, id, window_ms),
        }
    }

    /// Brings the values with the same key to the same task.
    pub fn key_by<K>(self, key: impl Fn(&T) -> K + Send + Sync + 'static) -> ByKey<S, T, K> {
        ByKey {
            graph: self.graph.then("by key"),
            stage: self.stage,
            key: Arc::new(key),
        }
    }
}

/// Values by key.
pub struct ByKey<S, T, K> {
    graph: Graph,
    stage: S,
    key: Arc<dyn Fn(&T) -> K + Send + Sync>,
}

impl<S, T, K> ByKey<S, T, K> {
    /// Windows of `size_ms` of event time, one after the other.
    pub fn tumbling(self, size_ms: i64) -> Windowed<S, T, K> {
        Windowed {
            graph: self.graph.then("window"),
            stage: self.stage,
            key: self.key,
            size_ms,
        }
    }
}

/// Values by key and window.
pub struct Windowed<S, T, K> {
    graph: Graph,
    stage: S,
    key: Arc<dyn Fn(&T) -> K + Send + Sync>,
    size_ms: i64,
}

impl<S, T, K> Windowed<S, T, K> {
    /// Folds the values of a window.
    pub fn fold<A>(self, fold: impl Fn(&mut A, T) + Send + Sync + 'static) -> Folded<S, T, K, A> {
        Folded {
            windowed: self,
            fold: Arc::new(fold),
            state: PhantomData,
        }
    }
}

/// Windows and what they are folded into.
pub struct Folded<S, T, K, A> {
    windowed: Windowed<S, T, K>,
    fold: Fold<A, T>,
    state: PhantomData<fn() -> A>,
}

impl<S, T, K, A> Folded<S, T, K, A> {
    /// Turns a window that fired into a row of output.
    pub fn rows(
        self,
        row: impl Fn(&K, EventTime, &A) -> Row + Send + Sync + 'static,
    ) -> WindowJob<S, T, K, A> {
        WindowJob {
            extent: Extent {
                size_ms: self.windowed.size_ms,
                lateness_ms: self.windowed.graph.lateness_ms,
            },
            graph: self.windowed.graph,
            stage: self.windowed.stage,
            key: self.windowed.key,
            fold: self.fold,
            row: Arc::new(move |fired| row(&fired.key, fired.start, &fired.value)),
        }
    }
}

/// How a value enters its window.
pub(crate) type Fold<A, T> = Arc<dyn Fn(&mut A, T) + Send + Sync>;

/// How a fired window becomes a row.
pub(crate) type ToRow<K, A> = Arc<dyn Fn(&Fired<K, A>) -> Row + Send + Sync>;

/// A pipeline from a topic through windows to a sink. It says what is done, not where.
pub struct WindowJob<S, T, K, A> {
    pub(crate) graph: Graph,
    pub(crate) stage: S,
    pub(crate) key: Arc<dyn Fn(&T) -> K + Send + Sync>,
    pub(crate) extent: Extent,
    pub(crate) fold: Fold<A, T>,
    pub(crate) row: ToRow<K, A>,
}

impl<S, T, K, A> WindowJob<S, T, K, A> {
    /// Its operators.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }
}

impl<S: Clone, T, K, A> Clone for WindowJob<S, T, K, A> {
    fn clone(&self) -> Self {
        WindowJob {
            graph: self.graph.clone(),
            stage: self.stage.clone(),
            key: self.key.clone(),
            extent: self.extent,
            fold: self.fold.clone(),
            row: self.row.clone(),
        }
    }
}
