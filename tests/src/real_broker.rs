//! The real broker, in a process of its own: it loses nothing that it acknowledged, ends as it is told to, refuses
//! what it must, and bears ten thousand connections that say nothing.

#![expect(
    clippy::disallowed_methods,
    reason = "a process is killed while it works, on a real clock"
)]

mod fetch;
mod files;

use bytes::Bytes;
use engine::{
    host::{
        real::{RealClock, RealDisk, RealEntropy, RealNet},
        Clock, Host,
    },
    ids::{Offset, PartitionId},
    log::{
        cluster::Cluster,
        consumer::Consumer,
        member::{Member, MemberConfig},
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
    wire::frame,
};
use kafka_protocol::{
    messages::{
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
        describe_configs_request::DescribeConfigsResource,
        metadata_request::MetadataRequestTopic,
        DeleteGroupsRequest, DeleteRecordsRequest, DescribeConfigsRequest, DescribeGroupsRequest,
        MetadataRequest,
    },
    protocol::{Request, StrBytes},
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
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

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

/// A broker in a process of its own.
pub struct Broker {
    process: Child,
    /// Where it listens.
    pub address: String,
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Broker {
    /// Starts it, and waits until it listens.
    pub fn start(dir: &Path, listen: &str) -> Broker {
        Broker::run(&mut command(dir, listen))
    }

    fn run(command: &mut Command) -> Broker {
        let mut process = command.spawn().unwrap();
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
    pub fn cluster(&self, dir: &TempDir) -> Cluster {
        let host = Host {
            instance: "client".into(),
            disk: Arc::new(RealDisk::new(dir.path()).unwrap()),
            net: Arc::new(RealNet),
            clock: Arc::new(RealClock),
            entropy: Arc::new(RealEntropy),
            objects: Arc::new(object_store::memory::InMemory::new()),
        };
        Cluster::new(host, vec![self.address.clone()])
    }
}

/// Runs a client.
pub fn on_a_runtime(body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(body);
}

/// Asks a broker as no client of ours does: the response, and the bytes that it took.
async fn ask<R: Request>(
    connection: &mut TcpStream,
    request: &R,
    version: i16,
) -> (R::Response, usize) {
    let request = frame::encode_request(request, version, 7).unwrap();
    connection.write_all(&request).await.unwrap();
    let len = connection.read_i32().await.unwrap() as usize;
    let mut response = vec![0; len];
    connection.read_exact(&mut response).await.unwrap();
    let response = frame::decode_response::<R>(&Bytes::from(response), version);
    (response.unwrap(), len)
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

/// The name of the cluster, the id of the topic, and how long it keeps its records.
async fn known(cluster: &Cluster) -> (String, Uuid, String) {
    let connection = cluster.connect_any().await.unwrap();
    let name = StrBytes::from_static_str("t");
    let topic = MetadataRequestTopic::default().with_name(Some(name.clone().into()));
    let asked = MetadataRequest::default().with_topics(Some(vec![topic]));
    let told = connection.call(&asked).await.unwrap();
    let topic = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(name)
        .with_configuration_keys(Some(vec![StrBytes::from_static_str("retention.ms")]));
    let asked = DescribeConfigsRequest::default().with_resources(vec![topic]);
    let configs = connection.call(&asked).await.unwrap();
    let set = configs.results[0].configs[0].value.clone();
    let cluster = told.cluster_id.unwrap_or_default().to_string();
    let set = set.unwrap_or_default().to_string();
    (cluster, told.topics[0].topic_id, set)
}

#[test]
fn what_is_known_of_a_topic_survives_kills() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        let kept = [("retention.ms", "-1".to_owned())];
        let made = cluster.ensure_configured_topic("t", 1, &kept);
        assert_eq!(made.await.unwrap(), 1);
        let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
        for number in 0..200 {
            producer.send(&topic(), record(number)).await.await.unwrap();
        }
        let before = known(&cluster).await;
        assert!(!before.0.is_empty() && !before.1.is_nil());
        assert_eq!(before.2, "-1");
        // Whole segments, and a part of the next one.
        let partition = DeleteRecordsPartition::default().with_offset(150);
        let deleted = DeleteRecordsTopic::default()
            .with_name(StrBytes::from_static_str("t").into())
            .with_partitions(vec![partition]);
        let request = DeleteRecordsRequest::default().with_topics(vec![deleted]);
        let connection = cluster.connect_any().await.unwrap();
        let told = connection.call(&request).await.unwrap();
        assert_eq!(told.topics[0].partitions[0].low_watermark, 150);
        for _ in 0..2 {
            broker.kill();
            let address = broker.address.clone();
            broker = Broker::start(dir.path(), &address);
            let cluster = broker.cluster(&other);
            assert_eq!(known(&cluster).await, before);
            let start = cluster.start_offset(&topic()).await.unwrap();
            assert_eq!(start, Offset(150));
            let mut consumer = Consumer::new(cluster, topic(), start);
            let mut read = Vec::new();
            while consumer.position() < Offset(200) {
                read.extend(consumer.poll().await.unwrap());
            }
            assert_eq!(read.len(), 50, "what is left is whole");
        }
    });
    let segments = fs::read_dir(dir.path().join("log/t/0")).unwrap();
    let names = segments.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let first = names.filter(|name| name.ends_with(".log")).min().unwrap();
    assert_ne!(first, "00000000000000000000.log", "what is deleted goes");
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

/// Half of the partitions were never used. The deletion is interrupted again and again.
#[test]
fn a_deletion_survives_kills() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 60).await.unwrap();
        let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
        for index in (0..60).step_by(2) {
            let to = TopicPartition::new("t", PartitionId(index));
            let sent = producer.send(&to, record(0)).await;
            sent.await.unwrap();
        }
        let deletion = async { cluster.delete_topic("t").await };
        let kills = async {
            for kill in 0..5 {
                tokio::time::sleep(Duration::from_millis(2 * kill)).await;
                broker.kill();
                let address = broker.address.clone();
                broker = Broker::start(dir.path(), &address);
            }
        };
        futures::join!(deletion, kills);
        assert!(!dir.path().join("log/t").exists(), "nothing is left of it");
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 60).await.unwrap();
        assert_eq!(cluster.end_offset(&topic()).await.unwrap(), Offset(0));
    });
}

#[test]
fn who_has_left_a_group_is_gone_after_a_kill() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 1).await.unwrap();
        let config = MemberConfig {
            group: "readers".into(),
            topics: vec!["t".into()],
            session: Duration::from_secs(60),
            rebalance: Duration::from_secs(60),
        };
        let mut member = Member::new(cluster, config);
        let assignment = member.join().await;
        member
            .commit(&assignment.membership, &[(topic(), Offset(0))])
            .await
            .unwrap();
        member.leave().await;
        broker.kill();
        let broker = Broker::start(dir.path(), &broker.address);
        let mut connection = TcpStream::connect(&broker.address).await.unwrap();
        let readers = || StrBytes::from_static_str("readers").into();
        let described = DescribeGroupsRequest::default().with_groups(vec![readers()]);
        let (described, _) = ask(&mut connection, &described, 5).await;
        let group = &described.groups[0];
        assert_eq!(
            (group.group_state.as_str(), group.members.len()),
            ("Empty", 0)
        );
        let delete = DeleteGroupsRequest::default().with_groups_names(vec![readers()]);
        let (deleted, _) = ask(&mut connection, &delete, 2).await;
        assert_eq!(deleted.results[0].error_code, 0, "nobody is in it");
    });
}

const CONNECTIONS: usize = 10_000;
/// What a connection may take of the broker: its task, and a buffer for what has arrived of a request.
const BYTES_EACH: u64 = 32 << 10;

#[cfg(target_os = "linux")]
#[test]
fn ten_thousand_idle_connections_take_little_and_hinder_nobody() {
    let allowed = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(
        allowed / 8 * 5 > CONNECTIONS as u64 + 100,
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
