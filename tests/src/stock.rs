//! Stock clients, what they need, and a broker of ours for them: the live build, whatever this one is.

use crate::running::Running;
use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        mpsc::{channel, Receiver, RecvTimeoutError},
        OnceLock,
    },
    time::Duration,
};
use tempfile::TempDir;

/// What the tests need, brought or built once.
pub struct Tools {
    pub python: PathBuf,
    /// Jars of Apache Kafka, of Flink, and our programs over them.
    pub libs: PathBuf,
    pub flink: PathBuf,
    pub classes: PathBuf,
    pub franz: PathBuf,
    pub broker: PathBuf,
}

pub fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
}

/// A command of Cargo's for the build without simulation.
pub fn live_cargo(verb: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    // The whole workspace, as the live tests build it: nothing is compiled twice.
    let all = [verb, "--workspace"];
    cargo.current_dir(root()).args(all);
    cargo.args(["--config", "target.'cfg(all())'.rustflags=['--cfg','live']"]);
    cargo.args(["--target-dir", "target/live"]);
    cargo
}

pub fn done(mut command: Command) {
    let status = command.status().expect("it starts");
    assert!(status.success(), "{command:?}: {status}");
}

pub fn tools() -> &'static Tools {
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
    pub fn succeeds(mut self, what: &str) {
        let status = self.0.wait().expect("it ends");
        assert!(status.success(), "{what}: {status}");
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

/// Our broker, in a process of its own.
pub struct Broker {
    pub process: Option<Running>,
    dir: TempDir,
    pub address: String,
}

impl Broker {
    pub fn start() -> Broker {
        let mut broker = Broker {
            process: None,
            dir: tempfile::tempdir().expect("a folder"),
            address: format!("127.0.0.1:{}", free_port()),
        };
        broker.restart();
        broker
    }

    /// Kills it, if it runs, and starts it again.
    pub fn restart(&mut self) {
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
pub enum Client {
    Librdkafka,
    Java,
    Franz,
}

impl Client {
    pub fn command(self, mode: &str, broker: &str, name: &str, count: u32) -> Command {
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

    pub fn run(self, mode: &str, broker: &str, name: &str, count: u32) {
        done(self.command(mode, broker, name, count));
    }

    /// Starts to work, and comes back in the middle of its n-th transaction.
    pub fn work_until(self, transaction: usize, broker: &str, name: &str, count: u32) -> Working {
        let mut working = Working::start(self.command("work", broker, name, count));
        working.hear_of("in a transaction", transaction);
        working
    }
}

/// A program that says where it is, a line each.
pub struct Working {
    pub process: Running,
    said: Receiver<String>,
}

impl Working {
    /// It says something within so long, or hangs.
    const SILENCE_MAX: Duration = Duration::from_secs(180);

    pub fn start(mut command: Command) -> Working {
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
    pub fn hear(&mut self) -> Option<String> {
        match self.said.recv_timeout(Self::SILENCE_MAX) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("silent for {:?}", Self::SILENCE_MAX),
        }
    }

    /// Comes back when it has said that so many times more.
    pub fn hear_of(&mut self, what: &str, times: usize) {
        for _ in 0..times {
            while self.hear().expect("it is not done so soon") != what {}
        }
    }

    /// Lets it go on to its end.
    pub fn finish(mut self) {
        while self.hear().is_some() {}
        self.process.succeeds("the work");
    }
}
