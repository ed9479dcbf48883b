//! Every legal move of attempts, checkpoints and prepared output happens. One that is not legal is found in any
//! run: `workloads::revenue::moves` is the table of them.

use sim::Explore;
use std::sync::Arc;
use workloads::revenue::workload::RevenueWorkload;

/// Moves within a few milliseconds, or that take several faults at once: `cargo sim fuzz revenue` with each sink over
/// 2,000 seeds has seen each of them, and these few seeds need not.
const SELDOM: [&str; 12] = [
    "attempt: - > begins late > replaced",
    "attempt: deployed > is fenced > over",
    "attempt: deployed > loses the store > over",
    "attempt: fresh > is replaced > replaced",
    "attempt: recovered > cannot begin > over",
    "attempt: recovered > is fenced > over",
    "attempt: replaced > deploys > replaced",
    "attempt: restoring > cannot recover > over",
    "checkpoint: collecting > is restored > restored",
    "checkpoint: restored > commits late > restored",
    "checkpoint: restored > completes late > restored",
    "output: recovered > is committed late > recovered",
];

#[test]
fn every_legal_move_happens() {
    let workload = Arc::new(RevenueWorkload { records: 200 });
    let campaign = Explore::new(workload).seeds(0..300).check();
    let mut never: Vec<&String> = Vec::new();
    for (name, count) in &campaign.moves {
        if *count == 0 && !SELDOM.contains(&name.as_str()) {
            never.push(name);
        }
    }
    assert!(never.is_empty(), "never happened: {never:#?}");
    for name in SELDOM {
        assert!(campaign.moves.contains_key(name), "{name} is no move");
    }
}
