//! Sample events for real runs: out of order, late, repeated; the same in every process.

use super::event::OrderEvent;
use engine::state::stable_hash;

const BEGIN_MS: i64 = 1_735_725_600_000;
/// Events that may be repeated.
const RECENT: usize = 30;

/// Numbers that look random, and are the same in every run.
pub struct Draws(pub u64);

impl Draws {
    /// A number below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = stable_hash(&self.0);
        self.0 % bound
    }
}

/// So many events, over a minute for each ten thousand.
pub fn events(count: u64) -> impl Iterator<Item = OrderEvent> {
    let mut draws = Draws(7);
    let mut recent: Vec<OrderEvent> = Vec::new();
    (0..count).map(move |index| {
        if index % 17 == 3 {
            return recent[draws.below(recent.len() as u64) as usize].clone();
        }
        let behind = match index % 50 {
            7 => 40_000 + draws.below(120_000),
            _ => draws.below(20_000),
        };
        let statuses = ["paid", "paid", "paid", "created", "shipped"];
        let event = OrderEvent {
            event_id: format!("e-{index}"),
            order_id: format!("order-{}", draws.below(count / 3 + 1)),
            status: statuses[index as usize % statuses.len()].into(),
            amount_cents: draws.below(20_000) as i64 - 500,
            event_time: BEGIN_MS + index as i64 * 6 - behind as i64,
        };
        if recent.len() == RECENT {
            recent.remove(0);
        }
        recent.push(event.clone());
        event
    })
}
