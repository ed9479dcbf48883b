//! The real broker, in a process of its own: it loses nothing that it acknowledged, ends as it is told to, refuses
//! what it must, and bears ten thousand connections that say nothing.

#![expect(
    clippy::disallowed_methods,
    reason = "a process is killed while it works, on a real clock"
)]

use engine::{
    host::{
        real::{RealClock, RealDisk, RealNet},
        Clock, Host,
    },
    ids::{Offset, PartitionId},
    log::{
        cluster::Cluster,
        consumer::Consumer,
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
};
use std::{
    fs,
    future::Future,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    thread::sleep,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream};

fn command(dir: &Path, listen: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed-under-test"));
    command.args([
        "broker",
        "--segment-bytes",
        "4096",
        "--listen",
        listen,
        "--dir",
    ]);
    command
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

struct Broker {
    process: Child,
    address: String,
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Broker {
    fn start(dir: &Path, listen: &str) -> Broker {
        let mut process = command(dir, listen).spawn().unwrap();
        let mut line = String::new();
        let said = process.stdout.as_mut().unwrap();
        BufReader::new(said).read_line(&mut line).unwrap();
        let address = line.split([' ', ',']).nth(2).unwrap_or_default().to_owned();
        assert!(line.starts_with("listening on"), "{line}");
        Broker { process, address }
    }

    /// With SIGKILL.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn signal(&self, signal: &str) {
        let id = self.process.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it ends; its exit code and what it has said on stderr.
    fn end(mut self) -> (Option<i32>, String) {
        for _ in 0..100 {
            if let Some(status) = self.process.try_wait().unwrap() {
                let mut said = String::new();
                let stderr = self.process.stderr.as_mut().unwrap();
                stderr.read_to_string(&mut said).unwrap();
                return (status.code(), said);
            }
            sleep(Duration::from_millis(100));
        }
        panic!("it does not end");
    }

    /// The memory that it has, in bytes.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }

    /// A client of it. The folder is for nothing that a client needs.
    fn cluster(&self, dir: &TempDir) -> Cluster {
        let host = Host {
            instance: "client".into(),
            disk: Arc::new(RealDisk::new(dir.path()).unwrap()),
            net: Arc::new(RealNet),
            clock: Arc::new(RealClock),
            objects: Arc::new(object_store::memory::InMemory::new()),
        };
        Cluster::new(host, vec![self.address.clone()])
    }
}

fn on_a_runtime(body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(body);
}

fn topic() -> TopicPartition {
    TopicPartition::new("t", PartitionId(0))
}

fn record(number: usize) -> NewRecord {
    NewRecord {
        key: None,
        value: Some(format!("value {number}").into()),
        headers: Vec::new(),
        timestamp_ms: RealClock.now_ms(),
    }
}

#[test]
fn what_was_acknowledged_survives_kills() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 1).await.unwrap();
        let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
        let mut acknowledged = Vec::new();
        for kill in 0..6 {
            let mut acks = Vec::new();
            for number in 0..400 {
                acks.push(producer.send(&topic(), record(kill * 400 + number)).await);
            }
            // In the middle of it.
            tokio::time::sleep(Duration::from_millis(5 * kill as u64)).await;
            broker.kill();
            let address = broker.address.clone();
            broker = Broker::start(dir.path(), &address);
            for (number, ack) in acks.into_iter().enumerate() {
                let at = ack.await.expect("it is sent again until it is there");
                acknowledged.push((kill * 400 + number, at));
            }
        }
        broker.kill();
        let address = broker.address.clone();
        broker = Broker::start(dir.path(), &address);
        let cluster = broker.cluster(&other);
        let end = cluster.end_offset(&topic()).await.unwrap();
        assert_eq!(end, Offset(2400), "each once");
        let mut consumer = Consumer::new(cluster, topic(), Offset(0));
        let mut read = Vec::new();
        while consumer.position() < end {
            read.extend(consumer.poll().await.unwrap());
        }
        for (number, at) in acknowledged {
            let index = at.map_or(number, |at| at.0 as usize);
            let expected = format!("value {number}");
            assert_eq!(read[index].value.as_deref(), Some(expected.as_bytes()));
        }
    });
}

#[test]
fn it_stops_when_it_is_told_to() {
    for signal in ["-INT", "-TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let broker = Broker::start(dir.path(), "127.0.0.1:0");
        broker.signal(signal);
        let (code, said) = broker.end();
        assert_eq!((code, said.as_str()), (Some(0), ""));
    }
}

#[test]
fn one_folder_and_one_port_have_one_broker() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    let refused = |output: Output, words: &[&str]| {
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        for word in words {
            assert!(said.contains(word), "no `{word}` in {said}");
        }
    };
    let same_folder = command(dir.path(), "127.0.0.1:0").output().unwrap();
    let folder = dir.path().display().to_string();
    refused(same_folder, &[&folder, "in use by another broker"]);
    let same_port = command(other.path(), &broker.address).output().unwrap();
    refused(
        same_port,
        &[&broker.address, "another program has this port"],
    );
}

#[test]
fn a_damaged_segment_is_named_and_left_alone() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 1).await.unwrap();
        let producer = Producer::new(cluster, ProducerConfig::default()).await;
        for number in 0..200 {
            producer.send(&topic(), record(number)).await.await.unwrap();
        }
    });
    broker.signal("-TERM");
    assert_eq!(broker.end().0, Some(0));
    let segment = dir.path().join("log/t/0/00000000000000000000.log");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[1000] ^= 0x10;
    fs::write(&segment, &bytes).unwrap();
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    let (code, said) = broker.end();
    assert_eq!(code, Some(2), "{said}");
    for word in [
        "log/t/0/00000000000000000000.log",
        "offset",
        "Bring the file back",
    ] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    assert_eq!(fs::read(&segment).unwrap(), bytes, "nothing was changed");
}

const CONNECTIONS: usize = 10_000;
/// What a connection may take of the broker: its task, and a buffer for what has arrived of a request.
const BYTES_EACH: u64 = 32 << 10;

#[cfg(target_os = "linux")]
#[test]
fn ten_thousand_idle_connections_take_little_and_hinder_nobody() {
    let allowed = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(
        allowed > CONNECTIONS as u64 + 100,
        "this test needs more open files than {allowed}: see `ulimit -n`"
    );
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let before = broker.resident();
        let mut crowd = Vec::new();
        for number in 0..CONNECTIONS {
            let mut connection = TcpStream::connect(&broker.address).await.unwrap();
            // Some claim a request of 16 MiB, and send the first bytes of it.
            if number % 3 == 0 {
                let begun = [0, 0xff, 0xff, 0xff, 0, 0, 0, 9];
                connection.write_all(&begun).await.unwrap();
            }
            crowd.push(connection);
        }
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 1).await.unwrap();
        let producer = Producer::new(cluster, ProducerConfig::default()).await;
        let ack = producer.send(&topic(), record(0)).await;
        let told = tokio::time::timeout(Duration::from_secs(10), ack).await;
        told.expect("it is answered soon").expect("it is kept");
        let each = broker.resident().saturating_sub(before) / CONNECTIONS as u64;
        assert!(each < BYTES_EACH, "{each} bytes for each connection");
        drop(crowd);
    });
}
