//! What topics are configured with: told, and changed. The first broker decides; the others pass changes on. What a
//! broker itself is set up with is told, too, and cannot be changed while it runs.

use super::{
    create::check_name,
    objection::{told, Objection},
    text,
};
use crate::log::{
    broker::{to_its_end, Broker},
    configs::{ConfigChange, ConfigKey, ConfigKind, Configs, Effective, KEYS},
    segment,
    topics::{self, is_internal, Topic},
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        alter_configs_response::AlterConfigsResourceResponse as Altered,
        describe_configs_request::DescribeConfigsResource,
        describe_configs_response::{
            DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
        },
        incremental_alter_configs_response::AlterConfigsResourceResponse as Incremented,
        AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
        IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    },
    protocol::StrBytes,
};
use std::{collections::BTreeSet, sync::Arc};

const ALTER_VERSION: i16 = 2;
const INCREMENT_VERSION: i16 = 1;

/// What is configured, as Kafka numbers it.
pub(super) const TOPIC: i8 = 2;
pub(in crate::log::broker) const BROKER: i8 = 4;
/// Where a value comes from, as Kafka numbers it: the topic's own configuration, what its broker was started with,
/// or what holds if nobody says anything.
pub(super) const SOURCE_TOPIC: i8 = 1;
const SOURCE_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;

impl Broker {
    /// What holds for the partitions of a topic.
    pub(in crate::log::broker) fn effective(&self, topic: &str, configs: &Configs) -> Effective {
        let defaults = self.config.defaults();
        match is_internal(topic) {
            false => defaults.with(configs),
            // What a coordinator writes there is not limited by what a client may.
            true => Effective {
                message_bytes_max: segment::BATCH_BYTES_MAX,
                retention_bytes: None,
                retention: None,
                ..defaults
            },
        }
    }

    /// From now on the open partitions of a topic do as it is configured; those that are opened later do anyway.
    pub(super) async fn configure(&self, name: &str) {
        // From what is read here on: whoever comes later reads what is newer.
        let _turn = self.configuring.lock().await;
        let Some(topic) = self.topics.get(name).await else {
            return;
        };
        let effective = self.effective(name, &topic.configs);
        for (key, id, partition) in self.slots.open().await {
            if key.topic == name && id == topic.id {
                partition.configure(effective).await;
            }
        }
    }

    /// What is configured, and by whom.
    pub async fn describe_configs(
        self: &Arc<Self>,
        request: DescribeConfigsRequest,
    ) -> DescribeConfigsResponse {
        let mut results = Vec::new();
        for resource in request.resources {
            let described = self.describe(&resource).await;
            let result = DescribeConfigsResult::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name.clone());
            results.push(match described {
                Err(objection) => {
                    let (code, why) = objection.told();
                    result.with_error_code(code).with_error_message(why)
                }
                Ok(mut all) => {
                    if let Some(wanted) = &resource.configuration_keys {
                        all.retain(|config| wanted.contains(&config.name));
                    }
                    if !request.include_synonyms {
                        all.iter_mut().for_each(|config| config.synonyms.clear());
                    }
                    result.with_configs(all)
                }
            });
        }
        DescribeConfigsResponse::default().with_results(results)
    }

    async fn describe(
        self: &Arc<Self>,
        resource: &DescribeConfigsResource,
    ) -> Result<Vec<DescribeConfigsResourceResult>, Objection> {
        let name = resource.resource_name.as_str();
        match resource.resource_type {
            TOPIC => {
                if !topics::is_legal_name(name) {
                    check_name(name)?;
                }
                let topic = self.topic(name).await?;
                Ok(self.describe_topic(name, &topic))
            }
            BROKER if name.is_empty() || name == self.config.id.to_string() => {
                Ok(self.describe_broker())
            }
            BROKER => Err(Objection::new(
                ResponseError::InvalidRequest,
                format!("this is broker {}, and not `{name}`", self.config.id),
            )),
            other => Err(Objection::new(
                ResponseError::InvalidRequest,
                format!(
                    "resource type {other}; {TOPIC} (topic) or {BROKER} (broker) would be right"
                ),
            )),
        }
    }

    /// All that can be configured of a topic, as it holds.
    pub(super) fn describe_topic(
        &self,
        name: &str,
        topic: &Topic,
    ) -> Vec<DescribeConfigsResourceResult> {
        let defaults = self.effective(name, &Configs::default());
        let all = KEYS.iter().map(|key| {
            let otherwise = defaults.describe(key);
            let source = default_source(key, &otherwise);
            let synonym = |value: &str, source: i8| {
                DescribeConfigsSynonym::default()
                    .with_name(StrBytes::from_static_str(key.name))
                    .with_value(Some(text(value)))
                    .with_source(source)
            };
            let mut synonyms = vec![synonym(&otherwise, source)];
            let described = described(key.name, key.kind);
            match topic.configs.get(key.name) {
                None => described
                    .with_value(Some(text(&otherwise)))
                    .with_config_source(source)
                    .with_synonyms(synonyms),
                Some(set) => {
                    synonyms.insert(0, synonym(set, SOURCE_TOPIC));
                    described
                        .with_value(Some(text(set)))
                        .with_config_source(SOURCE_TOPIC)
                        .with_synonyms(synonyms)
                }
            }
        });
        all.collect()
    }

    /// What this broker was started with, by Kafka's names.
    fn describe_broker(&self) -> Vec<DescribeConfigsResourceResult> {
        let (config, defaults) = (&self.config, self.config.defaults());
        let of_topics = |name: &str| {
            let key = KEYS.iter().find(|key| key.name == name);
            defaults.describe(key.expect("it is in the table"))
        };
        let all = [
            ("advertised.listeners", ConfigKind::Text, {
                format!("PLAINTEXT://{}", config.brokers[config.id.0 as usize])
            }),
            ("auto.create.topics.enable", ConfigKind::Boolean, {
                config.auto_create_topics.to_string()
            }),
            ("broker.id", ConfigKind::Int, config.id.to_string()),
            (
                "compression.type",
                ConfigKind::Text,
                of_topics("compression.type"),
            ),
            (
                "default.replication.factor",
                ConfigKind::Int,
                "1".to_owned(),
            ),
            (
                "log.cleanup.policy",
                ConfigKind::List,
                of_topics("cleanup.policy"),
            ),
            ("log.message.timestamp.type", ConfigKind::Text, {
                of_topics("message.timestamp.type")
            }),
            (
                "log.retention.bytes",
                ConfigKind::Long,
                of_topics("retention.bytes"),
            ),
            (
                "log.retention.ms",
                ConfigKind::Long,
                of_topics("retention.ms"),
            ),
            (
                "log.segment.bytes",
                ConfigKind::Int,
                of_topics("segment.bytes"),
            ),
            (
                "message.max.bytes",
                ConfigKind::Int,
                of_topics("max.message.bytes"),
            ),
            (
                "min.insync.replicas",
                ConfigKind::Int,
                of_topics("min.insync.replicas"),
            ),
            ("num.partitions", ConfigKind::Int, "1".to_owned()),
            (
                "offsets.topic.num.partitions",
                ConfigKind::Int,
                config.coordinators.to_string(),
            ),
            ("transaction.max.timeout.ms", ConfigKind::Int, {
                config.transaction_max_timeout.as_millis().to_string()
            }),
            ("transaction.state.log.num.partitions", ConfigKind::Int, {
                config.coordinators.to_string()
            }),
        ];
        let all = all.into_iter().map(|(name, kind, value)| {
            described(name, kind)
                .with_value(Some(StrBytes::from_string(value)))
                .with_config_source(SOURCE_BROKER)
                .with_read_only(true)
        });
        all.collect()
    }

    /// Replaces all that topics are configured with.
    pub async fn alter_configs(
        self: &Arc<Self>,
        request: AlterConfigsRequest,
    ) -> AlterConfigsResponse {
        let mut responses = Vec::new();
        if let Some(answer) = self.ask_first(&request, ALTER_VERSION).await {
            return answer;
        }
        let resources = request.resources.iter();
        let mut seen = Seen::default();
        for resource in resources {
            let changes = resource.configs.iter().map(|config| {
                let value = config.value.as_ref().map(|value| value.to_string());
                (config.name.as_str(), value.map(ConfigChange::Set))
            });
            let of = (resource.resource_type, resource.resource_name.as_str());
            let asked = Asked {
                of,
                changes: changes.collect(),
                from_nothing: true,
                dry: request.validate_only,
            };
            let (code, why) = told(self.alter(&mut seen, asked).await.err());
            responses.push(
                Altered::default()
                    .with_error_code(code)
                    .with_error_message(why)
                    .with_resource_type(resource.resource_type)
                    .with_resource_name(resource.resource_name.clone()),
            );
        }
        AlterConfigsResponse::default().with_responses(responses)
    }

    /// Changes some of what topics are configured with (KIP-339).
    pub async fn increment_configs(
        self: &Arc<Self>,
        request: IncrementalAlterConfigsRequest,
    ) -> IncrementalAlterConfigsResponse {
        let mut responses = Vec::new();
        if let Some(answer) = self.ask_first(&request, INCREMENT_VERSION).await {
            return answer;
        }
        let mut seen = Seen::default();
        for resource in &request.resources {
            let changes = resource.configs.iter().map(|config| {
                let value = config.value.as_ref().map(|value| value.to_string());
                let change = match config.config_operation {
                    0 => value.map(ConfigChange::Set),
                    1 => Some(ConfigChange::Delete),
                    2 => value.map(ConfigChange::Append),
                    3 => value.map(ConfigChange::Subtract),
                    _ => None,
                };
                (config.name.as_str(), change)
            });
            let of = (resource.resource_type, resource.resource_name.as_str());
            let asked = Asked {
                of,
                changes: changes.collect(),
                from_nothing: false,
                dry: request.validate_only,
            };
            let (code, why) = told(self.alter(&mut seen, asked).await.err());
            responses.push(
                Incremented::default()
                    .with_error_code(code)
                    .with_error_message(why)
                    .with_resource_type(resource.resource_type)
                    .with_resource_name(resource.resource_name.clone()),
            );
        }
        IncrementalAlterConfigsResponse::default().with_responses(responses)
    }

    async fn alter(self: &Arc<Self>, seen: &mut Seen, asked: Asked<'_>) -> Result<(), Objection> {
        self.decides()?;
        let wrong = |why: String| Objection::new(ResponseError::InvalidRequest, why);
        let (kind, name) = asked.of;
        if !seen.0.insert((kind, name.to_owned())) {
            return Err(wrong(format!("the request names {name} twice")));
        }
        match kind {
            TOPIC => {}
            BROKER if asked.changes.is_empty() => return Ok(()),
            BROKER => {
                let names: Vec<&str> = asked.changes.iter().map(|(name, _)| *name).collect();
                let why = format!(
                    "{} of a broker cannot be changed while it runs; its command has flags for what it can be told",
                    names.join(", ")
                );
                return Err(Objection::new(ResponseError::InvalidConfig, why));
            }
            other => {
                return Err(wrong(format!(
                    "resource type {other}; {TOPIC} (topic) would be right"
                )))
            }
        }
        let (mut names, mut changes) = (BTreeSet::new(), Vec::new());
        for (config, change) in asked.changes {
            let change = change.ok_or_else(|| wrong(format!("{config} has no value")))?;
            if !names.insert(config) {
                return Err(wrong(format!("the request names {config} of {name} twice")));
            }
            changes.push((config, change));
        }
        check_name(name)?;
        loop {
            let known = self.topics.get(name).await;
            let known = known.ok_or(ResponseError::UnknownTopicOrPartition)?;
            let before = match asked.from_nothing {
                true => Configs::default(),
                false => known.configs.clone(),
            };
            let next = before.changed(changes.iter().cloned());
            let next = next.map_err(|why| Objection::new(ResponseError::InvalidConfig, why))?;
            let is_done = asked.dry || next == known.configs;
            if is_done || self.set_configs(name, &known, next).await? {
                return Ok(());
            }
        }
    }

    /// Whether it is so now; not if somebody has changed them since `known` was read.
    async fn set_configs(
        self: &Arc<Self>,
        name: &str,
        known: &Topic,
        next: Configs,
    ) -> Result<bool, Objection> {
        let (broker, topic, id) = (self.clone(), name.to_owned(), known.id);
        let (before, wanted) = (known.configs.clone(), next.clone());
        let changed = to_its_end(async move {
            let change = |topic: &mut Topic| {
                if topic.configs == before {
                    topic.configs = wanted;
                }
            };
            let changed = broker.topics.change(&topic, id, change).await;
            if let Ok(Some(_)) = &changed {
                broker.configure(&topic).await;
            }
            changed
        });
        match changed.await {
            Ok(Some(changed)) if changed.configs == next => {
                tracing::info!(name: "topic.configured", topic = %name);
                self.tell_of(name).await;
                Ok(true)
            }
            Ok(Some(_)) => Ok(false),
            Ok(None) => Err(ResponseError::UnknownTopicOrPartition.into()),
            Err(error) => Err(self.not_kept(error)),
        }
    }
}

/// What one resource of a request is to be configured with.
struct Asked<'a> {
    of: (i8, &'a str),
    /// Nothing where a change makes no sense without a value.
    changes: Vec<(&'a str, Option<ConfigChange>)>,
    /// Whether what was configured before is dropped.
    from_nothing: bool,
    dry: bool,
}

/// The resources that a request has named.
#[derive(Default)]
struct Seen(BTreeSet<(i8, String)>);

fn described(name: &'static str, kind: ConfigKind) -> DescribeConfigsResourceResult {
    DescribeConfigsResourceResult::default()
        .with_name(StrBytes::from_static_str(name))
        .with_config_type(kind as i8)
}

/// Where a value comes from that was not set for a topic.
fn default_source(key: &ConfigKey, value: &str) -> i8 {
    match Effective::default().describe(key) == value {
        true => SOURCE_DEFAULT,
        false => SOURCE_BROKER,
    }
}
