//! What another attempt cannot help with ends a job, and says what to do; what may heal is tried again, less and less often.

use crate::{
    small_job::{feed, send, SmallJob},
    stage::{addresses, play},
};
use engine::{
    failure::Failure,
    graph::{Pipeline, Upstream},
    guarantee::Guarantee,
    host::Host,
    ids::{EventTime, Offset, PartitionId},
    job::{Ended, JobConfig, JobError},
    log::{
        cluster::Cluster,
        consumer::Consumer,
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    sink::{Row, SinkKind},
    worker::WorkerConfig,
};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use workloads::revenue::EVENTS;

fn client(host: &Host) -> Cluster {
    Cluster::new(host.clone(), addresses(1))
}

#[test]
fn a_topic_that_the_job_has_used_and_that_is_gone_ends_it() {
    play(1, |host| async move {
        let cluster = client(&host);
        feed(&cluster).await;
        for (number, topic) in [(0, "job-0-output"), (1, EVENTS)] {
            let job = SmallJob::new(&host, number, SinkKind::Transactional);
            job.begin(&cluster, true).await;
            cluster.delete_topic(topic).await;
            let ended = job.finish().await.expect("it does not wait for ever");
            let error = ended.expect_err("a topic is missing");
            assert!(
                matches!(&error, JobError::Missing(of) if of == topic),
                "{error}"
            );
            assert!(error.to_string().contains("start the job again"), "{error}");
        }
    });
}

#[test]
fn a_partition_that_has_lost_what_was_read_ends_the_job() {
    play(1, |host| async move {
        let cluster = client(&host);
        feed(&cluster).await;
        let job = SmallJob::new(&host, 0, SinkKind::Objects);
        job.begin(&cluster, true).await;
        cluster.delete_topic(EVENTS).await;
        cluster.ensure_topic(EVENTS, 2).await.unwrap();
        let error = job
            .finish()
            .await
            .expect("it does not wait for ever")
            .unwrap_err();
        let is_input = matches!(
            &error,
            JobError::Task {
                failure: Failure::Input(_),
                ..
            }
        );
        assert!(is_input, "{error}");
        assert!(
            error.to_string().contains("ends at 0, and checkpoint"),
            "{error}"
        );
    });
}

#[test]
fn a_state_that_is_gone_ends_the_job() {
    play(1, |host| async move {
        let cluster = client(&host);
        feed(&cluster).await;
        let job = SmallJob::new(&host, 0, SinkKind::Objects);
        job.begin(&cluster, true).await;
        let last = job.store.manifests().await.unwrap().pop().unwrap();
        let object = &last.tasks["window-0"].object;
        let path = object_store::path::Path::from(object.as_str());
        object_store::ObjectStoreExt::delete(&*host.objects, &path)
            .await
            .unwrap();
        let error = job
            .finish()
            .await
            .expect("it does not wait for ever")
            .unwrap_err();
        assert!(
            matches!(
                &error,
                JobError::Task {
                    failure: Failure::Object(_),
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains(object), "{error}");
    });
}

#[test]
fn a_dead_letter_is_bounded_whatever_the_record_was() {
    const BYTES: usize = 900_000;
    play(1, |host| async move {
        let cluster = client(&host);
        feed(&cluster).await;
        let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
        for partition in [0, 1, 0, 1, 0, 0, 0] {
            send((&cluster, &producer), partition, vec![0xff; BYTES]).await;
        }
        let job = SmallJob::new(&host, 0, SinkKind::Transactional);
        let table = job.run_to_the_end().await.unwrap();
        assert_eq!(table.dead_letters, 2 + 7);
        let mut cut = 0;
        for index in 0..2 {
            let of = TopicPartition::new(&job.config.dead_letter_topic, PartitionId(index));
            let end = cluster.stable_offset(&of).await.unwrap();
            let mut consumer = Consumer::new(cluster.clone(), of, Offset(0));
            while consumer.position() < end {
                for record in consumer.poll().await.unwrap() {
                    let bytes = record.headers.iter().find(|(name, _)| name == "bytes");
                    let whole = bytes.is_some_and(|(_, of)| *of == BYTES.to_string());
                    let value = record.value.unwrap_or_default();
                    assert!(value.len() <= 128 << 10, "{} bytes", value.len());
                    cut += u32::from(whole);
                }
            }
        }
        assert_eq!(cut, 7, "each says how long it was");
    });
}

#[test]
fn a_row_that_no_topic_takes_ends_the_job() {
    play(1, |host| async move {
        let cluster = client(&host);
        feed(&cluster).await;
        for (number, sink) in [SinkKind::Transactional, SinkKind::Idempotent]
            .into_iter()
            .enumerate()
        {
            let error = run_wide(&host, number as u64, sink).await;
            assert!(
                matches!(
                    &error,
                    JobError::Task {
                        failure: Failure::TooLarge(_),
                        ..
                    }
                ),
                "{error}"
            );
            assert!(error.to_string().contains("2000000 bytes"), "{error}");
        }
    });
}

/// Runs a job with rows of two megabytes.
async fn run_wide(host: &Host, number: u64, sink: SinkKind) -> JobError {
    let wide = || {
        Pipeline::read(EVENTS, Upstream::Repeats)
            .decode(|bytes| Ok::<_, String>(bytes.len()))
            .event_time(|_| EventTime(0), 0)
            .dedup(|len| (*len, 0u8), 1000)
            .key_by(|len| *len)
            .tumbling(1000)
            .fold(|sum: &mut usize, len| *sum += len)
            .rows(|_, _, _| Row::new("", "x".repeat(2_000_000)))
    };
    let config = JobConfig {
        partitions: 2,
        bounded: true,
        ..JobConfig::new(&format!("wide-{number}"), Guarantee::ExactlyOnce, sink)
    };
    let listen = format!("actor:{}", 7000 + number);
    let at = WorkerConfig {
        coordinators: vec![listen.clone()],
        listen: format!("0.0.0.0:{}", 8000 + number),
        address: format!("actor:{}", 8000 + number),
    };
    let working = {
        let (host, config) = (host.clone(), config.clone());
        tokio::spawn(async move { drop(wide().work(host, addresses(1), config, at).await) })
    };
    let job = wide();
    let ended = job.coordinate(host.clone(), addresses(1), config, &listen);
    let ended = timeout(Duration::from_secs(120), ended).await;
    working.abort();
    ended
        .expect("it does not wait for ever")
        .expect_err("rows are too large")
}

#[test]
fn what_may_heal_is_tried_again_less_and_less_often() {
    play(1, |host| async move {
        let cluster = client(&host);
        feed(&cluster).await;
        let mut job = SmallJob::new(&host, 0, SinkKind::Transactional);
        // No broker takes a transaction that may last so long, today.
        job.config.transaction_timeout = Duration::from_secs(3600);
        let stuck = timeout(Duration::from_secs(120), job.finish()).await;
        assert!(stuck.is_err(), "it does not give up: {stuck:?}");
        let (newest, _) = job.store.newest().await.unwrap().unwrap();
        assert!(
            (5..=30).contains(&newest),
            "{newest} entries in two minutes"
        );
        sleep(Duration::from_secs(2)).await;
        job.config.transaction_timeout = Duration::from_secs(600);
        let ended = job.finish().await.expect("it is mended").unwrap();
        assert!(matches!(ended, Ended::Finished(_)));
    });
}
