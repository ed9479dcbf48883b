//! `stuck`: after all faults had ended, the system did not finish its work within the bound.

use super::{Anomaly, Kind};
use std::time::Duration;

/// The anomaly of a system that still waits after `bound` of calm: for what, and who.
pub fn anomaly(bound: Duration, waits_for: Vec<String>) -> Anomaly {
    Anomaly {
        kind: Kind::Stuck,
        claim: String::new(),
        what: format!("not done after {} s of calm", bound.as_secs()),
        why: waits_for,
    }
}
