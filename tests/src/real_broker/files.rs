//! The real broker over files that were damaged, cut or lost, and with more of them than it may have open.

use super::{command, on_a_runtime, record, topic, Broker};
use engine::{
    ids::{Offset, PartitionId},
    log::{
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
};
use std::{
    fs,
    process::{Command, Stdio},
};

#[test]
fn a_damaged_segment_is_named_and_left_alone() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 1).await.unwrap();
        let producer = Producer::new(cluster, ProducerConfig::default()).await;
        for number in 0..200 {
            producer.send(&topic(), record(number)).await.await.unwrap();
        }
    });
    broker.signal("-TERM");
    assert_eq!(broker.end().0, Some(0));
    let segment = dir.path().join("log/t/0/00000000000000000000.log");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[1000] ^= 0x10;
    fs::write(&segment, &bytes).unwrap();
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    let (code, said) = broker.end();
    assert_eq!(code, Some(2), "{said}");
    for word in [
        "log/t/0/00000000000000000000.log",
        "offset",
        "Bring the file back",
    ] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    assert_eq!(fs::read(&segment).unwrap(), bytes, "nothing was changed");
}

/// What a crash has left after the last frame is cut, and said; after a clean stop it is damage.
#[test]
fn a_torn_tail_is_cut_with_a_warning_after_a_kill_alone() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 1).await.unwrap();
        let producer = Producer::new(cluster, ProducerConfig::default()).await;
        for number in 0..5 {
            let sent = producer.send(&topic(), record(number)).await;
            sent.await.unwrap();
        }
    });
    let segment = dir.path().join("log/t/0/00000000000000000000.log");
    let tear = || {
        let mut bytes = fs::read(&segment).unwrap();
        bytes.extend(b"SBF2 and what else a crash has left");
        fs::write(&segment, &bytes).unwrap();
        bytes
    };
    broker.kill();
    let torn = tear();
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let end = broker.cluster(&other).end_offset(&topic()).await;
        assert_eq!(end.unwrap(), Offset(5));
    });
    broker.signal("-TERM");
    let (code, said) = broker.end();
    assert_eq!(code, Some(0), "{said}");
    let until = format!("to={} ", torn.len());
    for word in ["WARN", "log/t/0/", "end_offset=5", "bytes=35", &until] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    let torn = tear();
    let (code, said) = Broker::start(dir.path(), "127.0.0.1:0").end();
    assert_eq!(code, Some(2), "{said}");
    for word in ["log/t/0/", "offset 5", "was stopped", "--without"] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    assert_eq!(fs::read(&segment).unwrap(), torn, "nothing was changed");
    // The way that it names leads on.
    fs::remove_dir_all(dir.path().join("log/t/0")).unwrap();
    let (code, said) = Broker::start(dir.path(), "127.0.0.1:0").end();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is missing"), "{said}");
    let broker = Broker::run(command(dir.path(), "127.0.0.1:0").args(["--without", "t/0"]));
    on_a_runtime(async {
        let end = broker.cluster(&other).end_offset(&topic()).await;
        assert_eq!(end.unwrap(), Offset(0));
    });
}

#[test]
fn a_small_file_that_is_gone_is_asked_for() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        cluster.ensure_topic("t", 1).await.unwrap();
    });
    broker.signal("-TERM");
    assert_eq!(broker.end().0, Some(0));
    for name in ["topics", "producer-ids"] {
        let (path, aside) = (dir.path().join(name), other.path().join(name));
        fs::rename(&path, &aside).unwrap();
        let output = command(dir.path(), "127.0.0.1:0").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        let missing = format!("{name} is missing");
        assert!(
            said.contains(&missing) && said.contains("Bring the file back"),
            "{said}"
        );
        fs::rename(&aside, &path).unwrap();
    }
    let broker = Broker::start(dir.path(), "127.0.0.1:0");
    broker.signal("-TERM");
    assert_eq!(broker.end().0, Some(0), "with them, it starts");
}

/// So many partitions of which each has a file, and ten thousand that nobody has used.
#[test]
fn partitions_need_no_open_file_each() {
    const FILES: u32 = 200;
    const USED: i32 = 400;
    const TOGETHER: i32 = 40;
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |listen: &str| {
        let mut limited = Command::new("sh");
        let run = format!("ulimit -n {FILES}; exec \"$0\" \"$@\"");
        let plain = command(dir.path(), listen);
        limited.arg("-c").arg(run).arg(plain.get_program());
        limited.args(plain.get_args());
        Broker::run(limited.stdout(Stdio::piped()).stderr(Stdio::piped()))
    };
    let fill = |broker: &Broker| {
        let cluster = broker.cluster(&other);
        on_a_runtime(async {
            cluster.ensure_topic("t", USED).await.unwrap();
            cluster.ensure_topic("unused", 10_000).await.unwrap();
            // A producer has a connection for each partition, which is an open file, too.
            for first in (0..USED)
                .step_by(TOGETHER as usize)
                .chain((0..USED).step_by(TOGETHER as usize))
            {
                let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
                let mut sent = Vec::new();
                // Each is large enough for the next one to begin a segment.
                for index in first..first + TOGETHER {
                    let to = TopicPartition::new("t", PartitionId(index));
                    let large = NewRecord {
                        value: Some(vec![7; 5000].into()),
                        ..record(0)
                    };
                    sent.push(producer.send(&to, large).await);
                }
                for sent in sent {
                    sent.await.unwrap();
                }
            }
        });
    };
    let mut broker = start("127.0.0.1:0");
    fill(&broker);
    broker.kill();
    let broker = start(&broker.address.clone());
    fill(&broker);
    on_a_runtime(async {
        let cluster = broker.cluster(&other);
        for index in [0, USED / 2, USED - 1] {
            let of = TopicPartition::new("t", PartitionId(index));
            assert_eq!(cluster.end_offset(&of).await.unwrap(), Offset(4));
        }
    });
    broker.signal("-TERM");
    assert_eq!(broker.end().0, Some(0));
}
