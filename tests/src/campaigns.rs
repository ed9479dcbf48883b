//! Campaigns: nothing that a program under test does ends one, what it found is there whatever ends it, and
//! each failure is put under its own cause.

use crate::planted::{is_hit, planted, PLANTS};
use sim::{
    explore::{Again, Conclusion, Ended},
    run, Explore, Fault, Kind, Limits, Plan, Seed, Trigger, What, Workload,
};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// Long enough for any seed of a planted program, on a machine that does much else.
const WALL_MAX: Duration = Duration::from_secs(5);

fn explore(name: &str) -> Explore {
    Explore::new(planted(name))
        .wall_max(WALL_MAX)
        .memory_max(512 << 20)
        .jobs(2)
}

fn seedbed(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed-under-test"));
    command.args(arguments).current_dir(folder);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a paused node was about to do is dropped with the runtime, after the panic, and its streams with it.
fn pause_the_sleeper(plan: &mut Plan) {
    plan.faults = vec![Fault {
        at: Trigger::Time(1000),
        what: What::Pause {
            node: "sleeper".into(),
            lasts: 60_000,
        },
    }];
}

#[test]
fn a_panic_with_open_streams_is_a_verdict() {
    let workload = planted("planted-panic");
    let mut plan = run::draw(&*workload, Seed(3));
    pause_the_sleeper(&mut plan);
    let report = run(&workload, &plan, &Limits::default());
    let anomaly = report.verdict.anomaly().expect("it panics");
    assert_eq!(anomaly.kind, Kind::Panicked);
    assert!(anomaly.what.contains("planted"), "{}", anomaly.what);
    assert!(anomaly.claim.contains("planted.rs:"), "{}", anomaly.claim);
}

/// Explores a program that ends its process in two of ten seeds.
fn survives(name: &str, kind: Kind, words: &str) {
    let campaign = explore(name).seeds(0..10).run();
    assert_eq!(campaign.seeds_run, 10, "{campaign:#?}");
    assert_eq!(campaign.verdicts["clean"], 8, "{:?}", campaign.verdicts);
    assert_eq!(campaign.verdicts[kind.name()], 2);
    assert_eq!(campaign.ended, Ended::Done);
    let [failure] = &campaign.failures[..] else {
        panic!("one cause: {:#?}", campaign.failures);
    };
    assert_eq!((failure.anomaly.kind, failure.count), (kind, 2));
    assert_eq!(failure.again, Again::Same);
    let mut seeds = failure.seeds.clone();
    seeds.sort();
    assert_eq!(seeds, ["0x3", "0x8"]);
    let anomaly = format!("{:?}", failure.anomaly);
    assert!(anomaly.contains(words), "{anomaly}");
}

#[test]
fn a_panic_fails_with_its_seed() {
    survives("planted-panic", Kind::Panicked, "planted.rs");
}

#[test]
fn an_exit_fails_with_its_seed() {
    survives("planted-exit", Kind::Exited, "exit code 0");
}

#[test]
fn an_abort_fails_with_its_seed() {
    survives("planted-abort", Kind::Aborted, "signal 6");
}

#[test]
fn a_stack_that_overflows_fails_with_its_seed() {
    survives("planted-overflow", Kind::Aborted, "stack overflow");
}

#[test]
fn a_loop_that_never_awaits_fails_with_its_seed() {
    survives("planted-loop", Kind::Hung, "no end after 5 s");
}

#[test]
fn eaten_memory_fails_with_its_seed() {
    survives("planted-memory", Kind::Exhausted, "memory allocation of");
}

#[test]
fn the_command_survives_what_its_programs_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let codes = [
        ("planted-exit", 1),
        ("planted-abort", 1),
        ("planted-loop", 3),
    ];
    for (name, code) in codes {
        let out = format!("night-{name}");
        let seeds = ["--seeds", "0..10", "--seed-timeout", "5s", "--out", &out];
        let output = seedbed(folder.path(), &[&["fuzz", name], &seeds[..]].concat()).output();
        let output = output.expect("it starts");
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{said}");
        let last = said.lines().last().expect("a verdict");
        assert!(
            last.contains("10 seeds") && last.contains("2 failed"),
            "{last}"
        );
        let night = folder.path().join(&out);
        let listed = fs::read_to_string(night.join("failures.jsonl")).expect("written");
        assert_eq!(listed.lines().count(), 2, "{listed}");
        let junit = fs::read_to_string(night.join("junit.xml")).expect("written");
        assert!(junit.contains("8 of 10 seeds passed"), "{junit}");
        let counts = r#"tests="3" skipped="0" failures="2" errors="0""#;
        assert!(junit.contains(counts), "{junit}");
        // And one run of such a program does not end as if all were well.
        let again = seedbed(
            folder.path(),
            &["replay", "3", "--workload", name, "--seed-timeout", "5s"],
        );
        assert_eq!(exit_code(again), Some(code), "{name}");
    }
}

fn exit_code(mut command: Command) -> Option<i32> {
    command.output().expect("it starts").status.code()
}

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
    let output = seedbed(folder.path(), &arguments)
        .output()
        .expect("it starts");
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
        assert!(
            campaign.run_twice > 0 && campaign.parted == 0,
            "{campaign:?}"
        );
    }
}

/// The plan of a seed, with the faults that are of the same kinds and strike the same nodes.
fn with_faults_of(workload: &dyn Workload, seed: &str, of: &Plan) -> Plan {
    let mut plan = run::draw(workload, seed.parse().expect("a seed"));
    let of: Vec<_> = of
        .faults
        .iter()
        .map(|one| (one.what.kind(), one.what.nodes()))
        .collect();
    plan.faults
        .retain(|one| of.contains(&(one.what.kind(), one.what.nodes())));
    plan
}

#[test]
fn two_bugs_of_one_kind_are_two_causes() {
    let workload = planted("two-bugs");
    let campaign = explore("two-bugs")
        .seeds(0..80)
        .adjust(|plan| {
            let two = ["crash", "power-loss"];
            plan.faults.retain(|fault| two.contains(&fault.what.kind()));
        })
        .run();
    assert_eq!(campaign.conclusion(), Conclusion::Broken);
    let kinds = |failure: &sim::Failure| -> Vec<&str> {
        failure
            .plan
            .faults
            .iter()
            .map(|fault| fault.what.kind())
            .collect()
    };
    let mut causes: Vec<Vec<&str>> = campaign.failures.iter().map(kinds).collect();
    causes.sort();
    assert_eq!(
        causes,
        [["crash"], ["power-loss"]],
        "{:#?}",
        campaign.unexamined
    );
    let mut counted = 0;
    for failure in &campaign.failures {
        assert_eq!(
            (failure.anomaly.kind, failure.count),
            (Kind::Lost, failure.seeds.len() as u64)
        );
        for seed in &failure.seeds {
            let plan = with_faults_of(&*workload, seed, &failure.plan);
            let report = run(&workload, &plan, &Limits::default());
            assert_eq!(
                report.verdict.name(),
                "lost",
                "{seed} under {:?}",
                kinds(failure)
            );
        }
        counted += failure.count;
    }
    let others: u64 = campaign.unexamined.iter().map(|others| others.count).sum();
    assert_eq!(counted + others, campaign.failed);
    assert_eq!(campaign.failed, campaign.verdicts["lost"]);
}

#[test]
fn the_first_failure_is_the_only_one_if_one_is_asked_for() {
    for _ in 0..3 {
        let campaign = explore("two-bugs").seeds(0..80).fails_max(1).run();
        assert_eq!(campaign.failures.len(), 1);
        assert_eq!(campaign.ended, Ended::Enough);
    }
}

/// A campaign that has found something, and goes on.
fn long_campaign(folder: &Path) -> Child {
    let arguments = [
        "fuzz", "canary", "--for", "10m", "--jobs", "1", "--out", "night",
    ];
    let mut command = seedbed(folder, &arguments);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let until = Instant::now() + Duration::from_secs(60);
    while summary(folder).is_none_or(|summary| summary["failures"][0].is_null()) {
        assert!(Instant::now() < until, "nothing is found");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    child
}

fn summary(folder: &Path) -> Option<serde_json::Value> {
    let text = fs::read_to_string(folder.join("night/summary.json")).ok()?;
    Some(serde_json::from_str(&text).expect("it is there as a whole"))
}

fn send(signal: &str, child: &Child) {
    let killed = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(killed.expect("kill starts").success());
}

/// What a campaign leaves agrees with itself.
fn leaves(folder: &Path) -> serde_json::Value {
    let summary = summary(folder).expect("it is there");
    let night = folder.join("night");
    let listed = fs::read_to_string(night.join("failures.jsonl")).expect("it is there");
    for line in listed.lines() {
        let seed: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(seed["verdict"], "lost", "{line}");
    }
    assert!(listed.lines().count() as u64 >= summary["failed"].as_u64().expect("a number"));
    let junit = fs::read_to_string(night.join("junit.xml")).expect("it is there");
    assert!(
        junit.contains("</testsuites>") && junit.contains("lost"),
        "{junit}"
    );
    let plan = folder.join(
        summary["failures"][0]["saved"]
            .as_str()
            .expect("it is saved"),
    );
    Plan::parse(&fs::read_to_string(plan).expect("it is there")).expect("a plan");
    summary
}

/// The processes of this program that run in a folder.
fn processes_in(folder: &Path) -> usize {
    let processes = fs::read_dir("/proc").expect("Linux").flatten();
    let folder = folder.canonicalize().expect("it is there");
    let there = processes
        .filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == folder));
    there.count()
}

#[test]
fn a_campaign_that_is_killed_leaves_what_it_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = long_campaign(folder.path());
    send("-KILL", &child);
    child.wait().expect("it is dead");
    assert_eq!(leaves(folder.path())["ended"], "not-yet");
    let until = Instant::now() + Duration::from_secs(20);
    while processes_in(folder.path()) > 0 {
        assert!(Instant::now() < until, "a worker outlives its parent");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn a_signal_ends_a_campaign_with_its_summary() {
    for (name, number) in [("-TERM", 15), ("-INT", 2)] {
        let folder = tempfile::tempdir().expect("a folder");
        let child = long_campaign(folder.path());
        send(name, &child);
        let Output { status, stdout, .. } = child.wait_with_output().expect("it ends");
        let said = text(&stdout);
        assert_eq!(status.code(), Some(1), "{said}");
        let last = said.lines().last().expect("a verdict");
        assert!(last.starts_with("BROKEN"), "{last}");
        assert!(
            last.contains(&format!("ended by signal {number}")),
            "{last}"
        );
        assert_eq!(leaves(folder.path())["ended"]["signal"], number);
        assert_eq!(processes_in(folder.path()), 0);
    }
}

#[test]
fn a_campaign_that_found_nothing_before_its_signal_is_not_clean() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = [
        "fuzz",
        "--for",
        "10m",
        "--jobs",
        "1",
        "--records",
        "50",
        "--out",
        "night",
    ];
    let child = seedbed(folder.path(), &arguments)
        .spawn()
        .expect("it starts");
    while summary(folder.path()).is_none() {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    std::thread::park_timeout(Duration::from_millis(300));
    send("-TERM", &child);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(128 + 15));
}

#[test]
fn two_campaigns_are_not_mixed() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["fuzz", "canary", "--seeds", "0..1", "--out", "night"];
    let first = exit_code(seedbed(folder.path(), &arguments));
    assert_ne!(first, Some(2));
    let second = seedbed(folder.path(), &arguments)
        .output()
        .expect("it starts");
    assert_eq!(second.status.code(), Some(2));
    let said = text(&second.stderr);
    assert!(
        said.contains("--out night") && said.contains("another folder"),
        "{said}"
    );
}

#[test]
fn the_summary_is_ten_lines_and_ends_with_the_verdict() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["fuzz", "--seeds", "0..10", "--records", "50"];
    let output = seedbed(folder.path(), &arguments)
        .output()
        .expect("it starts");
    let said = text(&output.stdout);
    assert!(said.lines().count() <= 10, "{said}");
    assert!(
        said.lines()
            .last()
            .is_some_and(|last| last.starts_with("CLEAN")),
        "{said}"
    );
    let verbose = [&arguments[..], &["--verbose"]].concat();
    let output = seedbed(folder.path(), &verbose)
        .output()
        .expect("it starts");
    let said = text(&output.stdout);
    assert!(
        said.contains("moves") && said.contains("power-loss"),
        "{said}"
    );
}

/// Is run by the tests below, in a process of its own: a test that somebody has set aside, and that fails.
#[test]
#[ignore = "it fails on purpose"]
fn a_test_that_was_set_aside() {
    explore("planted-exit").jobs(1).seeds(0..10).check();
}

/// Its output, with these variables set.
fn set_aside(variables: &[(&str, &str)]) -> (bool, String) {
    let test = "campaigns::a_test_that_was_set_aside";
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args([test, "--exact", "--include-ignored", "--nocapture"])
        .envs(variables.iter().copied());
    let output = command.output().expect("it starts");
    (
        output.status.success(),
        text(&output.stdout) + &text(&output.stderr),
    )
}

#[test]
fn a_test_that_was_set_aside_fails_as_any_other() {
    let (passed, said) = set_aside(&[]);
    assert!(!passed && said.contains("FAIL  exited"), "{said}");
    assert!(
        !said.contains("LEAK") && !said.contains("could not be confirmed"),
        "{said}"
    );
    assert!(
        said.contains("SEEDBED_SEED=0x3 cargo test campaigns::a_test_that_was_set_aside"),
        "{said}"
    );
}

#[test]
fn a_test_is_steered_by_one_variable() {
    assert!(set_aside(&[("SEEDBED_SEED", "4")]).0, "seed 4 passes");
    assert!(!set_aside(&[("SEEDBED_SEED", "8")]).0, "seed 8 does not");
    let last = ("SEEDBED_SEED", "0xffffffffffffffff");
    assert!(
        !is_hit(u64::MAX) && set_aside(&[last]).0,
        "the last seed is run"
    );
    assert!(set_aside(&[("SEEDBED_SEEDS", "4..8")]).0);
    for other in [("SEEDBED_SEEDS", "0..3"), ("SEEDBED_FOR", "1s")] {
        let (passed, said) = set_aside(&[("SEEDBED_SEED", "4"), other]);
        assert!(!passed, "{said}");
        assert!(
            said.contains(&format!("SEEDBED_SEED and {}", other.0)),
            "{said}"
        );
        assert!(said.contains("set one of them"), "{said}");
    }
}

#[test]
fn a_time_explores_fresh_seeds_and_says_which() {
    let first = || {
        let (_, said) = set_aside(&[("SEEDBED_FOR", "1s")]);
        let line = said
            .lines()
            .find(|line| line.contains("SEEDBED_FOR=1s: seeds from 0x"));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    assert_ne!(first(), first());
}

#[test]
fn what_cannot_be_repeated_is_no_proof_of_a_leak() {
    let campaign = explore("planted-wear").jobs(1).seeds(0..6).run();
    assert_eq!(campaign.verdicts["aborted"], 1);
    let failure = &campaign.failures[0];
    assert!(
        matches!(failure.again, Again::Unconfirmed(_)),
        "{failure:?}"
    );
    assert_eq!(campaign.conclusion(), Conclusion::Broken);
    let screen = explore("planted-wear").screen(failure);
    assert!(
        screen.contains("could not be confirmed") && !screen.contains("LEAK"),
        "{screen}"
    );
}
