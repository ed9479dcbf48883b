//! Garbage for every decoder, under a limit of memory: a length that is believed ends the test's process.

use super::{batch, frame, skeleton, Api, APIS};
use crate::{
    ids::{ProducerEpoch, ProducerId, Sequence},
    record::NewRecord,
    wire::{batch::Identity, validate::Checking},
};
use bytes::Bytes;
use cap::Cap;
use kafka_protocol::{
    messages::*,
    protocol::{Decodable, Encodable, Request},
};
use proptest::prelude::*;
use std::alloc::System;

/// Far more than all tests of this crate need together, far less than a length of four bytes can claim.
#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, 512 << 20);

/// How a message is spoilt.
#[derive(Clone, Debug)]
enum Spoil {
    /// Nothing of it is left.
    Garbage(Vec<u8>),
    /// It is cut off.
    Cut(prop::sample::Index),
    /// Some bytes say something else: a large number, a negative one, anything.
    Lie(prop::sample::Index, Vec<u8>),
    /// More comes after it.
    More(Vec<u8>),
}

fn spoil() -> impl Strategy<Value = Vec<Spoil>> {
    let bytes = |len| prop::collection::vec(any::<u8>(), len);
    let lie = prop_oneof![
        Just(vec![0x7f, 0xff, 0xff, 0xff]),
        Just(vec![0xff, 0xff, 0xff, 0xff, 0x07]),
        Just(vec![0x80, 0, 0, 0]),
        Just(vec![0x7f, 0xff]),
        bytes(1..6),
    ];
    let one = prop_oneof![
        bytes(0..300).prop_map(Spoil::Garbage),
        any::<prop::sample::Index>().prop_map(Spoil::Cut),
        (any::<prop::sample::Index>(), lie).prop_map(|(at, lie)| Spoil::Lie(at, lie)),
        bytes(1..40).prop_map(Spoil::More),
    ];
    prop::collection::vec(one, 1..4)
}

fn spoilt(mut bytes: Vec<u8>, how: &[Spoil], from: usize) -> Vec<u8> {
    for how in how {
        let len = bytes.len() - from;
        match how {
            Spoil::Garbage(garbage) => drop(bytes.splice(from.., garbage.iter().copied())),
            Spoil::Cut(at) => bytes.truncate(from + at.index(len + 1)),
            Spoil::More(more) => bytes.extend(more),
            Spoil::Lie(at, lie) => {
                let at = from + at.index(len + 1);
                let end = bytes.len().min(at + lie.len());
                bytes.splice(at..end, lie.iter().copied());
            }
        }
    }
    bytes
}

/// A request and a response of each version, spoilt after their headers, for the decoders of both sides.
fn feed<R>(api: Api, how: &[Spoil])
where
    R: Request + Default,
    R::Response: Default + Encodable,
{
    for version in api.version_min..=api.version_max {
        let Ok(request) = frame::encode_request(&R::default(), version, 1) else {
            continue;
        };
        let header = request.len() - 4 - {
            let mut message = bytes::BytesMut::new();
            R::default()
                .encode(&mut message, version)
                .expect("it was encoded");
            message.len()
        };
        let bytes = Bytes::from(spoilt(request[4..].to_vec(), how, header));
        let _ = frame::decode_request::<R>(&bytes, version);
        follow_the_skeleton::<R>(api, version, how);
        if version < api.flexible {
            // Our client does not ask for it.
            continue;
        }
        let response = frame::encode_response(api.key, version, 1, &R::Response::default());
        if let Ok(response) = response {
            let bytes = Bytes::from(spoilt(response[4..].to_vec(), how, 4));
            let _ = frame::decode_response::<R>(&bytes, version);
        }
    }
}

/// What a skeleton says is there is what the decoder reads, to the last byte; and spoilt, it takes no memory.
fn follow_the_skeleton<R: Request>(api: Api, version: i16, how: &[Spoil]) {
    let seed = xxhash_rust::xxh3::xxh3_64(format!("{how:?}").as_bytes());
    let sample = skeleton::sample(api, version, seed);
    let mut rest = Bytes::from(sample.clone());
    let header = RequestHeader::decode(&mut rest, R::header_version(version));
    header.expect("a header as we walk over it");
    let message = R::decode(&mut rest, version);
    message.unwrap_or_else(|error| panic!("{:?} {version}: {error}", api.key));
    assert!(
        rest.is_empty(),
        "{:?} {version}: {} are left",
        api.key,
        rest.len()
    );
    assert!(frame::decode_request::<R>(&Bytes::from(sample.clone()), version).is_ok());
    let _ = frame::decode_request::<R>(&Bytes::from(spoilt(sample, how, 8)), version);
}

fn feed_any(api: Api, how: &[Spoil]) {
    match api.key {
        ApiKey::Produce => feed::<ProduceRequest>(api, how),
        ApiKey::Fetch => feed::<FetchRequest>(api, how),
        ApiKey::ListOffsets => feed::<ListOffsetsRequest>(api, how),
        ApiKey::Metadata => feed::<MetadataRequest>(api, how),
        ApiKey::OffsetCommit => feed::<OffsetCommitRequest>(api, how),
        ApiKey::OffsetFetch => feed::<OffsetFetchRequest>(api, how),
        ApiKey::FindCoordinator => feed::<FindCoordinatorRequest>(api, how),
        ApiKey::JoinGroup => feed::<JoinGroupRequest>(api, how),
        ApiKey::Heartbeat => feed::<HeartbeatRequest>(api, how),
        ApiKey::LeaveGroup => feed::<LeaveGroupRequest>(api, how),
        ApiKey::SyncGroup => feed::<SyncGroupRequest>(api, how),
        ApiKey::DescribeGroups => feed::<DescribeGroupsRequest>(api, how),
        ApiKey::ListGroups => feed::<ListGroupsRequest>(api, how),
        ApiKey::ApiVersions => feed::<ApiVersionsRequest>(api, how),
        ApiKey::CreateTopics => feed::<CreateTopicsRequest>(api, how),
        ApiKey::DeleteTopics => feed::<DeleteTopicsRequest>(api, how),
        ApiKey::CreatePartitions => feed::<CreatePartitionsRequest>(api, how),
        ApiKey::AlterConfigs => feed::<AlterConfigsRequest>(api, how),
        ApiKey::IncrementalAlterConfigs => feed::<IncrementalAlterConfigsRequest>(api, how),
        ApiKey::DeleteRecords => feed::<DeleteRecordsRequest>(api, how),
        ApiKey::DescribeLogDirs => feed::<DescribeLogDirsRequest>(api, how),
        ApiKey::OffsetDelete => feed::<OffsetDeleteRequest>(api, how),
        ApiKey::OffsetForLeaderEpoch => feed::<OffsetForLeaderEpochRequest>(api, how),
        ApiKey::InitProducerId => feed::<InitProducerIdRequest>(api, how),
        ApiKey::AddPartitionsToTxn => feed::<AddPartitionsToTxnRequest>(api, how),
        ApiKey::AddOffsetsToTxn => feed::<AddOffsetsToTxnRequest>(api, how),
        ApiKey::EndTxn => feed::<EndTxnRequest>(api, how),
        ApiKey::WriteTxnMarkers => feed::<WriteTxnMarkersRequest>(api, how),
        ApiKey::TxnOffsetCommit => feed::<TxnOffsetCommitRequest>(api, how),
        ApiKey::DescribeConfigs => feed::<DescribeConfigsRequest>(api, how),
        ApiKey::DeleteGroups => feed::<DeleteGroupsRequest>(api, how),
        ApiKey::DescribeCluster => feed::<DescribeClusterRequest>(api, how),
        ApiKey::DescribeProducers => feed::<DescribeProducersRequest>(api, how),
        ApiKey::DescribeTransactions => feed::<DescribeTransactionsRequest>(api, how),
        ApiKey::ListTransactions => feed::<ListTransactionsRequest>(api, how),
        other => panic!("{other:?} is served, and not fed"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_spoilt_message_is_an_error_or_a_message(how in spoil()) {
        for api in APIS {
            feed_any(api, &how);
        }
    }

    #[test]
    fn what_members_say_of_themselves_is_an_error_or_sense(
        bytes in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        let _ = skeleton::check_subscription(&bytes);
        let _ = skeleton::check_assignment(&bytes);
    }

    /// The checksum is right: whoever sends garbage can count.
    #[test]
    fn a_spoilt_batch_is_an_error_or_a_batch(how in spoil(), packed in 0u8..6) {
        let record = NewRecord {
            key: Some("key".into()),
            value: Some("value".into()),
            headers: vec![("name".to_owned(), "header".into())],
            timestamp_ms: 1_700_000_000_000,
        };
        let by = Identity {
            producer: ProducerId(7),
            epoch: ProducerEpoch(1),
            sequence: Sequence(3),
            transactional: true,
        };
        let batch = batch::encode(&[record.clone(), record], by).unwrap();
        let mut bytes = spoilt(batch.to_vec(), &how, 21);
        bytes.resize(bytes.len().max(batch::HEADER_BYTES), 0);
        bytes[22] = bytes[22] & !7 | packed;
        let claimed = bytes.len() as i32 - 12;
        bytes[8..12].copy_from_slice(&claimed.to_be_bytes());
        let sum = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&sum.to_be_bytes());
        let bytes = Bytes::from(bytes);
        let mut checking = Checking::begin(bytes.clone(), i64::MAX);
        while let Ok(more) = &mut checking {
            match more.go_on() {
                Ok(None) => {}
                // What a broker keeps, its readers can take apart.
                Ok(Some(checked)) => {
                    let read = batch::decode(checked.bytes()).expect("it was checked");
                    prop_assert_eq!(read.len(), 1);
                    break;
                }
                Err(_) => break,
            }
        }
        let _ = batch::decode(&bytes);
    }
}

#[test]
fn the_memory_is_limited() {
    assert!(MEMORY.limit() <= 512 << 20);
}
