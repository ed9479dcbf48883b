//! The oracle: a fold over the input log, one event after the other, simpler than the pipeline.

use super::{
    event::{OrderEvent, PAID},
    pipeline::{Revenue, MINUTE_MS, OUT_OF_ORDER_MS},
};
use std::collections::{BTreeMap, BTreeSet};

/// What the input log comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The revenue of each minute that has closed, by its first millisecond.
    pub minutes: BTreeMap<i64, Revenue>,
    /// What cannot be used, by partition and offset: why.
    pub dead_letters: BTreeMap<(usize, i64), &'static str>,
}

/// Folds the partitions of the input log, each from its first record on.
pub fn fold(partitions: &[Vec<Vec<u8>>]) -> Expected {
    let mut expected = Expected::default();
    let mut seen = BTreeSet::new();
    let mut closed = i64::MAX;
    for (partition, log) in partitions.iter().enumerate() {
        let mut latest = i64::MIN;
        for (offset, payload) in log.iter().enumerate() {
            let place = (partition, offset as i64);
            let Ok(event) = OrderEvent::parse(payload) else {
                expected.dead_letters.insert(place, "undecodable");
                continue;
            };
            if event.event_time <= latest.saturating_sub(OUT_OF_ORDER_MS) {
                expected.dead_letters.insert(place, "late");
                continue;
            }
            latest = latest.max(event.event_time);
            if event.status == PAID && seen.insert((event.order_id, event.event_id)) {
                let minute = event.event_time - event.event_time.rem_euclid(MINUTE_MS);
                expected
                    .minutes
                    .entry(minute)
                    .or_default()
                    .add(event.amount_cents);
            }
        }
        closed = closed.min(latest.saturating_sub(OUT_OF_ORDER_MS));
    }
    expected
        .minutes
        .retain(|minute, _| minute + MINUTE_MS - 1 <= closed);
    expected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, status: &str, cents: i64, time: i64) -> Vec<u8> {
        OrderEvent {
            event_id: id.into(),
            order_id: "o".into(),
            status: status.into(),
            amount_cents: cents,
            event_time: time,
        }
        .to_bytes()
    }

    #[test]
    fn the_oracle_agrees_with_a_sum_by_hand() {
        let log = vec![
            event("a", "paid", 100, 1_000),
            event("b", "created", 999, 2_000),
            event("a", "paid", 100, 1_000),
            b"?".to_vec(),
            event("c", "paid", 20, 59_999),
            event("d", "paid", 3, 60_000),
            event("e", "paid", 4, 25_000),
            event("f", "heartbeat", 0, 150_000),
        ];
        let expected = fold(&[log]);
        let minutes = [
            (
                0,
                Revenue {
                    orders: 2,
                    cents: 120,
                },
            ),
            (
                60_000,
                Revenue {
                    orders: 1,
                    cents: 3,
                },
            ),
        ];
        assert_eq!(expected.minutes, minutes.into());
        assert_eq!(
            expected.dead_letters,
            [((0, 3), "undecodable"), ((0, 6), "late")].into()
        );
    }
}
