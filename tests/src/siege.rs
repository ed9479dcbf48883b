//! Hostile peers of every kind, and somebody who means well beside them.
//!
//! Each kind says what must become of it: an attack that is turned away before it begins would prove nothing. Memory is
//! what the kernel says that the process had resident at most, `VmHWM`: a limit of address space would count what is
//! reserved and never touched.

#![expect(
    clippy::disallowed_methods,
    reason = "real connections, on a real clock"
)]

mod attacks;
mod good;

use self::good::Good;
use bytes::Bytes;
use engine::{
    host::{real::RealClock, Clock},
    record::NewRecord,
    wire::batch::{self, Identity},
};
use kafka_protocol::{
    messages::{
        fetch_request::{FetchPartition, FetchTopic},
        produce_request::{PartitionProduceData, TopicProduceData},
        FetchRequest, ProduceRequest, TopicName,
    },
    protocol::StrBytes,
};
use std::{
    fs, io,
    io::Read,
    net::TcpStream,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Mutex,
    },
    thread::{self, sleep, JoinHandle},
    time::{Duration, Instant},
};

/// The memory that a broker may take, whatever happens.
const MEMORY_BYTES: u64 = 512 << 20;
/// And how long an answer.
const ANSWER: Duration = Duration::from_secs(1);

/// How long a siege lasts.
pub fn lasts() -> Duration {
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

/// What has become of a connection of somebody hostile.
enum End {
    /// It was answered.
    Answered(Bytes),
    /// The broker has closed it.
    Closed,
    /// It is open, and nothing comes.
    Waits,
}

impl End {
    /// What is there, or comes for a while.
    fn of(stream: &mut TcpStream) -> End {
        let mut len = [0; 4];
        let read = stream.read_exact(&mut len).and_then(|()| {
            let mut answer = vec![0; i32::from_be_bytes(len).max(0) as usize];
            stream.read_exact(&mut answer).map(|()| answer)
        });
        match read {
            Ok(answer) => End::Answered(answer.into()),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => End::Waits,
                _ => End::Closed,
            },
        }
    }
}

/// What must become of a kind of attack, some time; all that is answered must be answered like this.
#[derive(Clone, Copy)]
enum Fate {
    /// It is answered.
    Answered(fn(Bytes) -> bool),
    /// It is never answered, and its connections are closed.
    Closed,
    /// It may keep its connections while nobody needs what they hold.
    Borne,
}

/// How often what has become of a kind of attack.
#[derive(Clone, Copy, Default)]
struct Tally {
    attacks: u64,
    answered: u64,
    closed: u64,
    waiting: u64,
    /// Answered, and not as it should be.
    wrong: u64,
}

struct Kind {
    name: &'static str,
    fate: Fate,
    tally: Arc<Mutex<Tally>>,
    thread: JoinHandle<()>,
}

/// Hostile peers of every kind, until it ends.
pub struct Siege {
    address: String,
    over: Arc<AtomicBool>,
    kinds: Vec<Kind>,
}

impl Siege {
    /// Begins it.
    pub fn begin(address: &str) -> Siege {
        let mut siege = Siege {
            address: address.to_owned(),
            over: Arc::new(AtomicBool::new(false)),
            kinds: Vec::new(),
        };
        attacks::all(&mut siege);
        siege
    }

    fn attack(
        &mut self,
        name: &'static str,
        fate: Fate,
        attack: impl Fn(&str, usize) -> io::Result<Vec<End>> + Send + 'static,
    ) {
        let (address, over) = (self.address.clone(), self.over.clone());
        let tally = Arc::<Mutex<Tally>>::default();
        let told = tally.clone();
        let thread = thread::spawn(move || {
            for number in 1.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                // It is closed in the middle of it: that is an end, too.
                let ends = attack(&address, number).unwrap_or_else(|_| vec![End::Closed]);
                let mut tally = told.lock().expect("a tally");
                tally.attacks += 1;
                for end in ends {
                    match (end, fate) {
                        (End::Closed, _) => tally.closed += 1,
                        (End::Waits, _) => tally.waiting += 1,
                        (End::Answered(answer), Fate::Answered(is_right)) => {
                            tally.answered += 1;
                            tally.wrong += u64::from(!is_right(answer));
                        }
                        (End::Answered(_), _) => tally.answered += 1,
                    }
                }
                drop(tally);
                sleep(Duration::from_millis(20));
            }
        });
        self.kinds.push(Kind {
            name,
            fate,
            tally,
            thread,
        });
    }

    /// Ends it, and says whether each kind has got as far as it should, and no further.
    pub fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        let mut amiss = Vec::new();
        for kind in self.kinds {
            kind.thread.join().expect("an attack");
            let tally = *kind.tally.lock().expect("a tally");
            let Tally {
                attacks,
                answered,
                closed,
                waiting,
                wrong,
            } = tally;
            let name = kind.name;
            println!(
                "{name}: {attacks} attacks, {answered} answered ({wrong} wrongly), {closed} closed, {waiting} waiting"
            );
            let is_right = match kind.fate {
                Fate::Answered(_) => answered > 0 && wrong == 0,
                Fate::Closed => closed > 0 && answered == 0,
                Fate::Borne => waiting > 0,
            };
            if !is_right {
                amiss.push(name);
            }
        }
        assert!(amiss.is_empty(), "not as it should be: {amiss:?}");
    }
}

/// Produces and reads in a broker, for a while; then everything is there. Returns how many records were, and how long the
/// slowest answer took.
pub fn mean_well(address: &str, until: impl Fn(Duration) -> bool) -> (i64, Duration) {
    let mut good = Good::connect(address);
    let (begun, mut written) = (Instant::now(), 0);
    while !until(begun.elapsed()) {
        let value = format!("value {written}").into_bytes();
        assert_eq!(good.produce("good", value.clone()), written);
        assert_eq!(good.read("good", written).as_deref(), Some(&value[..]));
        written += 1;
        sleep(Duration::from_millis(10));
    }
    let slowest = good.slowest();
    for offset in 0..written {
        let value = format!("value {offset}").into_bytes();
        assert_eq!(good.read("good", offset).as_deref(), Some(&value[..]));
    }
    (written, slowest)
}

/// What the hostile ask for: much of everything.
pub fn lay_out(address: &str) {
    let mut good = Good::connect(address);
    good.create("good", 1);
    good.create("hostile", 1);
    for _ in 0..80 {
        good.produce("hostile", vec![7; 900_000]);
    }
    good.create("packed", 1);
    good.append("packed", attacks::packed(15 << 20));
    for number in 0..6 {
        good.create(&format!("wide-{number}"), 50);
    }
}

/// Says how it was, and whether it was as it should be.
pub fn judge(process: u32, (written, slowest): (i64, Duration)) {
    let memory = resident_most(process);
    println!(
        "{written} records; {} MiB at most, the slowest answer took {slowest:?}",
        memory >> 20
    );
    assert!(written > 0, "nobody was served");
    assert!(memory < MEMORY_BYTES, "{memory} bytes");
    assert!(slowest < ANSWER, "an answer took {slowest:?}");
}
