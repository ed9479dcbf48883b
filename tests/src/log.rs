//! What the log's broker makes of peers that do not speak as they should.

use crate::stage::{addresses, play, IDLE};
use engine::{
    host::{read_file, replace_file, Host},
    ids::{Offset, PartitionId},
    log::{
        cluster::Cluster,
        configs::Effective,
        door::Door,
        partition::{Expected, Ground, Isolation, Partition, Portion},
        peer::Peer,
        producer::{Producer, ProducerConfig},
        reserve::Reserve,
        room::{Purse, Room, Rooms},
        unpacking::Unpacking,
        LogError, TopicPartition,
    },
    record::NewRecord,
    wire::{
        batch::{self, Identity},
        frame,
        validate::Checked,
    },
};
use futures::{select_biased, FutureExt};
use kafka_protocol::{
    messages::{
        fetch_request::{FetchPartition, FetchTopic},
        FetchRequest, TopicName,
    },
    protocol::StrBytes,
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use std::{sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// After so long a broker gives up half a request.
const HALF: Duration = Duration::from_secs(30);

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
        // A request that would be of 16 MiB, half a length, and nothing.
        let half: &[u8] = &[0x00, 0xff, 0xff, 0xff, 1, 2, 3];
        for (said, within) in [(half, HALF), (&[0, 0], IDLE), (&[], IDLE)] {
            let mut connection = host.net.connect("broker-0:9092").await.unwrap();
            connection.write_all(said).await.unwrap();
            let begun = tokio::time::Instant::now();
            let mut answer = Vec::new();
            let _ = connection.read_to_end(&mut answer).await;
            assert!(answer.is_empty());
            let after = begun.elapsed();
            assert!(
                after >= within && after < within * 2,
                "closed after {after:?}"
            );
        }
    });
}

/// A peer that asks and does not read what it is answered does not keep that for ever.
#[test]
fn who_does_not_read_loses_its_connection() {
    const ASKED: usize = 8;
    play(1, |host| async move {
        let cluster = Cluster::new(host.clone(), addresses(1));
        cluster.ensure_topic("t", 1).await.unwrap();
        let of = TopicPartition::new("t", PartitionId(0));
        let producer = Producer::new(cluster.clone(), ProducerConfig::default()).await;
        let record = NewRecord {
            value: Some(vec![7; 300_000].into()),
            ..NewRecord::default()
        };
        producer.send(&of, record).await.await.unwrap();
        let partition = FetchPartition::default().with_partition_max_bytes(1 << 20);
        let topic = FetchTopic::default()
            .with_topic(TopicName(StrBytes::from_static_str("t")))
            .with_partitions(vec![partition]);
        let fetch = FetchRequest::default()
            .with_replica_id((-1).into())
            .with_max_bytes(1 << 20)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        let fetch = frame::encode_request(&fetch, 12, 7).unwrap();
        for (patience, is_cut) in [(HALF / 2, false), (HALF + HALF / 3, true)] {
            let mut connection = host.net.connect("broker-0:9092").await.unwrap();
            for _ in 0..ASKED {
                connection.write_all(&fetch).await.unwrap();
            }
            tokio::time::sleep(patience).await;
            let (mut answers, mut there) = (0, vec![0; 64 << 10]);
            // Whoever is closed with requests of it unread is told so by a reset.
            while let Ok(read @ 1..) = connection.read(&mut there).await {
                answers += read;
                if answers >= ASKED * 300_000 {
                    break;
                }
            }
            let is_all = answers >= ASKED * 300_000;
            assert_eq!(!is_all, is_cut, "{answers} bytes after {patience:?}");
        }
    });
}

/// Somebody at the other end of a connection.
fn peer() -> Arc<Peer> {
    Arc::new(Peer::new().0)
}

/// Whoever only holds makes room for those who wait, after a grace, and the longest first.
#[test]
fn memory_that_is_held_for_long_goes_to_who_waits() {
    play(1, |_| async move {
        let room = Room::new(100, Duration::from_secs(1), false);
        let [slow, slower, quick] = [(); 3].map(|()| peer());
        let first = room.take(60, &slower).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let second = room.take(40, &slow).await;
        assert!(room.try_take(1, &quick).is_none());
        let mut waits = Box::pin(room.take(50, &quick));
        let early = tokio::time::timeout(Duration::from_millis(800), &mut waits).await;
        assert!(early.is_err() && !slower.is_gone(), "it has its grace");
        let early = tokio::time::timeout(Duration::from_millis(300), &mut waits).await;
        assert!(early.is_err() && slower.is_gone(), "and no more");
        assert!(!slow.is_gone(), "that is enough");
        drop(first);
        let mut third = waits.await;
        assert_eq!(room.free_bytes(), 10);
        third.grow(10).await;
        assert!(!slow.is_gone() && !quick.is_gone());
        drop((second, third));
        assert_eq!(room.free_bytes(), 100, "all is given back");
        // What is larger than the room takes all of it, and no more.
        drop(room.take(1000, &quick).await);
        assert_eq!(room.free_bytes(), 100);
    });
}

/// What is free already need not be taken from anybody.
#[test]
fn no_more_are_sent_away_than_need_be() {
    play(1, |_| async move {
        let room = Room::new(100, Duration::from_secs(1), false);
        let peers = [(); 8].map(|()| peer());
        let mut holds = Vec::new();
        for peer in &peers {
            holds.push(room.take(10, peer).await);
        }
        let last = peer();
        let mut waits = Box::pin(room.take(35, &last));
        let waited = tokio::time::timeout(Duration::from_secs(2), &mut waits).await;
        assert!(waited.is_err());
        let gone: Vec<bool> = peers.iter().map(|peer| peer.is_gone()).collect();
        assert_eq!(gone, [true, true, false, false, false, false, false, false]);
        holds.drain(..2);
        waits.await;
    });
}

/// When it is us who are slow, whoever waits for us is not sent away; and a fetch that waits for records is answered
/// without them before anybody is.
#[test]
fn who_waits_for_us_stays() {
    play(1, |_| async move {
        let room = Room::new(100, Duration::from_millis(200), true);
        let [appends, polls, comes, parked] = [(); 4].map(|()| peer());
        let append = room.take(50, &appends).await;
        let poll = room.take(30, &polls).await;
        let enough = poll.stake().waits_for_records();
        let join = room.take(20, &parked).await;
        let mut waits = Box::pin(room.take(30, &comes));
        select_biased! {
            _ = (&mut waits).fuse() => panic!("nobody gave anything back"),
            () = enough.notified().fuse() => {}
        }
        poll.stake().waits_for_us();
        drop(poll);
        let come = waits.await;
        // A join waits for others like it, who may never come.
        join.stake().waits_for_peers();
        let mut waits = Box::pin(room.take(20, &comes));
        let waited = tokio::time::timeout(Duration::from_secs(60), &mut waits).await;
        assert!(waited.is_err() && parked.is_gone());
        drop(join);
        drop(waits.await);
        assert!(!appends.is_gone() && !polls.is_gone() && !comes.is_gone());
        drop((append, come));
        assert_eq!(room.free_bytes(), 100);
    });
}

/// Whoever holds some never waits for more: it could wait for itself.
#[test]
fn an_answer_has_its_first_records_and_what_fits() {
    play(1, |_| async move {
        let (rooms, peer) = (Rooms::new(16 << 20), peer());
        let mut purse = Purse::of(&peer);
        assert!(purse.pay(&rooms.leaving, 1 << 20).await);
        // Large now, all together: of the other room.
        assert!(purse.pay(&rooms.leaving, 4 << 20).await);
        assert!(!purse.pay(&rooms.leaving, 4 << 20).await);
    });
}

/// All places are taken: a stranger goes before somebody who has made requests, and nobody goes at once.
#[test]
fn the_silent_make_room_for_who_comes() {
    play(1, |_| async move {
        let door = Door::new(2);
        let come = || door.enter().map(|(guest, _)| guest);
        let (known, stranger) = (come().unwrap(), come().unwrap());
        known.peer().is_heard(IDLE);
        door.look();
        assert!(come().is_none(), "they have just come");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let next = come().expect("the stranger goes");
        assert!(stranger.peer().is_gone() && !known.peer().is_gone());
        drop(stranger);
        assert!(come().is_none());
        next.peer().is_heard(IDLE);
        door.look();
        tokio::time::sleep(Duration::from_secs(40)).await;
        next.peer().is_heard(IDLE);
        let last = come().expect("who has been silent for long goes");
        assert!(known.peer().is_gone() && !next.peer().is_gone());
        drop(last);
        assert!(come().is_some(), "a place is free");
    });
}

async fn open(host: &Host, folder: &str) -> Result<Partition, LogError> {
    let ground = Ground::new(host, Reserve::new(host.disk.clone(), 0));
    let small = Effective {
        segment_bytes: 600,
        ..Effective::default()
    };
    Partition::open(ground, folder.to_owned(), small, Expected::Nothing).await
}

/// A batch of records of these times.
fn timed(times_ms: &[i64]) -> Checked {
    let records = times_ms.iter().map(|time| NewRecord {
        timestamp_ms: *time,
        ..NewRecord::default()
    });
    let records: Vec<NewRecord> = records.collect();
    Checked::ours(batch::encode(&records, Identity::NOBODY).unwrap()).unwrap()
}

/// The newest record was deleted, and not its whole batch: another one is the newest then.
#[test]
fn the_newest_record_is_one_that_is_left() {
    play(1, |host| async move {
        let partition = Arc::new(open(&host, "log/t/0").await.unwrap());
        let syncing = partition.clone();
        let syncing = tokio::spawn(async move { drop(syncing.keep_synced().await) });
        let unpacking = Unpacking::new();
        for times_ms in [&[10, 50, 30, 40][..], &[20], &[35]] {
            let appended = partition.append(&timed(times_ms), None, 0).await.unwrap();
            partition.wait_synced(appended.end_offset).await.unwrap();
        }
        for (until, newest) in [(0, (1, 50)), (2, (3, 40)), (4, (5, 35))] {
            partition.delete_until(Some(Offset(until))).await.unwrap();
            let (offset, time_ms) = newest;
            let found = partition.find_newest(&unpacking).await.unwrap();
            assert_eq!(found, Some((Offset(offset), time_ms)), "from {until} on");
            for (from, is_there) in [(until - 1, false), (until, true), (6, true), (7, false)] {
                let all = Portion::AtMost(usize::MAX);
                let found = partition.find(Offset(from), all, Isolation::ReadUncommitted);
                let found = found.await.is_some();
                assert_eq!(found, is_there, "{from} of {until} to 6");
            }
        }
        partition.delete_until(None).await.unwrap();
        assert_eq!(partition.find_newest(&unpacking).await.unwrap(), None);
        syncing.abort();
    });
}

/// Everything in a partition, unless it is refused.
async fn read_all(host: &Host, folder: &str) -> Result<Vec<u8>, LogError> {
    let partition = open(host, folder).await?;
    let (mut all, mut next) = (Vec::new(), Offset(0));
    loop {
        let reading = partition
            .read(
                next,
                Portion::AtMost(usize::MAX),
                Isolation::ReadUncommitted,
            )
            .await?;
        let reading = reading.expect("it goes on here");
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
        let partition = Arc::new(open(&host, "log/t/0").await.unwrap());
        let syncing = partition.clone();
        let syncing = tokio::spawn(async move { drop(syncing.keep_synced().await) });
        for number in 0..30 {
            let record = NewRecord {
                key: None,
                value: Some(format!("value {number}").into()),
                headers: Vec::new(),
                timestamp_ms: number,
            };
            let batch = Checked::ours(batch::encode(&[record], Identity::NOBODY).unwrap()).unwrap();
            let appended = partition.append(&batch, None, 0).await.unwrap();
            partition.wait_synced(appended.end_offset).await.unwrap();
        }
        syncing.abort();
        let whole = read_all(&host, "log/t/0").await.unwrap();
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
            match read_all(&host, folder).await {
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
