//! Other engines over our broker, each with exactly-once of its own making: Kafka Streams with
//! exactly_once_v2, and Flink with its transactional sink. They count and sum numbers by key, are killed on
//! the way, as the broker is, and begun again; a reader of committed records then sees each count once.

use crate::stock::{done, tools, Broker, Working};
use std::{path::Path, process::Command};

const NUMBERS: u32 = 20_000;

pub fn java(libs: &Path) -> Command {
    let mut java = Command::new("java");
    java.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=error");
    java.args(["-XX:TieredStopAtLevel=1", "-Xmx512m", "-cp"]);
    let classes = tools().classes.display();
    java.arg(format!("{}/*:{classes}", libs.display()));
    java
}

/// Where a program that is killed leaves what it would have removed: it goes with the folder.
fn temporary(within: &Path) -> String {
    let folder = within.join("temporary");
    std::fs::create_dir_all(&folder).expect("writable");
    format!("-Djava.io.tmpdir={}", folder.display())
}

/// See `Counts.java`.
fn counts(mode: &str, broker: &Broker, name: &str) {
    let mut counts = java(&tools().libs);
    counts.args(["Counts", mode, &broker.address, name]);
    counts.arg(NUMBERS.to_string());
    done(counts);
}

fn streams(broker: &Broker, state: &Path) -> Working {
    let mut streams = java(&tools().libs);
    streams.arg(temporary(state));
    streams.args(["Streams", &broker.address, "streams"]);
    streams.arg(state);
    Working::start(streams)
}

#[test]
fn kafka_streams_counts_exactly_once() {
    let mut broker = Broker::start();
    let state = tempfile::tempdir().expect("a folder");
    counts("seed", &broker, "streams");
    for _ in 0..2 {
        let mut working = streams(&broker, state.path());
        working.hear_of("busy", 3);
        working.process.kill();
    }
    // On another machine: nobody else has the transactional id of the one that was killed, so its
    // transaction ends with its time; and the store is restored from its changelog.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let mut working = streams(&broker, elsewhere.path());
    working.hear_of("busy", 3);
    broker.restart();
    working.hear_of("busy", 3);
    working.finish();
    broker.restart();
    counts("verify", &broker, "streams");
}

fn flink(broker: &Broker, checkpoints: &Path, strategy: &str) -> Working {
    let mut flink = java(&tools().flink);
    flink.arg(temporary(checkpoints));
    flink.args(["Flink", &broker.address, "flink"]);
    flink.arg(checkpoints).arg(strategy);
    Working::start(flink)
}

/// With one of its ways of naming transactions.
fn flink_counts_exactly_once(strategy: &str) {
    let mut broker = Broker::start();
    let checkpoints = tempfile::tempdir().expect("a folder");
    counts("seed", &broker, "flink");
    // Between a checkpoint and the commit of its transactions, in the middle of others, and once more.
    for (said, times) in [("prepared", 1), ("busy", 5), ("prepared", 2)] {
        let mut working = flink(&broker, checkpoints.path(), strategy);
        working.hear_of(said, times);
        working.process.kill();
    }
    let mut working = flink(&broker, checkpoints.path(), strategy);
    working.hear_of("prepared", 1);
    broker.restart();
    working.hear_of("prepared", 1);
    working.finish();
    broker.restart();
    counts("verify", &broker, "flink");
}

#[test]
fn flink_that_probes_for_its_transactions_counts_exactly_once() {
    flink_counts_exactly_once("INCREMENTING");
}

#[test]
fn flink_that_lists_its_transactions_counts_exactly_once() {
    flink_counts_exactly_once("POOLING");
}
