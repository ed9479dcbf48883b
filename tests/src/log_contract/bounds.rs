//! Where partitions begin and end: offsets by time, records that are deleted, sizes; positions that are forgotten; and
//! producers that were forgotten.

use super::{at, topics::until, Stand};
use engine::{
    ids::Offset,
    log::{
        cluster::KeyType,
        consumer::{Consumer, FetchError},
        member::{self, Member, MemberConfig},
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
    wire::{
        batch::{self, Identity},
        frame,
    },
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
        describe_log_dirs_request::DescribableLogDirTopic,
        leave_group_request::MemberIdentity,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        list_offsets_response::ListOffsetsPartitionResponse,
        offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
        offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic},
        offset_for_leader_epoch_response::EpochEndOffset,
        DeleteRecordsRequest, DescribeLogDirsRequest, HeartbeatRequest, InitProducerIdRequest,
        InitProducerIdResponse, LeaveGroupRequest, ListGroupsRequest, ListOffsetsRequest,
        OffsetDeleteRequest, OffsetDeleteResponse, OffsetForLeaderEpochRequest, SyncGroupRequest,
    },
    protocol::StrBytes,
};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

impl Stand {
    /// Appends one batch of records with these times.
    async fn append(&self, to: &TopicPartition, times_ms: &[i64]) {
        let records: Vec<NewRecord> = times_ms
            .iter()
            .map(|time| NewRecord {
                value: Some(time.to_string().into()),
                timestamp_ms: *time,
                ..NewRecord::default()
            })
            .collect();
        let batch = batch::encode(&records, Identity::NOBODY).unwrap();
        assert_eq!(self.produce(to, None, batch).await.error_code, 0);
    }

    async fn offset_at(&self, of: &TopicPartition, time: i64) -> ListOffsetsPartitionResponse {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(of.partition.0)
            .with_current_leader_epoch(-1)
            .with_timestamp(time);
        let topic = ListOffsetsTopic::default()
            .with_name(text(&of.topic).into())
            .with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default()
            .with_replica_id((-1).into())
            .with_topics(vec![topic]);
        let mut answer = self.ask_leader(of, &request).await;
        answer.topics[0].partitions.remove(0)
    }

    /// Asks whichever broker is the group's coordinator. Our client does not speak this request: it has no flexible
    /// version.
    async fn forget(&self, request: &OffsetDeleteRequest) -> OffsetDeleteResponse {
        for broker in &self.brokers {
            let host = self.cluster.host();
            let mut connection = host.net.connect(broker).await.unwrap();
            let bytes = frame::encode_request(request, 0, 7).unwrap();
            connection.write_all(&bytes).await.unwrap();
            let answer = frame::read_frame(&mut connection).await.unwrap().unwrap();
            let answer = frame::decode_response::<OffsetDeleteRequest>(&answer, 0).unwrap();
            if answer.error_code != ResponseError::NotCoordinator.code() {
                return answer;
            }
        }
        panic!("no broker coordinates the group");
    }

    /// The error, and where the partition begins then.
    async fn delete_records(&self, of: &TopicPartition, until: i64) -> (i16, i64) {
        let partition = DeleteRecordsPartition::default()
            .with_partition_index(of.partition.0)
            .with_offset(until);
        let topic = DeleteRecordsTopic::default()
            .with_name(text(&of.topic).into())
            .with_partitions(vec![partition]);
        let request = DeleteRecordsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(5000);
        let answer = self.ask_leader(of, &request).await;
        let partition = &answer.topics[0].partitions[0];
        (partition.error_code, partition.low_watermark)
    }

    async fn end_of_epoch(&self, of: &TopicPartition, current: i32, epoch: i32) -> EpochEndOffset {
        let partition = OffsetForLeaderPartition::default()
            .with_partition(of.partition.0)
            .with_current_leader_epoch(current)
            .with_leader_epoch(epoch);
        let topic = OffsetForLeaderTopic::default()
            .with_topic(text(&of.topic).into())
            .with_partitions(vec![partition]);
        let request = OffsetForLeaderEpochRequest::default()
            .with_replica_id((-1).into())
            .with_topics(vec![topic]);
        let mut answer = self.ask_leader(of, &request).await;
        answer.topics[0].partitions.remove(0)
    }
}

pub(super) async fn offsets_are_found_by_time(stand: Stand) {
    let of = at(&stand.topic("timed", 1).await, 0);
    let told = |found: ListOffsetsPartitionResponse| {
        assert_eq!(found.error_code, 0, "{found:?}");
        (found.offset, found.timestamp)
    };
    assert_eq!(
        told(stand.offset_at(&of, -3).await),
        (-1, -1),
        "it is empty"
    );
    let base = 1_700_000_000_000;
    stand.append(&of, &[base, base + 10, base + 20]).await;
    stand.append(&of, &[base + 15, base + 40, base + 30]).await;
    stand.append(&of, &[base + 5]).await;
    for (time, offset) in [(0, 0), (10, 1), (11, 2), (21, 4), (31, 4)] {
        let (found, at) = told(stand.offset_at(&of, base + time).await);
        assert_eq!(found, offset, "the first since {time}");
        assert!(at >= base + time);
    }
    assert_eq!(told(stand.offset_at(&of, base + 41).await), (-1, -1));
    assert_eq!(told(stand.offset_at(&of, -1).await), (7, -1));
    assert_eq!(told(stand.offset_at(&of, -2).await), (0, -1));
    assert_eq!(
        told(stand.offset_at(&of, -3).await),
        (4, base + 40),
        "the newest"
    );
    assert_eq!(
        told(stand.offset_at(&of, -4).await),
        (0, -1),
        "the earliest here"
    );
    assert_eq!(
        told(stand.offset_at(&of, -5).await).0,
        -1,
        "there is no second tier"
    );
    let wrong = stand.offset_at(&of, -77).await;
    assert_eq!(wrong.error_code, ResponseError::UnsupportedVersion.code());
}

pub(super) async fn records_are_deleted_up_to_an_offset(stand: Stand) {
    let of = at(&stand.topic("deleted", 1).await, 0);
    let base = 1_700_000_000_000;
    let out = ResponseError::OffsetOutOfRange.code();
    assert_eq!(stand.delete_records(&of, -1).await, (0, 0), "it is empty");
    for batch in 0..4 {
        let times: Vec<i64> = (0..5).map(|record| base + batch * 5 + record).collect();
        stand.append(&of, &times).await;
    }
    assert_eq!(stand.delete_records(&of, 21).await.0, out, "beyond the end");
    assert_eq!(stand.delete_records(&of, -2).await.0, out);
    // In the middle of a batch.
    assert_eq!(stand.delete_records(&of, 7).await, (0, 7));
    assert_eq!(
        stand.delete_records(&of, 3).await,
        (0, 7),
        "it never goes back"
    );
    assert_eq!(stand.cluster.start_offset(&of).await.unwrap(), Offset(7));
    assert_eq!(stand.offset_at(&of, base).await.offset, 7, "what is left");
    let mut reader = Consumer::new(stand.cluster.clone(), of.clone(), Offset(6));
    let gone = reader.poll().await;
    assert!(
        matches!(gone, Err(FetchError::OutOfRange { .. })),
        "{gone:?}"
    );
    let mut reader = Consumer::new(stand.cluster.clone(), of.clone(), Offset(7));
    let mut read = Vec::new();
    while reader.position() < Offset(20) {
        read.extend(reader.poll().await.unwrap());
    }
    assert_eq!(read.first().map(|record| record.offset), Some(Offset(7)));
    assert_eq!(read.len(), 13);
    assert_eq!(stand.delete_records(&of, -1).await, (0, 20), "all of them");
    let producer = Producer::new(stand.cluster.clone(), ProducerConfig::default()).await;
    let ack = producer.send(&of, super::record("next")).await.await;
    assert_eq!(ack.unwrap(), Some(Offset(20)));
    let nowhere = at(&stand.name("nowhere"), 0);
    let topic = DeleteRecordsTopic::default()
        .with_name(text(&nowhere.topic).into())
        .with_partitions(vec![DeleteRecordsPartition::default()]);
    let request = DeleteRecordsRequest::default().with_topics(vec![topic]);
    let answer = stand.ask(&request).await;
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(answer.topics[0].partitions[0].error_code, unknown);
}

/// KIP-320.
pub(super) async fn an_epoch_ends_where_the_log_does(stand: Stand) {
    let of = at(&stand.topic("epochs", 1).await, 0);
    stand
        .append(&of, &[1_700_000_000_000, 1_700_000_000_001])
        .await;
    let now = stand.offset_at(&of, -1).await.leader_epoch;
    let end = stand.end_of_epoch(&of, now, now).await;
    assert_eq!(
        (end.error_code, end.leader_epoch, end.end_offset),
        (0, now, 2)
    );
    let end = stand.end_of_epoch(&of, -1, now + 5).await;
    assert_eq!(
        (end.error_code, end.leader_epoch, end.end_offset),
        (0, -1, -1)
    );
    let newer = stand.end_of_epoch(&of, now + 1, now).await;
    assert_eq!(newer.error_code, ResponseError::UnknownLeaderEpoch.code());
}

pub(super) async fn the_bytes_of_partitions_are_told(stand: Stand) {
    let topic = stand.topic("sized", 2).await;
    stand.append(&at(&topic, 0), &[1_700_000_000_000; 10]).await;
    let asked = DescribableLogDirTopic::default()
        .with_topic(text(&topic).into())
        .with_partitions(vec![0, 1]);
    let request = DescribeLogDirsRequest::default().with_topics(Some(vec![asked]));
    let mut sizes = std::collections::BTreeMap::new();
    for broker in &stand.brokers {
        let connection = stand.cluster.connect(broker).await.unwrap();
        let answer = connection.call(&request).await.unwrap();
        assert_eq!(answer.error_code, 0);
        for dir in &answer.results {
            assert_eq!(dir.error_code, 0);
            for partition in dir.topics.iter().flat_map(|topic| &topic.partitions) {
                let before = sizes.insert(partition.partition_index, partition.partition_size);
                assert_eq!(before, None, "a partition is in one place");
            }
        }
    }
    assert!(sizes[&0] > 100 && sizes[&1] == 0, "{sizes:?}");
}

/// KIP-496.
pub(super) async fn positions_of_topics_that_nobody_reads_are_forgotten(stand: Stand) {
    let (read, left) = (stand.topic("read", 1).await, stand.topic("left", 1).await);
    let config = MemberConfig {
        group: stand.name("forgetful"),
        topics: vec![read.clone()],
        session: Duration::from_secs(10),
        rebalance: Duration::from_secs(10),
    };
    let forget = |group: String| {
        let (stand, read, left) = (stand.clone(), read.clone(), left.clone());
        async move {
            let of = |topic: &str| {
                let partition = OffsetDeleteRequestPartition::default();
                OffsetDeleteRequestTopic::default()
                    .with_name(text(topic).into())
                    .with_partitions(vec![partition])
            };
            let request = OffsetDeleteRequest::default()
                .with_group_id(text(&group).into())
                .with_topics(vec![of(&read), of(&left)]);
            let answer = stand.forget(&request).await;
            let mut codes = Vec::new();
            for topic in [&read, &left] {
                let mut told = answer.topics.iter();
                let told = told.find(|told| told.name.as_str() == topic.as_str());
                codes.extend(told.map(|told| told.partitions[0].error_code));
            }
            (answer.error_code, codes)
        }
    };
    let nobody = forget(stand.name("no-such-group")).await;
    assert_eq!(nobody.0, ResponseError::GroupIdNotFound.code());
    let mut member = Member::new(stand.cluster.clone(), config.clone());
    let joined = member.join().await;
    let positions = [(at(&read, 0), Offset(0)), (at(&left, 0), Offset(0))];
    member.commit(&joined.membership, &positions).await.unwrap();
    let used = ResponseError::GroupSubscribedToTopic.code();
    assert_eq!(forget(config.group.clone()).await, (0, vec![used, 0]));
    let position = |topic: &str| {
        let (stand, group, of) = (stand.clone(), config.group.clone(), at(topic, 0));
        async move { member::position(&stand.cluster, &group, &of).await }
    };
    assert_eq!(position(&read).await, Some(Offset(0)));
    assert_eq!(position(&left).await, None);
    member.leave().await;
    assert_eq!(forget(config.group.clone()).await, (0, vec![0, 0]));
    assert_eq!(position(&read).await, None);
}

/// Anybody may ask, under any name: whatever that left behind would be there for ever.
pub(super) async fn who_only_asks_of_a_group_leaves_none_behind(stand: Stand) {
    let group = stand.name("never-joined");
    let unknown = ResponseError::UnknownMemberId.code();
    let coordinator = (stand.cluster).share_coordinator(KeyType::Group, &group);
    let coordinator = coordinator.await.unwrap();
    let heartbeat = HeartbeatRequest::default()
        .with_group_id(text(&group).into())
        .with_generation_id(1)
        .with_member_id(text("nobody"));
    let beaten = until(
        || async { coordinator.call(&heartbeat).await.unwrap().error_code },
        // Its coordinator may still be loading.
        |code| *code == unknown,
    );
    beaten.await;
    // Since version 5 a member says which protocol it follows; Kafka refuses who does not before it looks for the group.
    let sync = SyncGroupRequest::default()
        .with_group_id(text(&group).into())
        .with_generation_id(1)
        .with_member_id(text("nobody"))
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")));
    assert_eq!(coordinator.call(&sync).await.unwrap().error_code, unknown);
    let member = MemberIdentity::default().with_member_id(text("nobody"));
    let leave = LeaveGroupRequest::default()
        .with_group_id(text(&group).into())
        .with_members(vec![member]);
    let left = coordinator.call(&leave).await.unwrap();
    assert_eq!(left.members[0].error_code, unknown);
    let all = coordinator.call(&ListGroupsRequest::default()).await;
    let all = all.unwrap().groups;
    assert!(all.iter().all(|one| one.group_id.as_str() != group));
}

/// Kafka's coordinator, too, has forgotten who was silent for long, and lets it go on as somebody new.
pub(super) async fn who_was_forgotten_goes_on_as_somebody_new(stand: Stand) {
    let id = stand.name("forgotten");
    let init = |producer: i64, epoch: i16| {
        let (stand, id) = (stand.clone(), id.clone());
        async move {
            let request = InitProducerIdRequest::default()
                .with_transactional_id(Some(text(&id).into()))
                .with_transaction_timeout_ms(10_000)
                .with_producer_id(producer.into())
                .with_producer_epoch(epoch);
            until(
                || async {
                    let coordinator = stand.cluster.share_coordinator(KeyType::Transaction, &id);
                    coordinator.await.ok()?.call(&request).await.ok()
                },
                |told: &Option<InitProducerIdResponse>| {
                    let code = told.as_ref().map(|told| told.error_code);
                    let error = code.map(ResponseError::try_from_code);
                    error.is_some_and(|error| error.is_none_or(|error| !error.is_retriable()))
                },
            )
            .await
            .unwrap()
        }
    };
    let new = init(123_456, 7).await;
    assert_eq!((new.error_code, new.producer_epoch), (0, 0), "{new:?}");
    assert_ne!(new.producer_id.0, 123_456);
    let next = init(new.producer_id.0, 0).await;
    assert_eq!((next.error_code, next.producer_epoch), (0, 1), "{next:?}");
    assert_eq!(next.producer_id, new.producer_id);
    let half = init(5, -1).await;
    assert_eq!(half.error_code, ResponseError::InvalidRequest.code());
    let somebody = init(123_456, 7).await;
    let fenced = [
        ResponseError::ProducerFenced.code(),
        ResponseError::InvalidProducerEpoch.code(),
    ];
    assert!(fenced.contains(&somebody.error_code), "{somebody:?}");
}
