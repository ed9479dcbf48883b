//! Topics that come and go: whatever their partitions hold, and whoever deletes them at once.

use crate::stage::{addresses, play};
use engine::{
    ids::{Offset, PartitionId},
    log::{
        cluster::Cluster,
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
};
use futures::future::join_all;

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
            delivery_timeout: std::time::Duration::from_secs(2),
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
