//! What exactly-once costs, on the real runtime: the same events from the same log, summed per minute under each claim.
//!
//! `cargo live-bench` runs it over a broker in this process, on real files; `SEEDBED_KAFKA=HOST:PORT` over Apache Kafka.
//! `SEEDBED_EVENTS` says how many events there are (3,000,000). Each claim is run in turn, three times, and another one
//! is the first each time; the medians count. CPU seconds are those of the whole process, with the broker if it is in it.
//!
//! The floor is the same sum by a plain loop: bytes in memory, a fast parser, a fast set of ids, a small map of minutes;
//! nothing is kept, sent or repeated. No engine is faster than that.

/// The allocator of `cargo live run`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(madsim)]
fn main() {
    println!("this is the simulated build; `cargo live-bench` measures the real one");
}

#[cfg(not(madsim))]
fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(real::bench());
}

#[cfg(not(madsim))]
mod floor {
    use hashbrown::{DefaultHashBuilder, HashSet};
    use serde::Deserialize;
    use std::collections::BTreeMap;
    use workloads::revenue::{
        event::PAID,
        pipeline::{Revenue, MINUTE_MS},
    };

    /// What of an event is looked at, in the bytes that it came in.
    #[derive(Deserialize)]
    struct Event<'a> {
        event_id: &'a str,
        order_id: &'a str,
        status: &'a str,
        amount_cents: i64,
        event_time: i64,
    }

    /// Sums up all that was paid, per minute.
    pub fn sums(events: &[u8]) -> BTreeMap<i64, Revenue> {
        let mut seen: HashSet<(&str, &str), DefaultHashBuilder> = HashSet::default();
        let mut minutes: BTreeMap<i64, Revenue> = BTreeMap::new();
        for line in events.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            let event: Event = sonic_rs::from_slice(line).expect("an event");
            if event.status == PAID && seen.insert((event.order_id, event.event_id)) {
                let minute = event.event_time.div_euclid(MINUTE_MS);
                minutes.entry(minute).or_default().add(event.amount_cents);
            }
        }
        minutes
    }
}

#[cfg(not(madsim))]
mod real {
    use cpu_time::ProcessTime;
    use engine::{
        graph::Upstream,
        guarantee::Guarantee,
        host::{
            real::{RealClock, RealDisk, RealEntropy, RealNet},
            Host,
        },
        ids::BrokerId,
        job::{Ended, JobConfig},
        log::{
            broker::{Broker, BrokerConfig},
            cluster::Cluster,
            producer::ProducerConfig,
        },
        sink::SinkKind,
        worker::WorkerConfig,
    };
    use object_store::local::LocalFileSystem;
    use std::{
        env, fs,
        io::{BufWriter, Write},
        path::Path,
        sync::Arc,
        time::{Duration, Instant},
    };
    use workloads::revenue::{
        feed::{Feed, Input, Progress},
        pipeline::revenue,
        sample::events,
        EVENTS,
    };

    const PARTITIONS: i32 = 4;
    const ROUNDS: usize = 3;

    pub async fn bench() {
        let count = env::var("SEEDBED_EVENTS").map_or(3_000_000, |n| n.parse().expect("a number"));
        let folder = tempfile::tempdir().expect("a folder");
        let input = folder.path().join("events.jsonl");
        let mut file = BufWriter::new(fs::File::create(&input).expect("a file"));
        for event in events(count) {
            file.write_all(&event.to_bytes()).expect("room");
            file.write_all(b"\n").expect("room");
        }
        file.flush().expect("room");
        let host = host(folder.path());
        let brokers = brokers(&host).await;
        let cluster = Cluster::new(host.clone(), brokers.clone());
        cluster
            .ensure_topic(EVENTS, PARTITIONS)
            .await
            .expect("a topic");
        let feed = Feed {
            cluster,
            input: Input::check(&input).expect("it was just written"),
            partitions: PARTITIONS,
            producer: ProducerConfig::default(),
            job: "bench".into(),
        };
        let begun = Begun::now();
        feed.run(&Progress::default()).await.expect("fed");
        begun.ends(None).say("feed, in transactions", count, None);
        let floor = median((0..ROUNDS).map(|_| floor(&input)).collect());
        floor.say("floor: a plain loop", count, None);
        let claims = [
            (Guarantee::AtLeastOnce, SinkKind::Append),
            (Guarantee::ExactlyOnce, SinkKind::Transactional),
            (Guarantee::ExactlyOnce, SinkKind::Idempotent),
            (Guarantee::ExactlyOnce, SinkKind::Objects),
        ];
        let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); claims.len()];
        for round in 0..ROUNDS {
            for turn in 0..claims.len() {
                let index = (round + turn) % claims.len();
                let (claimed, sink) = claims[index];
                let name = format!("{claimed}-{}-{round}", sink.name());
                let config = JobConfig::new(&name, claimed, sink);
                let begun = Begun::now();
                run(&host, &brokers, config).await;
                let wall = lasted(&folder.path().join("objects/jobs").join(name));
                costs[index].push(begun.ends(Some(wall)));
            }
        }
        for (of, (claimed, sink)) in costs.into_iter().zip(claims) {
            median(of).say(&format!("{claimed}, {}", sink.name()), count, Some(floor));
        }
    }

    /// The floor, once.
    fn floor(input: &Path) -> Cost {
        let events = fs::read(input).expect("it was just written");
        let begun = Begun::now();
        assert!(!super::floor::sums(&events).is_empty());
        begun.ends(None)
    }

    /// What something took.
    #[derive(Clone, Copy)]
    struct Cost {
        wall: Duration,
        /// Of all threads of this process.
        cpu: Duration,
    }

    struct Begun {
        wall: Instant,
        cpu: ProcessTime,
    }

    impl Begun {
        fn now() -> Self {
            Begun {
                wall: Instant::now(),
                cpu: ProcessTime::now(),
            }
        }

        /// What it took until now; the wall time, if it is known better.
        fn ends(self, wall: Option<Duration>) -> Cost {
            Cost {
                wall: wall.unwrap_or_else(|| self.wall.elapsed()),
                cpu: self.cpu.elapsed(),
            }
        }
    }

    /// The median of each, which need not be of one run.
    fn median(costs: Vec<Cost>) -> Cost {
        let middle = |mut times: Vec<Duration>| {
            times.sort();
            times[times.len() / 2]
        };
        Cost {
            wall: middle(costs.iter().map(|cost| cost.wall).collect()),
            cpu: middle(costs.iter().map(|cost| cost.cpu).collect()),
        }
    }

    impl Cost {
        fn say(&self, what: &str, count: u64, floor: Option<Cost>) {
            let per = |time: Duration| count as f64 / time.as_secs_f64();
            let of_floor = floor.map(|floor| floor.cpu.as_secs_f64() / self.cpu.as_secs_f64());
            let of_floor = of_floor.map_or(String::new(), |of| format!(", {of:.2} of the floor"));
            println!(
                "{what:<32} {:>6.2} s {:>10.0} records/s {:>10.0} records per CPU second{of_floor}",
                self.wall.as_secs_f64(),
                per(self.wall),
                per(self.cpu),
            );
        }
    }

    fn host(folder: &Path) -> Host {
        let objects = folder.join("objects");
        fs::create_dir_all(&objects).expect("a folder");
        let objects = LocalFileSystem::new_with_prefix(objects).expect("a folder");
        Host {
            instance: "bench".into(),
            disk: Arc::new(RealDisk::new(folder.join("disk")).expect("a folder")),
            net: Arc::new(RealNet),
            clock: Arc::new(RealClock),
            entropy: Arc::new(RealEntropy),
            objects: Arc::new(objects.with_fsync(true)),
        }
    }

    async fn brokers(host: &Host) -> Vec<String> {
        if let Ok(kafka) = env::var("SEEDBED_KAFKA") {
            return vec![kafka];
        }
        let config = BrokerConfig {
            coordinators: 4,
            retention: None,
            ..BrokerConfig::new(BrokerId(0), vec!["127.0.0.1:0".into()])
        };
        let bound = Broker::bind(host.clone(), config).await.expect("a broker");
        let address = bound.address().to_owned();
        tokio::spawn(async move { bound.run().await.expect("it runs") });
        vec![address]
    }

    /// How long a job took, from the beginning of its attempt to its end: by the entries of its manifest log.
    fn lasted(job: &Path) -> Duration {
        let entries = fs::read_dir(job.join("manifest")).expect("a manifest log");
        let mut entries: Vec<_> = entries
            .map(|entry| entry.expect("an entry").path())
            .collect();
        entries.sort();
        let written = |path: Option<&std::path::PathBuf>| {
            let metadata = fs::metadata(path.expect("an entry")).expect("it is there");
            metadata.modified().expect("a time")
        };
        let (begun, ended) = (written(entries.first()), written(entries.last()));
        ended.duration_since(begun).expect("in order")
    }

    /// Runs a job over all that is in the log.
    async fn run(host: &Host, brokers: &[String], config: JobConfig) {
        let config = JobConfig {
            bounded: true,
            partitions: PARTITIONS,
            ..config
        };
        let listener = host.net.listen("127.0.0.1:0").await.expect("a port");
        let coordinator = format!("127.0.0.1:{}", listener.port());
        drop(listener);
        let at = WorkerConfig {
            coordinators: vec![coordinator.clone()],
            listen: "127.0.0.1:0".into(),
            address: "127.0.0.1:0".into(),
        };
        let (host, brokers) = (host.clone(), brokers.to_vec());
        let working = {
            let (host, brokers, config) = (host.clone(), brokers.clone(), config.clone());
            tokio::spawn(async move {
                let job = revenue(Upstream::Repeats, 0);
                job.work(host, brokers, config, at).await
            })
        };
        let job = revenue(Upstream::Repeats, 0);
        let ended = job.coordinate(host, brokers, config, &coordinator).await;
        assert!(matches!(ended, Ok(Ended::Finished(_))), "{ended:?}");
        working.abort();
    }
}
