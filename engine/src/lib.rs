//! Exactly-once stream processing whose guarantees can be checked.
//!
//! The engine knows nothing of any simulator. Everything outside the process goes through the seams of
//! [`host`], time and tasks are tokio's; under `--cfg madsim` those are simulated, without a line
//! of difference here. What a test needs to see, the engine says as `tracing` events with stable names
//! (`checkpoint.complete`, `sink.prepared`, `log.synced`, …), which serve operators as well.
//!
//! The map, in the order in which data flows:
//!
//! | module | is |
//! |---|---|
//! | [`ids`], [`record`] | one newtype per unit; records, and messages between tasks |
//! | [`host`] | disk, network, clock, objects: the seams, and the real ones |
//! | [`watched`], `part` | a value that tasks wait for, in a fixed order; what ends with who has spawned it |
//! | [`wire`] | Kafka's requests, frames and record batches |
//! | [`log`] | the durable stream: segments, partitions, brokers, clients |
//! | [`guarantee`], [`graph`] | pure: the chain and what it gives; the operators of a job |
//! | [`state`] | key groups: how keyed state is divided among tasks |
//! | [`link`], [`exchange`] | messages between processes; edges between tasks, in one process or over the network |
//! | [`barrier`] | which inputs wait until barriers align |
//! | [`source`], [`operator`] | partitions in; decode, event time, filter, dedup, window |
//! | [`checkpoint`] | coordinator, manifest log, and `Complete`, the right to commit |
//! | [`sink`] | write, prepare, commit, abort, recover: objects, transactional, idempotent, append |
//! | [`failure`], [`task`] | whether another try can help; one running operator |
//! | [`worker`], [`job`] | the tasks of one process; attempts, fencing, standing by |
//!
//! A job says what it does, and what it claims; a claim that its chain does not keep is refused:
//!
//! ```
//! use engine::{
//!     graph::{Pipeline, Upstream},
//!     guarantee::{Chain, Guarantee, SinkClass},
//!     ids::EventTime,
//!     sink::Row,
//! };
//!
//! // Lines of "order cents time", summed per second. Whoever writes them may repeat them.
//! let sums = Pipeline::read("payments", Upstream::Repeats)
//!     .decode(|bytes| {
//!         let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
//!         let parts: Vec<i64> = text.split(' ').filter_map(|part| part.parse().ok()).collect();
//!         <[i64; 3]>::try_from(parts).map_err(|parts| format!("{} numbers", parts.len()))
//!     })
//!     .event_time(|[_, _, time]| EventTime(*time), 2000)
//!     .dedup(|[order, _, time]| (*order, *time), 5000)
//!     .key_by(|[_, _, time]| time / 1000)
//!     .tumbling(1000)
//!     .fold(|sum: &mut i64, [_, cents, _]| *sum += cents)
//!     .rows(|second, _, sum| Row::new(second.to_string(), sum.to_string()));
//!
//! let chain = |sink| Chain::new(
//!     sums.graph().upstream, sums.graph().dedup(), sink, Guarantee::ExactlyOnce);
//! let objects = chain(("objects", SinkClass::Idempotent));
//! assert!(objects.check(Guarantee::ExactlyOnce).is_ok());
//! let append = chain(("append", SinkClass::Append));
//! let refused = append.check(Guarantee::ExactlyOnce).unwrap_err();
//! assert_eq!(refused.weakest.name, "sink");
//! ```

pub mod ids;
pub mod record;
pub mod host;
pub mod watched;
mod part;
pub mod wire;
pub mod log;
pub mod guarantee;
pub mod graph;
pub mod state;
pub mod link;
pub mod exchange;
pub mod barrier;
pub mod source;
pub mod operator;
pub mod checkpoint;
pub mod sink;
pub mod failure;
pub mod task;
pub mod worker;
pub mod job;
