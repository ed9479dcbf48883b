//! The command that a failure ends with repeats it; and what one run says is for machines, too.

use super::{exit_code, text};
use crate::running::{self, seedbed};
use std::{path::Path, process::Output};

fn output(folder: &Path, arguments: &[&str]) -> Output {
    running::output(seedbed(folder, arguments))
}

/// Words of the command that comes after `again`.
fn again(said: &str) -> Vec<&str> {
    let mut lines = said.lines();
    let command = lines.find_map(|line| line.strip_prefix("again cargo sim "));
    let command = command.unwrap_or_else(|| panic!("no command in {said}"));
    command.split(' ').collect()
}

/// What broke a limit of time or memory breaks it again only under the same limit.
#[test]
fn a_failure_is_repeated_under_the_limits_that_it_broke() {
    let limits = [
        ("planted-loop", ["--seed-timeout", "2s"], 3),
        ("planted-memory", ["--memory", "256"], 1),
    ];
    for (name, limit, code) in limits {
        let folder = tempfile::tempdir().expect("a folder");
        let one = ["--seeds", "3..4", "--jobs", "1"];
        let fuzzed = output(folder.path(), &[&["fuzz", name], &one[..], &limit].concat());
        let said = text(&fuzzed.stdout);
        assert_eq!(fuzzed.status.code(), Some(code), "{said}");
        let again = again(&said);
        assert_eq!(again[0], "replay");
        assert!(again.ends_with(&limit), "{again:?}");
        let replayed = output(folder.path(), &again);
        let said = text(&replayed.stdout);
        assert_eq!(replayed.status.code(), Some(code), "{said}");
        assert!(said.contains(&again.join(" ")), "{said}");
        let shrunk = output(folder.path(), &[&["shrink", again[1]], &limit[..]].concat());
        let said = text(&shrunk.stdout);
        assert_eq!(shrunk.status.code(), Some(0), "{said}");
        assert!(self::again(&said).ends_with(&limit), "{said}");
    }
}

#[test]
fn a_failure_whose_plan_cannot_be_saved_is_repeated_from_its_seed() {
    let folder = tempfile::tempdir().expect("a folder");
    // Where the plans would go.
    std::fs::write(folder.path().join("failures"), "").expect("writable");
    let fuzzed = output(folder.path(), &["fuzz", "planted-exit", "--seeds", "3..4"]);
    assert_eq!(fuzzed.status.code(), Some(2));
    assert!(text(&fuzzed.stderr).contains("cannot write failures/"));
    let said = text(&fuzzed.stdout);
    let again = again(&said);
    assert_eq!(again, ["replay", "0x3", "--workload", "planted-exit"]);
    assert_eq!(exit_code(seedbed(folder.path(), &again)), Some(1));
}

#[test]
fn json_on_stdout_is_not_mixed_with_what_the_program_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = ["replay", "3", "--workload", "planted-words", "--json", "-"];
    let replayed = output(folder.path(), &words);
    let json: serde_json::Value = serde_json::from_slice(&replayed.stdout).expect("JSON alone");
    assert_eq!(json["verdict"], "clean");
    let said = text(&replayed.stderr);
    assert!(
        said.contains("said on stdout") && said.contains("said on stderr"),
        "{said}"
    );
}

#[test]
fn json_of_a_run_says_which_damage_was_named_and_why_a_run_is_vacuous() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = |arguments: &[&str]| -> serde_json::Value {
        let replayed = output(folder.path(), &[arguments, &["--json", "-"]].concat());
        serde_json::from_slice(&replayed.stdout).expect("JSON alone")
    };
    let damaged = |seed: u64| {
        let transfer = ["--workload", "transfer", "--faults", "bit-rot"];
        json(&[&["replay", &seed.to_string()], &transfer[..]].concat())
    };
    let detected = (0..40)
        .map(damaged)
        .find(|json| json["verdict"] == "detected");
    let detected = detected.expect("one of many is detected");
    let named = detected["named"].as_array().expect("a list");
    assert!(
        named[0].as_str().is_some_and(|line| line.contains('/')),
        "{named:?}"
    );
    let vacuous = json(&["replay", "3", "--workload", "planted-nothing"]);
    assert_eq!(vacuous["verdict"], "vacuous");
    assert_eq!(vacuous["vacuous"], "nothing was committed");
}

/// What a workload must survive or detect, and did not meet, is known from the workload.
#[test]
fn what_never_happened_is_named_damage_at_rest_included() {
    let folder = tempfile::tempdir().expect("a folder");
    let common = ["--seeds", "0..2", "--faults", "none"];
    let fuzz = |name, more: &[&str]| {
        let output = output(
            folder.path(),
            &[&["fuzz", name], &common[..], more].concat(),
        );
        text(&output.stdout)
    };
    let never = fuzz("transfer", &["--verbose"]);
    let never = never.split("  never ").nth(1).expect("rows").to_owned();
    for name in ["crash", "read-error", "page-torn", "bit-rot", "stale-file"] {
        assert!(never.contains(name), "no {name} in {never}");
    }
    let summary = fuzz("transfer", &["--json", "-"]);
    let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
    for name in ["crash", "sync-error", "bit-rot", "lost-file", "misdirected"] {
        assert_eq!(summary["faults"][name], 0, "{name}");
    }
    // Nobody has said of it that it detects any.
    let canary = fuzz("canary", &["--verbose"]);
    assert!(
        canary.contains("crash") && !canary.contains("bit-rot"),
        "{canary}"
    );
}
