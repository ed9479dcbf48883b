//! A broker that is stopped, or killed, and started again over the same files: what it has said stays true.

use crate::{
    log_contract::produce,
    stage::{act, with_broker},
};
use engine::{
    host::{read_file, replace_file, Host},
    ids::{BrokerId, PartitionId, ProducerEpoch, ProducerId, Sequence},
    log::{broker::BrokerConfig, cluster::Cluster, TopicPartition},
    record::NewRecord,
    wire::batch::{self, Identity},
};
use kafka_protocol::messages::InitProducerIdRequest;
use std::time::Duration;

fn config() -> BrokerConfig {
    BrokerConfig {
        reserve_bytes: 16 << 10,
        ..BrokerConfig::new(BrokerId(0), vec!["actor:9092".to_owned()])
    }
}

fn of(topic: &str) -> TopicPartition {
    TopicPartition::new(topic, PartitionId(0))
}

/// A kill may have come before the reserve was whole: what is there under its name is not believed.
#[test]
fn a_reserve_that_is_too_small_is_filled() {
    act(0, &[], |host: Host| async move {
        for bytes in [0, 100] {
            let cut = vec![0; bytes];
            replace_file(&*host.disk, "reserve", &cut).await.unwrap();
            let run = with_broker(host.clone(), config(), |_| async {
                tokio::time::sleep(Duration::from_secs(5)).await;
            });
            run.await.unwrap();
            let reserve = read_file(&*host.disk, "reserve").await.unwrap();
            assert_eq!(reserve.unwrap().len(), config().reserve_bytes);
        }
    });
}

/// A deletion that a stop has overtaken goes on at the next start: it left notes of partitions that it had removed, and
/// a new topic of this name was then missing them, at each start.
#[test]
fn a_topic_may_be_deleted_while_its_broker_stops() {
    act(0, &[], |host: Host| async move {
        for pause_ms in 0..60 {
            let stopped = with_broker(host.clone(), config(), |cluster| async move {
                cluster.ensure_topic("t", 1).await.unwrap();
                append(&cluster, &of("t"), ProducerId(-1)).await;
                tokio::spawn(async move { cluster.delete_topic("t").await });
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            });
            stopped
                .await
                .unwrap_or_else(|error| panic!("after {pause_ms} ms: {error}"));
        }
    });
}

fn record() -> NewRecord {
    NewRecord {
        value: Some("value".into()),
        ..NewRecord::default()
    }
}

/// A new producer id.
async fn drawn(cluster: &Cluster) -> ProducerId {
    let connection = cluster.connect_leader(&of("t")).await.unwrap();
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(i32::MAX);
    let answer = connection.call(&request).await.unwrap();
    assert_eq!(answer.error_code, 0, "an id is given out");
    ProducerId(answer.producer_id.0)
}

/// One record under this producer id, whoever has it; under none, if it is negative.
async fn append(cluster: &Cluster, to: &TopicPartition, producer: ProducerId) {
    let by = match producer.0 < 0 {
        true => Identity::NOBODY,
        false => Identity {
            producer,
            epoch: ProducerEpoch(0),
            sequence: Sequence(0),
            transactional: false,
        },
    };
    let batch = batch::encode(&[record()], by).unwrap();
    let answer = produce(cluster, to, None, batch).await;
    assert_eq!(answer.error_code, 0, "{producer} may append");
}

/// The file that says which ids were given out is an old one: the logs know better, whatever else is in them. An id that
/// a client has made up, or another broker has given out, hid those of this broker.
#[test]
fn no_id_is_given_out_twice_beside_ids_that_are_not_of_this_broker() {
    const FILE: &str = "producer-ids";
    act(0, &[], |host: Host| async move {
        let disk = host.disk.clone();
        let before = with_broker(host.clone(), config(), |cluster| async move {
            cluster.ensure_topic("t", 1).await.unwrap();
            read_file(&*disk, FILE).await.unwrap().unwrap()
        });
        let before = before.await.unwrap();
        let newest = with_broker(host.clone(), config(), |cluster| async move {
            let mut newest = ProducerId(-1);
            for _ in 0..3 {
                newest = drawn(&cluster).await;
            }
            for id in [newest, ProducerId(1 << 62), ProducerId((7 << 40) + 5)] {
                append(&cluster, &of("t"), id).await;
            }
            newest
        });
        let newest = newest.await.unwrap();
        replace_file(&*host.disk, FILE, &before).await.unwrap();
        let next = with_broker(host.clone(), config(), |cluster| async move {
            drawn(&cluster).await
        });
        let next = next.await.unwrap();
        assert!(next > newest, "{next} is given out again; {newest} was");
    });
}
