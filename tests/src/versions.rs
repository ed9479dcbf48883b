//! Each version of each request that the broker says it serves: it answers, and in that version.

use crate::stage::{addresses, play};
use engine::{
    host::Connection,
    ids::{Offset, PartitionId},
    log::{
        cluster::Cluster,
        transactional::{TransactionalConfig, TransactionalProducer},
        TopicPartition,
    },
    record::NewRecord,
    wire::{
        batch::{self, Identity},
        frame, APIS,
    },
};
use kafka_protocol::{
    messages::{
        add_partitions_to_txn_request::{AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction},
        create_topics_request::CreatableTopic,
        describe_configs_request::DescribeConfigsResource,
        describe_producers_request::TopicRequest,
        fetch_request::{FetchPartition, FetchTopic},
        join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{
            OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
        },
        produce_request::{PartitionProduceData, TopicProduceData},
        txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic},
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
        *,
    },
    protocol::{Decodable, HeaderVersion, Request, StrBytes},
};
use std::collections::BTreeSet;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn topic() -> TopicName {
    text("t").into()
}

/// Asks on a connection of its own, in a version.
async fn ask<R: Request>(host: &engine::host::Host, request: R, version: i16) -> R::Response {
    let mut connection: Box<dyn Connection> = host.net.connect("broker-0:9092").await.unwrap();
    let what = format!("{:?} version {version}", R::KEY);
    let frame = frame::encode_request(&request, version, 7);
    let frame = frame.unwrap_or_else(|error| panic!("{what}: our request: {error}"));
    tokio::io::AsyncWriteExt::write_all(&mut connection, &frame)
        .await
        .unwrap();
    let answer = frame::read_frame(&mut connection).await.unwrap();
    let mut answer = answer.unwrap_or_else(|| panic!("{what}: the connection was closed"));
    ResponseHeader::decode(&mut answer, R::Response::header_version(version)).unwrap();
    let response = R::Response::decode(&mut answer, version);
    let response = response.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(answer.is_empty(), "{what}: {} bytes too many", answer.len());
    response
}

/// Asks in all versions that are served, with a request for each.
macro_rules! in_all_versions {
    ($host:expr, $asked:expr, $key:ident, $version:ident => $request:expr, $response:ident => $check:expr) => {{
        let api = APIS
            .into_iter()
            .find(|api| api.key == ApiKey::$key)
            .unwrap();
        assert!($asked.insert(stringify!($key)));
        for $version in api.version_min..=api.version_max {
            let $response = ask($host, $request, $version).await;
            assert!(
                $check,
                "{} version {}: {:?}",
                stringify!($key),
                $version,
                $response
            );
        }
    }};
}

#[test]
fn every_version_that_is_served_is_answered() {
    play(1, |host| async move {
        let cluster = Cluster::new(host.clone(), addresses(1));
        cluster.ensure_topic("t", 1).await.unwrap();
        let of = TopicPartition::new("t", PartitionId(0));
        // Something for the answers to tell of: an aborted transaction, and one that is open.
        let config = TransactionalConfig::new("open");
        let mut open = TransactionalProducer::new(cluster.clone(), config)
            .await
            .unwrap();
        let record = || NewRecord {
            key: None,
            value: Some("v".into()),
            headers: Vec::new(),
            timestamp_ms: 1,
        };
        open.begin().await.unwrap();
        open.send(&of, record()).await.unwrap();
        open.prepare().await.unwrap();
        open.abort().await.unwrap();
        open.begin().await.unwrap();
        open.send(&of, record()).await.unwrap();
        open.prepare().await.unwrap();

        let mut asked = BTreeSet::new();
        let asked = &mut asked;
        let host = &host;
        in_all_versions!(host, asked, ApiVersions, version => {
            let request = ApiVersionsRequest::default();
            match version {
                3.. => request.with_client_software_name(text("c")).with_client_software_version(text("1")),
                _ => request,
            }
        }, answer => answer.api_keys.len() == APIS.len());
        in_all_versions!(host, asked, Produce, _version => {
            let batch = batch::encode(&[record()], Identity::NOBODY).unwrap();
            let data = PartitionProduceData::default().with_index(0).with_records(Some(batch));
            let data = TopicProduceData::default().with_name(topic()).with_partition_data(vec![data]);
            ProduceRequest::default().with_acks(-1).with_timeout_ms(1000).with_topic_data(vec![data])
        }, answer => answer.responses[0].partition_responses[0].error_code == 0);
        let asked_topic = MetadataRequestTopic::default().with_name(Some(topic()));
        let known = MetadataRequest::default().with_topics(Some(vec![asked_topic]));
        let id = ask(host, known, 12).await.topics[0].topic_id;
        in_all_versions!(host, asked, Fetch, version => {
            let partition = FetchPartition::default().with_partition(0).with_partition_max_bytes(1000);
            let topic = match version {
                13.. => FetchTopic::default().with_topic_id(id),
                _ => FetchTopic::default().with_topic(topic()),
            };
            let topic = topic.with_partitions(vec![partition]);
            let request = FetchRequest::default();
            let request = match version {
                15.. => request,
                _ => request.with_replica_id((-1).into()),
            };
            request
                .with_max_bytes(1000)
                .with_isolation_level(1)
                .with_topics(vec![topic])
        }, answer => {
            let partition = &answer.responses[0].partitions[0];
            partition.error_code == 0 && partition.aborted_transactions.as_ref().unwrap().len() == 1
        });
        in_all_versions!(host, asked, ListOffsets, _version => {
            let partition = ListOffsetsPartition::default().with_timestamp(-2);
            let topic = ListOffsetsTopic::default().with_name(topic()).with_partitions(vec![partition]);
            ListOffsetsRequest::default().with_replica_id((-1).into()).with_topics(vec![topic])
        }, answer => answer.topics[0].partitions[0].offset == 0);
        in_all_versions!(host, asked, Metadata, _version => {
            let topic = MetadataRequestTopic::default().with_name(Some(topic()));
            MetadataRequest::default().with_topics(Some(vec![topic]))
        }, answer => answer.topics[0].partitions.len() == 1 && answer.brokers.len() == 1);
        in_all_versions!(host, asked, OffsetCommit, _version => {
            let partition = OffsetCommitRequestPartition::default().with_committed_offset(1);
            let topic = OffsetCommitRequestTopic::default().with_name(topic()).with_partitions(vec![partition]);
            OffsetCommitRequest::default().with_group_id(text("g").into()).with_topics(vec![topic])
        }, answer => answer.topics[0].partitions[0].error_code == 0);
        in_all_versions!(host, asked, OffsetFetch, version => {
            let request = OffsetFetchRequest::default();
            match version {
                8.. => {
                    let topic = OffsetFetchRequestTopics::default().with_name(topic()).with_partition_indexes(vec![0]);
                    let group = OffsetFetchRequestGroup::default()
                        .with_group_id(text("g").into())
                        .with_topics(Some(vec![topic]));
                    request.with_groups(vec![group])
                }
                _ => {
                    let topic = OffsetFetchRequestTopic::default().with_name(topic()).with_partition_indexes(vec![0]);
                    request.with_group_id(text("g").into()).with_topics(Some(vec![topic]))
                }
            }
        }, answer => {
            let new = answer.groups.iter().flat_map(|group| &group.topics).flat_map(|topic| &topic.partitions);
            let old = answer.topics.iter().flat_map(|topic| &topic.partitions);
            let new = new.map(|partition| partition.committed_offset);
            old.map(|partition| partition.committed_offset).chain(new).collect::<Vec<_>>() == [1]
        });
        in_all_versions!(host, asked, FindCoordinator, version => match version {
            4.. => FindCoordinatorRequest::default().with_coordinator_keys(vec![text("g")]),
            _ => FindCoordinatorRequest::default().with_key(text("g")),
        }, answer => answer.port == 9092 || answer.coordinators[0].port == 9092);
        in_all_versions!(host, asked, JoinGroup, version => {
            let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
            let request = JoinGroupRequest::default()
                .with_group_id(text(&format!("joined-{version}")).into())
                .with_session_timeout_ms(10_000)
                .with_protocol_type(text("consumer"))
                .with_protocols(vec![protocol]);
            match version {
                1.. => request.with_rebalance_timeout_ms(1_000),
                _ => request,
            }
        }, answer => !answer.member_id.is_empty());
        in_all_versions!(host, asked, SyncGroup, _version => {
            SyncGroupRequest::default().with_group_id(text("g").into()).with_member_id(text("m"))
        }, answer => answer.error_code != 0);
        in_all_versions!(host, asked, Heartbeat, _version => {
            HeartbeatRequest::default().with_group_id(text("g").into()).with_member_id(text("m"))
        }, answer => answer.error_code != 0);
        in_all_versions!(host, asked, LeaveGroup, version => {
            let request = LeaveGroupRequest::default().with_group_id(text("g").into());
            match version {
                3.. => request.with_members(vec![MemberIdentity::default().with_member_id(text("m"))]),
                _ => request.with_member_id(text("m")),
            }
        }, answer => answer.error_code != 0 || answer.members[0].error_code != 0);
        in_all_versions!(host, asked, DescribeGroups, _version => {
            DescribeGroupsRequest::default().with_groups(vec![text("joined-3").into()])
        }, answer => answer.groups[0].error_code == 0 && answer.groups[0].members.len() == 1);
        in_all_versions!(host, asked, ListGroups, _version => ListGroupsRequest::default(),
            answer => answer.groups.len() > 1);
        in_all_versions!(host, asked, DescribeConfigs, _version => {
            let topic = DescribeConfigsResource::default().with_resource_type(2).with_resource_name(text("t"));
            DescribeConfigsRequest::default().with_resources(vec![topic])
        }, answer => answer.results.len() == 1);
        in_all_versions!(host, asked, AlterConfigs, _version => {
            let config = alter_configs_request::AlterableConfig::default()
                .with_name(text("retention.ms"))
                .with_value(Some(text("-1")));
            let topic = alter_configs_request::AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("t"))
                .with_configs(vec![config]);
            AlterConfigsRequest::default().with_resources(vec![topic])
        }, answer => answer.responses[0].error_code == 0);
        in_all_versions!(host, asked, IncrementalAlterConfigs, _version => {
            let config = incremental_alter_configs_request::AlterableConfig::default()
                .with_name(text("retention.ms"))
                .with_config_operation(1);
            let topic = incremental_alter_configs_request::AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("t"))
                .with_configs(vec![config]);
            IncrementalAlterConfigsRequest::default().with_resources(vec![topic])
        }, answer => answer.responses[0].error_code == 0);
        in_all_versions!(host, asked, OffsetForLeaderEpoch, version => {
            let partition = offset_for_leader_epoch_request::OffsetForLeaderPartition::default();
            let topic = offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
                .with_topic(topic())
                .with_partitions(vec![partition]);
            let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
            match version {
                3.. => request.with_replica_id((-1).into()),
                _ => request,
            }
        }, answer => answer.topics[0].partitions[0].end_offset > 0);
        in_all_versions!(host, asked, DescribeLogDirs, _version => {
            let topic = describe_log_dirs_request::DescribableLogDirTopic::default()
                .with_topic(topic())
                .with_partitions(vec![0]);
            DescribeLogDirsRequest::default().with_topics(Some(vec![topic]))
        }, answer => answer.results[0].topics[0].partitions[0].partition_size > 0);
        in_all_versions!(host, asked, OffsetDelete, _version => {
            let partition = offset_delete_request::OffsetDeleteRequestPartition::default();
            let topic = offset_delete_request::OffsetDeleteRequestTopic::default()
                .with_name(topic())
                .with_partitions(vec![partition]);
            OffsetDeleteRequest::default().with_group_id(text("g").into()).with_topics(vec![topic])
        }, answer => answer.topics[0].partitions[0].error_code == 0);
        in_all_versions!(host, asked, DescribeCluster, _version => DescribeClusterRequest::default(),
            answer => answer.brokers.len() == 1);
        in_all_versions!(host, asked, DescribeProducers, _version => {
            let topic = TopicRequest::default().with_name(topic()).with_partition_indexes(vec![0]);
            DescribeProducersRequest::default().with_topics(vec![topic])
        }, answer => !answer.topics[0].partitions[0].active_producers.is_empty());
        in_all_versions!(host, asked, DescribeTransactions, _version => {
            DescribeTransactionsRequest::default().with_transactional_ids(vec![text("open").into()])
        }, answer => answer.transaction_states[0].topics.len() == 1);
        in_all_versions!(host, asked, ListTransactions, _version => ListTransactionsRequest::default(),
            answer => answer.transaction_states.len() == 1);

        // A transaction in each version; the newest ones add what they write by writing it.
        let begun = |what: &str, version: i16| {
            let id = format!("{what}-{version}");
            async move {
                let request = InitProducerIdRequest::default()
                    .with_transactional_id(Some(text(&id).into()))
                    .with_transaction_timeout_ms(10_000);
                let answer = ask(host, request, 3).await;
                assert_eq!(answer.error_code, 0);
                (text(&id), answer.producer_id, answer.producer_epoch)
            }
        };
        in_all_versions!(host, asked, InitProducerId, version => {
            InitProducerIdRequest::default()
                .with_transactional_id(Some(text(&format!("init-{version}")).into()))
                .with_transaction_timeout_ms(10_000)
        }, answer => answer.error_code == 0 && answer.producer_id.0 >= 0);
        in_all_versions!(host, asked, AddPartitionsToTxn, version => {
            let (id, producer, epoch) = begun("partitions", version).await;
            let topics = vec![AddPartitionsToTxnTopic::default().with_name(topic()).with_partitions(vec![0])];
            match version {
                4.. => {
                    let transaction = AddPartitionsToTxnTransaction::default()
                        .with_transactional_id(id.into())
                        .with_producer_id(producer)
                        .with_producer_epoch(epoch)
                        .with_topics(topics);
                    AddPartitionsToTxnRequest::default().with_transactions(vec![transaction])
                }
                _ => AddPartitionsToTxnRequest::default()
                    .with_v3_and_below_transactional_id(id.into())
                    .with_v3_and_below_producer_id(producer)
                    .with_v3_and_below_producer_epoch(epoch)
                    .with_v3_and_below_topics(topics),
            }
        }, answer => {
            let old = answer.results_by_topic_v3_and_below.iter().flat_map(|topic| &topic.results_by_partition);
            let new = answer.results_by_transaction.iter().flat_map(|one| &one.topic_results);
            let new = new.flat_map(|topic| &topic.results_by_partition);
            old.chain(new).map(|one| one.partition_error_code).collect::<Vec<_>>() == [0]
        });
        in_all_versions!(host, asked, AddOffsetsToTxn, version => {
            let (id, producer, epoch) = begun("offsets", version).await;
            AddOffsetsToTxnRequest::default()
                .with_transactional_id(id.into())
                .with_producer_id(producer)
                .with_producer_epoch(epoch)
                .with_group_id(text("g").into())
        }, answer => answer.error_code == 0);
        in_all_versions!(host, asked, TxnOffsetCommit, version => {
            let (id, producer, epoch) = begun("positions", version).await;
            let added = AddOffsetsToTxnRequest::default()
                .with_transactional_id(id.clone().into())
                .with_producer_id(producer)
                .with_producer_epoch(epoch)
                .with_group_id(text("h").into());
            assert_eq!(ask(host, added, 3).await.error_code, 0);
            let partition = TxnOffsetCommitRequestPartition::default().with_committed_offset(1);
            let topic = TxnOffsetCommitRequestTopic::default().with_name(topic()).with_partitions(vec![partition]);
            TxnOffsetCommitRequest::default()
                .with_transactional_id(id.into())
                .with_group_id(text("h").into())
                .with_producer_id(producer)
                .with_producer_epoch(epoch)
                .with_topics(vec![topic])
        }, answer => answer.topics[0].partitions[0].error_code == 0);
        in_all_versions!(host, asked, EndTxn, version => {
            let (id, producer, epoch) = begun("ended", version).await;
            let added = AddOffsetsToTxnRequest::default()
                .with_transactional_id(id.clone().into())
                .with_producer_id(producer)
                .with_producer_epoch(epoch)
                .with_group_id(text("g").into());
            assert_eq!(ask(host, added, 3).await.error_code, 0);
            EndTxnRequest::default()
                .with_transactional_id(id.into())
                .with_producer_id(producer)
                .with_producer_epoch(epoch)
                .with_committed(true)
        }, answer => answer.error_code == 0);
        in_all_versions!(host, asked, WriteTxnMarkers, _version => {
            let topic = WritableTxnMarkerTopic::default().with_name(topic()).with_partition_indexes(vec![0]);
            let marker = WritableTxnMarker::default().with_producer_id(77.into()).with_topics(vec![topic]);
            WriteTxnMarkersRequest::default().with_markers(vec![marker])
        }, answer => answer.markers.len() == 1);
        in_all_versions!(host, asked, CreateTopics, version => {
            let topic = CreatableTopic::default()
                .with_name(text(&format!("new-{version}")).into())
                .with_num_partitions(1)
                .with_replication_factor(1);
            CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(1000)
        }, answer => answer.topics[0].error_code == 0);
        in_all_versions!(host, asked, CreatePartitions, version => {
            let topic = create_partitions_request::CreatePartitionsTopic::default()
                .with_name(text("new-2").into())
                .with_count(2 + i32::from(version))
                .with_assignments(None);
            CreatePartitionsRequest::default().with_topics(vec![topic]).with_timeout_ms(1000)
        }, answer => answer.results[0].error_code == 0);
        in_all_versions!(host, asked, DeleteTopics, version => {
            let name: TopicName = text(&format!("new-{}", version + 1)).into();
            let request = DeleteTopicsRequest::default().with_timeout_ms(1000);
            match version {
                6.. => {
                    let topic = delete_topics_request::DeleteTopicState::default().with_name(Some(name));
                    request.with_topics(vec![topic])
                }
                _ => request.with_topic_names(vec![name]),
            }
        }, answer => answer.responses[0].error_code == 0);
        // Nothing: it would take what the others tell of.
        in_all_versions!(host, asked, DeleteRecords, _version => {
            let partition = delete_records_request::DeleteRecordsPartition::default().with_offset(0);
            let topic = delete_records_request::DeleteRecordsTopic::default()
                .with_name(topic())
                .with_partitions(vec![partition]);
            DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(1000)
        }, answer => answer.topics[0].partitions[0].error_code == 0);
        in_all_versions!(host, asked, DeleteGroups, _version => {
            DeleteGroupsRequest::default().with_groups_names(vec![text("nobody").into()])
        }, answer => answer.results.len() == 1);
        assert_eq!(asked.len(), APIS.len(), "nothing was left out: {asked:?}");
        assert_eq!(cluster.start_offset(&of).await.unwrap(), Offset(0));
    });
}
