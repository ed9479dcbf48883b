//! `cargo live run`, in a process of its own: killed with -9 at any moment and begun again, it ends with what the oracle
//! says.
//!
//! `SEEDBED_EVENTS` and `SEEDBED_KILLS` make it longer; `SEEDBED_KAFKA=HOST:PORT` runs it over Apache Kafka.

#![expect(
    clippy::disallowed_methods,
    reason = "a process is killed while it works, on a real clock"
)]

use engine::state::stable_hash;
use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufWriter, Write},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use workloads::revenue::{
    oracle::Oracle,
    pipeline::{Revenue, RevenueRow},
    sample::{events, Draws},
};

const PARTITIONS: usize = 4;

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Writes events; what the oracle makes of them.
fn write_events(path: &Path, count: u64) -> BTreeMap<i64, Revenue> {
    let mut oracle = Oracle::new(PARTITIONS, 0, true, Default::default());
    let mut file = BufWriter::new(fs::File::create(path).unwrap());
    for (index, event) in events(count).enumerate() {
        file.write_all(&event.to_bytes()).unwrap();
        file.write_all(b"\n").unwrap();
        let partition = (stable_hash(&event.order_id) % PARTITIONS as u64) as usize;
        oracle.read((partition, index as i64), Some(&event));
    }
    file.flush().unwrap();
    oracle.closed(i64::MAX)
}

fn start(input: &Path, dir: &Path, sink: &str, table: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed-under-test"));
    command
        .arg("run")
        .arg("--input")
        .arg(input)
        .arg("--dir")
        .arg(dir);
    command.args(["--json", "--checkpoint-ms", "150", "--sink", sink]);
    command.args(["--workers", "2"]);
    if let Ok(kafka) = env::var("SEEDBED_KAFKA") {
        command.args(["--brokers", &kafka]);
    }
    let table = fs::File::create(table).unwrap();
    command.stdout(table).stderr(Stdio::inherit());
    command.spawn().unwrap()
}

/// Runs to the end, killed on the way so many times; the table, and how often it was really killed.
fn run(input: &Path, sink: &str, kills: u64) -> (BTreeMap<i64, Revenue>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let (dir, table) = (folder.path().join("run"), folder.path().join("table"));
    let mut draws = Draws(stable_hash(&sink));
    let mut killed = 0;
    let longest_ms = number("SEEDBED_LONGEST_MS", 900);
    let status = loop {
        let mut process = start(input, &dir, sink, &table);
        if killed == kills {
            break process.wait().unwrap();
        }
        let until = Instant::now() + Duration::from_millis(30 + draws.below(longest_ms));
        let ended = loop {
            if let Some(status) = process.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() >= until {
                break None;
            }
            sleep(Duration::from_millis(3));
        };
        if let Some(status) = ended {
            break status;
        }
        process.kill().unwrap();
        process.wait().unwrap();
        killed += 1;
    };
    assert!(status.success(), "{status}");
    let mut rows = BTreeMap::new();
    for line in fs::read_to_string(&table).unwrap().lines() {
        let row: RevenueRow = serde_json::from_str(line).unwrap();
        let revenue = Revenue {
            orders: row.orders,
            cents: row.cents,
        };
        assert!(
            rows.insert(row.minute_ms, revenue).is_none(),
            "{line} twice"
        );
    }
    (rows, killed)
}

fn ends_as_the_oracle_says(sink: &str) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("events.jsonl");
    let expected = write_events(&input, number("SEEDBED_EVENTS", 300_000));
    let (rows, killed) = run(&input, sink, number("SEEDBED_KILLS", 6));
    assert!(killed > 0, "it was never killed");
    println!("{} minutes, killed {killed} times", rows.len());
    assert_eq!(rows, expected);
}

#[test]
fn killed_at_any_moment_it_ends_right_in_transactions() {
    ends_as_the_oracle_says("transactional");
}

#[test]
fn killed_at_any_moment_it_ends_right_in_a_table() {
    ends_as_the_oracle_says("idempotent");
}

#[test]
fn killed_at_any_moment_it_ends_right_in_objects() {
    ends_as_the_oracle_says("objects");
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("events.jsonl");
    let refused = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed-under-test"));
        command.arg("run").args(arguments);
        command.arg("--dir").arg(folder.path().join("run"));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let path = input.to_str().unwrap();
    assert!(refused(&["--input", path]).contains("No such file"));
    fs::write(&input, "{}\n").unwrap();
    assert!(refused(&["--input", path]).contains("events.jsonl, line 1: missing field `event_id`"));
    fs::write(&input, "").unwrap();
    assert!(refused(&["--input", path]).contains("it holds no event"));
    write_events(&input, 10);
    let refused_claim = refused(&["--input", path, "--sink", "append"]);
    assert!(
        refused_claim.contains("the weakest link is the sink"),
        "{refused_claim}"
    );
    assert!(refused(&["--input", path, "--workers", "0"]).contains("1 to 64 would be right"));
    assert!(refused(&["transfer", "--input", path]).contains("revenue can"));
}

#[test]
fn a_job_that_is_not_that_of_its_checkpoints_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("events.jsonl");
    write_events(&input, 10);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed-under-test"));
        command.args(["run", "--input"]).arg(&input).arg("--dir");
        command.arg(folder.path().join("run")).args(arguments);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), !output.stdout.is_empty(), said)
    };
    let (code, printed, said) = run(&["--sink", "objects"]);
    assert_eq!((code, printed), (Some(0), true), "{said}");
    for (arguments, because) in [
        (
            &["--sink", "transactional"][..],
            r#"sink = "objects" instead of "transactional""#,
        ),
        (
            &["--sink", "objects", "--guarantee", "at-least-once"],
            r#"claimed = "exactly-once" instead of "at-least-once""#,
        ),
        (&["--partitions", "3"], "--partitions 4 would be right"),
        (&["--brokers", "127.0.0.1:1"], "nobody there has answered"),
    ] {
        let (code, printed, said) = run(arguments);
        assert_eq!((code, printed), (Some(2), false), "{arguments:?}: {said}");
        assert!(said.contains(because), "{arguments:?}: {said}");
    }
    let (code, printed, said) = run(&["--sink", "objects"]);
    assert_eq!((code, printed), (Some(0), true), "{said}");
}
