//! `torn`: something is there, with all its parts, but not as it was made.

use super::{Anomaly, Kind, Ledger};

/// Every sighting with as many parts as expected that do not add up.
pub fn check(ledger: &Ledger) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    for (key, seen) in &ledger.seen {
        let Some(expected) = ledger.expected(key) else {
            continue;
        };
        for seen in seen.iter().map(|seen| seen.amount) {
            if seen.count == expected.count && seen.sum != expected.sum {
                let what = format!(
                    "{key} adds up to {}, the oracle says {}",
                    seen.sum, expected.sum
                );
                anomalies.push(ledger.anomaly(Kind::Torn, key, what));
            }
        }
    }
    anomalies
}
