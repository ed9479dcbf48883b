//! Seeds that are run twice: leaks that break nothing are found, and nothing else is taken for one.

use super::{exit_code, explore, text};
use crate::{
    planted::PLANTS,
    running::{output, seedbed},
};
use sim::{explore::Conclusion, Explore, Workload};
use std::sync::Arc;

#[test]
fn each_leak_is_found_in_seeds_that_pass() {
    for (name, _) in PLANTS.iter().filter(|(name, _)| name.starts_with("leaks-")) {
        let campaign = explore(name).seeds(0..40).run();
        assert_eq!(campaign.failed, 0, "{name}: {:?}", campaign.verdicts);
        assert!(
            campaign.parted > 0,
            "{name}: {} run twice",
            campaign.run_twice
        );
        assert_eq!(
            campaign.conclusion(),
            Conclusion::NotDeterministic,
            "{name}"
        );
        let leak = &campaign.leaks[0];
        let parting = leak.parting.as_ref().expect("it parts again");
        let (left, right) = (parting.left.as_ref(), parting.right.as_ref());
        assert_ne!(left, right, "{name}");
        assert!(
            left.is_some_and(|line| line.contains("net.recv")),
            "{name}: {left:?}"
        );
    }
}

#[test]
fn a_leak_is_told_with_its_first_parting_event() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = [
        "fuzz",
        "leaks-random",
        "--seeds",
        "0..40",
        "--jobs",
        "1",
        "--out",
        "night",
    ];
    let output = output(seedbed(folder.path(), &arguments));
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("the traces part at event"), "{said}");
    let again = said
        .lines()
        .find_map(|line| line.strip_prefix("again cargo sim "));
    let again: Vec<&str> = again.expect("a command").split(' ').collect();
    assert_eq!(again[0], "trace");
    assert_eq!(exit_code(seedbed(folder.path(), &again)), Some(4));
}

#[test]
fn what_leaks_nothing_is_the_same_twice() {
    let revenue = workloads::revenue::workload::RevenueWorkload { records: 100 };
    let transfer = workloads::transfer::workload::TransferWorkload::default();
    let workloads: [Arc<dyn Workload>; 2] = [Arc::new(revenue), Arc::new(transfer)];
    for workload in workloads {
        let campaign = Explore::new(workload).seeds(100..120).check();
        assert_eq!((campaign.run_twice, campaign.parted), (1, 0));
    }
}

/// Of which seed it is said depends on the seeds alone.
#[test]
fn which_seeds_are_run_twice_does_not_depend_on_the_number_of_workers() {
    for jobs in [1, 3, 8] {
        let campaign = explore("leaks-random").jobs(jobs).seeds(0..120).run();
        let mut seeds: Vec<&str> = campaign.leaks.iter().map(|leak| &*leak.seed).collect();
        seeds.sort_unstable();
        assert_eq!(campaign.run_twice, 2, "{jobs} workers");
        assert_eq!(seeds, ["0x6b", "0x7"], "{jobs} workers");
        // Of a share of the seeds it is the eighth, too.
        let campaign = explore("leaks-random")
            .jobs(jobs)
            .shard(3, 4)
            .seeds(0..40)
            .run();
        let seeds: Vec<&str> = campaign.leaks.iter().map(|leak| &*leak.seed).collect();
        assert_eq!(seeds, ["0x1f"], "{jobs} workers");
    }
}

#[test]
fn a_counter_of_the_process_leaks_in_the_first_run_of_a_worker_too() {
    let campaign = explore("leaks-counter").jobs(8).seeds(0..8).run();
    assert_eq!((campaign.run_twice, campaign.parted), (1, 1));
}

/// A seed that fails is not run twice: the next one is that does not.
#[test]
fn as_many_seeds_are_run_twice_if_some_fail() {
    // Seed 8 would be the one.
    let campaign = explore("planted-exit").jobs(1).seeds(1..11).run();
    assert_eq!((campaign.failed, campaign.run_twice), (2, 1));
}

#[test]
fn a_campaign_that_ran_nothing_twice_does_not_say_that_it_was_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let seeds = |seeds| ["fuzz", "planted-words", "--jobs", "1", "--seeds", seeds];
    let said = |arguments: &[&str]| text(&output(seedbed(folder.path(), arguments)).stdout);
    let few = said(&seeds("0..4"));
    assert!(few.contains("none run twice"), "{few}");
    let enough = said(&seeds("0..10"));
    assert!(
        enough.contains("1 run twice, the same each time"),
        "{enough}"
    );
}

/// What the machine does to the process of the second run is in no plan, and proves no leak; nor is the seed
/// passed over.
#[test]
fn a_second_run_that_is_cut_short_is_a_failure_that_is_not_confirmed() {
    let folder = tempfile::tempdir().expect("a folder");
    let seeds = ["--seeds", "0..10", "--jobs", "1", "--out", "night"];
    let arguments = [&["fuzz", "planted-second"], &seeds[..]].concat();
    let output = output(seedbed(folder.path(), &arguments));
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("FAIL  aborted") && said.contains("could not be confirmed"),
        "{said}"
    );
    assert!(!said.contains("LEAK") && !said.contains("PARTED"), "{said}");
    assert!(
        said.contains("clean 9") && said.contains("aborted 1"),
        "{said}"
    );
    let last = said.lines().last().expect("a verdict");
    assert!(
        last.starts_with("BROKEN") && last.contains("1 failed"),
        "{last}"
    );
}
