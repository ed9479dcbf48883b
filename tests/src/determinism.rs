//! A seed is a run: the same trace in any process, build, order and number of threads.

use sim::{run, run::draw, Explore, Limits, Seed, Workload};
use std::{fs, path::Path, process::Command, sync::Arc};
use workloads::revenue::workload::RevenueWorkload;

/// The seeds that are compared. Their plans hold every kind of fault between them.
const SEEDS: std::ops::Range<u64> = 0..12;

fn revenue() -> Arc<dyn Workload> {
    Arc::new(RevenueWorkload { records: 200 })
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

/// The trace of a seed in a process of its own.
fn trace_of_process(program: &Path, seed: u64) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trace");
    let mut command = Command::new(program);
    command
        .args(["replay", &seed.to_string(), "--records", "200", "--trace"])
        .arg(&file);
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
    let workload = revenue();
    let first: Vec<String> = SEEDS.map(|seed| trace_of(&workload, seed)).collect();
    for seed in 100..190 {
        trace_of(&workload, seed);
    }
    for (seed, first) in first.iter().enumerate() {
        let again = trace_of(&workload, seed as u64);
        assert_same(
            &format!("seed {seed}, first and hundredth run"),
            first,
            &again,
        );
    }
}

#[test]
fn two_processes_agree_to_the_last_byte() {
    for seed in SEEDS {
        let left = trace_of_process(this_build(), seed);
        let right = trace_of_process(this_build(), seed);
        assert_same(&format!("seed {seed}, two processes"), &left, &right);
    }
}

#[test]
fn debug_and_release_agree_to_the_last_byte() {
    let other = other_build();
    for seed in SEEDS {
        let left = trace_of_process(this_build(), seed);
        let right = trace_of_process(&other, seed);
        assert_same(&format!("seed {seed}, debug and release"), &left, &right);
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
    let campaign = |jobs| Explore::new(revenue()).seeds(0..40).jobs(jobs).check();
    let (one, two) = (campaign(1), campaign(2));
    assert_eq!(one.digest, two.digest);
    assert_eq!(one.faults, two.faults);
}

#[test]
fn a_trace_file_differs_where_another_seed_does() {
    let (left, right) = (
        trace_of_process(this_build(), 1),
        trace_of_process(this_build(), 2),
    );
    assert!(
        sim::trace::parting(&left, &right).is_some(),
        "the comparison can fail"
    );
}
