//! What hostile peers do, and what must become of it.

use super::{batch_of, fetch, produce, text, End, Fate, Siege};
use bytes::Bytes;
use engine::wire::{
    batch::HEADER_BYTES,
    frame::{decode_response, encode_request},
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        describe_configs_request::DescribeConfigsResource,
        join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        DescribeConfigsRequest, DescribeGroupsRequest, DescribeLogDirsRequest, HeartbeatRequest,
        JoinGroupRequest, LeaveGroupRequest, ListGroupsRequest, ListOffsetsRequest,
        ListTransactionsRequest, MetadataRequest, ProduceRequest, SyncGroupRequest, TopicName,
    },
    protocol::Request,
};
use std::{
    io::{self, Write},
    net::TcpStream,
    thread::sleep,
    time::Duration,
};

/// A request of tiny elements.
const HUGE: usize = 15 << 20;
/// The configurations of a topic; those of a broker.
const TOPIC: i8 = 2;

/// All kinds.
pub fn all(siege: &mut Siege) {
    // So many elements are refused, however small they are; some fewer are not.
    for (name, request) in tiny_requests(HUGE) {
        siege.attack(name, Fate::Closed, move |at, _| send(at, &request, 1));
    }
    for (name, request) in tiny_requests(48_000) {
        let fate = Fate::Answered(|answer| answer.len() > 8);
        siege.attack(name, fate, move |at, _| send(at, &request, 1));
    }
    siege.attack("half frames", Fate::Borne, half_frames);
    siege.attack("answers that nobody reads", Fate::Borne, never_readers);
    siege.attack("joins and waits", Fate::Borne, parked);
    siege.attack("a byte now and then", Fate::Borne, slow_loris);
    siege.attack("garbage", Fate::Closed, |at, number| {
        // A whole frame: half of one would only be waited for.
        let garbage = (1..998).map(|byte| (byte * (number % 250 + 1) % 251) as u8);
        let mut frame = 997i32.to_be_bytes().to_vec();
        frame.extend(garbage);
        send(at, &frame, 1)
    });
    for (name, bomb) in [("snappy", snappy_bomb()), ("zstd", zstd_bomb())] {
        let bomb = encode(&produce("good", bomb), 11);
        let is_right = |answer| {
            let answer = decode_response::<ProduceRequest>(&answer, 11).expect("a response");
            let code = answer.responses[0].partition_responses[0].error_code;
            code == ResponseError::MessageTooLarge.code()
        };
        siege.attack(name, Fate::Answered(is_right), move |at, _| {
            send(at, &bomb, 1)
        });
    }
    groups_that_are_not_there(siege);
    all_there_is(siege);
    let by_time = encode(&offset_by_time(), 6);
    let is_right = |answer| {
        let answer = decode_response::<ListOffsetsRequest>(&answer, 6).expect("a response");
        let partition = &answer.topics[0].partitions[0];
        (partition.error_code, partition.offset) == (0, 0)
    };
    siege.attack("offsets by time", Fate::Answered(is_right), move |at, _| {
        crowd(at, 20, &by_time.repeat(4))
    });
}

/// Under a new name each, as long as one may be: nothing of it may stay.
fn groups_that_are_not_there(siege: &mut Siege) {
    const MANY: usize = 100;
    fn name(number: usize, one: usize) -> String {
        format!("{number}-{one}-{}", "n".repeat(32_000))
    }
    fn attack<R: Request>(
        siege: &mut Siege,
        kind: &'static str,
        is_right: fn(Bytes) -> bool,
        version: i16,
        request: impl Fn(&str) -> R + Send + 'static,
    ) {
        siege.attack(kind, Fate::Answered(is_right), move |at, number| {
            let names = (0..MANY).map(|one| name(number, one));
            let all = names.flat_map(|name| encode(&request(&name), version));
            send(at, &all.collect::<Vec<u8>>(), MANY)
        });
    }
    // UNKNOWN_MEMBER_ID.
    const UNKNOWN: i16 = 25;
    let beaten = |answer| {
        let answer = decode_response::<HeartbeatRequest>(&answer, 4).expect("a response");
        answer.error_code == UNKNOWN
    };
    attack(siege, "heartbeats", beaten, 4, |name| {
        HeartbeatRequest::default()
            .with_group_id(text(name).into())
            .with_member_id(text("nobody"))
    });
    let synced = |answer| {
        let answer = decode_response::<SyncGroupRequest>(&answer, 4).expect("a response");
        answer.error_code == UNKNOWN
    };
    attack(siege, "syncs", synced, 4, |name| {
        SyncGroupRequest::default()
            .with_group_id(text(name).into())
            .with_member_id(text("nobody"))
    });
    let left = |answer| {
        let answer = decode_response::<LeaveGroupRequest>(&answer, 4).expect("a response");
        answer.members[0].error_code == UNKNOWN
    };
    attack(siege, "leaves", left, 4, |name| {
        let nobody = MemberIdentity::default().with_member_id(text("nobody"));
        LeaveGroupRequest::default()
            .with_group_id(text(name).into())
            .with_members(vec![nobody])
    });
    let refused = |answer| {
        let answer = decode_response::<JoinGroupRequest>(&answer, 6).expect("a response");
        answer.error_code == ResponseError::InconsistentGroupProtocol.code()
    };
    // They name no protocol.
    attack(siege, "joins that fail", refused, 6, |name| {
        JoinGroupRequest::default()
            .with_group_id(text(name).into())
            .with_member_id(text("nobody"))
            .with_session_timeout_ms(10_000)
            .with_protocol_type(text("consumer"))
    });
}

/// Short questions with long answers, on many connections.
fn all_there_is(siege: &mut Siege) {
    let configs = (0..6).map(|number| {
        DescribeConfigsResource::default()
            .with_resource_type(TOPIC)
            .with_resource_name(text(&format!("wide-{number}")))
            .with_configuration_keys(None)
    });
    let configs = DescribeConfigsRequest::default()
        .with_resources(configs.collect())
        .with_include_synonyms(true);
    let hostile = (0..7).map(|number| text(&format!("hostile-{number}")).into());
    let groups = DescribeGroupsRequest::default().with_groups(hostile.collect());
    let all = [
        (
            "all topics",
            everything(&MetadataRequest::default().with_topics(None), 8),
        ),
        ("all configurations", everything(&configs, 4)),
        ("all groups", everything(&ListGroupsRequest::default(), 3)),
        ("groups with members", everything(&groups, 5)),
        (
            "all transactions",
            everything(&ListTransactionsRequest::default(), 0),
        ),
        (
            "all sizes",
            everything(&DescribeLogDirsRequest::default().with_topics(None), 2),
        ),
    ];
    for (name, requests) in all {
        let fate = Fate::Answered(|answer| answer.len() > 8);
        siege.attack(name, fate, move |at, _| crowd(at, 40, &requests));
    }
}

fn everything<R: Request>(request: &R, version: i16) -> Vec<u8> {
    encode(request, version).repeat(4)
}

fn encode<R: Request>(request: &R, version: i16) -> Vec<u8> {
    let request = encode_request(request, version, 7).expect("a request");
    request.to_vec()
}

/// A request of a flexible version, in its frame: `before`, so many times `element`, `after`.
fn tiny(key: i16, version: i16, parts: (&[u8], &[u8], &[u8]), count: usize) -> Vec<u8> {
    let (before, element, after) = parts;
    let mut body = Vec::with_capacity(count * element.len() + 100);
    body.extend(key.to_be_bytes());
    body.extend(version.to_be_bytes());
    body.extend([0, 0, 0, 7, 0xff, 0xff, 0]);
    body.extend(before);
    body.extend(varint(count + 1));
    for _ in 0..count {
        body.extend(element);
    }
    body.extend(after);
    let mut request = (body.len() as i32).to_be_bytes().to_vec();
    request.extend(body);
    request
}

/// Requests whose elements take a few bytes each, and some hundred once they are decoded.
fn tiny_requests(bytes: usize) -> Vec<(&'static str, Vec<u8>)> {
    let produce = [&[0, 0xff, 0xff][..], &[0, 0, 0, 9]].concat();
    let fetch = [0xff; 25];
    vec![
        ("many groups", tiny(15, 5, (&[], &[1], &[0, 0]), bytes)),
        ("many transactions", tiny(65, 0, (&[], &[1], &[0]), bytes)),
        ("many coordinators", tiny(10, 4, (&[1], &[1], &[0]), bytes)),
        (
            "many fetched topics",
            tiny(1, 12, (&fetch, &[1, 1, 0], &[1, 1, 0]), bytes / 3),
        ),
        (
            "many produced topics",
            tiny(0, 9, (&produce, &[1, 1, 0], &[0]), bytes / 3),
        ),
    ]
}

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

/// Whoever is to be answered waits for its turn among all the others.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends so many requests, and reads what comes.
fn send(address: &str, requests: &[u8], count: usize) -> io::Result<Vec<End>> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = stream.try_clone()?;
    // It may be closed before all is written.
    let ends = std::thread::scope(|scope| {
        let writing = scope.spawn(|| stream.write_all(requests));
        let mut ends = Vec::new();
        for _ in 0..count {
            let end = End::of(&mut reader);
            let is_over = !matches!(end, End::Answered(_));
            ends.push(end);
            if is_over {
                break;
            }
        }
        let _ = writing.join().expect("it writes");
        ends
    });
    Ok(ends)
}

/// So many connections send the same and read nothing for a while; then one answer each.
fn crowd(address: &str, count: usize, requests: &[u8]) -> io::Result<Vec<End>> {
    let mut crowd = Vec::new();
    for _ in 0..count {
        let mut stream = connect(address)?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        let _ = stream.write_all(requests);
        crowd.push(stream);
    }
    sleep(Duration::from_secs(1));
    let ends = crowd.iter_mut().map(|stream| {
        match stream.set_read_timeout(Some(Duration::from_millis(500))) {
            Ok(()) => End::of(stream),
            Err(_) => End::Closed,
        }
    });
    Ok(ends.collect())
}

/// What has become of connections by now.
fn ends_of(mut crowd: Vec<TcpStream>) -> Vec<End> {
    let ends = crowd.iter_mut().map(|stream| {
        match stream.set_read_timeout(Some(Duration::from_millis(1))) {
            Ok(()) => End::of(stream),
            Err(_) => End::Closed,
        }
    });
    ends.collect()
}

/// A batch of one record, all zeros, as snappy packs it: it unpacks to some more than this.
pub fn packed(bytes: usize) -> Bytes {
    let plain = batch_of(vec![0; bytes]);
    let (header, records) = plain.split_at(HEADER_BYTES);
    // After its prefix, whose last byte is not a zero, there are only zeros.
    let last = records
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("a length");
    let literal = &records[..last + 2];
    let mut snappy = varint(records.len());
    snappy.push((literal.len() as u8 - 1) << 2);
    snappy.extend(literal);
    let mut left = records.len() - literal.len();
    while left > 0 {
        let copied = left.min(64);
        snappy.extend([(copied as u8 - 1) << 2 | 2, 1, 0]);
        left -= copied;
    }
    sealed(header, 2, &snappy)
}

/// A batch with these records, packed so, and a checksum that is right.
fn sealed(header: &[u8], codec: u8, records: &[u8]) -> Bytes {
    let mut bytes = [header, records].concat();
    bytes[22] |= codec;
    let len = bytes.len() as i32 - 12;
    bytes[8..12].copy_from_slice(&len.to_be_bytes());
    let sum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&sum.to_be_bytes());
    bytes.into()
}

/// Unpacks to 17 MiB, which is more than a batch may.
fn snappy_bomb() -> Bytes {
    packed(17 << 20)
}

/// Five kilobytes that fill a window of 128 MiB.
fn zstd_bomb() -> Bytes {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x88];
    for number in 1..=1100u32 {
        // 128 KiB of one byte.
        let block = (128 << 10) << 3 | 1 << 1 | u32::from(number == 1100);
        frame.extend(&block.to_le_bytes()[..3]);
        frame.push(0);
    }
    sealed(&batch_of(Vec::new())[..HEADER_BYTES], 4, &frame)
}

fn offset_by_time() -> ListOffsetsRequest {
    let partition = ListOffsetsPartition::default()
        .with_current_leader_epoch(-1)
        .with_timestamp(1);
    let topic = ListOffsetsTopic::default()
        .with_name(TopicName(text("packed")))
        .with_partitions(vec![partition]);
    ListOffsetsRequest::default()
        .with_replica_id((-1).into())
        .with_topics(vec![topic])
}

/// The beginnings of large requests, and of smaller ones, on many connections.
fn half_frames(address: &str, number: usize) -> io::Result<Vec<End>> {
    let (claimed, sent) = match number % 2 {
        0 => (HUGE, 4 << 20),
        _ => (1 << 20, 1000 << 10),
    };
    let mut begun = (claimed as i32).to_be_bytes().to_vec();
    begun.extend([0, 3, 0, 12]);
    begun.resize(sent, 1);
    let mut crowd = Vec::new();
    for _ in 0..100 {
        let mut stream = connect(address)?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        // Its socket takes no more: the broker waits, too.
        let _ = stream.write_all(&begun);
        crowd.push(stream);
    }
    sleep(Duration::from_secs(3));
    Ok(ends_of(crowd))
}

/// They ask for all there is, again and again, and read nothing.
fn never_readers(address: &str, _: usize) -> io::Result<Vec<End>> {
    let fetch = encode(&fetch("hostile", 0, 50 << 20), 11);
    let metadata = encode(&MetadataRequest::default().with_topics(None), 8);
    let mut crowd = Vec::new();
    for _ in 0..60 {
        let mut stream = connect(address)?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        for _ in 0..16 {
            let _ = stream.write_all(&fetch);
            let _ = stream.write_all(&metadata);
        }
        crowd.push(stream);
    }
    sleep(Duration::from_secs(3));
    Ok(ends_of(crowd))
}

fn join(number: usize) -> Vec<u8> {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(vec![7; 500 << 10].into());
    let request = JoinGroupRequest::default()
        // Some in a group of their own, most in one where they wait for each other.
        .with_group_id(text(&format!("hostile-{}", number % 7)).into())
        .with_session_timeout_ms(1_000_000)
        .with_rebalance_timeout_ms(1_000_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    encode(&request, 3)
}

/// They join groups, and never come back.
fn parked(address: &str, number: usize) -> io::Result<Vec<End>> {
    let mut crowd = Vec::new();
    for one in 0..60 {
        let mut stream = connect(address)?;
        let _ = stream.write_all(&join(number * 60 + one));
        crowd.push(stream);
    }
    sleep(Duration::from_secs(2));
    Ok(ends_of(crowd))
}

/// Connections that say a byte now and then.
fn slow_loris(address: &str, _: usize) -> io::Result<Vec<End>> {
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(connect(address)?);
    }
    for byte in [0, 0, 1, 0, 0, 3, 0, 8] {
        for stream in &mut crowd {
            let _ = stream.write_all(&[byte]);
        }
        sleep(Duration::from_millis(300));
    }
    Ok(ends_of(crowd))
}
