//! A seed is a run: the same trace in any process, build, order and number of threads.

use sim::{run, run::draw, Explore, Limits, Seed, Workload};
use std::{fs, path::Path, process::Command, sync::Arc};
use workloads::{revenue::workload::RevenueWorkload, transfer::workload::TransferWorkload};

/// The seeds that are compared. Their plans hold every kind of fault between them.
const SEEDS: std::ops::Range<u64> = 0..12;

/// The same of the larger workload.
const TRANSFERS: std::ops::Range<u64> = 0..6;

fn revenue() -> Arc<dyn Workload> {
    Arc::new(RevenueWorkload { records: 200 })
}

fn transfer() -> Arc<dyn Workload> {
    Arc::new(TransferWorkload::default())
}

/// The command's arguments for each seed that is compared between processes.
fn replays() -> Vec<Vec<String>> {
    let revenue = SEEDS.map(|seed| format!("replay {seed} --records 200"));
    let transfer = TRANSFERS.map(|seed| format!("replay {seed} --workload transfer"));
    let words = |line: String| line.split(' ').map(str::to_owned).collect();
    revenue.chain(transfer).map(words).collect()
}

fn trace_of(workload: &Arc<dyn Workload>, seed: u64) -> String {
    let plan = draw(&**workload, Seed(seed));
    let limits = Limits {
        keep_trace: true,
        ..Limits::default()
    };
    run(workload, &plan, &limits)
        .trace
        .expect("it was asked for")
}

/// The trace of a run in a process of its own.
fn trace_of_process(program: &Path, replay: &[String]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trace");
    let mut command = Command::new(program);
    command.args(replay).arg("--trace").arg(&file);
    let output = command.output().expect("it starts");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    fs::read_to_string(file).expect("it was written")
}

fn this_build() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seedbed-under-test"))
}

fn assert_same(what: &str, left: &str, right: &str) {
    if let Some(parting) = sim::trace::parting(left, right) {
        panic!("{what}: {parting:#?}");
    }
}

#[test]
fn the_first_run_of_a_process_is_like_the_hundredth() {
    let (revenue, transfer) = (revenue(), transfer());
    let runs = SEEDS.map(|seed| (&revenue, seed));
    let runs: Vec<_> = runs
        .chain(TRANSFERS.map(|seed| (&transfer, seed)))
        .collect();
    let all = || -> Vec<String> {
        let traces = runs
            .iter()
            .map(|(workload, seed)| trace_of(workload, *seed));
        traces.collect()
    };
    let first = all();
    for seed in 100..190 {
        trace_of(&revenue, seed);
    }
    for ((first, again), (workload, seed)) in first.iter().zip(all()).zip(&runs) {
        let what = format!("{}, seed {seed}: first and hundredth run", workload.name());
        assert_same(&what, first, &again);
    }
}

#[test]
fn two_processes_agree_to_the_last_byte() {
    for replay in replays() {
        let left = trace_of_process(this_build(), &replay);
        let right = trace_of_process(this_build(), &replay);
        assert_same(&format!("{replay:?}, two processes"), &left, &right);
    }
}

#[test]
fn debug_and_release_agree_to_the_last_byte() {
    let other = other_build();
    for replay in replays() {
        let left = trace_of_process(this_build(), &replay);
        let right = trace_of_process(&other, &replay);
        assert_same(&format!("{replay:?}, debug and release"), &left, &right);
    }
}

/// Builds the command with the other profile.
fn other_build() -> std::path::PathBuf {
    let (profile, folder): (&[&str], _) = match cfg!(debug_assertions) {
        true => (&["--release"], "release"),
        false => (&[], "debug"),
    };
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "build",
        "--quiet",
        "-p",
        "seedbed-tests",
        "--bin",
        "seedbed-under-test",
    ]);
    command
        .args(profile)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(
        command.status().expect("cargo starts").success(),
        "the other profile builds"
    );
    let target = this_build()
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE/command");
    target.join(folder).join("seedbed-under-test")
}

#[test]
fn a_campaign_is_the_same_on_one_thread_and_on_two() {
    for (workload, seeds) in [(revenue(), 0..40), (transfer(), 0..8)] {
        let campaign = |jobs| {
            let explore = Explore::new(workload.clone()).seeds(seeds.clone());
            explore.jobs(jobs).check()
        };
        let (one, two) = (campaign(1), campaign(2));
        assert_eq!(one.digest, two.digest);
        assert_eq!(one.faults, two.faults);
    }
}

#[test]
fn a_trace_file_differs_where_another_seed_does() {
    let replays = replays();
    let (left, right) = (
        trace_of_process(this_build(), &replays[1]),
        trace_of_process(this_build(), &replays[2]),
    );
    assert!(
        sim::trace::parting(&left, &right).is_some(),
        "the comparison can fail"
    );
}
