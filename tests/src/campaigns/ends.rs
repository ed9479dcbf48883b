//! However a campaign ends, what it found until then is there as a whole, and its end is said.

use super::{exit_code, text};
use crate::running::{eventually, output, seedbed, Running};
use sim::Plan;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// The longest that a campaign may take to find something, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A campaign that has found something, and goes on.
fn long_campaign(folder: &Path) -> Running {
    let arguments = [
        "fuzz", "canary", "--for", "10m", "--jobs", "1", "--out", "night",
    ];
    let running = begun(folder, &arguments);
    eventually("a failure in the summary", PATIENCE, || {
        let failure = &summary(folder)?["failures"][0];
        (!failure.is_null()).then_some(())
    });
    running
}

fn begun(folder: &Path, arguments: &[&str]) -> Running {
    let mut command = seedbed(folder, arguments);
    Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()))
}

/// What a process says until it ends, which a signal has told it to, and its exit code.
fn ended(running: Running) -> (String, Option<i32>) {
    let output = running.output(PATIENCE);
    (text(&output.stdout), output.status.code())
}

fn summary(folder: &Path) -> Option<serde_json::Value> {
    let text = fs::read_to_string(folder.join("night/summary.json")).ok()?;
    Some(serde_json::from_str(&text).expect("it is there as a whole"))
}

fn send(signal: &str, to: &Running) {
    let killed = Command::new("kill")
        .args([signal, &to.0.id().to_string()])
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

/// Files of a campaign as somebody has opened them while it went on, by another name.
struct Seen(Vec<(PathBuf, String)>);

impl Seen {
    fn now(folder: &Path) -> Seen {
        let files = ["summary.json", "junit.xml"].map(|name| {
            let other = folder.join(format!("seen-{name}"));
            fs::hard_link(folder.join("night").join(name), &other).expect("it is there");
            let text = fs::read_to_string(&other).expect("readable");
            (other, text)
        });
        Seen(files.into())
    }

    /// What was written later has not touched them: each file is put in the place of another one, whole.
    fn is_whole_still(&self) {
        for (path, text) in &self.0 {
            let now = fs::read_to_string(path).expect("readable");
            assert!(now == *text, "{} was written to", path.display());
        }
    }
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
    long_campaign(folder.path()).kill();
    assert_eq!(leaves(folder.path())["ended"], "not-yet");
    eventually("the end of the workers", Duration::from_secs(20), || {
        (processes_in(folder.path()) == 0).then_some(())
    });
}

#[test]
fn a_signal_ends_a_campaign_with_its_summary() {
    for (name, number) in [("-TERM", 15), ("-INT", 2)] {
        let folder = tempfile::tempdir().expect("a folder");
        let running = long_campaign(folder.path());
        let seen = Seen::now(folder.path());
        send(name, &running);
        let (said, code) = ended(running);
        assert_eq!(code, Some(1), "{said}");
        let last = said.lines().last().expect("a verdict");
        assert!(last.starts_with("BROKEN"), "{last}");
        assert!(
            last.contains(&format!("ended by signal {number}")),
            "{last}"
        );
        assert_eq!(leaves(folder.path())["ended"]["signal"], number);
        assert_eq!(processes_in(folder.path()), 0);
        seen.is_whole_still();
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
    let running = begun(folder.path(), &arguments);
    // Whoever names the workload listens for signals by then.
    eventually("the beginning", PATIENCE, || {
        (summary(folder.path())?["workload"] == "revenue").then_some(())
    });
    send("-TERM", &running);
    let (said, code) = ended(running);
    assert_eq!(code, Some(128 + 15), "{said}");
}

#[test]
fn a_campaign_that_says_nothing_is_no_success_for_whoever_reads_its_junit() {
    let folder = tempfile::tempdir().expect("a folder");
    let seeds = ["--seeds", "0..6", "--jobs", "1", "--out", "night"];
    let arguments = [&["fuzz", "planted-nothing"], &seeds[..]].concat();
    assert_eq!(exit_code(seedbed(folder.path(), &arguments)), Some(5));
    let junit = fs::read_to_string(folder.path().join("night/junit.xml")).expect("written");
    assert!(junit.contains("0 of 6 seeds passed"), "{junit}");
    assert!(junit.contains("vacuous"), "{junit}");
    let counts = r#"tests="1" skipped="0" failures="0" errors="1""#;
    assert!(junit.contains(counts), "{junit}");
}

#[test]
fn two_campaigns_are_not_mixed() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["fuzz", "canary", "--seeds", "0..1", "--out", "night"];
    let first = exit_code(seedbed(folder.path(), &arguments));
    assert_ne!(first, Some(2));
    let second = output(seedbed(folder.path(), &arguments));
    assert_eq!(second.status.code(), Some(2));
    let said = text(&second.stderr);
    assert!(
        said.contains("--out night") && said.contains("another folder"),
        "{said}"
    );
}
