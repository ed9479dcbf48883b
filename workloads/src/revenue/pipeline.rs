//! The pipeline under test: from order events to revenue per minute.

use super::{
    event::{OrderEvent, PAID},
    EVENTS,
};
use engine::{
    graph::{Pipeline, Stream, Upstream, WindowJob},
    operator::{window::window_start, Stage},
    record::Timed,
    sink::Row,
};
use serde::{Deserialize, Serialize};

/// How far events may be out of order without being late.
pub const OUT_OF_ORDER_MS: i64 = 30_000;
/// For how long ids are remembered behind the watermark.
pub const DEDUP_MS: i64 = 60_000;
/// The windows.
pub const MINUTE_MS: i64 = 60_000;

/// What a minute's paid orders come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Revenue {
    /// How many.
    pub orders: u64,
    /// Their sum, in cents.
    pub cents: i64,
}

impl Revenue {
    /// Counts one paid order.
    pub fn add(&mut self, cents: i64) {
        self.orders += 1;
        self.cents += cents;
    }
}

/// A row of `fact_revenue_1m`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevenueRow {
    /// The minute's first millisecond since 1970.
    pub minute_ms: i64,
    /// How many orders were paid in it.
    pub orders: u64,
    /// What they come to, in cents.
    pub cents: i64,
}

/// A minute as people read it.
pub fn minute_name(minute_ms: i64) -> String {
    let minutes = minute_ms.div_euclid(MINUTE_MS);
    let (days, minutes) = (minutes.div_euclid(1440), minutes.rem_euclid(1440));
    format!(
        "minute {:02}:{:02} of day {days}",
        minutes / 60,
        minutes % 60
    )
}

/// An order that was paid: all that the windows need to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paid {
    /// The minute's first millisecond since 1970.
    pub minute_ms: i64,
    /// How much, in cents.
    pub cents: i64,
}

/// A job that sums up what was paid.
pub type Revenues<S> = WindowJob<S, Paid, i64, Revenue>;

/// The pipeline. Events that are late by less than `lateness_ms` still count.
pub fn revenue(upstream: Upstream, lateness_ms: i64) -> Revenues<impl Stage<Out = Timed<Paid>>> {
    let id = |event: &OrderEvent| (event.order_id.clone(), event.event_id.clone());
    sums(paid(upstream, lateness_ms).dedup(id, DEDUP_MS))
}

/// The same without dedup: what the source repeats counts again.
pub fn revenue_without_dedup(
    upstream: Upstream,
    lateness_ms: i64,
) -> Revenues<impl Stage<Out = Timed<Paid>>> {
    sums(paid(upstream, lateness_ms))
}

fn paid(upstream: Upstream, lateness_ms: i64) -> Stream<impl Stage<Out = Timed<OrderEvent>>> {
    Pipeline::read(EVENTS, upstream)
        .decode(OrderEvent::parse)
        .event_time_with_lateness(OrderEvent::time, OUT_OF_ORDER_MS, lateness_ms)
        .filter(|event| event.status == PAID)
}

fn sums<S>(events: Stream<S>) -> Revenues<impl Stage<Out = Timed<Paid>>>
where
    S: Stage<Out = Timed<OrderEvent>>,
{
    events
        .map(|event| Paid {
            minute_ms: window_start(event.time(), MINUTE_MS).0,
            cents: event.amount_cents,
        })
        .key_by(|paid| paid.minute_ms)
        .tumbling(MINUTE_MS)
        .fold(|revenue: &mut Revenue, paid| revenue.add(paid.cents))
        .rows(|_, minute, revenue| {
            let row = RevenueRow {
                minute_ms: minute.0,
                orders: revenue.orders,
                cents: revenue.cents,
            };
            let value = serde_json::to_string(&row).expect("a row is plain data");
            Row::new(minute.to_string(), value)
        })
}
