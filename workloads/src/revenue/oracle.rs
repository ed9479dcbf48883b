//! The oracle: a fold over the input log, one event after the other, simpler than the pipeline.

use super::{
    event::{OrderEvent, PAID},
    pipeline::{Revenue, MINUTE_MS, OUT_OF_ORDER_MS},
};
use engine::{ids::EventTime, operator::window::window_hash};
use std::collections::{BTreeMap, BTreeSet};

/// Where a record is: partition and offset.
pub type Place = (usize, i64);

/// What the pipeline makes of its input.
pub struct Oracle {
    lateness_ms: i64,
    dedup: bool,
    /// Records that were late only because their partition had been idle: what comes of the clock is no function
    /// of the log, and is taken from the dead letters.
    idle: BTreeSet<Place>,
    seen: BTreeSet<(String, String)>,
    /// The latest time of each partition.
    latest: Vec<i64>,
    /// The revenue of each minute, by its first millisecond.
    minutes: BTreeMap<i64, Revenue>,
    dead_letters: BTreeMap<Place, &'static str>,
    /// How many events were repetitions, or of a status that does not count.
    filtered: u64,
    /// What [`Oracle::fingerprint`] says, kept up to date.
    hash: u64,
}

impl Oracle {
    /// Nothing read yet. Without `dedup`, what is repeated counts again.
    pub fn new(partitions: usize, lateness_ms: i64, dedup: bool, idle: BTreeSet<Place>) -> Self {
        Oracle {
            lateness_ms,
            dedup,
            idle,
            seen: BTreeSet::new(),
            latest: vec![i64::MIN; partitions],
            minutes: BTreeMap::new(),
            dead_letters: BTreeMap::new(),
            filtered: 0,
            hash: 0,
        }
    }

    /// Reads a record: an event, or something that is none.
    pub fn read(&mut self, place: Place, event: Option<&OrderEvent>) {
        let Some(event) = event else {
            self.dead_letters.insert(place, "undecodable");
            return;
        };
        let (partition, time) = (place.0, event.event_time);
        if time.saturating_add(self.lateness_ms) <= self.watermark(partition) {
            self.dead_letters.insert(place, "late");
            return;
        }
        if self.idle.contains(&place) {
            self.dead_letters.insert(place, "late-after-idle");
            return;
        }
        self.latest[partition] = self.latest[partition].max(time);
        let id = (event.order_id.clone(), event.event_id.clone());
        let first = self.seen.insert(id);
        if event.status != PAID || (self.dedup && !first) {
            self.filtered += 1;
            return;
        }
        let minute = time - time.rem_euclid(MINUTE_MS);
        if let Some(before) = self.minutes.get(&minute) {
            self.hash = self.hash.wrapping_sub(hash(minute, before));
        }
        let revenue = self.minutes.entry(minute).or_default();
        revenue.add(event.amount_cents);
        self.hash = self.hash.wrapping_add(hash(minute, revenue));
    }

    /// The watermark of a partition, as far as the log says.
    pub fn watermark(&self, partition: usize) -> i64 {
        self.latest[partition].saturating_sub(OUT_OF_ORDER_MS)
    }

    /// The least watermark of all partitions.
    pub fn watermark_of_all(&self) -> i64 {
        let all = (0..self.latest.len()).map(|partition| self.watermark(partition));
        all.min().expect("there are partitions")
    }

    /// The fingerprint of the state at a watermark that never falls: what is not in it any more is forgotten.
    pub fn fingerprint(&mut self, watermark: i64) -> u64 {
        let gone = |minute: i64| {
            let last = minute + MINUTE_MS - 1;
            last.saturating_add(self.lateness_ms) <= watermark
        };
        while let Some((minute, revenue)) = self.minutes.first_key_value() {
            if !gone(*minute) {
                break;
            }
            self.hash = self.hash.wrapping_sub(hash(*minute, revenue));
            self.minutes.pop_first();
        }
        self.hash
    }

    /// The revenue of each minute that has closed at a watermark.
    pub fn closed(&self, watermark: i64) -> BTreeMap<i64, Revenue> {
        let minutes = self.minutes.iter();
        let closed = minutes.filter(|(minute, _)| **minute + MINUTE_MS - 1 <= watermark);
        closed
            .map(|(minute, revenue)| (*minute, *revenue))
            .collect()
    }

    /// What cannot be used: why.
    pub fn dead_letters(&self) -> &BTreeMap<Place, &'static str> {
        &self.dead_letters
    }

    /// How many events neither count nor are dead letters.
    pub fn filtered(&self) -> u64 {
        self.filtered
    }
}

fn hash(minute: i64, revenue: &Revenue) -> u64 {
    window_hash(EventTime(minute), &minute, revenue)
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
        let log = [
            event("a", "paid", 100, 1_000),
            event("b", "created", 999, 2_000),
            event("a", "paid", 100, 1_000),
            b"?".to_vec(),
            event("c", "paid", 20, 59_999),
            event("d", "paid", 3, 60_000),
            event("e", "paid", 4, 25_000),
            event("i", "paid", 7, 58_000),
            event("f", "heartbeat", 0, 150_000),
        ];
        let fold = |lateness_ms| {
            let mut oracle = Oracle::new(1, lateness_ms, true, [(0, 7)].into());
            for (offset, payload) in log.iter().enumerate() {
                oracle.read((0, offset as i64), OrderEvent::parse(payload).ok().as_ref());
            }
            oracle
        };
        let revenue = |orders, cents| Revenue { orders, cents };
        let mut oracle = fold(0);
        assert_eq!(oracle.watermark_of_all(), 120_000);
        assert_eq!(
            oracle.closed(119_999),
            [(0, revenue(2, 120)), (60_000, revenue(1, 3))].into()
        );
        assert_eq!(oracle.closed(119_998).len(), 1);
        assert_eq!(
            *oracle.dead_letters(),
            [
                ((0, 3), "undecodable"),
                ((0, 6), "late"),
                ((0, 7), "late-after-idle")
            ]
            .into()
        );
        assert_eq!(oracle.filtered(), 3);
        assert_ne!(oracle.fingerprint(119_998), 0);
        assert_eq!(oracle.fingerprint(119_999), 0, "all windows are gone");
        assert_eq!(fold(6_000).closed(119_999)[&0], revenue(3, 124));
    }
}
