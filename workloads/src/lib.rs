//! What Seedbed runs, and how it knows that it is right. The only place where `sim` meets `engine`.
//!
//! | module | is |
//! |---|---|
//! | `cluster` | the engine's seams joined to a simulated world (simulated build only) |
//! | [`revenue`] | ShopFlow: order events in, revenue per minute out; its oracle |
//! | `transfer` | money between accounts, in the log's transactions; its ghost and its judge (simulated build only) |
//! | `canary` | must fail (simulated build only) |
//! | [`cli`] | the `seedbed` command |
//!
//! The pipeline under test is ordinary engine code, and the oracle is a fold over the input log:
//!
//! ```
//! use workloads::revenue::{event::OrderEvent, oracle::Oracle};
//!
//! let event = |id: &str, cents, time| OrderEvent {
//!     event_id: id.into(),
//!     order_id: "o-1".into(),
//!     status: "paid".into(),
//!     amount_cents: cents,
//!     event_time: time,
//! };
//! // One partition; the second event repeats the first, the last one closes the minute.
//! let log = [event("a", 65, 1_000), event("a", 65, 1_000), event("z", 1, 200_000)];
//! let mut oracle = Oracle::new(1, 0, true, Default::default());
//! for (offset, event) in log.iter().enumerate() {
//!     oracle.read((0, offset as i64), Some(event));
//! }
//! let closed = oracle.closed(oracle.watermark_of_all());
//! assert_eq!(closed[&0].cents, 65);
//! ```

#[cfg(madsim)]
pub mod cluster;
pub mod revenue;
#[cfg(madsim)]
pub mod transfer;
#[cfg(madsim)]
pub mod canary;
pub mod cli;

/// All workloads. Their names are what the command line and plans call them by.
#[cfg(madsim)]
pub fn all() -> Vec<std::sync::Arc<dyn sim::Workload>> {
    vec![
        std::sync::Arc::new(revenue::workload::RevenueWorkload::default()),
        std::sync::Arc::new(transfer::workload::TransferWorkload::default()),
        std::sync::Arc::new(canary::Canary),
    ]
}
