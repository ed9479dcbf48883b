//! Deleting topics: what is asked, by name or by id, and what is answered. See `deletion` for what is done.

use super::{
    create::{check_name, named_twice},
    objection::Objection,
};
use crate::log::{
    broker::{deletion::Deleted, to_its_end, Broker},
    cluster::name,
    LogError,
};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        delete_topics_request::DeleteTopicState, delete_topics_response::DeletableTopicResult,
        DeleteTopicsRequest, DeleteTopicsResponse, TopicName,
    },
};
use std::sync::Arc;

const DELETE_TOPICS_VERSION: i16 = 6;
/// The first broker tells the others the number of a deletion in its time-out: so little has no user.
const FROM_PEER_MS: i32 = i32::MIN;
const DELETIONS_MAX: u64 = 1 << 30;

fn timeout_of(number: u64) -> i32 {
    assert!(number < DELETIONS_MAX, "{number} topics were deleted");
    FROM_PEER_MS + number as i32
}

/// The number of a deletion, if the first broker asks for it.
fn number_of(timeout_ms: i32) -> Option<u64> {
    let number = u64::from(timeout_ms.abs_diff(FROM_PEER_MS));
    (number < DELETIONS_MAX).then_some(number)
}

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
        // Nobody tells the first broker.
        let number = number_of(request.timeout_ms).filter(|_| self.config.id.0 != 0);
        if self.config.id.0 != 0 && number.is_none() {
            let answer = self.ask(0, &request, DELETE_TOPICS_VERSION).await;
            return answer.unwrap_or_else(|_| {
                let results = request.topics.into_iter().map(|topic| {
                    DeletableTopicResult::default()
                        .with_name(topic.name)
                        .with_topic_id(topic.topic_id)
                        .with_error_code(ResponseError::RequestTimedOut.code())
                });
                DeleteTopicsResponse::default().with_responses(results.collect())
            });
        }
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
                _ => self.delete_topic(&mut topic, number).await,
            };
            let (code, why) = super::objection::told(deleted.err());
            results.push(
                DeletableTopicResult::default()
                    .with_name(topic.name)
                    .with_topic_id(topic.topic_id)
                    .with_error_code(code)
                    .with_error_message(why),
            );
        }
        DeleteTopicsResponse::default().with_responses(results)
    }

    /// Deletes a topic; what the request does not say of it is filled in.
    async fn delete_topic(
        self: &Arc<Self>,
        asked: &mut DeleteTopicState,
        number: Option<u64>,
    ) -> Result<(), Objection> {
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
        let (broker, known) = (self.clone(), topic.to_string());
        let deleted = to_its_end(async move { broker.delete_here(&known, id, number).await });
        match deleted.await {
            Ok(Deleted::Gone) => Ok(()),
            Ok(Deleted::Unknown) if id.is_some() => Err(ResponseError::UnknownTopicId.into()),
            Ok(Deleted::Unknown) => Err(ResponseError::UnknownTopicOrPartition.into()),
            Ok(Deleted::Later) => Err(ResponseError::RequestTimedOut.into()),
            // Nothing was noted, and nothing is removed.
            Err(LogError::Unchanged { .. }) => Err(ResponseError::KafkaStorageError.into()),
            Err(error) => {
                self.fail(error);
                Err(ResponseError::KafkaStorageError.into())
            }
        }
    }

    /// Has another broker remove what it has of a topic.
    pub(in crate::log::broker) async fn delete_at(
        &self,
        peer: usize,
        topic: &str,
        number: u64,
    ) -> Result<(), ResponseError> {
        let topic = DeleteTopicState::default().with_name(Some(name(topic)));
        let request = DeleteTopicsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(timeout_of(number));
        let answer = self.ask(peer, &request, DELETE_TOPICS_VERSION).await;
        let answer = answer.map_err(|_| ResponseError::RequestTimedOut)?;
        let result = answer.responses.first();
        let code = result.map_or(0, |result| result.error_code);
        ResponseError::try_from_code(code).map_or(Ok(()), Err)
    }
}
