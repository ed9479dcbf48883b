//! Money moves between accounts in transactions, over three brokers that fail: the sum never changes.

use sim::Explore;
use std::sync::Arc;
use workloads::transfer::workload::TransferWorkload;

/// What must happen somewhere, or the seeds say little.
const MOVES: [&str; 7] = [
    "transaction.committed",
    "transaction.aborted",
    "transaction.fenced",
    "transaction.timed-out",
    "transaction.coordinator-took-over",
    "group.coordinator-took-over",
    "log.verification-outdated",
];

#[test]
fn each_command_has_its_effect_once() {
    let workload = Arc::new(TransferWorkload::default());
    let campaign = Explore::new(workload).seeds(0..30).check();
    assert!(campaign.commits > 0 && campaign.compared > 0);
    let count = |name: &str| campaign.faults.get(name).copied().unwrap_or(0);
    for name in MOVES {
        assert!(count(name) > 0, "{name} has never happened");
    }
    for (name, count) in &campaign.moves {
        assert!(*count > 0, "{name} has never happened");
    }
}
