//! Creating topics, and making them larger. The first broker decides; the others pass the request on.
//!
//! What is asked for is kept or refused. A partition lives on one broker, which follows from the topic's name: more
//! replicas, or other brokers, are refused.

use super::{
    learn::FROM_FIRST_MS,
    objection::{told, Objection},
    text,
};
use crate::{
    ids::PartitionId,
    log::{
        broker::{to_its_end, Broker},
        configs::{ConfigChange, Configs},
        topics::{self, is_internal, Created, Topic},
    },
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        create_partitions_request::CreatePartitionsTopic,
        create_partitions_response::CreatePartitionsTopicResult,
        create_topics_request::CreatableTopic,
        create_topics_response::{CreatableTopicConfigs, CreatableTopicResult},
        BrokerId, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest,
        CreateTopicsResponse,
    },
};
use std::{collections::BTreeSet, ops::Range, sync::Arc};

const CREATE_TOPICS_VERSION: i16 = 7;
const CREATE_PARTITIONS_VERSION: i16 = 3;
const PARTITIONS_MAX: i32 = 10_000;

impl Broker {
    /// Creates topics.
    pub async fn create_topics(
        self: &Arc<Self>,
        request: CreateTopicsRequest,
    ) -> CreateTopicsResponse {
        if let Some(answer) = self.ask_first(&request, CREATE_TOPICS_VERSION).await {
            return answer;
        }
        let names = request.topics.iter().map(|topic| topic.name.as_str());
        let twice = named_twice(names);
        let mut results = Vec::new();
        for topic in request.topics {
            let created = match twice.contains(topic.name.as_str()) {
                true => Err(Objection::new(
                    ResponseError::InvalidRequest,
                    "the request names this topic twice",
                )),
                false => self.create_topic(&topic, request.validate_only).await,
            };
            results.push(match created {
                Err(objection) => {
                    let (code, why) = objection.told();
                    CreatableTopicResult::default()
                        .with_name(topic.name)
                        .with_error_code(code)
                        .with_error_message(why)
                        .with_num_partitions(-1)
                        .with_replication_factor(-1)
                }
                Ok(new) => {
                    let described =
                        self.describe_topic(&topic.name, &new)
                            .into_iter()
                            .map(|config| {
                                CreatableTopicConfigs::default()
                                    .with_name(config.name)
                                    .with_value(config.value)
                                    .with_config_source(config.config_source)
                            });
                    CreatableTopicResult::default()
                        .with_name(topic.name)
                        .with_topic_id(new.id)
                        .with_num_partitions(new.partitions)
                        .with_replication_factor(1)
                        .with_configs(Some(described.collect()))
                }
            });
        }
        CreateTopicsResponse::default().with_topics(results)
    }

    /// Creates one topic, at the first broker; what it would be, if `dry`.
    async fn create_topic(
        self: &Arc<Self>,
        asked: &CreatableTopic,
        dry: bool,
    ) -> Result<Topic, Objection> {
        self.decides()?;
        let name = asked.name.to_string();
        check_name(&name)?;
        let exists = || {
            let why = format!("topic {name} exists already");
            Objection::new(ResponseError::TopicAlreadyExists, why)
        };
        if self.topics.get(&name).await.is_some() {
            return Err(exists());
        }
        let brokers = self.config.brokers.len();
        let (partitions, configs) = check(asked, brokers)?;
        if dry {
            return Ok(Topic {
                id: uuid::Uuid::nil(),
                partitions,
                configs,
            });
        }
        let (broker, new) = (self.clone(), name.clone());
        let created =
            to_its_end(async move { broker.topics.create(&new, partitions, configs).await });
        match created.await {
            Ok(Created::New(topic)) => {
                tracing::info!(name: "topic.created", topic = %name, id = %topic.id, partitions);
                Ok(topic)
            }
            Ok(Created::Exists(_)) => Err(exists()),
            Ok(Created::Deleting) => Err(Objection::new(
                ResponseError::RequestTimedOut,
                format!("topic {name} is still being deleted; a moment later it can be created"),
            )),
            Err(error) => Err(self.not_kept(error)),
        }
    }

    /// Creates a topic of one partition because a client asks for it, and may.
    pub(super) async fn create_on_first_use(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<(), ResponseError> {
        let topic = CreatableTopic::default()
            .with_name(text(name).into())
            .with_num_partitions(-1)
            .with_replication_factor(-1);
        let request = CreateTopicsRequest::default().with_topics(vec![topic]);
        let answer = self.create_topics(request).await;
        let code = answer.topics.first().map_or(0, |topic| topic.error_code);
        match ResponseError::try_from_code(code) {
            None | Some(ResponseError::TopicAlreadyExists) => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Makes topics larger; or, if the first broker says so, takes note that they have changed.
    pub async fn create_partitions(
        self: &Arc<Self>,
        request: CreatePartitionsRequest,
    ) -> CreatePartitionsResponse {
        let is_hint = !self.is_first() && request.timeout_ms == FROM_FIRST_MS;
        if !is_hint {
            if let Some(answer) = self.ask_first(&request, CREATE_PARTITIONS_VERSION).await {
                return answer;
            }
        }
        let names = request.topics.iter().map(|topic| topic.name.as_str());
        let twice = named_twice(names);
        let mut results = Vec::new();
        for topic in request.topics {
            let refused = match (is_hint, twice.contains(topic.name.as_str())) {
                (true, _) => {
                    let learnt = self.learn(topic.name.as_str().into()).await;
                    learnt.err().map(Objection::from)
                }
                (false, true) => Some(Objection::new(
                    ResponseError::InvalidRequest,
                    "the request names this topic twice",
                )),
                (false, false) => self.grow(&topic, request.validate_only).await.err(),
            };
            let (code, why) = told(refused);
            results.push(
                CreatePartitionsTopicResult::default()
                    .with_name(topic.name)
                    .with_error_code(code)
                    .with_error_message(why),
            );
        }
        CreatePartitionsResponse::default().with_results(results)
    }

    async fn grow(
        self: &Arc<Self>,
        asked: &CreatePartitionsTopic,
        dry: bool,
    ) -> Result<(), Objection> {
        self.decides()?;
        let name = asked.name.to_string();
        check_name(&name)?;
        let known = self.topics.get(&name).await;
        let known = known.ok_or(ResponseError::UnknownTopicOrPartition)?;
        let wrong = |why: String| Objection::new(ResponseError::InvalidPartitions, why);
        if asked.count <= known.partitions {
            return Err(wrong(format!(
                "topic {name} has {} partitions, and {} are asked for; more would be right",
                known.partitions, asked.count
            )));
        }
        if asked.count > PARTITIONS_MAX {
            return Err(wrong(format!(
                "{} partitions; up to {PARTITIONS_MAX} would be right",
                asked.count
            )));
        }
        if let Some(assignments) = &asked.assignments {
            let wanted: Vec<_> = (known.partitions..)
                .zip(assignments.iter().map(|one| &one.broker_ids[..]))
                .collect();
            let new = known.partitions..asked.count;
            check_assignments(&name, new, &wanted, self.config.brokers.len())?;
        }
        if dry {
            return Ok(());
        }
        let (broker, topic, count) = (self.clone(), name.clone(), asked.count);
        let changed = to_its_end(async move {
            let larger = |topic: &mut Topic| topic.partitions = topic.partitions.max(count);
            broker.topics.change(&topic, known.id, larger).await
        });
        match changed.await {
            Ok(Some(_)) => {
                self.tell_of(&name).await;
                Ok(())
            }
            Ok(None) => Err(ResponseError::UnknownTopicOrPartition.into()),
            Err(error) => Err(self.not_kept(error)),
        }
    }
}

pub(super) fn named_twice<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let (mut seen, mut twice) = (BTreeSet::new(), BTreeSet::new());
    for name in names {
        if !seen.insert(name) {
            twice.insert(name.to_owned());
        }
    }
    twice
}

/// Whether somebody may create, or change, a topic of this name.
pub(super) fn check_name(name: &str) -> Result<(), Objection> {
    let wrong = |why: String| Err(Objection::new(ResponseError::InvalidTopicException, why));
    if is_internal(name) {
        return wrong(format!("topic {name} belongs to the brokers"));
    }
    match topics::is_legal_name(name) {
        true => Ok(()),
        false => wrong(format!(
            "`{name}` cannot be a topic's name; 1 to 249 letters, digits, dots, underscores and hyphens would be right"
        )),
    }
}

/// How many partitions a topic is to have, and what it is configured with; or why it cannot be so.
fn check(asked: &CreatableTopic, brokers: usize) -> Result<(i32, Configs), Objection> {
    let mut changes = Vec::new();
    for config in &asked.configs {
        let name = config.name.as_str();
        let Some(value) = &config.value else {
            let why = format!("{name} has no value");
            return Err(Objection::new(ResponseError::InvalidConfig, why));
        };
        changes.push((name, ConfigChange::Set(value.to_string())));
    }
    let configs = Configs::default().changed(changes);
    let configs = configs.map_err(|why| Objection::new(ResponseError::InvalidConfig, why))?;
    if !asked.assignments.is_empty() {
        let wrong = |why: &str| Err(Objection::new(ResponseError::InvalidRequest, why));
        if asked.replication_factor != -1 {
            return wrong("both a replication factor and assignments; one of them would be right");
        }
        if asked.num_partitions != -1 {
            return wrong(
                "both a number of partitions and assignments; one of them would be right",
            );
        }
        let mut wanted: Vec<_> = asked
            .assignments
            .iter()
            .map(|one| (one.partition_index, &one.broker_ids[..]))
            .collect();
        wanted.sort();
        let count = wanted.len() as i32;
        check_count(count)?;
        check_assignments(&asked.name, 0..count, &wanted, brokers)?;
        return Ok((count, configs));
    }
    match asked.replication_factor {
        -1 | 1 => {}
        factor @ (i16::MIN..=0) => {
            let why =
                format!("replication factor {factor}; 1, or -1 for the default, would be right");
            return Err(Objection::new(ResponseError::InvalidReplicationFactor, why));
        }
        factor => {
            let why = format!(
                "replication factor {factor}: this log does not replicate; 1, or -1 for the default, would be right"
            );
            return Err(Objection::new(ResponseError::InvalidReplicationFactor, why));
        }
    }
    let partitions = match asked.num_partitions {
        -1 => 1,
        count => count,
    };
    check_count(partitions)?;
    Ok((partitions, configs))
}

fn check_count(partitions: i32) -> Result<(), Objection> {
    match (1..=PARTITIONS_MAX).contains(&partitions) {
        true => Ok(()),
        false => Err(Objection::new(
            ResponseError::InvalidPartitions,
            format!("{partitions} partitions; 1 to {PARTITIONS_MAX} would be right"),
        )),
    }
}

/// Whether partitions, in order, are asked to be where they will be.
fn check_assignments(
    topic: &str,
    new: Range<i32>,
    wanted: &[(i32, &[BrokerId])],
    brokers: usize,
) -> Result<(), Objection> {
    let wrong = |why: String| Err(Objection::new(ResponseError::InvalidReplicaAssignment, why));
    if wanted.len() != new.len() {
        return wrong(format!(
            "{} assignments for {} partitions",
            wanted.len(),
            new.len()
        ));
    }
    for ((index, replicas), expected) in wanted.iter().zip(new) {
        if *index != expected {
            return wrong(format!(
                "partition {index} is assigned where {expected} comes next"
            ));
        }
        let leader = topics::leader(topic, PartitionId(*index), brokers) as i32;
        if replicas.len() != 1 || replicas[0].0 != leader {
            let asked: Vec<i32> = replicas.iter().map(|id| id.0).collect();
            return wrong(format!(
                "partition {index} of {topic} on brokers {asked:?}; [{leader}] would be right: \
                 this log does not replicate, and a topic's name says who leads what"
            ));
        }
    }
    Ok(())
}
