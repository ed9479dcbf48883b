//! `lost`: what must be there is missing, or only a part of what it was made of was counted.

use super::{Anomaly, Kind, Ledger};

/// Every fact that must be seen, and was not, or with fewer parts in every sighting.
pub fn check(ledger: &Ledger) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    for (key, amount) in &ledger.must {
        match ledger.seen.get(key).map(Vec::as_slice) {
            None | Some([]) => {
                anomalies.push(ledger.anomaly(Kind::Lost, key, format!("{key} is missing")));
            }
            Some(seen) => {
                let most = seen.iter().map(|seen| seen.amount.count).max().unwrap_or(0);
                if most < amount.count {
                    let what = format!(
                        "{key} is made of {most} parts, the oracle says {}",
                        amount.count
                    );
                    anomalies.push(ledger.anomaly(Kind::Lost, key, what));
                }
            }
        }
    }
    anomalies
}
