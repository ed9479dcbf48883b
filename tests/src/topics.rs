//! What our brokers alone promise of topics: compaction is refused, and a topic may be created by its first use.

use crate::stage::{act, addresses, play, play_configured};
use engine::log::{
    cluster::Cluster,
    configs::{Configs, KEYS},
    reserve::Reserve,
    topics::{random_looking, Topic, Topics},
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        describe_configs_request::DescribeConfigsResource,
        metadata_request::MetadataRequestTopic,
        CreateTopicsRequest, DescribeConfigsRequest, MetadataRequest,
    },
    protocol::StrBytes,
};

const BROKERS: usize = 3;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

#[test]
fn what_this_log_does_not_do_is_refused_by_its_name() {
    play(BROKERS, |host| async move {
        let cluster = Cluster::new(host, addresses(BROKERS));
        let connection = cluster.connect_any().await.unwrap();
        for (name, value) in [
            ("cleanup.policy", "compact"),
            ("cleanup.policy", "compact,delete"),
            ("compression.type", "zstd"),
            ("min.insync.replicas", "2"),
            ("segment.ms", "1000"),
        ] {
            let config = CreatableTopicConfig::default()
                .with_name(text(name))
                .with_value(Some(text(value)));
            let topic = CreatableTopic::default()
                .with_name(text("t").into())
                .with_num_partitions(1)
                .with_replication_factor(1)
                .with_configs(vec![config]);
            let request = CreateTopicsRequest::default().with_topics(vec![topic]);
            let told = connection.call(&request).await.unwrap().topics.remove(0);
            assert_eq!(
                told.error_code,
                ResponseError::InvalidConfig.code(),
                "{name}"
            );
            let why = told.error_message.unwrap_or_default();
            assert!(why.contains(name), "{why}");
        }
    });
}

#[test]
fn all_that_can_be_configured_is_described() {
    play(BROKERS, |host| async move {
        let cluster = Cluster::new(host, addresses(BROKERS));
        cluster.ensure_topic("t", 1).await.unwrap();
        for address in addresses(BROKERS) {
            let connection = cluster.connect(&address).await.unwrap();
            let topic = DescribeConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("t"))
                .with_configuration_keys(None);
            let broker = DescribeConfigsResource::default()
                .with_resource_type(4)
                .with_configuration_keys(None);
            let own = DescribeConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("__consumer_offsets"))
                .with_configuration_keys(None);
            let request =
                DescribeConfigsRequest::default().with_resources(vec![topic, broker, own]);
            let told = connection.call(&request).await.unwrap().results;
            assert_eq!(told[0].configs.len(), KEYS.len());
            let named = |of: usize, name: &str| {
                let mut all = told[of].configs.iter();
                let found = all.find(|config| config.name.as_str() == name);
                found
                    .unwrap()
                    .value
                    .as_deref()
                    .unwrap_or_default()
                    .to_owned()
            };
            assert_eq!(named(1, "log.segment.bytes"), "4096", "as the stage has it");
            assert_eq!(named(1, "auto.create.topics.enable"), "false");
            // Whatever topics keep, what the brokers note for themselves stays.
            assert_eq!(named(2, "retention.ms"), "-1");
            assert_eq!(named(2, "retention.bytes"), "-1");
            assert_eq!(named(2, "segment.bytes"), "4096");
            assert_eq!(named(2, "max.message.bytes"), (64 << 20).to_string());
        }
    });
}

/// An answer of the first broker that comes late is an older one: no partition goes because of it.
#[test]
fn a_topic_never_gets_fewer_partitions() {
    act(0, &[], |host| async move {
        let reserve = Reserve::new(host.disk.clone(), 0);
        let topics = Topics::open(host.disk.clone(), reserve).await.unwrap();
        for (said, kept) in [(3, 3), (5, 5), (3, 5)] {
            let told = Topic {
                id: random_looking("t"),
                partitions: said,
                configs: Configs::default(),
            };
            let learnt = topics.learn("t", told, topics.deletions()).await.unwrap();
            assert_eq!(learnt.map(|topic| topic.partitions), Some(kept));
        }
    });
}

/// Whichever broker is asked, and unless the client asks for nothing of the kind.
#[test]
fn a_topic_is_created_by_its_first_use_if_the_broker_and_the_client_allow_it() {
    let body = |creates: bool| {
        move |host| async move {
            let cluster = Cluster::new(host, addresses(BROKERS));
            for (number, address) in addresses(BROKERS).iter().enumerate() {
                let connection = cluster.connect(address).await.unwrap();
                let asked = |name: String, allowed| {
                    let topic = MetadataRequestTopic::default().with_name(Some(text(&name).into()));
                    let request = MetadataRequest::default()
                        .with_topics(Some(vec![topic]))
                        .with_allow_auto_topic_creation(allowed);
                    let connection = connection.clone();
                    async move { connection.call(&request).await.unwrap().topics.remove(0) }
                };
                let unknown = ResponseError::UnknownTopicOrPartition.code();
                let name = format!("t-{number}");
                assert_eq!(asked(name.clone(), false).await.error_code, unknown);
                let told = asked(name.clone(), true).await;
                match creates {
                    true => assert_eq!((told.error_code, told.partitions.len()), (0, 1)),
                    false => assert_eq!(told.error_code, unknown),
                }
                let illegal = asked("no/slash".to_owned(), true).await.error_code;
                assert_eq!(illegal, ResponseError::InvalidTopicException.code());
            }
        }
    };
    play(BROKERS, body(false));
    play_configured(
        BROKERS,
        |config| config.auto_create_topics = true,
        body(true),
    );
}
