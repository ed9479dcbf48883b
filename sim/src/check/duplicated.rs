//! `duplicated`: something was seen twice, or counts more parts than there were.

use super::{Anomaly, Kind, Ledger};

/// Every fact with more than one sighting, or with more parts than expected.
pub fn check(ledger: &Ledger) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    for (key, seen) in &ledger.seen {
        let Some(expected) = ledger.expected(key) else {
            continue;
        };
        if seen.len() > 1 {
            let what = format!("{key} is there {} times", seen.len());
            anomalies.push(ledger.anomaly(Kind::Duplicated, key, what));
        } else if seen.iter().any(|seen| seen.amount.count > expected.count) {
            let what = format!(
                "{key} is made of {} parts that add up to {}, the oracle says {} and {}",
                seen[0].amount.count, seen[0].amount.sum, expected.count, expected.sum
            );
            anomalies.push(ledger.anomaly(Kind::Duplicated, key, what));
        }
    }
    anomalies
}
