//! A member of a consumer group: it shares the partitions of some topics with the others (the classic
//! protocol, range assignment), and knows how far the group has come.

use super::{
    cluster::{name, Cluster, KeyType, BACKOFF},
    connection::SharedConnection,
    TopicPartition,
};
use crate::{
    ids::{Offset, PartitionId},
    part::Part,
    watched::Watched,
    wire::skeleton,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        consumer_protocol_assignment::TopicPartition as AssignedTopic,
        join_group_request::JoinGroupRequestProtocol,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::OffsetFetchRequestTopic,
        sync_group_request::SyncGroupRequestAssignment,
        ConsumerProtocolAssignment, ConsumerProtocolSubscription, HeartbeatRequest,
        JoinGroupRequest, LeaveGroupRequest, OffsetCommitRequest, OffsetFetchRequest,
        SyncGroupRequest,
    },
    protocol::{Decodable, Encodable, StrBytes},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const PROTOCOL: &str = "range";
/// The version of the consumer protocol's own messages.
const CONSUMER_PROTOCOL: i16 = 0;
/// The last version of OffsetFetch that asks for one group only.
const FETCH_ONE_GROUP: i16 = 7;

/// How a member takes part.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// The group.
    pub group: String,
    /// The topics whose partitions are shared.
    pub topics: Vec<String>,
    /// After so long a silence a member is left out.
    pub session: Duration,
    /// So long may members take to join again.
    pub rebalance: Duration,
}

/// Which member of which generation somebody is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The generation of the group.
    pub generation: i32,
    /// The member's id.
    pub member: String,
}

/// A member of a group.
pub struct Member {
    cluster: Cluster,
    config: MemberConfig,
    id: String,
    /// What keeps it alive.
    beating: Option<Part>,
}

/// What a member has, in one generation.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// Who it is.
    pub membership: Membership,
    /// Its partitions.
    pub partitions: Vec<TopicPartition>,
    over: Arc<Watched<bool>>,
}

impl Assignment {
    /// Whether the group has gone on, or may have: time to join again.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }
}

enum Retry {
    /// The same again.
    Again,
    /// Under another id, or as nobody yet.
    Anew,
}

impl Member {
    /// A member that has not joined yet.
    pub fn new(cluster: Cluster, config: MemberConfig) -> Self {
        Member {
            cluster,
            config,
            id: String::new(),
            beating: None,
        }
    }

    /// Joins, or joins again, and gets its share. Tries until it has it.
    pub async fn join(&mut self) -> Assignment {
        self.beating = None;
        loop {
            match self.try_join().await {
                Ok(assignment) => return assignment,
                Err(Retry::Again) => {}
                Err(Retry::Anew) => self.id.clear(),
            }
            self.cluster
                .forget_coordinator(KeyType::Group, &self.config.group);
            tokio::time::sleep(BACKOFF).await;
        }
    }

    async fn try_join(&mut self) -> Result<Assignment, Retry> {
        // A join waits for the others: on a connection of its own, for as long as they may take.
        let timeout = self.config.rebalance + self.config.session;
        let connection = self
            .cluster
            .connect_coordinator_within(KeyType::Group, &self.config.group, timeout)
            .await
            .map_err(|_| Retry::Again)?;
        let joined = loop {
            let answer = connection.call(&self.join_request()).await;
            let answer = answer.map_err(|_| Retry::Again)?;
            match ResponseError::try_from_code(answer.error_code) {
                None => break answer,
                Some(ResponseError::MemberIdRequired) => self.id = answer.member_id.to_string(),
                Some(error) => return Err(retry_after(error)),
            }
        };
        self.id = joined.member_id.to_string();
        let membership = Membership {
            generation: joined.generation_id,
            member: self.id.clone(),
        };
        let mut assignments = Vec::new();
        if joined.leader == joined.member_id {
            let mut subscribed = BTreeMap::new();
            for member in &joined.members {
                let topics = topics_of(member.metadata.clone()).ok_or(Retry::Again)?;
                subscribed.insert(member.member_id.to_string(), topics);
            }
            let mut partitions = BTreeMap::new();
            for topic in subscribed.values().flatten() {
                if !partitions.contains_key(topic) {
                    let count = self.cluster.partitions(topic).await;
                    partitions.insert(topic.clone(), count);
                }
            }
            assignments = share(&subscribed, &partitions);
        }
        let request = SyncGroupRequest::default()
            .with_group_id(self.group_id().into())
            .with_generation_id(membership.generation)
            .with_member_id(joined.member_id)
            .with_protocol_type(Some(StrBytes::from_static_str("consumer")))
            .with_protocol_name(Some(StrBytes::from_static_str(PROTOCOL)))
            .with_assignments(assignments);
        let answer = connection.call(&request).await.map_err(|_| Retry::Again)?;
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            return Err(retry_after(error));
        }
        let partitions = partitions_of(answer.assignment).ok_or(Retry::Again)?;
        let over = Arc::new(Watched::new(false));
        let beat = beat(
            self.cluster.clone(),
            self.config.clone(),
            membership.clone(),
            over.clone(),
        );
        self.beating = Some(Part(tokio::spawn(beat)));
        Ok(Assignment {
            membership,
            partitions,
            over,
        })
    }

    fn group_id(&self) -> StrBytes {
        StrBytes::from_string(self.config.group.clone())
    }

    fn join_request(&self) -> JoinGroupRequest {
        let topics = self.config.topics.iter();
        let subscription = ConsumerProtocolSubscription::default().with_topics(
            topics
                .map(|topic| StrBytes::from_string(topic.clone()))
                .collect(),
        );
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(StrBytes::from_static_str(PROTOCOL))
            .with_metadata(versioned(&subscription));
        JoinGroupRequest::default()
            .with_group_id(self.group_id().into())
            .with_session_timeout_ms(self.config.session.as_millis() as i32)
            .with_rebalance_timeout_ms(self.config.rebalance.as_millis() as i32)
            .with_member_id(StrBytes::from_string(self.id.clone()))
            .with_protocol_type(StrBytes::from_static_str("consumer"))
            .with_protocols(vec![protocol])
    }

    /// How far the group has come in a partition; nothing if it has not begun. Waits for transactions that may
    /// still change it (KIP-447). Tries until it is told.
    pub async fn position(&self, of: &TopicPartition) -> Option<Offset> {
        position(&self.cluster, &self.config.group, of).await
    }

    /// Takes note of how far this member has come. An error: whether it was noted is unknown, or it is not a
    /// member any more.
    pub async fn commit(
        &self,
        membership: &Membership,
        positions: &[(TopicPartition, Offset)],
    ) -> Result<(), String> {
        let connection = self.coordinator().await?;
        let topics = positions.iter().map(|(of, position)| {
            let partition = OffsetCommitRequestPartition::default()
                .with_partition_index(of.partition.0)
                .with_committed_offset(position.0);
            OffsetCommitRequestTopic::default()
                .with_name(name(&of.topic))
                .with_partitions(vec![partition])
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(self.group_id().into())
            .with_generation_id_or_member_epoch(membership.generation)
            .with_member_id(StrBytes::from_string(membership.member.clone()))
            .with_topics(topics.collect());
        let answer = connection.call(&request).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let mut partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        match partitions.find(|one| one.error_code != 0) {
            None => Ok(()),
            Some(one) => Err(format!(
                "{:?}",
                ResponseError::try_from_code(one.error_code)
            )),
        }
    }

    async fn coordinator(&self) -> Result<SharedConnection, String> {
        let group = &self.config.group;
        let shared = self.cluster.share_coordinator(KeyType::Group, group).await;
        shared.map_err(|error| error.to_string())
    }

    /// Leaves the group, so that the others need not wait for its session to end. Tries once.
    pub async fn leave(mut self) {
        self.beating = None;
        if let Ok(connection) = self.coordinator().await {
            let member = kafka_protocol::messages::leave_group_request::MemberIdentity::default()
                .with_member_id(StrBytes::from_string(self.id.clone()));
            let request = LeaveGroupRequest::default()
                .with_group_id(self.group_id().into())
                .with_members(vec![member]);
            let _ = connection.call(&request).await;
        }
    }
}

/// See [`Member::position`].
pub async fn position(cluster: &Cluster, group: &str, of: &TopicPartition) -> Option<Offset> {
    noted(cluster, group, of).await.map(|noted| noted.position)
}

/// How far a group has come in a partition, and what it has written beside that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// How far.
    pub position: Offset,
    /// Whatever the group wants to know with it; at most 4096 bytes, unless a broker says otherwise.
    pub metadata: String,
}

/// As [`position`], with what was written beside it.
pub async fn noted(cluster: &Cluster, group: &str, of: &TopicPartition) -> Option<Noted> {
    loop {
        if let Ok(connection) = cluster.share_coordinator(KeyType::Group, group).await {
            match ask_position(&connection, group, of).await {
                Ok(noted) => return noted,
                Err(Some(ResponseError::UnstableOffsetCommit)) => {}
                Err(error) => {
                    cluster.forget_coordinator(KeyType::Group, group);
                    if error.is_none() {
                        cluster.forget_connection(&connection);
                    }
                }
            }
        }
        tokio::time::sleep(BACKOFF / 5).await;
    }
}

async fn ask_position(
    connection: &SharedConnection,
    group: &str,
    of: &TopicPartition,
) -> Result<Option<Noted>, Option<ResponseError>> {
    let topic = OffsetFetchRequestTopic::default()
        .with_name(name(&of.topic))
        .with_partition_indexes(vec![of.partition.0]);
    let group = StrBytes::from_string(group.to_owned());
    let one = OffsetFetchRequest::default()
        .with_group_id(group.into())
        .with_topics(Some(vec![topic]))
        .with_require_stable(true);
    let answer = connection
        .call_at(&one, FETCH_ONE_GROUP)
        .await
        .map_err(|_| None)?;
    let failed = |code: i16| ResponseError::try_from_code(code).map_or(Ok(()), |e| Err(Some(e)));
    failed(answer.error_code)?;
    let partitions = answer
        .topics
        .first()
        .and_then(|topic| topic.partitions.first());
    let found = partitions.ok_or(Some(ResponseError::UnknownServerError))?;
    failed(found.error_code)?;
    Ok((found.committed_offset >= 0).then(|| Noted {
        position: Offset(found.committed_offset),
        metadata: found.metadata.as_deref().unwrap_or_default().to_owned(),
    }))
}

/// Beats until the group goes on without this member, or may have.
async fn beat(
    cluster: Cluster,
    config: MemberConfig,
    membership: Membership,
    over: Arc<Watched<bool>>,
) {
    let request = HeartbeatRequest::default()
        .with_group_id(StrBytes::from_string(config.group.clone()).into())
        .with_generation_id(membership.generation)
        .with_member_id(StrBytes::from_string(membership.member));
    let mut heard = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(config.session / 5).await;
        let asked = tokio::time::Instant::now();
        match cluster
            .share_coordinator(KeyType::Group, &config.group)
            .await
        {
            Err(_) => {}
            Ok(connection) => match connection.call(&request).await {
                Err(_) => cluster.forget_connection(&connection),
                Ok(answer) => match ResponseError::try_from_code(answer.error_code) {
                    None => heard = asked,
                    Some(error) if error.is_retriable() => {
                        cluster.forget_coordinator(KeyType::Group, &config.group);
                    }
                    Some(_) => break,
                },
            },
        }
        if heard.elapsed() > config.session {
            break;
        }
    }
    over.update(|over| *over = true);
}

fn retry_after(error: ResponseError) -> Retry {
    match error {
        ResponseError::UnknownMemberId | ResponseError::FencedInstanceId => Retry::Anew,
        _ => Retry::Again,
    }
}

/// Shares the partitions of each topic among those who want it: neighbours to one, in the order of the
/// members' ids.
fn share(
    subscribed: &BTreeMap<String, Vec<String>>,
    partitions: &BTreeMap<String, i32>,
) -> Vec<SyncGroupRequestAssignment> {
    let mut shares = BTreeMap::<&String, Vec<AssignedTopic>>::new();
    for (topic, count) in partitions {
        let wanting = subscribed
            .iter()
            .filter(|(_, topics)| topics.contains(topic));
        let wanting: Vec<&String> = wanting.map(|(member, _)| member).collect();
        let members = wanting.len() as i32;
        let mut first = 0;
        for (index, member) in wanting.into_iter().enumerate() {
            let share = count / members + i32::from((index as i32) < count % members);
            let assigned = AssignedTopic::default()
                .with_topic(name(topic))
                .with_partitions((first..first + share).collect());
            shares.entry(member).or_default().push(assigned);
            first += share;
        }
    }
    let all = subscribed.keys().map(|member| {
        let topics = shares.remove(member).unwrap_or_default();
        let assignment = ConsumerProtocolAssignment::default().with_assigned_partitions(topics);
        SyncGroupRequestAssignment::default()
            .with_member_id(StrBytes::from_string(member.clone()))
            .with_assignment(versioned(&assignment))
    });
    all.collect()
}

/// A message of the consumer protocol, with its version in front.
fn versioned(message: &impl Encodable) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i16(CONSUMER_PROTOCOL);
    let encoded = message.encode(&mut bytes, CONSUMER_PROTOCOL);
    encoded.expect("names and numbers");
    bytes.freeze()
}

/// The topics that a member says it reads; `None` if what it says makes no sense.
pub(super) fn topics_of(mut metadata: Bytes) -> Option<Vec<String>> {
    metadata.try_get_i16().ok()?;
    skeleton::check_subscription(&metadata).ok()?;
    // Newer versions only add to the end.
    let version = CONSUMER_PROTOCOL;
    let subscription = ConsumerProtocolSubscription::decode(&mut metadata, version).ok()?;
    Some(
        subscription
            .topics
            .iter()
            .map(|topic| topic.to_string())
            .collect(),
    )
}

fn partitions_of(mut assignment: Bytes) -> Option<Vec<TopicPartition>> {
    if assignment.is_empty() {
        return Some(Vec::new());
    }
    assignment.try_get_i16().ok()?;
    skeleton::check_assignment(&assignment).ok()?;
    let version = CONSUMER_PROTOCOL;
    let assignment = ConsumerProtocolAssignment::decode(&mut assignment, version).ok()?;
    let topics = assignment.assigned_partitions.iter().flat_map(|topic| {
        let indexes = topic.partitions.iter();
        indexes.map(|index| TopicPartition::new(&topic.topic, PartitionId(*index)))
    });
    Some(topics.collect())
}
