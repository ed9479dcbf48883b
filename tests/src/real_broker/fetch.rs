//! What the real broker gives to a fetch (KIP-74), asked as no client of ours does.

use super::{ask, on_a_runtime, record, Broker};
use engine::{
    ids::PartitionId,
    log::{
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
};
use kafka_protocol::{
    messages::{
        fetch_request::{FetchPartition, FetchTopic},
        FetchRequest, FetchResponse, TopicName,
    },
    protocol::StrBytes,
};
use std::collections::BTreeSet;
use tempfile::TempDir;
use tokio::net::TcpStream;

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
