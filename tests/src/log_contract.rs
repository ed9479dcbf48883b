//! What a log promises its clients: one test body for the simulated brokers, for a real one of ours, and for
//! Apache Kafka.
//!
//! The simulated brokers in the simulated build; in the real build (`cargo live-test`) our broker on real disks
//! and sockets or, if `SEEDBED_KAFKA` says HOST:PORT, whatever listens there.

mod bounds;
mod forged;
mod topics;

use bytes::Bytes;
use engine::{
    ids::{Offset, PartitionId},
    log::{
        cluster::{Cluster, ClusterError},
        consumer::{Consumer, FetchError},
        member::{self, Member, MemberConfig},
        partition::Isolation,
        producer::{Producer, ProducerConfig},
        transactional::{
            end_prepared, TransactionError, TransactionalConfig, TransactionalProducer,
        },
        transactions::TransactionVersion,
        TopicPartition,
    },
    record::NewRecord,
    wire::batch::Outcome,
};
use forged::{a_forged_batch_freezes_no_partition, what_readers_could_not_take_apart_is_refused};
use kafka_protocol::{
    messages::{
        produce_request::{PartitionProduceData, TopicProduceData},
        produce_response::PartitionProduceResponse,
        ProduceRequest,
    },
    protocol::StrBytes,
};
use std::{collections::BTreeSet, time::Duration};

/// Somewhere with a log: a host, and its brokers. Names with the tag in them are nobody else's.
#[derive(Clone)]
struct Stand {
    cluster: Cluster,
    /// The addresses of its brokers.
    brokers: Vec<String>,
    tag: String,
}

/// Produce in this version names topics, and is not of the second version of transactions.
const PRODUCE: i16 = 11;

/// What the leader says of a batch, whoever has made it.
pub async fn produce(
    cluster: &Cluster,
    to: &TopicPartition,
    transactional_id: Option<&str>,
    batch: Bytes,
) -> PartitionProduceResponse {
    let data = PartitionProduceData::default()
        .with_index(to.partition.0)
        .with_records(Some(batch));
    let topic = TopicProduceData::default()
        .with_name(StrBytes::from_string(to.topic.to_string()).into())
        .with_partition_data(vec![data]);
    let id = transactional_id.map(|id| StrBytes::from_string(id.to_owned()).into());
    let request = ProduceRequest::default()
        .with_transactional_id(id)
        .with_acks(-1)
        .with_timeout_ms(5000)
        .with_topic_data(vec![topic]);
    let leader = cluster.connect_leader(to).await.unwrap();
    let mut answer = leader.call_at(&request, PRODUCE).await.unwrap();
    answer.responses[0].partition_responses.remove(0)
}

impl Stand {
    fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.tag)
    }

    /// What the leader says of a batch, whoever has made it.
    async fn produce(
        &self,
        to: &TopicPartition,
        transactional_id: Option<&str>,
        batch: Bytes,
    ) -> PartitionProduceResponse {
        produce(&self.cluster, to, transactional_id, batch).await
    }

    async fn topic(&self, what: &str, partitions: i32) -> String {
        let topic = self.name(what);
        self.cluster.ensure_topic(&topic, partitions).await.unwrap();
        // Its leaders may not know yet.
        for partition in 0..partitions {
            while self
                .cluster
                .end_offset(&at(&topic, partition))
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        topic
    }

    async fn transactional(&self, version: TransactionVersion) -> TransactionalProducer {
        let config = TransactionalConfig {
            version: Some(version),
            timeout: Duration::from_secs(20),
            ..TransactionalConfig::new(&self.name("transactional"))
        };
        TransactionalProducer::new(self.cluster.clone(), config)
            .await
            .unwrap()
    }

    /// All values of a partition, as far as `isolation` lets one see.
    async fn read(&self, of: &TopicPartition, isolation: Isolation) -> Vec<String> {
        let end = match isolation {
            Isolation::ReadCommitted => self.cluster.stable_offset(of).await.unwrap(),
            Isolation::ReadUncommitted => self.cluster.end_offset(of).await.unwrap(),
        };
        let mut consumer =
            Consumer::isolated(self.cluster.clone(), of.clone(), Offset(0), isolation);
        let mut values = Vec::new();
        while consumer.position() < end {
            values.extend(consumer.poll().await.unwrap().into_iter().map(|record| {
                String::from_utf8(record.value.unwrap_or_default().to_vec()).unwrap()
            }));
        }
        values
    }

    async fn committed(&self, of: &TopicPartition) -> Vec<String> {
        // Markers follow the answer: soon.
        for _ in 0..100 {
            let stable = self.cluster.stable_offset(of).await.unwrap();
            if stable == self.cluster.end_offset(of).await.unwrap() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.read(of, Isolation::ReadCommitted).await
    }
}

const VERSIONS: [TransactionVersion; 2] = [TransactionVersion::V1, TransactionVersion::V2];

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition::new(topic, PartitionId(partition))
}

fn record(text: impl ToString) -> NewRecord {
    NewRecord {
        key: Some("k".into()),
        value: Some(text.to_string().into()),
        headers: vec![("h".to_owned(), Bytes::from("v"))],
        timestamp_ms: 1_700_000_000_000,
    }
}

async fn acknowledged_is_read_in_order(stand: Stand) {
    let topic = stand.topic("ordered", 5).await;
    let again = stand.cluster.ensure_topic(&topic, 7).await;
    assert_eq!(again.expect("a topic that exists is no error"), 5);
    let config = ProducerConfig {
        batch_records_max: 7,
        ..ProducerConfig::default()
    };
    let producer = Producer::new(stand.cluster.clone(), config).await;
    let mut acks = Vec::new();
    for number in 0..500 {
        acks.push(producer.send(&at(&topic, number % 5), record(number)).await);
    }
    for (number, ack) in acks.into_iter().enumerate() {
        assert_eq!(ack.await.unwrap(), Some(Offset(number as i64 / 5)));
    }
    for partition in 0..5 {
        let of = at(&topic, partition);
        assert_eq!(stand.cluster.end_offset(&of).await.unwrap(), Offset(100));
        let mut consumer = Consumer::new(stand.cluster.clone(), of, Offset(3));
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
}

async fn what_does_not_exist_is_said(stand: Stand) {
    let nowhere = at(&stand.name("nowhere"), 0);
    assert!(stand.cluster.end_offset(&nowhere).await.is_err());
    let illegal = stand.cluster.ensure_topic("no/slash", 1).await;
    assert!(
        matches!(illegal, Err(ClusterError::Refused(_))),
        "{illegal:?}"
    );
    let illegal = stand.cluster.ensure_topic(&stand.name("zero"), 0).await;
    assert!(
        matches!(illegal, Err(ClusterError::Refused(_))),
        "{illegal:?}"
    );
    let topic = stand.topic("empty", 1).await;
    let mut consumer = Consumer::new(stand.cluster.clone(), at(&topic, 0), Offset(7));
    let gone = consumer.poll().await;
    assert!(
        matches!(gone, Err(FetchError::OutOfRange { .. })),
        "{gone:?}"
    );
    stand.cluster.delete_topic(&topic).await;
    stand.cluster.forget_leader(&at(&topic, 0));
    assert!(stand.cluster.end_offset(&at(&topic, 0)).await.is_err());
}

async fn a_long_poll_is_answered_when_a_record_comes(stand: Stand) {
    let of = at(&stand.topic("polled", 1).await, 0);
    let mut consumer = Consumer::new(stand.cluster.clone(), of.clone(), Offset(0));
    let begun = tokio::time::Instant::now();
    assert!(consumer.poll().await.unwrap().is_empty());
    assert!(begun.elapsed() >= Duration::from_millis(900), "it waits");
    let producer = Producer::new(stand.cluster.clone(), ProducerConfig::default()).await;
    let ack = producer.send(&of, record("x")).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(consumer.poll().await.unwrap().len(), 1);
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "but not longer than need be"
    );
    ack.await.unwrap();
}

async fn a_transaction_shows_as_a_whole_or_not_at_all(stand: Stand) {
    for version in VERSIONS {
        let topic = stand.topic(&format!("whole-{version:?}"), 2).await;
        let (group, input) = (stand.name(&format!("group-{version:?}")), at(&topic, 1));
        let mut producer = stand.transactional(version).await;
        for round in 0..6 {
            producer.begin().await.unwrap();
            for partition in 0..2 {
                producer
                    .send(&at(&topic, partition), record(round))
                    .await
                    .unwrap();
            }
            let position = [(input.clone(), Offset(round))];
            producer
                .send_positions(&group, None, &position)
                .await
                .unwrap();
            match round % 2 {
                0 => producer.commit().await.unwrap(),
                _ => {
                    // It is in the log before it is aborted.
                    producer.prepare().await.unwrap();
                    producer.abort().await.unwrap();
                }
            }
        }
        for partition in 0..2 {
            let of = at(&topic, partition);
            assert_eq!(stand.committed(&of).await, ["0", "2", "4"]);
            let all = stand.read(&of, Isolation::ReadUncommitted).await;
            assert_eq!(all, ["0", "1", "2", "3", "4", "5"]);
        }
        let position = member::position(&stand.cluster, &group, &input).await;
        assert_eq!(position, Some(Offset(4)), "that of the last commit");
    }
}

async fn readers_wait_for_the_end(stand: Stand) {
    let of = at(&stand.topic("waited", 1).await, 0);
    let mut producer = stand.transactional(TransactionVersion::V2).await;
    producer.begin().await.unwrap();
    producer.send(&of, record("early")).await.unwrap();
    producer.prepare().await.unwrap();
    let mut consumer = Consumer::new(stand.cluster.clone(), of.clone(), Offset(0));
    assert!(
        consumer.poll().await.unwrap().is_empty(),
        "it is not committed"
    );
    assert_eq!(stand.cluster.stable_offset(&of).await.unwrap(), Offset(0));
    assert_eq!(stand.read(&of, Isolation::ReadUncommitted).await, ["early"]);
    producer.commit().await.unwrap();
    let mut read = Vec::new();
    while read.is_empty() {
        read = consumer.poll().await.unwrap();
    }
    assert_eq!(read[0].value, Some("early".into()));
}

async fn the_newest_instance_fences_the_others(stand: Stand) {
    for version in VERSIONS {
        let of = at(&stand.topic(&format!("fenced-{version:?}"), 1).await, 0);
        let mut old = stand.transactional(version).await;
        old.begin().await.unwrap();
        old.send(&of, record("old")).await.unwrap();
        old.prepare().await.unwrap();
        let mut new = stand.transactional(version).await;
        let late = old.commit().await;
        assert!(
            matches!(late, Err(TransactionError::Fenced(_))),
            "{version:?}: {late:?}"
        );
        assert!(old.begin().await.is_err(), "it is of no more use");
        new.begin().await.unwrap();
        new.send(&of, record("new")).await.unwrap();
        new.commit().await.unwrap();
        assert_eq!(stand.committed(&of).await, ["new"]);
    }
}

async fn a_prepared_transaction_is_ended_by_its_identity(stand: Stand) {
    let within = Duration::from_secs(20);
    for version in VERSIONS {
        let of = at(&stand.topic(&format!("prepared-{version:?}"), 1).await, 0);
        let mut producer = stand.transactional(version).await;
        producer.begin().await.unwrap();
        producer.send(&of, record("kept")).await.unwrap();
        let prepared = producer.prepare().await.unwrap();
        // The process ends here; another one has only what was stored.
        drop(producer);
        end_prepared(&stand.cluster, &prepared, Outcome::Commit, within)
            .await
            .unwrap();
        let again = end_prepared(&stand.cluster, &prepared, Outcome::Commit, within).await;
        again.expect("it may have been ended before the crash");
        assert_eq!(stand.committed(&of).await, ["kept"]);

        let mut producer = stand.transactional(version).await;
        producer.begin().await.unwrap();
        producer.send(&of, record("gone")).await.unwrap();
        let prepared = producer.prepare().await.unwrap();
        end_prepared(&stand.cluster, &prepared, Outcome::Abort, within)
            .await
            .unwrap();
        let loud = end_prepared(&stand.cluster, &prepared, Outcome::Commit, within).await;
        assert!(
            loud.is_err(),
            "{version:?}: it was aborted, which must not be silent"
        );
        assert_eq!(stand.committed(&of).await, ["kept"]);
    }
}

async fn a_transaction_that_takes_too_long_is_aborted(stand: Stand) {
    for version in VERSIONS {
        let of = at(&stand.topic(&format!("slow-{version:?}"), 1).await, 0);
        let config = TransactionalConfig {
            version: Some(version),
            timeout: Duration::from_secs(1),
            ..TransactionalConfig::new(&stand.name(&format!("slow-{version:?}")))
        };
        let mut producer = TransactionalProducer::new(stand.cluster.clone(), config.clone())
            .await
            .unwrap();
        producer.begin().await.unwrap();
        producer.send(&of, record("slow")).await.unwrap();
        producer.prepare().await.unwrap();
        // Kafka looks every ten seconds.
        let mut waited = 0;
        while stand.cluster.stable_offset(&of).await.unwrap() == Offset(0) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            waited += 1;
            assert!(waited < 60, "nobody ended it");
        }
        let late = producer.commit().await;
        let (abortable, fenced) = (
            matches!(late, Err(TransactionError::Abortable(_))),
            matches!(late, Err(TransactionError::Fenced(_))),
        );
        assert!(abortable || fenced, "{version:?}: {late:?}");
        if fenced || producer.abort().await.is_err() {
            producer = TransactionalProducer::new(stand.cluster.clone(), config)
                .await
                .unwrap();
        }
        producer.begin().await.unwrap();
        producer.send(&of, record("fast")).await.unwrap();
        producer.commit().await.unwrap();
        assert_eq!(stand.committed(&of).await, ["fast"]);
    }
}

async fn a_group_shares_and_fences(stand: Stand) {
    let topic = stand.topic("shared", 4).await;
    let config = MemberConfig {
        group: stand.name("sharing"),
        topics: vec![topic.clone()],
        session: Duration::from_secs(6),
        rebalance: Duration::from_secs(6),
    };
    let mut one = Member::new(stand.cluster.clone(), config.clone());
    let alone = one.join().await;
    assert_eq!(alone.partitions.len(), 4);
    let of = alone.partitions[0].clone();
    assert_eq!(one.position(&of).await, None, "it has not begun");
    one.commit(&alone.membership, &[(of.clone(), Offset(7))])
        .await
        .unwrap();
    assert_eq!(one.position(&of).await, Some(Offset(7)));

    let mut two = Member::new(stand.cluster.clone(), config.clone());
    let joining = tokio::spawn(async move {
        let assignment = two.join().await;
        (two, assignment)
    });
    while !alone.is_over() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let first = one.join().await;
    let (two, second) = joining.await.unwrap();
    let all: BTreeSet<_> = first.partitions.iter().chain(&second.partitions).collect();
    assert_eq!(
        (first.partitions.len(), second.partitions.len(), all.len()),
        (2, 2, 4)
    );

    // Somebody who still believes in the first generation.
    let mut producer = stand.transactional(TransactionVersion::V2).await;
    producer.begin().await.unwrap();
    let positions = [(of.clone(), Offset(9))];
    let stale = producer
        .send_positions(&config.group, Some(&alone.membership), &positions)
        .await;
    assert!(
        matches!(stale, Err(TransactionError::Abortable(_))),
        "{stale:?}"
    );
    producer.abort().await.unwrap();
    assert_eq!(one.position(&of).await, Some(Offset(7)));
    producer.begin().await.unwrap();
    let mine = if first.partitions.contains(&of) {
        &first
    } else {
        &second
    };
    producer
        .send_positions(&config.group, Some(&mine.membership), &positions)
        .await
        .unwrap();
    producer.commit().await.unwrap();
    assert_eq!(
        one.position(&of).await,
        Some(Offset(9)),
        "a stable one: it waits for the marker"
    );

    two.leave().await;
    while !first.is_over() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(one.join().await.partitions.len(), 4);
    one.leave().await;
}

#[cfg(madsim)]
fn stand<F: std::future::Future<Output = ()> + 'static>(body: fn(Stand) -> F) {
    crate::stage::play(3, move |host| async move {
        let cluster = Cluster::new(host, crate::stage::addresses(3));
        body(Stand {
            cluster,
            brokers: crate::stage::addresses(3),
            tag: "sim".into(),
        })
        .await;
    });
}

#[cfg(not(madsim))]
fn stand<F: std::future::Future<Output = ()> + 'static>(body: fn(Stand) -> F) {
    use engine::{
        host::{
            real::{RealClock, RealDisk, RealEntropy, RealNet},
            Clock, Host,
        },
        ids::BrokerId,
        log::broker::{Broker, BrokerConfig},
    };
    use std::sync::Arc;

    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let host = Host {
            instance: "contract".into(),
            disk: Arc::new(RealDisk::new(folder.path()).unwrap()),
            net: Arc::new(RealNet),
            clock: Arc::new(RealClock),
            entropy: Arc::new(RealEntropy),
            objects: Arc::new(object_store::memory::InMemory::new()),
        };
        // Names of an earlier run are still there.
        let tag = format!("{}-{}", RealClock.now_ms(), std::process::id());
        let address = match std::env::var("SEEDBED_KAFKA") {
            Ok(address) => address,
            Err(_) => {
                let config = BrokerConfig::new(BrokerId(0), vec!["127.0.0.1:0".into()]);
                let bound = Broker::bind(host.clone(), config).await.unwrap();
                let address = bound.address().to_owned();
                tokio::spawn(bound.run());
                address
            }
        };
        let brokers = vec![address];
        let cluster = Cluster::new(host, brokers.clone());
        body(Stand {
            cluster,
            brokers,
            tag,
        })
        .await;
    });
}

use bounds::*;
use topics::*;

macro_rules! contract {
    ($($body:ident)*) => {
        mod promises {
            $(
                #[test]
                fn $body() {
                    super::stand(super::$body);
                }
            )*
        }
    };
}

contract! {
    acknowledged_is_read_in_order
    what_does_not_exist_is_said
    a_long_poll_is_answered_when_a_record_comes
    a_transaction_shows_as_a_whole_or_not_at_all
    readers_wait_for_the_end
    the_newest_instance_fences_the_others
    a_prepared_transaction_is_ended_by_its_identity
    a_transaction_that_takes_too_long_is_aborted
    a_group_shares_and_fences
    what_readers_could_not_take_apart_is_refused
    a_forged_batch_freezes_no_partition
    a_topic_made_again_is_another_one
    what_a_topic_is_configured_with_is_kept
    what_is_not_kept_is_refused
    records_get_the_time_at_which_they_come
    a_topic_gets_more_partitions
    a_cluster_has_a_name_of_its_own
    what_is_too_large_is_said
    offsets_are_found_by_time
    records_are_deleted_up_to_an_offset
    an_epoch_ends_where_the_log_does
    the_bytes_of_partitions_are_told
    positions_of_topics_that_nobody_reads_are_forgotten
    who_only_asks_of_a_group_leaves_none_behind
    who_was_forgotten_goes_on_as_somebody_new
}
