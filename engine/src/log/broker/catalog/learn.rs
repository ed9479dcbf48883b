//! What a broker learns of the first one, which decides which topics there are and what they are configured with.

use super::text;
use crate::log::{
    broker::{to_its_end, Broker},
    configs::{ConfigChange, Configs},
    topics::Topic,
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        create_partitions_request::CreatePartitionsTopic,
        describe_configs_request::DescribeConfigsResource, metadata_request::MetadataRequestTopic,
        metadata_response::MetadataResponseTopic, CreatePartitionsRequest, DescribeConfigsRequest,
        MetadataRequest, MetadataResponse,
    },
    protocol::{Request, StrBytes},
};
use std::sync::Arc;
use uuid::Uuid;

/// The first version of Metadata that is asked by id.
const METADATA_VERSION: i16 = 12;
const DESCRIBE_CONFIGS_VERSION: i16 = 4;
const CREATE_PARTITIONS_VERSION: i16 = 3;
/// The first broker says with this time-out, which no user has, that a topic has changed or is deleted. That is a
/// hint, and no more, whoever gives it: the first broker is asked what is so.
pub(super) const FROM_FIRST_MS: i32 = i32::MIN;

/// A topic, by its name or its id.
#[derive(Clone, Debug)]
pub(in crate::log::broker) enum Which {
    Name(String),
    Id(Uuid),
}

impl From<&str> for Which {
    fn from(name: &str) -> Self {
        Which::Name(name.to_owned())
    }
}

impl Broker {
    /// Asks the first broker about a topic, and takes note of what it says.
    pub(in crate::log::broker) async fn learn(
        self: &Arc<Self>,
        which: Which,
    ) -> Result<(String, Topic), ResponseError> {
        let deletions = self.topics.deletions();
        let asked = match &which {
            Which::Name(name) => MetadataRequestTopic::default().with_name(Some(text(name).into())),
            Which::Id(id) => MetadataRequestTopic::default()
                .with_name(None)
                .with_topic_id(*id),
        };
        let answer = self.ask_metadata(vec![asked]).await?;
        let told = answer.topics.into_iter().next();
        let told = told.ok_or(ResponseError::LeaderNotAvailable)?;
        match ResponseError::try_from_code(told.error_code) {
            None => {}
            Some(
                error @ (ResponseError::UnknownTopicOrPartition
                | ResponseError::UnknownTopicId
                | ResponseError::InvalidTopicException),
            ) => return Err(error),
            Some(_) => return Err(ResponseError::LeaderNotAvailable),
        }
        let known = self.keep(vec![told], deletions).await?;
        known
            .into_iter()
            .next()
            .ok_or(ResponseError::LeaderNotAvailable)
    }

    /// Asks the first broker what has become of the topics that are known here: it may have changed them while this
    /// broker was away.
    pub(in crate::log::broker) async fn refresh(self: &Arc<Self>) {
        let known = self.topics.all().await;
        if self.config.id.0 == 0 || known.is_empty() {
            return;
        }
        let deletions = self.topics.deletions();
        let asked = known.iter().map(|(_, topic)| {
            MetadataRequestTopic::default()
                .with_name(None)
                .with_topic_id(topic.id)
        });
        // If it does not answer, or has forgotten them, there is nothing to be learnt now.
        if let Ok(answer) = self.ask_metadata(asked.collect()).await {
            let told = answer.topics.into_iter();
            let there = told.filter(|topic| topic.error_code == 0).collect();
            let _ = self.keep(there, deletions).await;
        }
    }

    /// What the first broker answers to what a client asks of this one. Returns `None` if this is the first broker, or if
    /// that does not answer: whoever decides says then that the time is up.
    pub(super) async fn ask_first<R: Request>(
        &self,
        request: &R,
        version: i16,
    ) -> Option<R::Response> {
        if self.is_first() {
            return None;
        }
        // Not over the connection that is kept: the first broker may ask back, and wait for what is then asked over that.
        let connection = self.peers.connect(&self.config.brokers[0]).await.ok()?;
        connection.call_at(request, version).await.ok()
    }

    /// Whether this is the broker that decides about topics.
    pub(super) fn is_first(&self) -> bool {
        self.config.id.0 == 0
    }

    /// What is left to be said where the first broker does not answer.
    pub(super) fn decides(&self) -> Result<(), ResponseError> {
        match self.is_first() {
            true => Ok(()),
            false => Err(ResponseError::RequestTimedOut),
        }
    }

    /// Whether the first broker has no topic of this id: each is another one's, so it has been deleted there.
    pub(super) async fn is_deleted(self: &Arc<Self>, id: Uuid) -> Result<bool, ResponseError> {
        let asked = MetadataRequestTopic::default()
            .with_name(None)
            .with_topic_id(id);
        let answer = self.ask_metadata(vec![asked]).await?;
        let told = answer.topics.first();
        let told = told.ok_or(ResponseError::LeaderNotAvailable)?;
        Ok(told.error_code == ResponseError::UnknownTopicId.code())
    }

    /// Tells all others that a topic has changed. One that is away learns it later: see [`Broker::refresh`].
    pub(super) async fn tell_of(self: &Arc<Self>, topic: &str) {
        let topic = CreatePartitionsTopic::default().with_name(text(topic).into());
        let request = CreatePartitionsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(FROM_FIRST_MS);
        let peers = 1..self.config.brokers.len();
        let told = peers.map(|peer| self.ask(peer, &request, CREATE_PARTITIONS_VERSION));
        futures::future::join_all(told).await;
    }

    /// The name of the cluster, which the first broker has drawn; nothing if it cannot be asked.
    pub(super) async fn cluster_name(self: &Arc<Self>) -> Option<String> {
        if let Some(known) = self.topics.cluster().await {
            return Some(known);
        }
        let answer = self.ask_metadata(Vec::new()).await.ok()?;
        answer.cluster_id.map(|name| name.to_string())
    }

    async fn ask_metadata(
        self: &Arc<Self>,
        topics: Vec<MetadataRequestTopic>,
    ) -> Result<MetadataResponse, ResponseError> {
        if self.config.id.0 == 0 {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        let request = MetadataRequest::default()
            .with_topics(Some(topics))
            .with_allow_auto_topic_creation(false);
        let answer = self.ask(0, &request, METADATA_VERSION).await;
        let answer = answer.map_err(|_| ResponseError::LeaderNotAvailable)?;
        if let Some(name) = answer.cluster_id.clone() {
            let broker = self.clone();
            let named = to_its_end(async move { broker.topics.name_cluster(&name).await });
            if let Err(error) = named.await {
                // Where there is no room for it, it is asked for again.
                self.not_kept(error);
            }
        }
        Ok(answer)
    }

    /// Takes note of topics that the first broker has, with what they are configured with.
    async fn keep(
        self: &Arc<Self>,
        told: Vec<MetadataResponseTopic>,
        deletions: u64,
    ) -> Result<Vec<(String, Topic)>, ResponseError> {
        let configs = self.ask_configs(&told).await?;
        let mut kept = Vec::new();
        for (told, configs) in told.into_iter().zip(configs) {
            let name = told.name.unwrap_or_default().to_string();
            let topic = Topic {
                id: told.topic_id,
                partitions: told.partitions.len() as i32,
                configs,
            };
            let (broker, known) = (self.clone(), name.clone());
            let learnt =
                to_its_end(async move { broker.topics.learn(&known, topic, deletions).await });
            let learnt = learnt
                .await
                .map_err(|error| self.not_kept(error).error)?
                // A topic was deleted meanwhile: it may have been this one.
                .ok_or(ResponseError::LeaderNotAvailable)?;
            self.configure(&name).await;
            kept.push((name, learnt));
        }
        Ok(kept)
    }

    async fn ask_configs(
        &self,
        of: &[MetadataResponseTopic],
    ) -> Result<Vec<Configs>, ResponseError> {
        let resources = of.iter().map(|topic| {
            DescribeConfigsResource::default()
                .with_resource_type(super::configs::TOPIC)
                .with_resource_name(text(topic.name.as_deref().map_or("", StrBytes::as_str)))
                .with_configuration_keys(None)
        });
        let request = DescribeConfigsRequest::default().with_resources(resources.collect());
        let answer = self.ask(0, &request, DESCRIBE_CONFIGS_VERSION).await;
        let answer = answer.map_err(|_| ResponseError::LeaderNotAvailable)?;
        let all = answer.results.iter().map(|result| {
            let set = result.configs.iter().filter(|config| {
                config.config_source == super::configs::SOURCE_TOPIC && result.error_code == 0
            });
            let changes = set.map(|config| {
                let value = config.value.as_deref().unwrap_or_default();
                (config.name.as_str(), ConfigChange::Set(value.to_owned()))
            });
            // The first broker keeps what another version of it would not.
            let configs = Configs::default().changed(changes);
            configs.map_err(|_| ResponseError::LeaderNotAvailable)
        });
        let all: Vec<Configs> = all.collect::<Result<_, _>>()?;
        match all.len() == of.len() {
            true => Ok(all),
            false => Err(ResponseError::LeaderNotAvailable),
        }
    }
}
