//! Topics that come and go: whatever their partitions hold, and whoever deletes them at once.

use crate::{
    log_contract::produce,
    stage::{act, addresses, play},
};
use engine::{
    ids::{Offset, PartitionId},
    log::{
        cluster::Cluster,
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
    wire::batch::{self, Identity},
};
use futures::future::join_all;
use kafka_protocol::{
    error::ResponseError,
    messages::{delete_topics_request::DeleteTopicState, DeleteTopicsRequest, MetadataRequest},
    protocol::StrBytes,
};
use sim::{Trigger, What};
use std::time::Duration;

const BROKERS: usize = 3;
const PARTITIONS: i32 = 6;

fn of(topic: &str, index: i32) -> TopicPartition {
    TopicPartition::new(topic, PartitionId(index))
}

fn record() -> NewRecord {
    NewRecord {
        key: None,
        value: Some("value".into()),
        headers: Vec::new(),
        timestamp_ms: 0,
    }
}

/// Nobody knows the topic, and a new one of this name is empty.
async fn check_gone(cluster: &Cluster, brokers: usize, topic: &str) {
    for address in addresses(brokers) {
        let known = cluster.partitions_of(&address, topic).await.unwrap();
        assert_eq!(known, None, "{address} still knows {topic}");
    }
    cluster.ensure_topic(topic, PARTITIONS).await.unwrap();
    for index in 0..PARTITIONS {
        let end = cluster.end_offset(&of(topic, index)).await;
        assert_eq!(end.unwrap(), Offset(0), "{topic} is a new one");
    }
}

/// Of the partitions some have records, and the others were never used: there is no folder of theirs.
#[test]
fn a_topic_goes_although_partitions_of_it_were_never_used() {
    play(BROKERS, |host| async move {
        let cluster = Cluster::new(host, addresses(BROKERS));
        cluster.ensure_topic("t", PARTITIONS).await.unwrap();
        cluster.delete_topic("t").await;
        check_gone(&cluster, BROKERS, "t").await;
        let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
        for index in [0, 1] {
            let sent = producer.send(&of("t", index), record()).await;
            sent.await.unwrap();
        }
        cluster.delete_topic("t").await;
        check_gone(&cluster, BROKERS, "t").await;
    });
}

/// What the brokers tell each other of deletions, told by somebody else: no topic goes, and none stays that is deleted
/// later.
#[test]
fn nobody_but_the_first_broker_deletes_a_topic() {
    act(BROKERS, &[], |host| async move {
        let cluster = Cluster::new(host, addresses(BROKERS));
        let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
        cluster.ensure_topic("t", PARTITIONS).await.unwrap();
        for index in 0..PARTITIONS {
            let sent = producer.send(&of("t", index), record()).await;
            sent.await.unwrap();
        }
        let metadata = cluster.connect_any().await.unwrap();
        let request = MetadataRequest::default().with_topics(None);
        let topics = metadata.call(&request).await.unwrap().topics;
        let id = topics[0].topic_id;
        let by_name = |name: &'static str| {
            let name = StrBytes::from_static_str(name).into();
            DeleteTopicState::default().with_name(Some(name))
        };
        let by_id = DeleteTopicState::default()
            .with_name(None)
            .with_topic_id(id);
        // Any other time-out makes a request of a client's of it, which the first broker decides.
        let forged = [0, 1, 2, (1 << 30) - 1].map(|number| (number, by_name("unknown")));
        let known = [by_name("t"), by_id].map(|topic| (0, topic));
        for (number, topic) in forged.into_iter().chain(known) {
            for address in &addresses(BROKERS)[1..] {
                let forged = DeleteTopicsRequest::default()
                    .with_topics(vec![topic.clone()])
                    .with_timeout_ms(i32::MIN + number);
                let broker = cluster.connect(address).await.unwrap();
                broker.call(&forged).await.unwrap();
            }
        }
        for index in 0..PARTITIONS {
            let end = cluster.end_offset(&of("t", index)).await;
            assert_eq!(end.unwrap(), Offset(1), "it is still there");
        }
        cluster.delete_topic("t").await;
        check_gone(&cluster, BROKERS, "t").await;
    });
}

#[test]
fn several_may_delete_at_once() {
    play(1, |host| async move {
        let cluster = Cluster::new(host, addresses(1));
        let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
        let topics = ["a", "b", "c"];
        for topic in topics {
            cluster.ensure_topic(topic, PARTITIONS).await.unwrap();
            for index in 0..PARTITIONS {
                let sent = producer.send(&of(topic, index), record()).await;
                sent.await.unwrap();
            }
        }
        let deletions = topics.iter().chain(&topics);
        join_all(deletions.map(|topic| cluster.delete_topic(topic))).await;
        for topic in topics {
            check_gone(&cluster, 1, topic).await;
        }
    });
}

/// What is sent meanwhile is refused, or goes with the topic; it does not end the broker.
#[test]
fn a_topic_goes_while_it_is_written() {
    play(BROKERS, |host| async move {
        let cluster = Cluster::new(host, addresses(BROKERS));
        cluster.ensure_topic("t", PARTITIONS).await.unwrap();
        let config = ProducerConfig {
            delivery_timeout: Duration::from_secs(2),
            ..ProducerConfig::default()
        };
        let producer = Producer::new(cluster.clone(), config).await;
        let mut sent = Vec::new();
        for number in 0..120 {
            sent.push(producer.send(&of("t", number % PARTITIONS), record()).await);
        }
        cluster.delete_topic("t").await;
        for sent in sent {
            // Kept, refused or unknown: all are true of a topic that goes.
            let _ = sent.await;
        }
        check_gone(&cluster, BROKERS, "t").await;
    });
}

/// The broker starts although its disk is full, and what is deleted makes room.
#[test]
fn a_topic_goes_from_a_full_disk() {
    const FULL: Duration = Duration::from_secs(40);
    const BEGUN_AGAIN: Duration = Duration::from_secs(60);
    let node = || "broker-0".to_owned();
    let at = |time: Duration| Trigger::Time(time.as_millis() as u64);
    let faults = [
        (
            at(FULL),
            What::NoSpace {
                node: node(),
                lasts: 500_000,
            },
        ),
        (
            at(FULL + Duration::from_secs(2)),
            What::Crash {
                node: node(),
                down: 1000,
            },
        ),
    ];
    act(1, &faults, |host| async move {
        let begun = tokio::time::Instant::now();
        // So new that nothing goes because of its age, which would make room, too.
        let record = || NewRecord {
            timestamp_ms: host.clock.now_ms(),
            ..record()
        };
        let cluster = Cluster::new(host.clone(), addresses(1));
        let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
        for topic in ["large", "kept"] {
            cluster.ensure_topic(topic, 1).await.unwrap();
            for _ in 0..100 {
                let sent = producer.send(&of(topic, 0), record()).await;
                sent.await.unwrap();
            }
        }
        assert!(begun.elapsed() < FULL, "before the disk is full");
        tokio::time::sleep_until(begun + BEGUN_AGAIN).await;
        let end = cluster.end_offset(&of("kept", 0)).await;
        assert_eq!(end.unwrap(), Offset(100), "it has started");
        let config = ProducerConfig {
            delivery_timeout: Duration::from_secs(5),
            ..ProducerConfig::default()
        };
        // What is left is for what makes room: no new topic gets any of it, and neither does the smallest record.
        let more = cluster.ensure_topic("more", 1);
        let more = tokio::time::timeout(Duration::from_secs(5), more).await;
        assert!(more.is_err(), "a topic is created on a full disk");
        for bytes in [3000, 1, 1] {
            let more = NewRecord {
                value: Some(vec![7; bytes].into()),
                ..record()
            };
            let batch = batch::encode(&[more], Identity::NOBODY).unwrap();
            let answer = produce(&cluster, &of("kept", 0), None, batch).await;
            let full = ResponseError::KafkaStorageError.code();
            assert_eq!(answer.error_code, full, "{bytes} bytes of a full disk");
        }
        let deleted = cluster.delete_topic("large");
        let deleted = tokio::time::timeout(Duration::from_secs(20), deleted).await;
        deleted.expect("a topic can be deleted");
        let writer = Producer::new(cluster.clone(), config).await;
        let sent = writer.send(&of("kept", 0), record()).await;
        sent.await.expect("there is room again");
    });
}
