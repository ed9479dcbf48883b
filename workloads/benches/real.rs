//! What exactly-once costs, on the real runtime: the same events from the same log, summed per minute under each claim.
//!
//! `cargo live-bench` runs it over a broker in this process, on real files; `SEEDBED_KAFKA=HOST:PORT` over Apache Kafka.
//! `SEEDBED_EVENTS` says how many events there are (3,000,000). Each claim is run in turn, three times; the median counts.

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
mod real {
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
        let begun = Instant::now();
        feed.run(&Progress::default()).await.expect("fed");
        say("feed, in transactions", count, begun.elapsed());
        let claims = [
            (Guarantee::AtLeastOnce, SinkKind::Append),
            (Guarantee::ExactlyOnce, SinkKind::Transactional),
            (Guarantee::ExactlyOnce, SinkKind::Idempotent),
            (Guarantee::ExactlyOnce, SinkKind::Objects),
        ];
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); claims.len()];
        for round in 0..ROUNDS {
            for (index, (claimed, sink)) in claims.into_iter().enumerate() {
                let name = format!("{claimed}-{}-{round}", sink.name());
                let config = JobConfig::new(&name, claimed, sink);
                run(&host, &brokers, config).await;
                times[index].push(lasted(&folder.path().join("objects/jobs").join(name)));
            }
        }
        for (of, (claimed, sink)) in times.iter_mut().zip(claims) {
            of.sort();
            say(
                &format!("{claimed}, {}", sink.name()),
                count,
                of[ROUNDS / 2],
            );
        }
        let at_least_once = times[0][ROUNDS / 2];
        for (of, (claimed, sink)) in times.iter().zip(claims).skip(1) {
            let ratio = at_least_once.as_secs_f64() / of[ROUNDS / 2].as_secs_f64();
            println!(
                "{claimed} into {}: {ratio:.2} of at-least-once",
                sink.name()
            );
        }
    }

    fn say(what: &str, count: u64, took: Duration) {
        let each = count as f64 / took.as_secs_f64();
        println!(
            "{what:<32} {:>6.2} s {each:>12.0} records/s",
            took.as_secs_f64()
        );
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
