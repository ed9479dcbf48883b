//! `revenue`: ShopFlow. Shops write order events; the pipeline sums what was paid per minute.
//!
//! The events repeat themselves (with the same id), come out of order and late, and some cannot be
//! decoded. The oracle is a fold over the input log.

pub mod event;
#[cfg(not(madsim))]
pub mod feed;
#[cfg(not(madsim))]
pub mod sample;
pub mod oracle;
pub mod pipeline;
pub mod table;
#[cfg(madsim)]
pub mod ghost;
#[cfg(madsim)]
pub mod judge;
#[cfg(madsim)]
pub mod moves;
#[cfg(madsim)]
pub mod reader;
#[cfg(madsim)]
pub mod settings;
#[cfg(madsim)]
pub mod shop;
#[cfg(madsim)]
pub mod workload;

/// The topic of the events.
pub const EVENTS: &str = "order_events";
/// The topic of the sums, if the sink is a topic.
pub const SUMS: &str = "fact_revenue_1m";
/// The topic of events that cannot be used.
pub const DEAD_LETTERS: &str = "order_events_dead_letters";
