//! Money moves between accounts in transactions, over three brokers that fail: the sum never changes.

use sim::{Explore, Fault, Trigger, What, Workload};
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

/// A broker that goes on with what it has open is taken down soon after something of it was damaged, and reads it again.
#[test]
fn damage_at_rest_is_never_silent() {
    let workload = Arc::new(TransferWorkload::default());
    let shape = workload.shape();
    let explore = Explore::new(workload).seeds(0..150).adjust(move |plan| {
        plan.damage(&shape, &What::DAMAGE);
        let damaged = plan.faults.last().expect("it was drawn").clone();
        let (Some(spot), Trigger::Time(ms)) = (damaged.what.damage(), damaged.at) else {
            unreachable!("damage strikes at a time");
        };
        let node = spot.node.clone();
        plan.faults.push(Fault {
            at: Trigger::Time(ms + 500),
            what: match plan.seed.0 % 2 {
                0 => What::Crash { node, down: 400 },
                _ => What::PowerLoss { node, down: 400 },
            },
        });
    });
    let campaign = explore.check();
    for kind in What::DAMAGE {
        assert!(campaign.faults[kind] > 0, "{kind} has never struck");
    }
    let detected = campaign.verdicts.get("detected").copied();
    assert!(detected > Some(20), "{:?}", campaign.verdicts);
}
