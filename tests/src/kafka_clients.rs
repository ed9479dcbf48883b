//! Other people's programs against `seedbed broker`, the live build, which is killed as they are: stock clients,
//! and other engines; and our client against Apache Kafka, by the contracts that our own broker keeps.

#![expect(
    clippy::disallowed_methods,
    reason = "these are real programs, on a real clock"
)]

mod engines;
mod tools;

use crate::{
    running::Running,
    stock::{clients, done, free_port, live_cargo, tools, Broker, Client},
};
use std::{
    io::Write,
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Consumes, transforms and produces in transactions; is killed in the middle of some of them, and so is the
/// broker; and in the end each record is there once.
fn killed_in_the_middle(client: Client, name: &str) {
    let mut broker = Broker::start();
    let at = broker.address.clone();
    let count = 1500;
    client.run("seed", &at, name, count);
    for transaction in [1, 4, 2] {
        let working = client.work_until(transaction, &at, name, count);
        working.process.kill();
    }
    // The broker, three times, while the client works.
    let mut working = client.work_until(2, &at, name, count);
    for _ in 0..3 {
        broker.restart();
        working.hear_of("in a transaction", 2);
    }
    working.finish();
    // Once more: what was acknowledged, and what was decided, is there.
    broker.restart();
    client.run("verify", &at, name, count);
}

#[test]
fn librdkafka_is_killed_in_the_middle() {
    killed_in_the_middle(Client::Librdkafka, "librdkafka");
}

#[test]
fn the_java_client_is_killed_in_the_middle() {
    killed_in_the_middle(Client::Java, "java");
}

#[test]
fn franz_go_is_killed_in_the_middle() {
    killed_in_the_middle(Client::Franz, "franz");
}

#[test]
fn kcat_produces_lists_and_consumes() {
    let mut broker = Broker::start();
    let at = broker.address.clone();
    Client::Librdkafka.run("seed", &at, "kcat", 10);
    let kcat = |arguments: &[&str]| {
        let mut command = Command::new("kcat");
        command.args(["-q", "-b", &at]).args(arguments);
        command
    };
    let mut produce = kcat(&["-P", "-t", "kcat-out", "-p", "1", "-K", ":"]);
    let mut produce = Running::start(produce.stdin(Stdio::piped()));
    let mut pipe = produce.0.stdin.take().expect("piped");
    pipe.write_all(b"a:one\nb:two\nc:three\n")
        .expect("it reads");
    drop(pipe);
    produce.succeeds("kcat -P");
    // What it was told is there is there after a kill.
    broker.restart();
    let text = |mut command: Command| {
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let consume = ["-C", "-t", "kcat-out", "-p", "1", "-e", "-f", "%o %k=%s\n"];
    assert_eq!(text(kcat(&consume)), "0 a=one\n1 b=two\n2 c=three\n");
    let listed = text(kcat(&["-L"]));
    assert!(
        listed.contains("topic \"kcat-in\" with 3 partitions"),
        "{listed}"
    );
    let group = [
        "-G",
        "kcat-group",
        "-e",
        "-X",
        "auto.offset.reset=earliest",
        "kcat-in",
    ];
    let mut values: Vec<String> = text(kcat(&group)).lines().map(str::to_owned).collect();
    values.sort();
    let expected: Vec<String> = (0..10).map(|number| format!("v{number}")).collect();
    assert_eq!(values, expected);
}

/// Apache Kafka, a node of its own.
fn apache_kafka(dir: &Path) -> (Running, String) {
    let port = free_port();
    let mut command = Command::new("bash");
    command.arg(clients().join("kafka.sh")).arg(&tools().libs);
    command
        .arg(dir)
        .args([port, free_port()].map(|port| port.to_string()));
    let mut process = Running::start(command.stdout(Stdio::null()));
    let address = format!("127.0.0.1:{port}");
    let begun = Instant::now();
    while TcpStream::connect(&address).is_err() {
        let ended = process.0.try_wait().expect("it can be asked");
        assert!(ended.is_none(), "Apache Kafka has ended: {ended:?}");
        assert!(
            begun.elapsed() < Duration::from_secs(90),
            "it does not start"
        );
        sleep(Duration::from_millis(200));
    }
    (process, address)
}

#[test]
fn apache_kafka_keeps_the_same_contracts() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_kafka, address) = apache_kafka(dir.path());
    let mut contracts = live_cargo("test");
    contracts.args(["--test", "all", "log_contract"]);
    contracts.args(["--", "--test-threads", "2"]);
    contracts.env("SEEDBED_KAFKA", &address);
    done(contracts);
    // The programs that speak for stock clients say of Kafka what they say of us, and so do its own tools.
    for mode in ["seed", "work", "verify"] {
        Client::Librdkafka.run(mode, &address, "librdkafka", 200);
        Client::Franz.run(mode, &address, "franz", 200);
    }
    for commands in tools::COMMANDS {
        tools::run(&address, commands);
    }
}

#[test]
fn a_real_run_over_apache_kafka_ends_as_the_oracle_says() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_kafka, address) = apache_kafka(dir.path());
    let mut run = live_cargo("test");
    run.args(["--test", "all"]);
    run.arg("real_run::killed_at_any_moment_it_ends_right_in_transactions");
    run.env("SEEDBED_KAFKA", &address);
    done(run);
}
