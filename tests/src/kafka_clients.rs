//! Other people's programs against `seedbed broker`, the live build, which is killed as they are: stock clients,
//! and other engines; and our client against Apache Kafka, by the contracts that our own broker keeps.

#![expect(
    clippy::disallowed_methods,
    reason = "these are real programs, on a real clock"
)]

mod engines;
mod tools;

use crate::running::Running;
use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        mpsc::{channel, Receiver, RecvTimeoutError},
        OnceLock,
    },
    thread::sleep,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// What the tests need, brought or built once.
struct Tools {
    python: PathBuf,
    /// Jars of Apache Kafka, of Flink, and our programs over them.
    libs: PathBuf,
    flink: PathBuf,
    classes: PathBuf,
    franz: PathBuf,
    broker: PathBuf,
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
}

/// A command of Cargo's for the build without simulation.
fn live_cargo(verb: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    // The whole workspace, as the live tests build it: nothing is compiled twice.
    let all = [verb, "--workspace"];
    cargo.current_dir(root()).args(all);
    cargo.args(["--config", "target.'cfg(all())'.rustflags=['--cfg','live']"]);
    cargo.args(["--target-dir", "target/live"]);
    cargo
}

fn done(mut command: Command) {
    let status = command.status().expect("it starts");
    assert!(status.success(), "{command:?}: {status}");
}

fn tools() -> &'static Tools {
    static TOOLS: OnceLock<Tools> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kafka-clients");
        let mut install = Command::new("bash");
        install.arg(clients().join("install.sh")).arg(&folder);
        done(install);
        let mut build = live_cargo("test");
        build.args(["--no-run", "--test", "all"]);
        done(build);
        Tools {
            python: folder.join("venv/bin/python"),
            libs: folder.join("libs"),
            flink: folder.join("flink"),
            classes: folder.join("classes"),
            franz: folder.join("franz"),
            broker: root().join("target/live/debug/seedbed-under-test"),
        }
    })
}

impl Running {
    fn succeeds(mut self, what: &str) {
        let status = self.0.wait().expect("it ends");
        assert!(status.success(), "{what}: {status}");
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

/// Our broker, in a process of its own.
pub(crate) struct Broker {
    process: Option<Running>,
    dir: TempDir,
    pub(crate) address: String,
}

impl Broker {
    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.as_ref().expect("it runs").0.id()
    }

    pub(crate) fn start() -> Broker {
        let mut broker = Broker {
            process: None,
            dir: tempfile::tempdir().expect("a folder"),
            address: format!("127.0.0.1:{}", free_port()),
        };
        broker.restart();
        broker
    }

    /// Kills it, if it runs, and starts it again.
    fn restart(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
        let mut command = Command::new(&tools().broker);
        command.args(["broker", "--listen", &self.address, "--dir"]);
        command.arg(self.dir.path()).stdout(Stdio::piped());
        let mut process = Running::start(&mut command);
        let lines = BufReader::new(process.0.stdout.take().expect("piped"));
        let line = lines.lines().next().expect("a line").expect("text");
        assert!(line.starts_with("listening on"), "{line}");
        self.process = Some(process);
    }
}

/// A program that speaks for a stock client: see `tests/clients`.
#[derive(Clone, Copy)]
pub(crate) enum Client {
    Librdkafka,
    Java,
    Franz,
}

impl Client {
    fn command(self, mode: &str, broker: &str, name: &str, count: u32) -> Command {
        let mut command = match self {
            Client::Librdkafka => {
                let mut command = Command::new(&tools().python);
                command.arg("-u").arg(clients().join("clients.py"));
                command
            }
            Client::Java => {
                let mut command = Command::new("java");
                let class_path = tools().libs.join("*");
                command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=error");
                command.args(["-XX:TieredStopAtLevel=1", "-Xmx256m", "-cp"]);
                command.arg(class_path).arg(clients().join("Clients.java"));
                command
            }
            Client::Franz => Command::new(&tools().franz),
        };
        command.args([mode, broker, name, &count.to_string()]);
        command
    }

    pub(crate) fn run(self, mode: &str, broker: &str, name: &str, count: u32) {
        done(self.command(mode, broker, name, count));
    }

    /// Starts to work, and comes back in the middle of its n-th transaction.
    fn work_until(self, transaction: usize, broker: &str, name: &str, count: u32) -> Working {
        let mut working = Working::start(self.command("work", broker, name, count));
        working.hear_of("in a transaction", transaction);
        working
    }
}

/// A program that says where it is, a line each.
struct Working {
    process: Running,
    said: Receiver<String>,
}

impl Working {
    /// It says something within so long, or hangs.
    const SILENCE_MAX: Duration = Duration::from_secs(180);

    fn start(mut command: Command) -> Working {
        let mut process = Running::start(command.stdout(Stdio::piped()));
        let lines = BufReader::new(process.0.stdout.take().expect("piped")).lines();
        let (sender, said) = channel();
        std::thread::spawn(move || {
            for line in lines {
                // Nobody listens to a program that was killed.
                let _ = sender.send(line.expect("text"));
            }
        });
        Working { process, said }
    }

    /// Its next line, or `None` at its end.
    fn hear(&mut self) -> Option<String> {
        match self.said.recv_timeout(Self::SILENCE_MAX) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("silent for {:?}", Self::SILENCE_MAX),
        }
    }

    /// Comes back when it has said that so many times more.
    fn hear_of(&mut self, what: &str, times: usize) {
        for _ in 0..times {
            while self.hear().expect("it is not done so soon") != what {}
        }
    }

    /// Lets it go on to its end.
    fn finish(mut self) {
        while self.hear().is_some() {}
        self.process.succeeds("the work");
    }
}

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
