//! A broker over damaged files: stopped cleanly before, or killed.

use super::{damage, read_image, write_image, Damage, Image, Way, WAYS};
use crate::stage::{self, act};
use engine::{
    host::{real::RealDisk, Host},
    ids::{BrokerId, Offset, PartitionId, ProducerId},
    log::{
        broker::{BrokerConfig, BrokerError},
        cluster::Cluster,
        consumer::Consumer,
        member,
        partition::Isolation,
        producer::{Producer, ProducerConfig},
        transactional::{TransactionalConfig, TransactionalProducer},
        LogError, TopicPartition,
    },
    record::NewRecord,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

const ADDRESS: &str = "actor:9092";
const GROUP: &str = "group";
/// A broker answers within this much virtual time, or ends.
const PATIENCE: Duration = Duration::from_secs(60);
const CLEAN: u64 = 200;
const KILLED: u64 = 60;

fn of(topic: &str, index: i32) -> TopicPartition {
    TopicPartition::new(topic, PartitionId(index))
}

/// Of the last topic, partition 1 is never used.
fn partitions() -> [TopicPartition; 5] {
    [
        of("both", 0),
        of("both", 1),
        of("short", 0),
        of("plain", 0),
        of("plain", 1),
    ]
}

fn config() -> BrokerConfig {
    BrokerConfig {
        segment_bytes: 900,
        coordinators: 2,
        retention: None,
        producer_retention: Duration::from_secs(1 << 40),
        reserve_bytes: 512,
        ..BrokerConfig::new(BrokerId(0), vec![ADDRESS.to_owned()])
    }
}

/// What clients see of a broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Of each partition: where it begins, all values, and those of committed records.
    values: BTreeMap<TopicPartition, (Offset, Vec<String>, Vec<String>)>,
    position: Option<Offset>,
    /// Whether the topic that was deleted is known.
    deleted: bool,
}

/// The files of a broker, and what clients saw of it.
#[derive(Clone, Default)]
struct Before {
    stopped: Image,
    killed: Image,
    seen: Seen,
    producer: Option<ProducerId>,
}

#[test]
fn a_broker_refuses_by_name_repairs_or_takes_no_harm() {
    let before = Arc::new(prepare());
    let last_segments = last_segments(&before.killed);
    let mut outcomes = BTreeMap::<(Way, &str), u64>::new();
    for number in 0..CLEAN + KILLED {
        let is_clean = number < CLEAN;
        let image = match is_clean {
            true => &before.stopped,
            false => &before.killed,
        };
        let Some((way, damage, image)) = draw(image, number) else {
            continue;
        };
        let outcome = start(&before, image, damage.clone());
        let end = match &outcome {
            Outcome::Refused(error) => {
                let folder = damage
                    .path
                    .rsplit_once('/')
                    .map_or(&*damage.path, |(folder, _)| folder);
                assert!(
                    error.contains(folder),
                    "{}: the refusal names something else: {error}",
                    damage.what
                );
                "refused"
            }
            Outcome::Ran(seen) if seen == &before.seen => "harmless",
            // After a kill, what is damaged at the end of a partition cannot be told from what was torn.
            Outcome::Ran(seen) if !is_clean && last_segments.contains(&damage.path) => {
                assert_cut(&before.seen, seen, &damage);
                "cut"
            }
            Outcome::Ran(seen) => {
                panic!("{}: unnoticed; {seen:?} was {:?}", damage.what, before.seen)
            }
        };
        *outcomes.entry((way, end)).or_default() += 1;
    }
    println!("{outcomes:?}");
    let total: u64 = outcomes.values().sum();
    assert!(
        total > (CLEAN + KILLED) * 4 / 5,
        "{total} damages: {outcomes:?}"
    );
    for way in WAYS {
        let refused = outcomes.get(&(way, "refused")).copied().unwrap_or(0);
        // A copy under another name may be in nobody's way.
        assert!(
            refused > 0 || way == Way::DuplicateFile,
            "{way:?}: {outcomes:?}"
        );
    }
}

/// Of the partition whose last segment was damaged, the end is gone, and nothing else is another one.
fn assert_cut(before: &Seen, seen: &Seen, damage: &Damage) {
    let is_damaged = |of: &TopicPartition| {
        let folder = format!("log/{}/{}/", of.topic, of.partition);
        damage.path.starts_with(&folder)
    };
    let known = |seen: &Seen| seen.values.keys().cloned().collect::<Vec<_>>();
    assert_eq!(known(seen), known(before), "{}", damage.what);
    for (of, found) in &seen.values {
        let was = &before.values[of];
        let is_prefix =
            found.0 == was.0 && was.1.starts_with(&found.1) && was.2.starts_with(&found.2);
        assert!(
            found == was || is_damaged(of) && is_prefix,
            "{}: {of} is {found:?}, and was {was:?}",
            damage.what
        );
    }
    let may_be_older = damage.path.starts_with("log/__consumer_offsets/");
    assert!(
        seen.position == before.position || may_be_older && seen.position < before.position,
        "{}: the position is {:?}, and was {:?}",
        damage.what,
        seen.position,
        before.position
    );
    assert_eq!(seen.deleted, before.deleted, "{}", damage.what);
}

/// Undamaged, both start and show what was there: else the test above says nothing.
#[test]
fn a_broker_starts_over_whole_files() {
    let before = Arc::new(prepare());
    for image in [&before.stopped, &before.killed] {
        let none = Damage {
            what: "nothing".into(),
            path: "nothing".into(),
        };
        match start(&before, image.clone(), none) {
            Outcome::Ran(seen) => assert_eq!(seen, before.seen),
            Outcome::Refused(error) => panic!("{error}"),
        }
    }
}

/// The kinds of files take turns, and so do the ways.
fn draw(image: &Image, number: u64) -> Option<(Way, Damage, Image)> {
    let mut kinds = BTreeMap::<String, Vec<String>>::new();
    for path in image.keys().filter(|path| is_ours(path)) {
        kinds.entry(kind_of(path)).or_default().push(path.clone());
    }
    let way = WAYS[number as usize % WAYS.len()];
    let turn = number as usize / WAYS.len();
    let (_, paths) = kinds.iter().nth(turn % kinds.len())?;
    let path = &paths[(turn / kinds.len() + number as usize) % paths.len()];
    // Another one of its kind or, without one, any other.
    let all: Vec<&String> = match paths.len() {
        1 => kinds.values().flatten().collect(),
        _ => paths.iter().collect(),
    };
    let others: Vec<String> = (all.into_iter().filter(|other| *other != path))
        .cloned()
        .collect();
    let mut image = image.clone();
    let damage = damage(&mut image, path, way, &others, number)?;
    Some((way, damage, image))
}

/// The lock and the reserve hold nothing.
fn is_ours(path: &str) -> bool {
    path != ".lock" && path != "reserve"
}

/// Segments of users' topics and of the brokers' own; each small file is a kind of its own.
fn kind_of(path: &str) -> String {
    match path.split('/').collect::<Vec<_>>()[..] {
        [_, topic, _, name] if name.ends_with(".log") => format!("segments of {topic}"),
        [.., name] => name.to_owned(),
        [] => String::new(),
    }
}

fn last_segments(image: &Image) -> BTreeSet<String> {
    let segments = image.keys().filter(|path| path.ends_with(".log"));
    let by_folder = segments.map(|path| (path.rsplit_once('/').expect("a folder").0, path));
    let last: BTreeMap<&str, &String> = by_folder.collect();
    last.into_values().cloned().collect()
}

enum Outcome {
    /// It ended, and said this.
    Refused(String),
    /// It runs, and shows this.
    Ran(Seen),
}

/// Starts a broker over an image, in a world of its own.
fn start(before: &Arc<Before>, image: Image, damage: Damage) -> Outcome {
    let outcome = Arc::new(Mutex::new(None));
    let (told, before) = (outcome.clone(), before.clone());
    act(0, &[], move |host| {
        let (told, before, image, damage) =
            (told.clone(), before.clone(), image.clone(), damage.clone());
        async move {
            let folder = tempfile::tempdir().unwrap();
            write_image(folder.path(), &image);
            let look = |cluster: Cluster| async move {
                let seen = look(&cluster).await;
                let config = TransactionalConfig::new("fresh");
                let fresh = TransactionalProducer::new(cluster, config).await;
                let (id, _) = fresh.expect("ids are given out").identity();
                assert!(Some(id) > before.producer, "{id} is given out again");
                seen
            };
            let ended = with_broker(&host, folder.path(), look);
            let ended = tokio::time::timeout(PATIENCE, ended).await;
            let ended = ended.unwrap_or_else(|_| panic!("{}: endless silence", damage.what));
            *told.lock().unwrap() = Some(match ended {
                Ok(seen) => Outcome::Ran(seen),
                Err(BrokerError::Log(error)) => {
                    assert!(
                        !matches!(*error, LogError::Io { .. }),
                        "{}: {error}",
                        damage.what
                    );
                    Outcome::Refused(error.to_string())
                }
                Err(error) => panic!("{}: {error}", damage.what),
            });
        }
    });
    let outcome = outcome.lock().unwrap().take();
    outcome.expect("the broker was started")
}

/// Runs a broker in a folder while `work` goes on, then stops it.
async fn with_broker<T, F: Future<Output = T>>(
    host: &Host,
    folder: &Path,
    work: impl FnOnce(Cluster) -> F,
) -> Result<T, BrokerError> {
    let own = Host {
        disk: Arc::new(RealDisk::new(folder).unwrap()),
        ..host.clone()
    };
    stage::with_broker(own, config(), work).await
}

/// What clients see: all of it, as soon as it is told.
async fn look(cluster: &Cluster) -> Seen {
    let mut seen = Seen::default();
    for of in partitions() {
        let Some(start) = told(|| cluster.start_offset(&of)).await else {
            continue;
        };
        let mut values = Vec::new();
        for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
            let end = told(|| cluster.end_offset(&of)).await.unwrap_or(start);
            let cluster = cluster.clone();
            let mut consumer = Consumer::isolated(cluster, of.clone(), start, isolation);
            let mut all = Vec::new();
            while consumer.position() < end {
                for record in consumer.poll().await.expect("it can be read") {
                    let value = record.value.unwrap_or_default();
                    all.push(String::from_utf8_lossy(&value).into_owned());
                }
            }
            values.push(all);
        }
        let committed = values.pop().expect("two were read");
        let all = values.pop().expect("two were read");
        seen.values.insert(of, (start, all, committed));
    }
    seen.position = member::position(cluster, GROUP, &of("both", 0)).await;
    seen.deleted = cluster
        .partitions_of(ADDRESS, "gone")
        .await
        .unwrap()
        .is_some();
    seen
}

/// An answer; none, if the broker says for a while that there is none.
async fn told<T, E, F: Future<Output = Result<T, E>>>(ask: impl Fn() -> F) -> Option<T> {
    for _ in 0..10 {
        if let Ok(told) = ask().await {
            return Some(told);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

/// A broker that has been used in every way, stopped; and as it was when it might have been killed.
fn prepare() -> Before {
    let before = Arc::new(Mutex::new(Before::default()));
    let told = before.clone();
    act(0, &[], move |host| {
        let told = told.clone();
        async move {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().to_owned();
            let mut before = Before::default();
            let work = |cluster: Cluster| async move {
                let id = fill(&cluster).await;
                // The notes follow what they are of; what comes after is in none.
                tokio::time::sleep(Duration::from_secs(5)).await;
                let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
                for number in 0..2 {
                    for topic in ["short", "plain"] {
                        let sent = producer.send(&of(topic, 0), record(number)).await;
                        sent.await.unwrap();
                    }
                }
                let seen = look(&cluster).await;
                (id, seen, read_image(&path))
            };
            let ran = with_broker(&host, folder.path(), work).await;
            let (id, seen, killed) = ran.expect("it was stopped");
            // The next one was given to the producer of what came last.
            before.producer = Some(ProducerId(id.0 + 1));
            (before.seen, before.killed) = (seen, killed);
            before.stopped = read_image(folder.path());
            *told.lock().unwrap() = before;
        }
    });
    let before = before.lock().unwrap().clone();
    let names: BTreeSet<String> = before.stopped.keys().map(|path| kind_of(path)).collect();
    for kind in [
        "topics",
        "producer-ids",
        "partitions",
        "partitions.stopped",
        "producers.snapshot",
        "segments of plain",
        "segments of __transaction_state",
        "segments of __consumer_offsets",
    ] {
        assert!(names.contains(kind), "no {kind} in {names:?}");
    }
    before
}

fn record(number: i32) -> NewRecord {
    NewRecord {
        key: None,
        value: Some(format!("value {number}").into()),
        headers: Vec::new(),
        timestamp_ms: 0,
    }
}

/// Returns the greatest producer id that was used.
async fn fill(cluster: &Cluster) -> ProducerId {
    for (topic, partitions) in [("both", 2), ("plain", 2), ("gone", 1)] {
        cluster.ensure_topic(topic, partitions).await.unwrap();
    }
    let short = [("retention.bytes", "1800".to_owned())];
    let made = cluster.ensure_configured_topic("short", 1, &short);
    made.await.unwrap();
    let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
    for number in 0..40 {
        for topic in ["short", "plain", "gone"] {
            let sent = producer.send(&of(topic, 0), record(number)).await;
            sent.await.unwrap();
        }
    }
    let config = TransactionalConfig::new("both");
    let transactional = TransactionalProducer::new(cluster.clone(), config).await;
    let mut transactional = transactional.unwrap();
    for round in 0..8 {
        transactional.begin().await.unwrap();
        for index in 0..2 {
            let sent = transactional.send(&of("both", index), record(round)).await;
            sent.unwrap();
        }
        let position = [(of("both", 0), Offset(i64::from(round)))];
        let sent = transactional.send_positions(GROUP, None, &position).await;
        sent.unwrap();
        transactional.prepare().await.unwrap();
        match round % 3 {
            0 => transactional.abort().await.unwrap(),
            _ => transactional.commit().await.unwrap(),
        }
    }
    cluster.delete_topic("gone").await;
    transactional.identity().0
}
