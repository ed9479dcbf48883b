//! `phantom`: something is there that nothing in the input explains.

use super::{Anomaly, Kind, Ledger};

/// Every sighting of what neither must nor may be there.
pub fn check(ledger: &Ledger) -> Vec<Anomaly> {
    let unexplained = ledger
        .seen
        .keys()
        .filter(|key| ledger.expected(key).is_none());
    unexplained
        .map(|key| ledger.anomaly(Kind::Phantom, key, format!("{key} comes from nowhere")))
        .collect()
}
