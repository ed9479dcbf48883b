//! What is refused, and how it is said: one clear message on stderr, exit code 2, nothing on stdout.

use crate::running;
use std::{fs, path::Path};

struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn seedbed(folder: &Path, arguments: &[&str]) -> Said {
    let output = running::output(running::seedbed(folder, arguments));
    Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn bad_input_is_refused_with_what_would_be_right() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let written = seedbed(
        folder,
        &["replay", "5", "--records", "50", "--save", "good.plan"],
    );
    assert_eq!(written.code, Some(0), "{}", written.stderr);
    let good = fs::read_to_string(folder.join("good.plan")).expect("it was saved");
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("writable");
    write("cut.plan", &good[..good.len() / 2]);
    write("field.plan", &good.replace("partitions", "partitiones"));
    write("value.plan", &good.replace("records = 50", "records = 0"));
    write(
        "ghost.plan",
        &good
            .replace("worker-", "ghost-")
            .replace("broker-", "ghost-"),
    );
    write("other.plan", &good.replace("\"revenue\"", "\"revenge\""));
    write(
        "seed.plan",
        &good.replace("seed = \"0x5\"", "seed = \"five\""),
    );
    write("empty.plan", "# end of plan");
    write("binary.plan", "\u{0}\u{1}");
    let event =
        r#"{"event_id":"a","order_id":"o","status":"paid","amount_cents":1,"event_time":5}"#;
    write("broken.jsonl", &format!("{event}\n{{\"event_id\": 7}}\n"));
    write("empty.jsonl", "\n");
    write("file", "");
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["fuzz", "revenge"],
            &["`revenge` is not a workload", "revenue, transfer, canary"],
        ),
        (&["fuzz", "--seeds", "9..3"], &["--seeds", "A..B"]),
        (&["fuzz", "--seeds", "x"], &["`x` is not a seed"]),
        (&["fuzz", "--for", "8"], &["--for", "30s"]),
        (&["fuzz", "--shard", "4/4"], &["--shard", "0/4"]),
        (&["fuzz", "--jobs", "0"], &["--jobs", "1..=1024"]),
        (&["fuzz", "--jobs", "100000"], &["--jobs", "1..=1024"]),
        (&["fuzz", "--memory", "1"], &["--memory", "64..="]),
        (&["fuzz", "--seed-timeout", "8"], &["--seed-timeout", "30s"]),
        (&["fuzz", "--seed-timeout", "999ms"], &["at least 1s"]),
        (&["replay", "5", "--seed-timeout", "0s"], &["at least 1s"]),
        (&["replay", "5", "--memory", "1"], &["--memory", "64..="]),
        (
            &["shrink", "good.plan", "--memory", "1"],
            &["--memory", "64..="],
        ),
        (
            &["run", "--input", "x", "--dir", "d", "--checkpoint-ms", "0"],
            &["--checkpoint-ms", "1..="],
        ),
        (
            &[
                "broker",
                "--dir",
                "d",
                "--retention-hours",
                "5124095576030432",
            ],
            &["--retention-hours", "1..=10000000"],
        ),
        (
            &["replay", "good.plan", "--workload", "transfer"],
            &[
                "--workload transfer",
                "good.plan is a plan of workload revenue",
            ],
        ),
        (
            &[
                "replay",
                "good.plan",
                "--sink",
                "append",
                "--guarantee",
                "exactly-once",
            ],
            &["the weakest link is the sink (append)"],
        ),
        (
            &["fuzz", "--faults", "crash,meteor"],
            &["`meteor` is not a kind", "power-loss"],
        ),
        (
            &["fuzz", "--sink", "paper"],
            &["`paper` is not a sink", "append"],
        ),
        (
            &["fuzz", "--guarantee", "twice"],
            &["`twice` is not a guarantee", "exactly-once"],
        ),
        (
            &["fuzz", "--sink", "append"],
            &["the weakest link is the sink (append)"],
        ),
        (&["fuzz", "--records", "0"], &["records is 0", "1 to"]),
        (
            &["fuzz", "--input", "none.jsonl"],
            &["none.jsonl", "No such file"],
        ),
        (
            &["fuzz", "--input", "broken.jsonl"],
            &["broken.jsonl, line 2", "event_id"],
        ),
        (
            &["fuzz", "--input", "empty.jsonl"],
            &["empty.jsonl", "no event"],
        ),
        (
            &["fuzz", "--out", "file/below"],
            &["cannot write", "file/below"],
        ),
        (
            &["fuzz", "--json", "no/folder.json"],
            &["cannot write", "no/folder.json"],
        ),
        (
            &["fuzz", "canary", "--sink", "append"],
            &["canary knows no"],
        ),
        (&["fuzz", "--sedes", "1"], &["--sedes"]),
        (&["replay", "12x"], &["`12x` is not a seed", "plan file"]),
        (&["replay", "none.plan"], &["none.plan", "No such file"]),
        (
            &["replay", "cut.plan"],
            &["cut.plan: not a plan", "cut off", "# end of plan"],
        ),
        (&["replay", "field.plan"], &["field.plan", "partitiones"]),
        (&["replay", "value.plan"], &["value.plan", "records is 0"]),
        (
            &["replay", "ghost.plan"],
            &["ghost.plan", "names node `ghost-", "worker-0"],
        ),
        (
            &["replay", "other.plan"],
            &["other.plan", "`revenge` is not a workload"],
        ),
        (
            &["replay", "seed.plan"],
            &["seed.plan", "`five` is not a seed", "line 2"],
        ),
        (
            &["replay", "empty.plan"],
            &["empty.plan: not a plan", "workload"],
        ),
        (&["replay", "binary.plan"], &["binary.plan: not a plan"]),
        (
            &["replay", "5", "--trace", "no/trace"],
            &["cannot write no/trace"],
        ),
        (&["shrink", "none.plan"], &["none.plan"]),
        (&["trace", "good.plan"], &["good.plan: line 1 is no event"]),
        (&["explain", "canary"], &["canary"]),
        (
            &["explain", "--sink", "append"],
            &["the weakest link is the sink"],
        ),
    ];
    for (arguments, words) in cases {
        let said = seedbed(folder, arguments);
        assert_eq!(
            said.code,
            Some(2),
            "{arguments:?}: {} {}",
            said.stdout,
            said.stderr
        );
        for word in *words {
            assert!(
                said.stderr.contains(word),
                "{arguments:?}: no `{word}` in {}",
                said.stderr
            );
        }
        let explains = arguments[0] == "explain";
        assert!(
            explains || said.stdout.is_empty(),
            "{arguments:?}: {}",
            said.stdout
        );
        assert!(
            !said.stderr.contains("panicked"),
            "{arguments:?}: {}",
            said.stderr
        );
    }
}

#[test]
fn a_failure_replays_from_its_plan_ten_times_of_ten() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = [
        "fuzz",
        "--sink",
        "append",
        "--unchecked",
        "--seeds",
        "0..20",
        "--fail-fast",
        "--jobs",
        "1",
        "--records",
        "300",
        "--out",
        "night",
        "--json",
        "summary.json",
    ];
    let said = seedbed(folder.path(), &arguments);
    assert_eq!(said.code, Some(1), "{} {}", said.stdout, said.stderr);
    let text = fs::read_to_string(folder.path().join("summary.json")).expect("it was written");
    let summary: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let failure = &summary["failures"][0];
    assert_eq!(failure["anomaly"]["kind"], "duplicated");
    assert!(failure["plan"]["fault"]
        .as_array()
        .is_none_or(|faults| faults.len() <= 3));
    let plan = failure["saved"].as_str().expect("it was saved");
    assert!(
        said.stdout
            .contains(&format!("again cargo sim replay {plan}")),
        "{}",
        said.stdout
    );
    for _ in 0..10 {
        let replayed = seedbed(folder.path(), &["replay", plan, "--json", "-"]);
        assert_eq!(replayed.code, Some(1));
        let replayed: serde_json::Value = serde_json::from_str(&replayed.stdout).expect("JSON");
        assert_eq!(replayed["verdict"], "duplicated");
        assert_eq!(replayed["digest"], failure["digest"]);
    }
    let junit = fs::read_to_string(folder.path().join("night/junit.xml")).expect("written");
    assert!(
        junit.contains("duplicated") && junit.contains("failures=\"1\""),
        "{junit}"
    );
}

#[test]
fn a_plan_that_is_replayed_is_changed_as_the_command_line_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let replay = |more: &[&str]| {
        let said = seedbed(folder.path(), &[&["replay"], more].concat());
        assert_eq!(said.code, Some(0), "{} {}", said.stdout, said.stderr);
        said.stdout
    };
    let as_saved = replay(&["5", "--records", "50", "--save", "five.plan"]);
    assert!(!as_saved.contains(" 0 faults"), "{as_saved}");
    let changed = replay(&["five.plan", "--faults", "none", "--save", "changed.plan"]);
    assert!(changed.contains(" 0 faults"), "{changed}");
    replay(&["five.plan", "--sink", "idempotent", "--save", "sink.plan"]);
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("saved");
    assert!(!read("changed.plan").contains("[[fault]]"));
    assert!(read("sink.plan").contains("sink = \"idempotent\""));
}

#[test]
fn a_trace_ends_when_its_run_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let replayed = seedbed(
        folder.path(),
        &["replay", "5", "--records", "50", "--trace", "five.trace"],
    );
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    let said = seedbed(folder.path(), &["trace", "five.trace"]).stdout;
    let until = said
        .lines()
        .last()
        .and_then(|last| last.split("until ").nth(1));
    let seconds: f64 = until
        .and_then(|text| text.split(' ').next())
        .and_then(|text| text.parse().ok())
        .expect("a time");
    let text = fs::read_to_string(folder.path().join("five.trace")).expect("written");
    let times = text
        .lines()
        .map(|line| line.split(' ').next().expect("a time").parse::<f64>());
    let last = times
        .map(|time| time.expect("a number"))
        .fold(0.0, f64::max);
    assert!(last > 1.0 && seconds == last, "{seconds} and {last}");
}
