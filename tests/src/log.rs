//! What the log's broker makes of peers that do not speak as they should.

use crate::stage::{addresses, play, IDLE};
use engine::{
    host::{read_file, replace_file, Disk},
    ids::{Offset, PartitionId, ProducerEpoch, ProducerId, Sequence},
    log::{
        cluster::Cluster,
        configs::Effective,
        partition::{Expected, Isolation, Partition, Portion},
        LogError, TopicPartition,
    },
    record::NewRecord,
    wire::{
        batch::{self, Identity},
        frame,
        validate::Checked,
    },
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

/// A peer that is gone without a word, in the middle of a request or before it, does not hold its connection for ever.
#[test]
fn a_silent_peer_loses_its_connection() {
    play(1, |host| async move {
        // A request that would be of 16 MiB, and half a length.
        for said in [&[0x00, 0xff, 0xff, 0xff, 1, 2, 3][..], &[0, 0], &[]] {
            let mut connection = host.net.connect("broker-0:9092").await.unwrap();
            connection.write_all(said).await.unwrap();
            let begun = tokio::time::Instant::now();
            let mut answer = Vec::new();
            let _ = connection.read_to_end(&mut answer).await;
            assert!(answer.is_empty());
            let after = begun.elapsed();
            assert!(after >= IDLE && after < IDLE * 2, "closed after {after:?}");
        }
    });
}

async fn open(disk: &Arc<dyn Disk>, folder: &str) -> Result<Partition, LogError> {
    let (disk, folder) = (disk.clone(), folder.to_owned());
    let small = Effective {
        segment_bytes: 600,
        ..Effective::default()
    };
    Partition::open(disk, folder, small, Expected::Nothing, Arc::default()).await
}

/// Everything in a partition, unless it is refused.
async fn read_all(disk: &Arc<dyn Disk>, folder: &str) -> Result<Vec<u8>, LogError> {
    let partition = open(disk, folder).await?;
    let (mut all, mut next) = (Vec::new(), Offset(0));
    loop {
        let reading = partition
            .read(
                next,
                Portion::AtMost(usize::MAX),
                Isolation::ReadUncommitted,
            )
            .await?;
        if reading.records.is_empty() {
            return Ok(all);
        }
        for batch in batch::decode(&reading.records).expect("whole batches") {
            next = batch.header.end_offset();
        }
        all.extend(reading.records);
    }
}

/// Bit rot (NATS 7549: the damaged middle was skipped, and the rest served). A flipped bit is reported, with its
/// file and offset; only in the last frame it looks like a write that was torn.
#[test]
fn a_flipped_bit_is_never_skipped() {
    play(1, |host| async move {
        let disk = host.disk.clone();
        let partition = Arc::new(open(&disk, "log/t/0").await.unwrap());
        let syncing = partition.clone();
        let syncing = tokio::spawn(async move { drop(syncing.keep_synced().await) });
        for number in 0..30 {
            let record = NewRecord {
                key: None,
                value: Some(format!("value {number}").into()),
                headers: Vec::new(),
                timestamp_ms: number,
            };
            let by = Identity {
                producer: ProducerId(-1),
                epoch: ProducerEpoch(-1),
                sequence: Sequence(-1),
                transactional: false,
            };
            let batch = Checked::ours(batch::encode(&[record], by).unwrap()).unwrap();
            let appended = partition.append(&batch, None, 0).await.unwrap();
            partition.wait_synced(appended.end_offset).await.unwrap();
        }
        syncing.abort();
        let whole = read_all(&disk, "log/t/0").await.unwrap();
        let mut files = Vec::new();
        for name in disk.list("log/t/0").await.unwrap() {
            let bytes = read_file(&*disk, &format!("log/t/0/{name}")).await.unwrap();
            files.push((name, bytes.unwrap_or_default().to_vec()));
        }
        files.retain(|(_, bytes)| !bytes.is_empty());
        assert!(files.len() > 3, "several segments");
        let last_frame = whole.len() / 30 + 40;
        let mut runner = TestRunner::deterministic();
        for _ in 0..60 {
            let any = || any::<prop::sample::Index>();
            let (file, bit) = (any(), any()).new_tree(&mut runner).unwrap().current();
            let file = file.index(files.len());
            let bit = bit.index(files[file].1.len() * 8);
            let folder = "log/t/0";
            for (index, (name, bytes)) in files.iter().enumerate() {
                let mut bytes = bytes.clone();
                if index == file {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                let path = format!("{folder}/{name}");
                replace_file(&*disk, &path, &bytes).await.unwrap();
            }
            let from_end = files[file].1.len() - bit / 8;
            let may_be_torn = file + 1 == files.len() && from_end <= last_frame;
            match read_all(&disk, folder).await {
                Err(LogError::Damaged { path, .. }) => {
                    assert_eq!(path, format!("{folder}/{}", files[file].0));
                }
                Err(error) => panic!("{error}"),
                Ok(read) => {
                    assert!(may_be_torn, "bit {bit} of {} was not seen", files[file].0);
                    assert!(whole.starts_with(&read), "nothing is skipped");
                }
            }
        }
    });
}
