//! The log's broker and clients, without faults.

use crate::stage::{addresses, play};
use bytes::Bytes;
use engine::{
    ids::{Offset, PartitionId},
    log::{
        cluster::{Cluster, ClusterError},
        consumer::{Consumer, FetchError},
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
    wire::frame,
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn record(text: String) -> NewRecord {
    NewRecord {
        key: Some("k".into()),
        value: Some(text.into()),
        headers: vec![("h".to_owned(), Bytes::from("v"))],
        timestamp_ms: 5,
    }
}

#[test]
fn what_is_acknowledged_is_read_in_order_from_every_partition() {
    play(3, |host| async move {
        let cluster = Cluster::new(host, addresses(3));
        cluster.ensure_topic("t", 5).await.unwrap();
        cluster
            .ensure_topic("t", 5)
            .await
            .expect("a topic that exists is no error");
        let config = ProducerConfig {
            batch_records_max: 7,
            ..ProducerConfig::default()
        };
        let producer = Producer::new(cluster.clone(), config).await;
        let mut acks = Vec::new();
        for number in 0..500 {
            let to = TopicPartition::new("t", PartitionId(number % 5));
            acks.push(producer.send(&to, record(number.to_string())).await);
        }
        for (number, ack) in acks.into_iter().enumerate() {
            assert_eq!(ack.await.unwrap(), Some(Offset(number as i64 / 5)));
        }
        for partition in 0..5 {
            let of = TopicPartition::new("t", PartitionId(partition));
            assert_eq!(cluster.end_offset(&of).await.unwrap(), Offset(100));
            let mut consumer = Consumer::new(cluster.clone(), of, Offset(3));
            let mut read = Vec::new();
            while consumer.position() < Offset(100) {
                read.extend(consumer.poll().await.unwrap());
            }
            assert_eq!(read.len(), 97, "from the middle of a batch on");
            for (index, got) in read.iter().enumerate() {
                let number = (index as i32 + 3) * 5 + partition;
                assert_eq!(got.offset, Offset(index as i64 + 3));
                assert_eq!(got.value, Some(number.to_string().into()));
                assert_eq!(got.headers, [("h".to_owned(), Bytes::from("v"))]);
            }
        }
    });
}

#[test]
fn what_does_not_exist_is_said() {
    play(2, |host| async move {
        let cluster = Cluster::new(host, addresses(2));
        let nowhere = TopicPartition::new("nowhere", PartitionId(0));
        assert!(cluster.end_offset(&nowhere).await.is_err());
        let illegal = cluster.ensure_topic("no/slash", 1).await;
        assert!(
            matches!(illegal, Err(ClusterError::Refused(_))),
            "{illegal:?}"
        );
        let illegal = cluster.ensure_topic("t", 0).await;
        assert!(
            matches!(illegal, Err(ClusterError::Refused(_))),
            "{illegal:?}"
        );
        cluster.ensure_topic("t", 1).await.unwrap();
        let of = TopicPartition::new("t", PartitionId(0));
        let mut consumer = Consumer::new(cluster, of, Offset(7));
        let gone = consumer.poll().await;
        assert!(
            matches!(gone, Err(FetchError::OutOfRange { .. })),
            "{gone:?}"
        );
    });
}

#[test]
fn a_long_poll_is_answered_when_a_record_comes() {
    play(1, |host| async move {
        let cluster = Cluster::new(host, addresses(1));
        cluster.ensure_topic("t", 1).await.unwrap();
        let of = TopicPartition::new("t", PartitionId(0));
        let mut consumer = Consumer::new(cluster.clone(), of.clone(), Offset(0));
        let begun = tokio::time::Instant::now();
        assert!(consumer.poll().await.unwrap().is_empty());
        assert!(begun.elapsed() >= Duration::from_millis(900), "it waits");
        let producer = Producer::new(cluster, ProducerConfig::default()).await;
        let ack = producer.send(&of, record("x".into())).await;
        let begun = tokio::time::Instant::now();
        assert_eq!(consumer.poll().await.unwrap().len(), 1);
        assert!(
            begun.elapsed() < Duration::from_millis(500),
            "but not longer than need be"
        );
        ack.await.unwrap();
    });
}

/// A peer that sends garbage gets its connection closed, and nobody else notices.
#[test]
fn garbage_closes_its_connection_and_nothing_else() {
    play(1, |host| async move {
        let cluster = Cluster::new(host.clone(), addresses(1));
        cluster.ensure_topic("t", 1).await.unwrap();
        let mut runner = TestRunner::deterministic();
        let garbage = prop::collection::vec(any::<u8>(), 0..300);
        for round in 0..60 {
            let mut bytes = garbage.new_tree(&mut runner).unwrap().current();
            match round % 4 {
                // A length that lies: far too large, or negative.
                0 => drop(bytes.splice(0..0, i32::MAX.to_be_bytes())),
                1 => drop(bytes.splice(0..0, (-5i32).to_be_bytes())),
                // A whole frame of garbage.
                2 => drop(bytes.splice(0..0, (bytes.len() as i32).to_be_bytes())),
                // The head of a request that is served, then garbage.
                _ => {
                    let head = [0, 3, 0, 12, 0, 0, 0, 1, 0xff, 0xff, 0];
                    bytes.splice(0..0, head);
                    bytes.splice(0..0, (bytes.len() as i32).to_be_bytes());
                }
            }
            let mut connection = host.net.connect("broker-0:9092").await.unwrap();
            // The broker may close before all is written.
            let _ = connection.write_all(&bytes).await;
            let _ = connection.shutdown().await;
            let mut answer = Vec::new();
            let _ = connection.read_to_end(&mut answer).await;
        }
        let of = TopicPartition::new("t", PartitionId(0));
        assert_eq!(
            cluster.end_offset(&of).await.unwrap(),
            Offset(0),
            "it still serves"
        );
    });
}

#[test]
fn a_client_that_is_newer_learns_what_the_broker_knows() {
    play(1, |host| async move {
        let mut connection = host.net.connect("broker-0:9092").await.unwrap();
        // ApiVersions (18) in version 99, correlation id 7, no client id.
        let request = [0, 0, 0, 10, 0, 18, 0, 99, 0, 0, 0, 7, 0xff, 0xff];
        connection.write_all(&request).await.unwrap();
        let answer = frame::read_frame(&mut connection).await.unwrap().unwrap();
        assert_eq!(answer[..4], 7i32.to_be_bytes());
        assert_eq!(
            answer[4..6],
            35i16.to_be_bytes(),
            "UNSUPPORTED_VERSION, in version 0"
        );
        assert!(answer.len() > 20, "with the versions that it knows");
    });
}
