//! Campaigns: nothing that a program under test does ends one, what it found is there whatever ends it, and
//! each failure is put under its own cause.

mod again;
mod ends;
mod steered;
mod twice;

use crate::{
    planted::planted,
    running::{output, seedbed},
};
use sim::{
    explore::{Again, Conclusion, Ended},
    run, Explore, Fault, Kind, Limits, Plan, Seed, Trigger, What, Workload,
};
use std::{fs, process::Command, time::Duration};

/// Long enough for any seed of a planted program, on a machine that does much else.
const WALL_MAX: Duration = Duration::from_secs(5);

fn explore(name: &str) -> Explore {
    Explore::new(planted(name))
        .wall_max(WALL_MAX)
        .memory_max(512 << 20)
        .jobs(2)
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
        let output = output(seedbed(
            folder.path(),
            &[&["fuzz", name], &seeds[..]].concat(),
        ));
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

fn exit_code(command: Command) -> Option<i32> {
    output(command).status.code()
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

#[test]
fn the_summary_is_ten_lines_and_ends_with_the_verdict() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["fuzz", "--seeds", "0..10", "--records", "50"];
    let done = output(seedbed(folder.path(), &arguments));
    let said = text(&done.stdout);
    assert!(said.lines().count() <= 10, "{said}");
    assert!(
        said.lines()
            .last()
            .is_some_and(|last| last.starts_with("CLEAN")),
        "{said}"
    );
    let verbose = [&arguments[..], &["--verbose"]].concat();
    let done = output(seedbed(folder.path(), &verbose));
    let said = text(&done.stdout);
    assert!(
        said.contains("moves") && said.contains("power-loss"),
        "{said}"
    );
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
