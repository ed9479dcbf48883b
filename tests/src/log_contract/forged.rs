//! Batches that no honest client sends: refused, with the errors of Apache Kafka, and without harm to others.

use super::{at, record, Stand, VERSIONS};
use bytes::Bytes;
use engine::{
    ids::{Offset, ProducerEpoch, ProducerId, Sequence},
    log::{partition::Isolation, TopicPartition},
    wire::batch::{self, Identity},
};
use kafka_protocol::error::ResponseError::{self, *};

/// Whether its leader takes a batch.
async fn produce(
    stand: &Stand,
    to: &TopicPartition,
    transactional_id: Option<&str>,
    batch: Bytes,
) -> Result<(), ResponseError> {
    let answer = stand.produce(to, transactional_id, batch).await;
    ResponseError::try_from_code(answer.error_code).map_or(Ok(()), Err)
}

/// A batch of two records, spoilt, with the right checksum.
fn spoilt(by: Identity, spoil: impl Fn(&mut Vec<u8>)) -> Bytes {
    let mut bytes = batch::encode(&[record("a"), record("b")], by)
        .unwrap()
        .to_vec();
    spoil(&mut bytes);
    let len = bytes.len() as i32 - 12;
    bytes[8..12].copy_from_slice(&len.to_be_bytes());
    let sum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&sum.to_be_bytes());
    bytes.into()
}

fn put<const N: usize>(at: usize, what: [u8; N]) -> impl Fn(&mut Vec<u8>) {
    move |bytes| bytes[at..at + N].copy_from_slice(&what)
}

/// The attributes' lower byte, the last offset delta, the largest timestamp, the producer, the number of records.
const ATTRIBUTES: usize = 22;
const LAST_DELTA: usize = 23;
const FIRST_TIMESTAMP: usize = 27;
const MAX_TIMESTAMP: usize = 35;
const COUNT: usize = 57;
const RECORDS: usize = 61;

pub(super) async fn what_readers_could_not_take_apart_is_refused(stand: Stand) {
    let of = at(&stand.topic("spoilt", 1).await, 0);
    let mut far = i64::MAX.to_be_bytes();
    far[0] = 0x1f;
    let known = Identity {
        producer: ProducerId(4_000_000_000),
        epoch: ProducerEpoch(0),
        sequence: Sequence(0),
        transactional: false,
    };
    let without_sequence = Identity {
        sequence: Sequence(-1),
        ..known
    };
    let transactional = Identity {
        transactional: true,
        ..known
    };
    let nothing = |_: &mut Vec<u8>| {};
    let whole = spoilt(Identity::NOBODY, nothing);
    let mut damaged = whole.to_vec();
    damaged[70] ^= 1;
    let twice = [&whole[..], &whole[..]].concat();
    let cases: Vec<(&str, Bytes, ResponseError)> = vec![
        ("nothing", Bytes::new(), InvalidRecord),
        ("a checksum that is wrong", damaged.into(), CorruptMessage),
        (
            "version 3",
            spoilt(Identity::NOBODY, put(16, [3])),
            CorruptMessage,
        ),
        ("two batches", twice.into(), InvalidRecord),
        (
            "a base offset",
            spoilt(Identity::NOBODY, put(7, [5])),
            InvalidRecord,
        ),
        (
            "a control batch",
            spoilt(Identity::NOBODY, put(ATTRIBUTES, [1 << 5])),
            InvalidRecord,
        ),
        (
            "fewer records than offsets",
            spoilt(Identity::NOBODY, put(LAST_DELTA, [0, 0, 0, 5])),
            InvalidRecord,
        ),
        (
            "more records than there are",
            spoilt(Identity::NOBODY, |bytes| {
                put(LAST_DELTA, [0, 0, 0, 5])(bytes);
                put(COUNT, [0, 0, 0, 6])(bytes);
            }),
            InvalidRecord,
        ),
        (
            "a negative number of records",
            spoilt(Identity::NOBODY, put(COUNT, [0xff; 4])),
            InvalidRecord,
        ),
        (
            "no records",
            spoilt(Identity::NOBODY, |bytes| {
                put(LAST_DELTA, [0xff; 4])(bytes);
                put(COUNT, [0; 4])(bytes);
                bytes.truncate(RECORDS);
            }),
            InvalidRecord,
        ),
        (
            "a record that is longer than the batch",
            spoilt(Identity::NOBODY, put(RECORDS, [0x7e])),
            InvalidRecord,
        ),
        (
            "a record from the far future",
            spoilt(Identity::NOBODY, put(FIRST_TIMESTAMP, far)),
            InvalidTimestamp,
        ),
        (
            "a producer without a sequence",
            spoilt(without_sequence, nothing),
            InvalidRecord,
        ),
        (
            "a transaction without an id",
            spoilt(transactional, nothing),
            TransactionalIdAuthorizationFailed,
        ),
    ];
    for (what, batch, expected) in cases {
        assert_eq!(
            produce(&stand, &of, None, batch).await,
            Err(expected),
            "{what}"
        );
    }
    assert_eq!(stand.cluster.end_offset(&of).await.unwrap(), Offset(0));
    // What is packed, and does not unpack. (Apache Kafka does not catch what its codecs throw: an unknown error.)
    for codec in 1..=4 {
        let packed = spoilt(Identity::NOBODY, put(ATTRIBUTES, [codec]));
        let refused = produce(&stand, &of, None, packed).await;
        assert!(
            matches!(refused, Err(InvalidRecord | UnknownServerError)),
            "{codec}: {refused:?}"
        );
    }
    assert_eq!(stand.cluster.end_offset(&of).await.unwrap(), Offset(0));
    // A newest timestamp that lies is made to say what is so: retention believes it.
    let liar = spoilt(Identity::NOBODY, put(MAX_TIMESTAMP, i64::MAX.to_be_bytes()));
    produce(&stand, &of, None, liar).await.unwrap();
    // And so is one that says that the log has given its records their time.
    let liar = spoilt(Identity::NOBODY, put(ATTRIBUTES, [1 << 3]));
    produce(&stand, &of, None, liar).await.unwrap();
    let mut consumer = engine::log::consumer::Consumer::new(stand.cluster.clone(), of, Offset(0));
    while consumer.position() < Offset(4) {
        for batch in consumer.poll_batches().await.unwrap() {
            let expected = record("a").timestamp_ms;
            assert_eq!(batch.header.max_timestamp_ms, expected);
            let batch::Body::Data(records) = &batch.body else {
                panic!("records");
            };
            assert_eq!(records[0].timestamp_ms, expected);
        }
    }
}

/// A batch outside of an open transaction, with its producer's id and an epoch that nobody gave out, was appended;
/// the marker of the commit was then fenced, and the last stable offset stood still for ever.
pub(super) async fn a_forged_batch_freezes_no_partition(stand: Stand) {
    for version in VERSIONS {
        let of = at(&stand.topic(&format!("forged-{version:?}"), 1).await, 0);
        let mut producer = stand.transactional(version).await;
        for round in 0..2 {
            producer.begin().await.unwrap();
            producer.send(&of, record(round)).await.unwrap();
            let prepared = producer.prepare().await.unwrap();
            let (id, epoch) = (prepared.producer, prepared.epoch);
            let forged = |epoch: i16, sequence: i32| {
                let by = Identity {
                    producer: id,
                    epoch: ProducerEpoch(epoch),
                    sequence: Sequence(sequence),
                    transactional: false,
                };
                produce(&stand, &of, None, spoilt(by, |_| {}))
            };
            let next = epoch.0 + 1;
            assert_eq!(forged(next, 0).await, Err(InvalidTxnState), "{version:?}");
            let far = i16::MAX - 1;
            assert_eq!(forged(far, 0).await, Err(InvalidTxnState));
            let gap = forged(next, 7).await;
            assert_eq!(gap, Err(OutOfOrderSequenceNumber));
            let gap = forged(epoch.0, 77).await;
            assert_eq!(gap, Err(OutOfOrderSequenceNumber));
            if let Some(before) = epoch.0.checked_sub(1).filter(|epoch| *epoch >= 0) {
                assert_eq!(forged(before, 0).await, Err(InvalidProducerEpoch));
            }
            producer.commit().await.unwrap();
        }
        assert_eq!(stand.committed(&of).await, ["0", "1"], "{version:?}");
        let stable = stand.cluster.stable_offset(&of).await.unwrap();
        assert_eq!(stable, stand.cluster.end_offset(&of).await.unwrap());
        let all = stand.read(&of, Isolation::ReadUncommitted).await;
        assert_eq!(all, ["0", "1"], "nothing of it is there");
    }
}
