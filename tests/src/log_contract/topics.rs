//! Topics: their ids, what they are configured with, how they grow.

use super::{at, record, Stand};
use engine::{
    ids::Offset,
    log::{
        connection::SharedConnection,
        consumer::Consumer,
        partition::Isolation,
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
    wire::batch::{self, Identity},
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        alter_configs_request::{self, AlterConfigsResource as Replaced},
        create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic},
        create_topics_request::{CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig},
        create_topics_response::CreatableTopicResult,
        delete_topics_request::DeleteTopicState,
        describe_configs_request::DescribeConfigsResource,
        describe_configs_response::DescribeConfigsResourceResult,
        fetch_request::{FetchPartition, FetchTopic},
        incremental_alter_configs_request::{self, AlterConfigsResource as Incremented},
        metadata_request::MetadataRequestTopic,
        metadata_response::MetadataResponseTopic,
        produce_response::PartitionProduceResponse,
        AlterConfigsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
        DescribeClusterRequest, DescribeConfigsRequest, FetchRequest,
        IncrementalAlterConfigsRequest, MetadataRequest,
    },
    protocol::{Request, StrBytes},
};
use std::{future::Future, time::Duration};
use uuid::Uuid;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn code(error: ResponseError) -> i16 {
    error.code()
}

/// Asks until the answer is as it should be: what one broker decides, others learn a little later.
pub(super) async fn until<T: std::fmt::Debug, F: Future<Output = T>>(
    ask: impl Fn() -> F,
    is_right: impl Fn(&T) -> bool,
) -> T {
    let mut last = None;
    for _ in 0..200 {
        let answer = ask().await;
        if is_right(&answer) {
            return answer;
        }
        last = Some(answer);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it stays like this: {last:?}");
}

impl Stand {
    async fn any(&self) -> SharedConnection {
        self.cluster.connect_any().await.unwrap()
    }

    pub(super) async fn ask<R: Request>(&self, request: &R) -> R::Response {
        self.any().await.call(request).await.unwrap()
    }

    /// Asks the leader of a partition.
    pub(super) async fn ask_leader<R: Request>(
        &self,
        of: &TopicPartition,
        request: &R,
    ) -> R::Response {
        // A topic that is new may have no leader for a moment.
        let connect = || async { self.cluster.connect_leader(of).await.map(drop) };
        until(connect, Result::is_ok).await.unwrap();
        let connection = self.cluster.connect_leader(of).await.unwrap();
        connection.call(request).await.unwrap()
    }

    async fn create(&self, topic: CreatableTopic, dry: bool) -> CreatableTopicResult {
        let request = CreateTopicsRequest::default()
            .with_topics(vec![topic])
            .with_validate_only(dry)
            .with_timeout_ms(5000);
        self.ask(&request).await.topics.remove(0)
    }

    async fn metadata(&self, topic: MetadataRequestTopic) -> MetadataResponseTopic {
        let request = MetadataRequest::default()
            .with_topics(Some(vec![topic]))
            .with_allow_auto_topic_creation(false);
        self.ask(&request).await.topics.remove(0)
    }

    async fn named(&self, name: &str) -> MetadataResponseTopic {
        let asked = MetadataRequestTopic::default().with_name(Some(text(name).into()));
        self.metadata(asked).await
    }

    async fn identified(&self, id: Uuid) -> MetadataResponseTopic {
        let asked = MetadataRequestTopic::default()
            .with_name(None)
            .with_topic_id(id);
        self.metadata(asked).await
    }

    /// What is configured of a topic: each configuration by its name.
    async fn config(&self, topic: &str, name: &str) -> DescribeConfigsResourceResult {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text(topic))
            .with_configuration_keys(Some(vec![text(name)]));
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let mut result = self.ask(&request).await.results.remove(0);
        assert_eq!(result.error_code, 0, "{result:?}");
        assert_eq!(result.configs.len(), 1, "{result:?}");
        result.configs.remove(0)
    }

    async fn delete(&self, topic: DeleteTopicState) -> i16 {
        let request = DeleteTopicsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(5000);
        self.ask(&request).await.responses[0].error_code
    }

    /// What the leader says of a record of so many bytes.
    async fn produce_bytes(&self, to: &TopicPartition, bytes: usize) -> PartitionProduceResponse {
        let record = NewRecord {
            value: Some(vec![7; bytes].into()),
            timestamp_ms: 1_700_000_000_000,
            ..NewRecord::default()
        };
        let batch = batch::encode(&[record], Identity::NOBODY).unwrap();
        self.produce(to, None, batch).await
    }

    /// The error that a fetch by a topic's id gets.
    async fn fetch_by_id(&self, id: Uuid, of: &TopicPartition) -> i16 {
        let partition = FetchPartition::default()
            .with_partition(of.partition.0)
            .with_current_leader_epoch(-1)
            .with_log_start_offset(-1)
            .with_partition_max_bytes(1000);
        let topic = FetchTopic::default()
            .with_topic_id(id)
            .with_partitions(vec![partition]);
        let request = FetchRequest::default()
            .with_max_wait_ms(10)
            .with_max_bytes(1000)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        let answer = self.ask_leader(of, &request).await;
        answer.responses[0].partitions[0].error_code
    }

    async fn alter(&self, topic: &str, changes: &[(&str, i8, Option<&str>)]) -> i16 {
        let configs = changes.iter().map(|(name, operation, value)| {
            incremental_alter_configs_request::AlterableConfig::default()
                .with_name(text(name))
                .with_config_operation(*operation)
                .with_value(value.map(text))
        });
        let resource = Incremented::default()
            .with_resource_type(2)
            .with_resource_name(text(topic))
            .with_configs(configs.collect());
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        self.ask(&request).await.responses[0].error_code
    }
}

fn wanted(name: &str) -> CreatableTopic {
    CreatableTopic::default()
        .with_name(text(name).into())
        .with_num_partitions(1)
        .with_replication_factor(1)
}

fn configured(name: &str, configs: &[(&str, &str)]) -> CreatableTopic {
    let configs = configs.iter().map(|(name, value)| {
        CreatableTopicConfig::default()
            .with_name(text(name))
            .with_value(Some(text(value)))
    });
    wanted(name).with_configs(configs.collect())
}

/// Whoever sends too much is told so, and is not cut off: it would send it again.
pub(super) async fn what_is_too_large_is_said(stand: Stand) {
    let of = at(&stand.topic("large", 1).await, 0);
    let too_large = code(ResponseError::MessageTooLarge);
    // The simulated network need not carry more than a broker reads as a whole.
    let bytes = match cfg!(madsim) {
        true => 2 << 20,
        false => 20 << 20,
    };
    assert_eq!(stand.produce_bytes(&of, bytes).await.error_code, too_large);
    // Together they would be too large.
    let producer = Producer::new(stand.cluster.clone(), ProducerConfig::default()).await;
    let mut acks = Vec::new();
    for _ in 0..5 {
        let record = NewRecord {
            value: Some(vec![7; 300_000].into()),
            timestamp_ms: 1_700_000_000_000,
            ..NewRecord::default()
        };
        acks.push(producer.send(&of, record).await);
    }
    for (number, ack) in acks.into_iter().enumerate() {
        assert_eq!(ack.await.unwrap(), Some(Offset(number as i64)));
    }
}

/// KIP-516.
pub(super) async fn a_topic_made_again_is_another_one(stand: Stand) {
    let name = stand.name("again");
    let unknown = code(ResponseError::UnknownTopicId);
    let first = stand.create(wanted(&name), false).await;
    assert_eq!(first.error_code, 0, "{first:?}");
    assert!(!first.topic_id.is_nil());
    let known = until(|| stand.named(&name), |told| told.error_code == 0).await;
    assert_eq!(known.topic_id, first.topic_id);
    let known = stand.identified(first.topic_id).await;
    assert_eq!(known.name, Some(text(&name).into()));
    let of = at(&name, 0);
    until(|| stand.fetch_by_id(first.topic_id, &of), |code| *code == 0).await;
    let nobody = Uuid::from_u128(77);
    assert_eq!(stand.fetch_by_id(nobody, &of).await, unknown);
    assert_eq!(stand.identified(nobody).await.error_code, unknown);
    let by_id = |id| {
        DeleteTopicState::default()
            .with_name(None)
            .with_topic_id(id)
    };
    assert_eq!(stand.delete(by_id(nobody)).await, unknown);

    assert_eq!(stand.delete(by_id(first.topic_id)).await, 0);
    let second = until(
        || stand.create(wanted(&name), false),
        |told| told.error_code == 0,
    );
    let second = second.await;
    assert_ne!(second.topic_id, first.topic_id);
    stand.cluster.forget_leader(&of);
    until(
        || stand.fetch_by_id(second.topic_id, &of),
        |code| *code == 0,
    )
    .await;
    // Whoever still reads the first one is told, and so is who would delete it.
    assert_eq!(stand.fetch_by_id(first.topic_id, &of).await, unknown);
    assert_eq!(stand.identified(first.topic_id).await.error_code, unknown);
    assert_eq!(stand.delete(by_id(first.topic_id)).await, unknown);
    assert_eq!(stand.named(&name).await.topic_id, second.topic_id);
}

pub(super) async fn what_a_topic_is_configured_with_is_kept(stand: Stand) {
    let name = stand.name("configured");
    let asked = [
        ("retention.ms", "-1"),
        ("retention.bytes", "1000000"),
        ("segment.bytes", "2097152"),
        ("max.message.bytes", "2000"),
        ("cleanup.policy", "delete"),
        ("compression.type", "producer"),
        ("min.insync.replicas", "1"),
    ];
    let made = stand.create(configured(&name, &asked), false).await;
    assert_eq!(made.error_code, 0, "{made:?}");
    let told = made.configs.unwrap_or_default();
    for (config, value) in asked {
        let told = told.iter().find(|told| told.name.as_str() == config);
        assert_eq!(told.unwrap().value.as_deref(), Some(value), "{config}");
        let kept = stand.config(&name, config).await;
        assert_eq!(kept.value.as_deref(), Some(value), "{config}");
        assert_eq!((kept.config_source, kept.read_only), (1, false), "{config}");
    }
    let default = stand.config(&name, "message.timestamp.type").await;
    assert_eq!(default.value.as_deref(), Some("CreateTime"));
    assert_ne!(default.config_source, 1);

    let of = at(&name, 0);
    assert_eq!(stand.produce_bytes(&of, 100).await.error_code, 0);
    let too_large = stand.produce_bytes(&of, 3000).await;
    assert_eq!(too_large.error_code, code(ResponseError::MessageTooLarge));
    let larger = [("max.message.bytes", 0, Some("20000"))];
    assert_eq!(stand.alter(&name, &larger).await, 0);
    let kept = until(
        || stand.produce_bytes(&of, 3000),
        |told| told.error_code == 0,
    )
    .await;
    assert_eq!(kept.base_offset, 1, "what was refused took no offset");
    let unset = [
        ("max.message.bytes", 1, None),
        ("retention.ms", 0, Some("5")),
    ];
    assert_eq!(stand.alter(&name, &unset).await, 0);
    let default = until(
        || stand.config(&name, "max.message.bytes"),
        |told| told.config_source != 1,
    );
    assert_ne!(default.await.value.as_deref(), Some("20000"));
    let set = stand.config(&name, "retention.ms").await;
    assert_eq!(set.value.as_deref(), Some("5"));

    // The older request replaces all.
    let config = alter_configs_request::AlterableConfig::default()
        .with_name(text("segment.bytes"))
        .with_value(Some(text("3145728")));
    let replaced = Replaced::default()
        .with_resource_type(2)
        .with_resource_name(text(&name))
        .with_configs(vec![config]);
    let request = AlterConfigsRequest::default().with_resources(vec![replaced]);
    assert_eq!(stand.ask(&request).await.responses[0].error_code, 0);
    until(
        || stand.config(&name, "retention.ms"),
        |told| told.config_source != 1,
    )
    .await;
    let set = stand.config(&name, "segment.bytes").await;
    assert_eq!(set.value.as_deref(), Some("3145728"));
}

pub(super) async fn what_is_not_kept_is_refused(stand: Stand) {
    let name = stand.name("refused");
    let refused = |topic: CreatableTopic| {
        let stand = stand.clone();
        async move { stand.create(topic, false).await }
    };
    for (config, value) in [
        ("no.such.config", "1"),
        ("retention.ms", "-2"),
        ("retention.ms", "long"),
        ("segment.bytes", "1"),
        ("cleanup.policy", "keep"),
        ("message.timestamp.type", "Whenever"),
    ] {
        let told = refused(configured(&name, &[(config, value)])).await;
        assert_eq!(
            told.error_code,
            code(ResponseError::InvalidConfig),
            "{config}"
        );
        let why = told.error_message.unwrap_or_default();
        assert!(why.contains(config), "{why}");
    }
    let assigned = |index: i32, brokers: &[i32]| {
        CreatableReplicaAssignment::default()
            .with_partition_index(index)
            .with_broker_ids(brokers.iter().map(|id| (*id).into()).collect())
    };
    let by_hand = |assignments| {
        wanted(&name)
            .with_num_partitions(-1)
            .with_replication_factor(-1)
            .with_assignments(assignments)
    };
    for (topic, error) in [
        (
            wanted(&name).with_replication_factor(4),
            ResponseError::InvalidReplicationFactor,
        ),
        (
            wanted(&name).with_replication_factor(0),
            ResponseError::InvalidReplicationFactor,
        ),
        (
            wanted(&name).with_num_partitions(0),
            ResponseError::InvalidPartitions,
        ),
        (
            wanted(&name).with_assignments(vec![assigned(0, &[0])]),
            ResponseError::InvalidRequest,
        ),
        (
            by_hand(vec![assigned(0, &[99])]),
            ResponseError::InvalidReplicaAssignment,
        ),
        (
            by_hand(vec![assigned(1, &[0])]),
            ResponseError::InvalidReplicaAssignment,
        ),
    ] {
        let asked = format!("{topic:?}");
        assert_eq!(refused(topic).await.error_code, code(error), "{asked}");
    }
    let twice = CreateTopicsRequest::default()
        .with_topics(vec![wanted(&name), wanted(&name)])
        .with_timeout_ms(5000);
    let told = stand.ask(&twice).await;
    let invalid = code(ResponseError::InvalidRequest);
    assert!(told.topics.iter().all(|topic| topic.error_code == invalid));

    let dry = stand
        .create(wanted(&name).with_num_partitions(3), true)
        .await;
    assert_eq!(dry.error_code, 0, "{dry:?}");
    let unknown = code(ResponseError::UnknownTopicOrPartition);
    assert_eq!(
        stand.named(&name).await.error_code,
        unknown,
        "nothing was made"
    );

    let made = stand.create(wanted(&name), false).await;
    assert_eq!(made.error_code, 0);
    let again = stand.create(wanted(&name), false).await;
    assert_eq!(again.error_code, code(ResponseError::TopicAlreadyExists));
    until(|| stand.named(&name), |told| told.error_code == 0).await;
    let wrong = code(ResponseError::InvalidConfig);
    for change in [
        ("no.such.config", 0, Some("1")),
        ("retention.ms", 0, Some("-2")),
        ("retention.ms", 2, Some("1")),
    ] {
        assert_eq!(stand.alter(&name, &[change]).await, wrong, "{change:?}");
    }
    let set = [("retention.ms", 0, Some("1"))];
    let nowhere = stand.alter(&stand.name("nowhere"), &set).await;
    assert_eq!(nowhere, unknown);
}

pub(super) async fn records_get_the_time_at_which_they_come(stand: Stand) {
    let name = stand.name("stamped");
    let stamped = [("message.timestamp.type", "LogAppendTime")];
    assert_eq!(
        stand
            .create(configured(&name, &stamped), false)
            .await
            .error_code,
        0
    );
    let of = at(&name, 0);
    let told = until(
        || async {
            stand.cluster.forget_leader(&of);
            match stand.cluster.end_offset(&of).await {
                Ok(_) => Some(stand.produce_bytes(&of, 10).await),
                Err(_) => None,
            }
        },
        |told| told.as_ref().is_some_and(|told| told.error_code == 0),
    );
    let told = told.await.unwrap();
    assert!(told.log_append_time_ms > 0, "{told:?}");
    let mut consumer = Consumer::new(stand.cluster.clone(), of.clone(), Offset(0));
    let mut read = Vec::new();
    while read.is_empty() {
        read = consumer.poll().await.unwrap();
    }
    assert_eq!(read[0].timestamp_ms, told.log_append_time_ms);

    let plain = at(&stand.topic("unstamped", 1).await, 0);
    assert_eq!(stand.produce_bytes(&plain, 10).await.log_append_time_ms, -1);
}

pub(super) async fn a_topic_gets_more_partitions(stand: Stand) {
    let topic = stand.topic("grown", 2).await;
    let producer = Producer::new(stand.cluster.clone(), ProducerConfig::default()).await;
    let acked = producer.send(&at(&topic, 1), record("old")).await.await;
    acked.unwrap();
    let grow = |count: i32, assignments: Option<Vec<i32>>, dry: bool| {
        let assignments = assignments.map(|brokers| {
            let one = |id: &i32| {
                CreatePartitionsAssignment::default().with_broker_ids(vec![(*id).into()])
            };
            brokers.iter().map(one).collect()
        });
        let wanted = CreatePartitionsTopic::default()
            .with_name(text(&topic).into())
            .with_count(count)
            .with_assignments(assignments);
        let request = CreatePartitionsRequest::default()
            .with_topics(vec![wanted])
            .with_validate_only(dry)
            .with_timeout_ms(5000);
        let stand = stand.clone();
        async move { stand.ask(&request).await.results[0].error_code }
    };
    let wrong = code(ResponseError::InvalidPartitions);
    assert_eq!(grow(2, None, false).await, wrong, "as many as there are");
    assert_eq!(grow(1, None, false).await, wrong, "fewer");
    let wrong = code(ResponseError::InvalidReplicaAssignment);
    assert_eq!(grow(3, Some(vec![99]), false).await, wrong);
    assert_eq!(grow(5, None, true).await, 0);
    assert_eq!(stand.named(&topic).await.partitions.len(), 2, "not done");
    assert_eq!(grow(5, None, false).await, 0);
    until(|| stand.named(&topic), |told| told.partitions.len() == 5).await;
    for partition in 0..5 {
        let of = at(&topic, partition);
        let acked = producer.send(&of, record("new")).await.await.unwrap();
        let before = i64::from(partition == 1);
        assert_eq!(acked, Some(Offset(before)));
        let all = stand.read(&of, Isolation::ReadUncommitted).await;
        assert_eq!(all.last().map(String::as_str), Some("new"));
    }
}

pub(super) async fn a_cluster_has_a_name_of_its_own(stand: Stand) {
    let asked = MetadataRequest::default().with_topics(Some(Vec::new()));
    let name = stand.ask(&asked).await.cluster_id.unwrap_or_default();
    assert!(name.len() > 16, "no name for one cluster alone: {name}");
    for broker in &stand.brokers {
        let connection = stand.cluster.connect(broker).await.unwrap();
        let told = connection.call(&asked).await.unwrap().cluster_id;
        assert_eq!(told.as_ref(), Some(&name), "{broker}");
        let described = DescribeClusterRequest::default();
        let told = connection.call(&described).await.unwrap().cluster_id;
        assert_eq!(told, name, "{broker}");
    }
}
