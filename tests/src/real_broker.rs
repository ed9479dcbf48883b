//! The real broker, in a process of its own: it loses nothing that it acknowledged, ends as it is told to, refuses
//! what it must, and bears ten thousand connections that say nothing.

#![expect(
    clippy::disallowed_methods,
    reason = "a process is killed while it works, on a real clock"
)]

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
        fetch_request::{FetchPartition, FetchTopic},
        metadata_request::MetadataRequestTopic,
        DeleteGroupsRequest, DeleteRecordsRequest, DescribeConfigsRequest, DescribeGroupsRequest,
        FetchRequest, FetchResponse, MetadataRequest, TopicName,
    },
    protocol::{Request, StrBytes},
};
use std::{
    collections::BTreeSet,
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

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
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
            entropy: Arc::new(RealEntropy),
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

/// What a crash has left after the last frame is cut, and said; after a clean stop it is damage.
#[test]
fn a_torn_tail_is_cut_with_a_warning_after_a_kill_alone() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 1).await.unwrap();
        let producer = Producer::new(cluster, ProducerConfig::default()).await;
        for number in 0..5 {
            let sent = producer.send(&topic(), record(number)).await;
            sent.await.unwrap();
        }
    });
    let segment = dir.path().join("log/t/0/00000000000000000000.log");
    let tear = || {
        let mut bytes = fs::read(&segment).unwrap();
        bytes.extend(b"SBF2 and what else a crash has left");
        fs::write(&segment, &bytes).unwrap();
        bytes
    };
    broker.kill();
    let torn = tear();
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let end = broker.cluster(&other).end_offset(&topic()).await;
        assert_eq!(end.unwrap(), Offset(5));
    });
    broker.signal("-TERM");
    let (code, said) = broker.end();
    assert_eq!(code, Some(0), "{said}");
    let until = format!("to={} ", torn.len());
    for word in ["WARN", "log/t/0/", "end_offset=5", "bytes=35", &until] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    let torn = tear();
    let (code, said) = Broker::start(dir.path(), "127.0.0.1:0").end();
    assert_eq!(code, Some(2), "{said}");
    for word in ["log/t/0/", "offset 5", "was stopped", "--without"] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    assert_eq!(fs::read(&segment).unwrap(), torn, "nothing was changed");
    // The way that it names leads on.
    fs::remove_dir_all(dir.path().join("log/t/0")).unwrap();
    let (code, said) = Broker::start(dir.path(), "127.0.0.1:0").end();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is missing"), "{said}");
    let broker = Broker::run(command(dir.path(), "127.0.0.1:0").args(["--without", "t/0"]));
    on_a_runtime(async {
        let end = broker.cluster(&other).end_offset(&topic()).await;
        assert_eq!(end.unwrap(), Offset(0));
    });
}

#[test]
fn a_small_file_that_is_gone_is_asked_for() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 1).await.unwrap();
    });
    broker.signal("-TERM");
    assert_eq!(broker.end().0, Some(0));
    for name in ["topics", "producer-ids"] {
        let (path, aside) = (dir.path().join(name), other.path().join(name));
        fs::rename(&path, &aside).unwrap();
        let output = command(dir.path(), "127.0.0.1:0").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        let missing = format!("{name} is missing");
        assert!(
            said.contains(&missing) && said.contains("Bring the file back"),
            "{said}"
        );
        fs::rename(&aside, &path).unwrap();
    }
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    broker.signal("-TERM");
    assert_eq!(broker.end().0, Some(0), "with them, it starts");
}

/// So many partitions of which each has a file, and ten thousand that nobody has used.
#[test]
fn partitions_need_no_open_file_each() {
    const FILES: u32 = 200;
    const USED: i32 = 400;
    const TOGETHER: i32 = 40;
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |listen: &str| {
        let mut limited = Command::new("sh");
        let run = format!("ulimit -n {FILES}; exec \"$0\" \"$@\"");
        let plain = command(dir.path(), listen);
        limited.arg("-c").arg(run).arg(plain.get_program());
        limited.args(plain.get_args());
        Broker::run(limited.stdout(Stdio::piped()).stderr(Stdio::piped()))
    };
    let fill = |broker: &Broker| {
        let cluster = broker.cluster(&other);
        on_a_runtime(async {
            cluster.ensure_topic("t", USED).await.unwrap();
            cluster.ensure_topic("unused", 10_000).await.unwrap();
            // A producer has a connection for each partition, which is an open file, too.
            for first in (0..USED)
                .step_by(TOGETHER as usize)
                .chain((0..USED).step_by(TOGETHER as usize))
            {
                let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
                let mut sent = Vec::new();
                // Each is large enough for the next one to begin a segment.
                for index in first..first + TOGETHER {
                    let to = TopicPartition::new("t", PartitionId(index));
                    let large = NewRecord {
                        value: Some(vec![7; 5000].into()),
                        ..record(0)
                    };
                    sent.push(producer.send(&to, large).await);
                }
                for sent in sent {
                    sent.await.unwrap();
                }
            }
        });
    };
    let mut broker = start("127.0.0.1:0");
    fill(&broker);
    broker.kill();
    let broker = start(&broker.address.clone());
    fill(&broker);
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        for index in [0, USED / 2, USED - 1] {
            let of = TopicPartition::new("t", PartitionId(index));
            assert_eq!(cluster.end_offset(&of).await.unwrap(), Offset(4));
        }
    });
    broker.signal("-TERM");
    assert_eq!(broker.end().0, Some(0));
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

/// librdkafka's defaults: `fetch.max.bytes`, `max.partition.fetch.bytes`, `receive.message.max.bytes`.
const FETCH_BYTES: i32 = 50 << 20;
const PARTITION_BYTES: i32 = 1 << 20;
const RECEIVE_BYTES: usize = 100_000_000;

/// Asks for these partitions of `t`, from the start on.
fn fetch(partitions: impl IntoIterator<Item = i32>) -> FetchRequest {
    let wanted = partitions.into_iter().map(|partition| {
        FetchPartition::default()
            .with_partition(partition)
            .with_partition_max_bytes(PARTITION_BYTES)
    });
    let topic = FetchTopic::default()
        .with_topic(TopicName(StrBytes::from_static_str("t")))
        .with_partitions(wanted.collect());
    FetchRequest::default()
        .with_replica_id((-1).into())
        .with_max_bytes(FETCH_BYTES)
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}

/// The partitions of which there are records, as often as there are.
fn with_records(response: &FetchResponse) -> Vec<i32> {
    let all = (response.responses.iter()).flat_map(|topic| &topic.partitions);
    all.filter(|partition| partition.records.as_ref().is_some_and(|r| !r.is_empty()))
        .map(|partition| partition.partition_index)
        .collect()
}

async fn large_records(broker: &Broker, dir: &TempDir, partitions: i32) {
    let cluster = broker.cluster(dir);
    cluster.ensure_topic("t", partitions).await.unwrap();
    let producer = Producer::new(cluster, ProducerConfig::default()).await;
    for partition in 0..partitions {
        let large = NewRecord {
            value: Some(vec![partition as u8; 900_000].into()),
            ..record(0)
        };
        let to = TopicPartition::new("t", PartitionId(partition));
        producer.send(&to, large).await.await.unwrap();
    }
}

/// KIP-74. A response with a batch of each was larger than librdkafka takes: it got nothing, for ever.
#[test]
fn a_fetch_of_many_partitions_keeps_to_its_bytes_and_starves_none() {
    const PARTITIONS: i32 = 160;
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        large_records(&broker, &other, PARTITIONS).await;
        let mut connection = TcpStream::connect(&broker.address).await.unwrap();
        let mut missing: BTreeSet<i32> = (0..PARTITIONS).collect();
        while !missing.is_empty() {
            let wanted = fetch(missing.iter().copied());
            let (response, bytes) = ask(&mut connection, &wanted, 12).await;
            assert!(bytes < RECEIVE_BYTES, "librdkafka refuses {bytes} bytes");
            assert!(bytes < FETCH_BYTES as usize + (64 << 10));
            let got = with_records(&response);
            assert!(!got.is_empty(), "it gets nothing, for ever");
            missing.retain(|partition| !got.contains(partition));
        }
        // Whatever is asked for, a response has its end.
        let greedy = fetch(0..PARTITIONS).with_max_bytes(i32::MAX);
        let (_, bytes) = ask(&mut connection, &greedy, 12).await;
        assert!(bytes < 60 << 20, "{bytes} bytes");
    });
}

/// Also the first batch of the first partition with any is larger than asked for; of the others none is.
#[test]
fn a_batch_that_is_too_large_comes_alone() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        large_records(&broker, &other, 3).await;
        let mut connection = TcpStream::connect(&broker.address).await.unwrap();
        for (bytes, expected) in [(0, 1), (1_000_000, 1), (1_900_000, 2), (3_000_000, 3)] {
            let wanted = fetch(0..3).with_max_bytes(bytes);
            let (response, _) = ask(&mut connection, &wanted, 12).await;
            let expected: Vec<i32> = (0..expected).collect();
            assert_eq!(with_records(&response), expected, "of {bytes} bytes");
        }
    });
}

#[test]
fn a_partition_that_is_named_thousands_of_times_is_read_once() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        large_records(&broker, &other, 2).await;
        let mut connection = TcpStream::connect(&broker.address).await.unwrap();
        let mut wanted = fetch((0..4000).map(|number| number % 2));
        // And by a topic that is named twice.
        wanted.topics.push(wanted.topics[0].clone());
        let (response, _) = ask(&mut connection, &wanted, 12).await;
        let mut got = with_records(&response);
        got.sort();
        assert_eq!(got, [0, 1]);
        let answers: usize = response
            .responses
            .iter()
            .map(|topic| topic.partitions.len())
            .sum();
        assert_eq!(answers, 2, "each is answered once");
    });
}
