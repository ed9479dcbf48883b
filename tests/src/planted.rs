//! Programs with something planted in them: what ends a process, what leaks into a run, and two bugs of one
//! kind. In a world, a client sends bytes to a server, and every one is answered.

use async_trait::async_trait;
use sim::{Amount, Findings, History, Host, Plan, Promise, Scenario, Shape, Told, Workload, World};
use std::{
    io,
    io::Read as _,
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc,
    },
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What is planted, by the name of the workload.
pub const PLANTS: [(&str, Plant); 17] = [
    ("planted-panic", Plant::Panic),
    ("planted-exit", Plant::Exit),
    ("planted-abort", Plant::Abort),
    ("planted-overflow", Plant::Overflow),
    ("planted-loop", Plant::Loop),
    ("planted-memory", Plant::Memory),
    ("leaks-address", Plant::Leak(address)),
    ("leaks-thread", Plant::Leak(thread)),
    ("leaks-counter", Plant::Leak(counter)),
    ("leaks-random", Plant::Leak(random)),
    ("leaks-process", Plant::Leak(process)),
    ("leaks-hash-order", Plant::Leak(hash_order)),
    ("planted-wear", Plant::Wear),
    ("planted-second", Plant::Second),
    ("planted-words", Plant::Words),
    ("planted-nothing", Plant::Nothing),
    ("two-bugs", Plant::TwoBugs),
];

/// What is planted.
#[derive(Clone, Copy)]
pub enum Plant {
    /// In every fifth seed, while streams are open; a node called `sleeper` may be paused.
    Panic,
    Exit,
    Abort,
    Overflow,
    Loop,
    Memory,
    /// An abort in the fifth run of a process.
    Wear,
    /// An abort in the second run of each seed, whichever process it is in: what the machine does, and no plan.
    Second,
    /// Words on stdout and on stderr, in every seed.
    Words,
    /// Nothing is acknowledged, in any seed.
    Nothing,
    /// In every seed, and it breaks nothing: what is sent is this.
    Leak(fn() -> u64),
    /// A byte that is not synced, and every third one that is not even written.
    TwoBugs,
}

/// The workload of this name.
pub fn planted(name: &str) -> Arc<dyn Workload> {
    let (name, plant) = PLANTS
        .into_iter()
        .find(|(known, _)| *known == name)
        .expect("it is planted");
    Arc::new(Planted { name, plant })
}

struct Planted {
    name: &'static str,
    plant: Plant,
}

/// Whether a plant is in a seed.
pub fn is_hit(seed: u64) -> bool {
    seed % 5 == 3
}

/// How many bytes are sent.
const BYTES: u8 = 30;
/// Asks for all bytes.
const ALL: u8 = u8::MAX;

impl Workload for Planted {
    fn name(&self) -> &str {
        self.name
    }

    fn shape(&self) -> Shape {
        match self.plant {
            Plant::TwoBugs => Shape::new()
                .durable("server", &[])
                .steady("client", &["server"]),
            _ => Shape::new(),
        }
    }

    fn build(&self, world: &World, plan: &Plan) -> Box<dyn Scenario> {
        let (plant, hit) = (self.plant, is_hit(plan.seed.0));
        match plant {
            Plant::Second if is_second(plan.seed.0) => std::process::abort(),
            Plant::Words => {
                println!("said on stdout");
                eprintln!("said on stderr");
            }
            _ => {}
        }
        let forgets = matches!(plant, Plant::TwoBugs);
        world.node("server", move |host| async move {
            drop(serve(host, forgets).await)
        });
        if let Plant::Panic = plant {
            one_sleeps_one_waits(world);
        }
        let puts: History<u8, ()> = History::default();
        let told = puts.clone();
        world.node("client", move |host| {
            let told = told.clone();
            async move {
                // By now the server listens.
                tokio::time::sleep(Duration::from_millis(100)).await;
                if let Plant::Leak(leak) = plant {
                    drop(say(&host, leak()).await);
                }
                for byte in 0..BYTES {
                    let op = told.invoke(Duration::ZERO, byte);
                    let put = tokio::time::timeout(Duration::from_secs(2), put(&host, byte));
                    let ok = matches!(put.await, Ok(Ok(()))) && !matches!(plant, Plant::Nothing);
                    told.tell(op, if ok { Told::Ok(()) } else { Told::Unknown });
                    if (hit || matches!(plant, Plant::Wear)) && byte == BYTES / 2 {
                        strike(plant);
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                std::future::pending().await
            }
        });
        let observer = world.observer();
        Box::new(Running { observer, puts })
    }
}

/// Two nodes with a connection between them: one waits for what the other says, which sleeps again and again.
/// A node that is paused is dropped with the runtime: here, its stream then wakes who waits.
fn one_sleeps_one_waits(world: &World) {
    world.node("waiter", |host| async move {
        let listener = host.listen(81).expect("it is free");
        let (mut stream, _) = listener.accept().await.expect("somebody comes");
        drop(stream.read_u8().await);
    });
    world.node("sleeper", |host| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let stream = host.connect("waiter:81").await.expect("it listens");
        for _ in 0..10_000 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(stream);
    });
}

/// Does what is planted.
fn strike(plant: Plant) {
    match plant {
        Plant::Panic => panic!("planted"),
        Plant::Exit => std::process::exit(0),
        Plant::Abort => std::process::abort(),
        Plant::Overflow => drop(deep(&[0; 64])),
        Plant::Loop => loop {
            std::hint::spin_loop();
        },
        Plant::Memory => {
            let mut all = Vec::new();
            loop {
                // What is asked for counts, touched or not: so it takes no time, on any machine.
                all.push(std::hint::black_box(Vec::<u8>::with_capacity(16 << 20)));
            }
        }
        Plant::Wear => {
            static RUNS: AtomicU64 = AtomicU64::new(1);
            if RUNS.fetch_add(1, Ordering::Relaxed) == 5 {
                std::process::abort();
            }
        }
        Plant::Second | Plant::Words | Plant::Nothing | Plant::Leak(_) | Plant::TwoBugs => {}
    }
}

/// Whether a seed has been run once before in this folder, which no plan knows: the runs of each are counted in
/// a file.
fn is_second(seed: u64) -> bool {
    let name = format!("runs-of-{seed}");
    let runs = std::fs::read(&name).unwrap_or_default();
    std::fs::write(&name, [&runs[..], b"."].concat()).expect("the folder is a test's own");
    runs.len() == 1
}

#[allow(unconditional_recursion)]
fn deep(above: &[u8; 64]) -> u8 {
    let here = std::hint::black_box(*above);
    deep(&here).wrapping_add(here[0])
}

/// Where something lies.
fn address() -> u64 {
    let something = Box::new(7u8);
    std::ptr::from_ref::<u8>(&something) as u64
}

/// Which thread this is: a counter of the process.
fn thread() -> u64 {
    let text = format!("{:?}", std::thread::current().id());
    xxhash(&text)
}

fn xxhash(text: &str) -> u64 {
    let bytes = text.bytes();
    bytes.fold(0, |sum, byte| sum * 31 + u64::from(byte))
}

/// How often it was asked, in this process.
fn counter() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// The system's own random bytes.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.expect("it is there");
    u64::from_le_bytes(bytes)
}

fn process() -> u64 {
    std::process::id().into()
}

/// The order of a hash map.
#[allow(clippy::disallowed_types)]
fn hash_order() -> u64 {
    let map: std::collections::HashMap<u64, ()> = (0..16).map(|key| (key, ())).collect();
    map.into_keys().fold(0, |sum, key| sum << 4 | key)
}

async fn serve(host: Host, forgets: bool) -> io::Result<()> {
    let file = host.disk().open("bytes").await?;
    host.disk().sync_dir("").await?;
    let listener = host.listen(80)?;
    let mut unwritten = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await?;
        // A peer may go without a word: its FIN was lost with the link.
        let patience = Duration::from_secs(3);
        while let Ok(Ok(byte)) = tokio::time::timeout(patience, stream.read_u8()).await {
            if byte == ALL {
                let mut bytes = file.read_at(0, 1024).await?.to_vec();
                bytes.extend(&unwritten);
                stream.write_u16(bytes.len() as u16).await?;
                stream.write_all(&bytes).await?;
                continue;
            }
            unwritten.push(byte);
            if !(forgets && byte % 3 == 0) {
                file.write_at(file.len().await?, &unwritten).await?;
                unwritten.clear();
            }
            if !forgets {
                file.sync().await?;
            }
            stream.write_u8(byte).await?;
        }
    }
}

async fn say(host: &Host, number: u64) -> io::Result<()> {
    let mut stream = host.connect("server:80").await?;
    // A server of bytes makes of it what it likes.
    let bytes = number.to_le_bytes().map(|byte| byte % BYTES);
    stream.write_all(&bytes).await?;
    stream.read_u8().await.map(drop)
}

async fn put(host: &Host, byte: u8) -> io::Result<()> {
    let mut stream = host.connect("server:80").await?;
    stream.write_u8(byte).await?;
    stream.read_u8().await.map(drop)
}

async fn read(host: &Host) -> io::Result<Vec<u8>> {
    let mut stream = host.connect("server:80").await?;
    stream.write_u8(ALL).await?;
    let mut bytes = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

struct Running {
    observer: Host,
    puts: History<u8, ()>,
}

#[async_trait(?Send)]
impl Scenario for Running {
    fn is_fed(&self) -> bool {
        let ops = self.puts.ops();
        ops.len() == usize::from(BYTES) && ops.iter().all(|op| op.told != Told::Invoked)
    }

    async fn waits_for(&mut self) -> Vec<String> {
        Vec::new()
    }

    async fn judge(&mut self) -> Findings {
        let bytes = loop {
            let read = tokio::time::timeout(Duration::from_secs(5), read(&self.observer));
            match read.await {
                Ok(Ok(bytes)) => break bytes,
                _ => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        };
        let key = |byte: &u8| format!("byte {byte}");
        let (mut ledger, commits) = self.puts.claim("bytes", Promise::at_least_once(), key);
        // A length may survive a power loss without its bytes.
        for byte in bytes.into_iter().filter(|byte| *byte < BYTES) {
            ledger.saw(key(&byte), Amount { count: 1, sum: 0 });
        }
        Findings {
            ledgers: vec![ledger],
            commits,
            ..Findings::default()
        }
    }
}
