//! A broker among hostile peers: it answers those who mean well within a second, loses nothing of theirs, and keeps
//! to 512 MB, whatever the others send, or do not read.
//!
//! Half a minute by default; `SEEDBED_HOSTILE_SECONDS` says how long instead. Memory is what the kernel says that the
//! process had resident at most, `VmHWM`: a limit of address space would count what is reserved and never touched.

use bytes::Bytes;
use engine::{
    host::{real::RealClock, Clock},
    record::NewRecord,
    wire::{
        batch::{self, Identity},
        frame,
    },
};
use kafka_protocol::{
    messages::{
        create_topics_request::CreatableTopic,
        fetch_request::{FetchPartition, FetchTopic},
        join_group_request::JoinGroupRequestProtocol,
        produce_request::{PartitionProduceData, TopicProduceData},
        CreateTopicsRequest, FetchRequest, JoinGroupRequest, MetadataRequest, ProduceRequest,
        TopicName,
    },
    protocol::{Request, StrBytes},
};
use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The memory that a broker may take, whatever happens.
const MEMORY_BYTES: u64 = 512 << 20;
/// And how long an answer.
const ANSWER: Duration = Duration::from_secs(1);
/// A request of tiny elements.
const HUGE: usize = 15 << 20;

/// How long a siege lasts.
fn duration() -> Duration {
    let seconds = std::env::var("SEEDBED_HOSTILE_SECONDS");
    let seconds = seconds.map_or(30, |text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds)
}

/// The most memory that a process has had, in bytes.
fn resident_most(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.expect("a number").parse::<u64>().expect("a number") << 10
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A request of a flexible version, in its frame: `before`, so many times `element`, `after`.
fn tiny(key: i16, version: i16, parts: (&[u8], &[u8], &[u8]), count: usize) -> Vec<u8> {
    let (before, element, after) = parts;
    let mut body = Vec::with_capacity(count * element.len() + 100);
    body.extend(key.to_be_bytes());
    body.extend(version.to_be_bytes());
    body.extend([0, 0, 0, 7, 0xff, 0xff, 0]);
    body.extend(before);
    body.extend(varint(count + 1));
    for _ in 0..count {
        body.extend(element);
    }
    body.extend(after);
    let mut request = (body.len() as i32).to_be_bytes().to_vec();
    request.extend(body);
    request
}

/// Requests whose elements take a few bytes each, and some hundred once they are decoded.
fn tiny_requests(bytes: usize) -> Vec<Vec<u8>> {
    let produce = [&[0, 0xff, 0xff][..], &[0, 0, 0, 9]].concat();
    let fetch = [0xff; 25];
    vec![
        tiny(15, 5, (&[], &[1], &[0, 0]), bytes),
        tiny(65, 0, (&[], &[1], &[0]), bytes),
        tiny(10, 4, (&[1], &[1], &[0]), bytes),
        tiny(1, 12, (&fetch, &[1, 1, 0], &[1, 1, 0]), bytes / 3),
        tiny(0, 9, (&produce, &[1, 1, 0], &[0]), bytes / 3),
    ]
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

/// Sends it, and reads whatever comes for a while.
fn send(address: &str, request: &[u8]) -> io::Result<()> {
    let mut stream = connect(address)?;
    stream.write_all(request)?;
    let mut some = vec![0; 1 << 16];
    while stream.read(&mut some)? > 0 {}
    Ok(())
}

fn join(number: usize) -> Bytes {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(vec![7; 500 << 10].into());
    let request = JoinGroupRequest::default()
        // Some in a group of their own, most in one where they wait for each other.
        .with_group_id(text(&format!("hostile-{}", number % 7)).into())
        .with_session_timeout_ms(1_000_000)
        .with_rebalance_timeout_ms(1_000_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    frame::encode_request(&request, 3, 7).expect("a request")
}

fn produce(topic: &str, batch: Bytes) -> ProduceRequest {
    let data = PartitionProduceData::default().with_records(Some(batch));
    let topic = TopicProduceData::default()
        .with_name(TopicName(text(topic)))
        .with_partition_data(vec![data]);
    ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(5000)
        .with_topic_data(vec![topic])
}

fn batch_of(value: Vec<u8>) -> Vec<u8> {
    let record = NewRecord {
        value: Some(value.into()),
        // Older ones are not kept.
        timestamp_ms: RealClock.now_ms(),
        ..NewRecord::default()
    };
    batch::encode(&[record], Identity::NOBODY)
        .expect("a batch")
        .to_vec()
}

/// Four million zeros, unpacked again and again by each copy of three bytes.
fn bomb() -> Bytes {
    let mut bytes = batch_of(Vec::new())[..61].to_vec();
    bytes[22] |= 2;
    // Snappy: 64 MB claimed; a literal zero, then copies of 64 bytes from one byte before.
    bytes.extend(varint(64 << 20));
    bytes.extend([0, 0]);
    bytes.resize(bytes.len() + (3 << 20), 0);
    for copy in bytes[67..].chunks_exact_mut(3) {
        copy.copy_from_slice(&[(63 << 2) | 2, 1, 0]);
    }
    let len = bytes.len() as i32 - 12;
    bytes[8..12].copy_from_slice(&len.to_be_bytes());
    let sum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&sum.to_be_bytes());
    bytes.into()
}

/// Hostile peers of every kind, until it is dropped.
struct Siege {
    over: Arc<AtomicBool>,
    attacks: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Siege {
    /// Begins it.
    fn begin(address: &str) -> Siege {
        let mut siege = Siege {
            over: Arc::new(AtomicBool::new(false)),
            attacks: Arc::default(),
            threads: Vec::new(),
        };
        for request in tiny_requests(HUGE).into_iter().chain(tiny_requests(48_000)) {
            siege.attack(address, move |address, _| send(address, &request));
        }
        siege.attack(address, half_frames);
        siege.attack(address, never_readers);
        siege.attack(address, parked);
        siege.attack(address, slow_loris);
        siege.attack(address, |address, number| {
            let garbage: Vec<u8> = (0..997).map(|at| (at * number % 251) as u8).collect();
            send(address, &garbage)
        });
        let bomb = frame::encode_request(&produce("good", bomb()), 11, 7).expect("a request");
        siege.attack(address, move |address, _| send(address, &bomb));
        siege
    }

    /// How many attacks there were.
    fn attacks(&self) -> u64 {
        self.attacks.load(Ordering::Relaxed)
    }

    fn attack(
        &mut self,
        address: &str,
        attack: impl Fn(&str, usize) -> io::Result<()> + Send + 'static,
    ) {
        let (address, over) = (address.to_owned(), self.over.clone());
        let attacks = self.attacks.clone();
        self.threads.push(thread::spawn(move || {
            for number in 1.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                // It is closed in the middle of it: as it should be.
                let _ = attack(&address, number);
                attacks.fetch_add(1, Ordering::Relaxed);
                thread::park_timeout(Duration::from_millis(20));
            }
        }));
    }
}

impl Drop for Siege {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("an attack");
        }
    }
}

/// The beginnings of large requests, and of smaller ones, on many connections.
fn half_frames(address: &str, number: usize) -> io::Result<()> {
    let (claimed, sent) = match number % 2 {
        0 => (HUGE, 4 << 20),
        _ => (1 << 20, 1000 << 10),
    };
    let mut begun = (claimed as i32).to_be_bytes().to_vec();
    begun.extend([0, 3, 0, 12]);
    begun.resize(sent, 1);
    let mut crowd = Vec::new();
    for _ in 0..100 {
        let mut stream = connect(address)?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        // Its socket takes no more: the broker waits, too.
        let _ = stream.write_all(&begun);
        crowd.push(stream);
    }
    thread::park_timeout(Duration::from_secs(3));
    Ok(())
}

/// They ask for all there is, again and again, and read nothing.
fn never_readers(address: &str, _: usize) -> io::Result<()> {
    let fetch = frame::encode_request(&fetch("hostile", 0, 50 << 20), 11, 7)?;
    let metadata = MetadataRequest::default().with_topics(None);
    let metadata = frame::encode_request(&metadata, 8, 7)?;
    let mut crowd = Vec::new();
    for _ in 0..60 {
        let mut stream = connect(address)?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        for _ in 0..16 {
            let _ = stream.write_all(&fetch);
            let _ = stream.write_all(&metadata);
        }
        crowd.push(stream);
    }
    thread::park_timeout(Duration::from_secs(3));
    Ok(())
}

/// They join groups, and never come back.
fn parked(address: &str, number: usize) -> io::Result<()> {
    let mut crowd = Vec::new();
    for one in 0..60 {
        let mut stream = connect(address)?;
        let _ = stream.write_all(&join(number * 60 + one));
        crowd.push(stream);
    }
    thread::park_timeout(Duration::from_secs(2));
    Ok(())
}

/// Connections that say a byte now and then.
fn slow_loris(address: &str, _: usize) -> io::Result<()> {
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(connect(address)?);
    }
    for byte in [0, 0, 1, 0, 0, 3, 0, 8] {
        for stream in &mut crowd {
            let _ = stream.write_all(&[byte]);
        }
        thread::park_timeout(Duration::from_millis(300));
    }
    Ok(())
}

fn fetch(topic: &str, offset: i64, bytes: i32) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_fetch_offset(offset)
        .with_partition_max_bytes(bytes);
    let topic = FetchTopic::default()
        .with_topic(TopicName(text(topic)))
        .with_partitions(vec![partition]);
    FetchRequest::default()
        .with_replica_id((-1).into())
        .with_max_bytes(bytes)
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}

/// Somebody who means well.
struct Good {
    stream: TcpStream,
    /// The longest that an answer took.
    slowest: Duration,
}

impl Good {
    /// Connects.
    fn connect(address: &str) -> Good {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        Good {
            stream,
            slowest: Duration::ZERO,
        }
    }

    fn ask<R: Request>(&mut self, request: &R, version: i16) -> R::Response {
        let begun = Instant::now();
        let request = frame::encode_request(request, version, 7).expect("a request");
        self.stream.write_all(&request).expect("it is connected");
        let mut len = [0; 4];
        self.stream.read_exact(&mut len).expect("it is answered");
        let mut answer = vec![0; i32::from_be_bytes(len) as usize];
        self.stream.read_exact(&mut answer).expect("it is answered");
        self.slowest = self.slowest.max(begun.elapsed());
        frame::decode_response::<R>(&answer.into(), version).expect("a response")
    }

    /// Creates a topic of one partition.
    fn create(&mut self, topic: &str) {
        let topic = CreatableTopic::default()
            .with_name(TopicName(text(topic)))
            .with_num_partitions(1)
            .with_replication_factor(1);
        let request = CreateTopicsRequest::default()
            .with_timeout_ms(5000)
            .with_topics(vec![topic]);
        let answer = self.ask(&request, 5);
        assert_eq!(answer.topics[0].error_code, 0);
    }

    /// Appends a record; its offset.
    fn produce(&mut self, topic: &str, value: Vec<u8>) -> i64 {
        let answer = self.ask(&produce(topic, batch_of(value).into()), 11);
        let answer = &answer.responses[0].partition_responses[0];
        assert_eq!(answer.error_code, 0);
        answer.base_offset
    }

    /// The value of a record.
    fn read(&mut self, topic: &str, offset: i64) -> Option<Bytes> {
        let answer = self.ask(&fetch(topic, offset, 1000), 12);
        let partition = &answer.responses[0].partitions[0];
        assert_eq!(partition.error_code, 0);
        let records = partition.records.clone().unwrap_or_default();
        let batches = batch::decode(&records).expect("batches");
        match &batches.first()?.body {
            batch::Body::Data(records) => records[0].value.clone(),
            batch::Body::Control(_) => None,
        }
    }
}

/// Produces and reads in a broker, for a while; then everything is there. Returns how many records were.
fn mean_well(address: &str, until: impl Fn(Duration) -> bool) -> (i64, Duration) {
    let mut good = Good::connect(address);
    let (begun, mut written) = (Instant::now(), 0);
    while !until(begun.elapsed()) {
        let value = format!("value {written}").into_bytes();
        assert_eq!(good.produce("good", value.clone()), written);
        assert_eq!(good.read("good", written).as_deref(), Some(&value[..]));
        written += 1;
        thread::park_timeout(Duration::from_millis(10));
    }
    let slowest = good.slowest;
    for offset in 0..written {
        let value = format!("value {offset}").into_bytes();
        assert_eq!(good.read("good", offset).as_deref(), Some(&value[..]));
    }
    (written, slowest)
}

/// What the hostile ask for and do not read.
fn lay_out(address: &str) {
    let mut good = Good::connect(address);
    good.create("good");
    good.create("hostile");
    for _ in 0..80 {
        good.produce("hostile", vec![7; 900_000]);
    }
}

/// Says how it was, and whether it was as it should be.
fn judge(process: u32, attacks: u64, (written, slowest): (i64, Duration)) {
    let memory = resident_most(process);
    println!(
        "{written} records, {attacks} attacks; {} MiB at most, the slowest answer took {slowest:?}",
        memory >> 20
    );
    assert!(memory < MEMORY_BYTES, "{memory} bytes");
    assert!(slowest < ANSWER, "an answer took {slowest:?}");
}

/// A client that means well produces and reads beside all of them.
#[cfg(not(madsim))]
#[test]
fn a_good_client_is_served_beside_hostile_ones() {
    let dir = tempfile::tempdir().unwrap();
    let broker = crate::real_broker::Broker::start(dir.path(), "127.0.0.1:0");
    lay_out(&broker.address);
    let siege = Siege::begin(&broker.address);
    let served = mean_well(&broker.address, |since| since >= duration());
    let attacks = siege.attacks();
    drop(siege);
    judge(broker.id(), attacks, served);
}

/// Stock clients consume, transform and produce in transactions beside all of them; each record is there once.
#[cfg(feature = "kafka-clients")]
#[test]
fn stock_clients_lose_nothing_beside_hostile_ones() {
    use crate::kafka_clients::{Broker, Client};

    let broker = Broker::start();
    let at = broker.address.clone();
    lay_out(&at);
    let siege = Siege::begin(&at);
    let done = AtomicBool::new(false);
    let (served, rounds) = thread::scope(|scope| {
        let good = scope.spawn(|| mean_well(&at, |_| done.load(Ordering::Relaxed)));
        let (begun, mut rounds) = (Instant::now(), 0);
        while rounds == 0 || begun.elapsed() < duration() {
            for client in [Client::Librdkafka, Client::Java] {
                let name = format!("beside-{rounds}");
                for mode in ["seed", "work", "verify"] {
                    client.run(mode, &at, &name, 300);
                }
                rounds += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
        (good.join().expect("it is served"), rounds)
    });
    let attacks = siege.attacks();
    drop(siege);
    println!("{rounds} rounds of stock clients");
    judge(broker.id(), attacks, served);
}
