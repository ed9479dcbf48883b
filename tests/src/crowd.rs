//! Ten thousand connections that say nothing, or half of something, to the real broker in a process of its own.

use engine::{
    host::{
        real::{RealClock, RealDisk, RealNet},
        Host,
    },
    ids::PartitionId,
    log::{
        cluster::Cluster,
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
};
use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

const CONNECTIONS: usize = 10_000;
/// What a connection may take of the broker: its task, and a buffer for what has arrived of a request.
const BYTES_EACH: u64 = 32 << 10;

struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Broker {
    /// The memory that it has, in bytes.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }
}

#[test]
fn ten_thousand_idle_connections_take_little_and_hinder_nobody() {
    let allowed = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(
        allowed > CONNECTIONS as u64 + 100,
        "this test needs more open files than {allowed}: see `ulimit -n`"
    );
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed-under-test"));
    command.args(["broker", "--listen", "127.0.0.1:0", "--dir"]);
    command.arg(dir.path()).stdout(Stdio::piped());
    let mut broker = Broker(command.spawn().unwrap());
    let mut line = String::new();
    let said = broker.0.stdout.take().unwrap();
    BufReader::new(said).read_line(&mut line).unwrap();
    let address = line.split([' ', ',']).nth(2).unwrap().to_owned();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let before = broker.resident();
        let mut crowd = Vec::new();
        for number in 0..CONNECTIONS {
            let mut connection = TcpStream::connect(&address).await.unwrap();
            // Some claim a request of 16 MiB, and send the first bytes of it.
            if number % 3 == 0 {
                connection
                    .write_all(&[0, 0xff, 0xff, 0xff, 0, 0, 0, 9])
                    .await
                    .unwrap();
            }
            crowd.push(connection);
        }
        let host = Host {
            instance: "crowd".into(),
            disk: Arc::new(RealDisk::new(dir.path().join("client")).unwrap()),
            net: Arc::new(RealNet),
            clock: Arc::new(RealClock),
            objects: Arc::new(object_store::memory::InMemory::new()),
        };
        let now = host.clock.now_ms();
        let cluster = Cluster::new(host, vec![address.clone()]);
        cluster.ensure_topic("t", 1).await.unwrap();
        let producer = Producer::new(cluster, ProducerConfig::default()).await;
        let record = NewRecord {
            key: None,
            value: Some("v".into()),
            headers: Vec::new(),
            timestamp_ms: now,
        };
        let of = TopicPartition::new("t", PartitionId(0));
        let ack = producer.send(&of, record).await;
        let told = tokio::time::timeout(Duration::from_secs(10), ack).await;
        told.expect("it is answered soon").expect("it is kept");
        let grown = broker.resident().saturating_sub(before);
        assert!(
            grown < BYTES_EACH * CONNECTIONS as u64,
            "{} bytes for each connection",
            grown / CONNECTIONS as u64
        );
        println!("{} bytes for each connection", grown / CONNECTIONS as u64);
        drop(crowd);
    });
}
