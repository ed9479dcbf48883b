//! Deleting topics: what is asked, by name or by id, and what is answered. See `deletion` for what is done.

use super::{
    create::{check_name, named_twice},
    learn::FROM_FIRST_MS,
    objection::{told, Objection},
};
use crate::log::{
    broker::{deletion::Deleted, to_its_end, Broker},
    cluster::name,
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        delete_topics_request::DeleteTopicState, delete_topics_response::DeletableTopicResult,
        DeleteTopicsRequest, DeleteTopicsResponse, TopicName,
    },
};
use std::sync::Arc;
use uuid::Uuid;

const DELETE_TOPICS_VERSION: i16 = 6;

impl Broker {
    /// Deletes topics: the first broker decides, then all remove what they have of it. If one of them is away, the
    /// answer is that it takes longer; it goes on nonetheless.
    pub async fn delete_topics(
        self: &Arc<Self>,
        mut request: DeleteTopicsRequest,
    ) -> DeleteTopicsResponse {
        // Before version 6 there are names only.
        let named = std::mem::take(&mut request.topic_names).into_iter();
        let named = named.map(|name| DeleteTopicState::default().with_name(Some(name)));
        request.topics.extend(named);
        if !self.is_first() && request.timeout_ms == FROM_FIRST_MS {
            return self.delete_with_the_first(request).await;
        }
        match self.ask_first(&request, DELETE_TOPICS_VERSION).await {
            Some(answer) => answer,
            None => self.delete_all(request).await,
        }
    }

    /// The first broker says that it has deleted topics. Anybody might say so: it is asked whether that is true.
    async fn delete_with_the_first(
        self: &Arc<Self>,
        request: DeleteTopicsRequest,
    ) -> DeleteTopicsResponse {
        let mut results = Vec::new();
        for topic in request.topics {
            let id = topic.topic_id;
            let refused = match self.is_deleted(id).await {
                Ok(true) => self.delete_id(id).await.err(),
                Ok(false) => Some(Objection::new(
                    ResponseError::InvalidRequest,
                    "the first broker has deleted no topic of this id; a time-out of 0 or more would be right",
                )),
                Err(error) => Some(error.into()),
            };
            results.push((topic, refused));
        }
        answered(results)
    }

    /// Removes what there is here of a topic that the first broker has deleted.
    async fn delete_id(self: &Arc<Self>, id: Uuid) -> Result<(), Objection> {
        let name = match self.topics.name_of(id).await {
            Some(name) => Some(name),
            None => self.topics.deleted_name_of(id).await,
        };
        // It may never have been here: who is asking for it now is told so, all the same.
        match self
            .delete_named(&name.unwrap_or_default(), Some(id))
            .await?
        {
            Deleted::Gone | Deleted::Unknown => Ok(()),
            Deleted::Later => Err(ResponseError::RequestTimedOut.into()),
        }
    }

    async fn delete_all(self: &Arc<Self>, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
        let names = request
            .topics
            .iter()
            .filter_map(|topic| topic.name.as_deref());
        let twice = named_twice(names.map(|name| &**name));
        let mut results = Vec::new();
        for mut topic in request.topics {
            let name = topic.name.as_deref().map(|name| name.to_string());
            let deleted = match name {
                Some(name) if twice.contains(&name) => Err(Objection::new(
                    ResponseError::InvalidRequest,
                    "the request names this topic twice",
                )),
                _ => self.delete_topic(&mut topic).await,
            };
            results.push((topic, deleted.err()));
        }
        answered(results)
    }

    /// Deletes a topic; what the request does not say of it is filled in.
    async fn delete_topic(self: &Arc<Self>, asked: &mut DeleteTopicState) -> Result<(), Objection> {
        self.decides()?;
        let id = (!asked.topic_id.is_nil()).then_some(asked.topic_id);
        let topic: TopicName = match (&asked.name, id) {
            (Some(name), None) => name.clone(),
            (None, Some(id)) => {
                let known = self.topics.name_of(id).await;
                let known = known.ok_or(ResponseError::UnknownTopicId)?;
                asked.name.insert(name(&known)).clone()
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(Objection::new(
                    ResponseError::InvalidRequest,
                    "a topic's name or its id would be right: one of them",
                ))
            }
        };
        check_name(&topic)?;
        match self.delete_named(&topic, id).await? {
            Deleted::Gone => Ok(()),
            Deleted::Unknown if id.is_some() => Err(ResponseError::UnknownTopicId.into()),
            Deleted::Unknown => Err(ResponseError::UnknownTopicOrPartition.into()),
            Deleted::Later => Err(ResponseError::RequestTimedOut.into()),
        }
    }

    async fn delete_named(
        self: &Arc<Self>,
        name: &str,
        id: Option<Uuid>,
    ) -> Result<Deleted, Objection> {
        let (broker, name) = (self.clone(), name.to_owned());
        let deleted = to_its_end(async move { broker.delete_here(&name, id).await }).await;
        deleted.map_err(|error| self.not_kept(error))
    }

    /// Tells another broker that a topic is deleted; it asks back, and removes what it has of it.
    pub(in crate::log::broker) async fn delete_at(
        &self,
        peer: usize,
        id: Uuid,
    ) -> Result<(), ResponseError> {
        let topic = DeleteTopicState::default()
            .with_name(None)
            .with_topic_id(id);
        let request = DeleteTopicsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(FROM_FIRST_MS);
        let answer = self.ask(peer, &request, DELETE_TOPICS_VERSION).await;
        let answer = answer.map_err(|_| ResponseError::RequestTimedOut)?;
        let result = answer.responses.first();
        let result = result.ok_or(ResponseError::UnknownServerError)?;
        ResponseError::try_from_code(result.error_code).map_or(Ok(()), Err)
    }
}

fn answered(results: Vec<(DeleteTopicState, Option<Objection>)>) -> DeleteTopicsResponse {
    let results = results.into_iter().map(|(topic, refused)| {
        let (code, why) = told(refused);
        DeletableTopicResult::default()
            .with_name(topic.name)
            .with_topic_id(topic.topic_id)
            .with_error_code(code)
            .with_error_message(why)
    });
    DeleteTopicsResponse::default().with_responses(results.collect())
}
