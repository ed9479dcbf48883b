//! The coordinator of groups: who is a member, who has which partitions, and how far the group has come.
//!
//! A group belongs to a partition of `__consumer_offsets`, and that partition's leader is its coordinator.

mod seats;
mod positions;
mod describe;
mod forget;

use self::seats::Seats;
use super::{data, to_its_end, Broker, Later, OFFSETS_TOPIC, TRANSACTIONS_TOPIC};
use crate::{
    ids::{Offset, PartitionId},
    log::{
        fold::{Fold, Folded},
        groups::{Group, Join, Joined, Phase, Speaker, Stored, Sync},
        offsets::{Entry, Offsets},
        partition::AppendError,
        peer::Peer,
        room::Purse,
        transactions::TransactionVersion,
        TopicPartition,
    },
    wire::{
        batch::{self, Batch, Identity},
        validate::Checked,
    },
};
use bytes::Bytes;
use futures::FutureExt;
use kafka_protocol::{
    error::ResponseError,
    messages::{
        delete_groups_response::DeletableGroupResult,
        find_coordinator_response::Coordinator as FoundCoordinator,
        join_group_response::JoinGroupResponseMember, leave_group_response::MemberResponse,
        DeleteGroupsRequest, DeleteGroupsResponse, FindCoordinatorRequest, FindCoordinatorResponse,
        HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
        LeaveGroupRequest, LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
    },
    protocol::StrBytes,
};
use std::sync::{
    atomic::{AtomicU64, Ordering},
    Arc,
};

/// The coordinator of the groups of one partition of `__consumer_offsets`.
pub struct Coordinator {
    pub(super) fold: Fold<Offsets>,
    pub(super) seats: Seats,
    members: AtomicU64,
}

impl Folded for Offsets {
    fn apply(&mut self, batch: &Batch) -> Result<(), String> {
        Offsets::apply(self, batch)
    }

    fn fingerprint(&self) -> u64 {
        Offsets::fingerprint(self)
    }
}

impl Coordinator {
    /// Groups without members of which the log knows nothing are gone.
    fn clear_seats(&self) {
        let is_known = |name: &str| self.fold.look(|offsets| offsets.knows(name));
        self.seats.clear(is_known);
    }

    /// Waits until everything before `end` was applied.
    pub(super) async fn wait_applied(&self, end: Offset) -> Result<(), ResponseError> {
        let applied = self.fold.wait_applied(end).await;
        applied.map_err(|_| ResponseError::NotCoordinator)
    }
}

/// The first version of JoinGroup in which a member gets its id before it joins (KIP-394).
const JOIN_WITH_ID: i16 = 4;
/// The name of a group is not longer: Kafka's own log could not say it.
const NAME_BYTES_MAX: usize = i16::MAX as usize;
const SESSION_MS: std::ops::RangeInclusive<i32> = 1..=1_800_000;

impl Broker {
    pub(super) async fn coordinator_of_group(
        self: &Arc<Self>,
        group: &str,
    ) -> Result<Arc<Coordinator>, ResponseError> {
        if group.is_empty() || group.len() > NAME_BYTES_MAX {
            return Err(ResponseError::InvalidGroupId);
        }
        self.group_coordinator(self.coordinator_of(group).0).await
    }

    /// The coordinator, opened if need be.
    pub(super) async fn group_coordinator(
        self: &Arc<Self>,
        index: i32,
    ) -> Result<Arc<Coordinator>, ResponseError> {
        let key = TopicPartition::new(OFFSETS_TOPIC, PartitionId(index));
        if !self.is_here(&key) {
            return Err(ResponseError::NotCoordinator);
        }
        if let Some(open) = self.groups.lock().await.get(&index) {
            return Ok(open.clone());
        }
        let partition = self.partition(&key).await?;
        let broker = self.clone();
        to_its_end(async move {
            let mut all = broker.groups.lock().await;
            if let Some(open) = all.get(&index) {
                return Ok(open.clone());
            }
            let fold = Fold::open(partition, key.to_string(), Offsets::default()).await;
            let fold = fold.map_err(|error| {
                broker.fail(error);
                ResponseError::KafkaStorageError
            })?;
            let now = broker.now_ms();
            let (seats, groups) = fold.look(|offsets| {
                let names = offsets.names();
                let known = names.iter().map(|name| {
                    let stored = offsets.group(name);
                    let restored = stored.map(|stored| Group::restore(stored, now));
                    (name.to_string(), restored.unwrap_or_default())
                });
                (Seats::new(known), names.len())
            });
            tracing::info!(
                name: "group.coordinator-loaded",
                partition = index,
                groups
            );
            if groups > 0 {
                tracing::info!(name: "group.coordinator-took-over", partition = index);
            }
            let coordinator = Arc::new(Coordinator {
                fold,
                seats,
                members: AtomicU64::new(0),
            });
            let (following, failing) = (coordinator.clone(), broker.clone());
            tokio::spawn(async move {
                let error = following.fold.follow().await;
                failing.fail(error);
            });
            all.insert(index, coordinator.clone());
            Ok(coordinator)
        })
        .await
    }

    /// Who coordinates groups (key type 0) and transactional ids (1).
    pub fn find_coordinator(
        &self,
        request: FindCoordinatorRequest,
        version: i16,
    ) -> FindCoordinatorResponse {
        let find = |key: &StrBytes| {
            let topic = match request.key_type {
                0 => OFFSETS_TOPIC,
                _ => TRANSACTIONS_TOPIC,
            };
            let of = TopicPartition::new(topic, self.coordinator_of(key));
            let leader = self.leader_of(&of);
            let address = &self.config.brokers[leader];
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
            FoundCoordinator::default()
                .with_key(key.clone())
                .with_node_id((leader as i32).into())
                .with_host(StrBytes::from_string(host.to_owned()))
                .with_port(port.parse().unwrap_or(0))
        };
        if version >= 4 {
            let found = request.coordinator_keys.iter().map(find).collect();
            return FindCoordinatorResponse::default().with_coordinators(found);
        }
        let found = find(&request.key);
        FindCoordinatorResponse::default()
            .with_node_id(found.node_id)
            .with_host(found.host)
            .with_port(found.port)
    }

    /// A member joins; the answer waits for the others, and then for memory: its leader is told what all of them say.
    pub fn join_group(
        self: &Arc<Self>,
        request: JoinGroupRequest,
        version: i16,
        client: String,
        peer: &Arc<Peer>,
    ) -> Later<(JoinGroupResponse, Purse)> {
        let (broker, mut purse) = (self.clone(), Purse::of(peer));
        async move {
            let mut member = request.member_id.to_string();
            let joined = broker.join(&request, version, client, &mut member).await;
            let answer = JoinGroupResponse::default()
                .with_member_id(StrBytes::from_string(member))
                .with_generation_id(-1)
                .with_protocol_name((version < 7).then(StrBytes::default));
            let joined = match joined {
                Err(error) => return (answer.with_error_code(error.code()), purse),
                Ok(joined) => joined,
            };
            purse.pay(&broker.rooms.leaving, 2 * joined.bytes()).await;
            let members = joined.members.into_iter().map(|(id, instance, metadata)| {
                JoinGroupResponseMember::default()
                    .with_member_id(StrBytes::from_string(id))
                    .with_group_instance_id(instance.map(StrBytes::from_string))
                    .with_metadata(metadata)
            });
            let kind = StrBytes::from_string(joined.protocol_type);
            let answer = answer
                .with_generation_id(joined.generation)
                .with_protocol_type(Some(kind))
                .with_protocol_name(Some(StrBytes::from_string(joined.protocol)))
                .with_leader(StrBytes::from_string(joined.leader))
                .with_members(members.collect());
            (answer, purse)
        }
        .boxed()
    }

    async fn join(
        self: &Arc<Self>,
        request: &JoinGroupRequest,
        version: i16,
        client: String,
        member: &mut String,
    ) -> Result<Joined, ResponseError> {
        let coordinator = self.coordinator_of_group(&request.group_id).await?;
        if !SESSION_MS.contains(&request.session_timeout_ms) {
            return Err(ResponseError::InvalidSessionTimeout);
        }
        let instance = request.group_instance_id.as_ref().map(|id| id.to_string());
        if member.is_empty() {
            let number = coordinator.members.fetch_add(1, Ordering::Relaxed);
            *member = format!("{client}-{}-{number}", self.host.instance);
            if version >= JOIN_WITH_ID && instance.is_none() {
                return Err(ResponseError::MemberIdRequired);
            }
        }
        let rebalance_ms = match request.rebalance_timeout_ms {
            timeout if timeout > 0 => timeout,
            _ => request.session_timeout_ms,
        };
        let protocols = request.protocols.iter();
        let join = Join {
            member: member.clone(),
            instance,
            client,
            session_ms: request.session_timeout_ms as u64,
            rebalance_ms: rebalance_ms as u64,
            protocol_type: request.protocol_type.to_string(),
            protocols: protocols
                // A slice would keep the whole request.
                .map(|protocol| {
                    let own = Bytes::copy_from_slice(&protocol.metadata);
                    (protocol.name.to_string(), own)
                })
                .collect(),
        };
        (coordinator.seats).join(&request.group_id, join, self.now_ms())?;
        let joined = (coordinator.seats)
            .wait(&request.group_id, |group| group.joined(member))
            .await?;
        tracing::info!(
            name: "group.joined",
            group = request.group_id.as_str(),
            member = member.as_str(),
            generation = joined.generation
        );
        Ok(joined)
    }

    /// A member asks what it was assigned; the answer waits for the leader, and its assignment is durable.
    pub fn sync_group(self: &Arc<Self>, request: SyncGroupRequest) -> Later<SyncGroupResponse> {
        let broker = self.clone();
        async move {
            let answer = SyncGroupResponse::default()
                .with_protocol_type(request.protocol_type.clone())
                .with_protocol_name(request.protocol_name.clone());
            match broker.sync(&request).await {
                Ok(assignment) => answer.with_assignment(assignment),
                Err(error) => answer.with_error_code(error.code()),
            }
        }
        .boxed()
    }

    async fn sync(self: &Arc<Self>, request: &SyncGroupRequest) -> Result<Bytes, ResponseError> {
        let coordinator = self.coordinator_of_group(&request.group_id).await?;
        let who = Speaker {
            generation: request.generation_id,
            member: &request.member_id,
            instance: request.group_instance_id.as_deref(),
        };
        let assignments = request.assignments.iter();
        let mut assignments: Vec<(String, Bytes)> = assignments
            .map(|one| {
                let own = Bytes::copy_from_slice(&one.assignment);
                (one.member_id.to_string(), own)
            })
            .collect();
        loop {
            let given = std::mem::take(&mut assignments);
            let seats = &coordinator.seats;
            match seats.sync(&request.group_id, who, given, self.now_ms())? {
                Sync::Assigned(assignment) => return Ok(assignment),
                Sync::Store(stored) => {
                    self.store_group(&coordinator, &request.group_id, stored.clone())
                        .await?;
                    let now = self.now_ms();
                    seats.keep(&request.group_id);
                    seats.change(&request.group_id, |group| group.stored(&stored, now));
                    tracing::info!(
                        name: "group.stable",
                        group = request.group_id.as_str(),
                        generation = stored.generation,
                        members = stored.members.len()
                    );
                }
                Sync::Wait => {
                    let over = |group: &Group| {
                        let waits = group.phase() == Phase::Completing && group.check(who).is_ok();
                        (!waits).then_some(())
                    };
                    seats.wait(&request.group_id, over).await;
                }
            }
        }
    }

    async fn store_group(
        self: &Arc<Self>,
        coordinator: &Arc<Coordinator>,
        group: &str,
        stored: Stored,
    ) -> Result<(), ResponseError> {
        let entry = Entry::Group {
            group: group.to_owned(),
            stored: Some(stored),
        };
        let entries = [entry];
        let written = self.write_entries(coordinator, &entries, Identity::NOBODY, None);
        written.await.map_err(|error| match error {
            // As Apache Kafka says it: another try would fare no better.
            ResponseError::MessageTooLarge => ResponseError::UnknownServerError,
            error => error,
        })
    }

    /// Writes into the coordinator's log, durably, and waits until it was applied.
    async fn write_entries(
        self: &Arc<Self>,
        coordinator: &Arc<Coordinator>,
        entries: &[Entry],
        by: Identity,
        transaction: Option<(String, TransactionVersion)>,
    ) -> Result<(), ResponseError> {
        let now_ms = self.host.clock.now_ms();
        let records: Vec<_> = entries
            .iter()
            .map(|entry| entry.to_record(now_ms))
            .collect();
        let bytes = batch::encode(&records, by).map_err(|_| ResponseError::UnknownServerError)?;
        let batch = Checked::ours(bytes).map_err(|_| ResponseError::UnknownServerError)?;
        let appended = match transaction {
            None => {
                let partition = coordinator.fold.partition().clone();
                let appending = partition.clone();
                let appended =
                    to_its_end(async move { appending.append(&batch, None, now_ms).await });
                match appended.await {
                    Ok(appended) => Ok((partition, appended)),
                    Err(AppendError::Log(error)) => {
                        self.fail(error);
                        Err(ResponseError::NotCoordinator)
                    }
                    Err(AppendError::TooLarge { .. }) => Err(ResponseError::MessageTooLarge),
                    Err(_) => Err(ResponseError::CoordinatorNotAvailable),
                }
            }
            Some(transaction) => {
                let Entry::Position { group, .. } = &entries[0] else {
                    return Err(ResponseError::InvalidRequest);
                };
                let to = TopicPartition::new(OFFSETS_TOPIC, self.coordinator_of(group));
                self.append(&to, &batch, Some(&transaction)).await
            }
        };
        let end = appended.as_ref().map(|(_, appended)| appended.end_offset);
        let end = end.map_err(|error| *error)?;
        data::durable(appended).await?;
        coordinator.wait_applied(end).await
    }

    /// A member is still there.
    pub async fn heartbeat(self: &Arc<Self>, request: HeartbeatRequest) -> HeartbeatResponse {
        let beaten = match self.coordinator_of_group(&request.group_id).await {
            Err(error) => Err(error),
            Ok(coordinator) => {
                let who = Speaker {
                    generation: request.generation_id,
                    member: &request.member_id,
                    instance: request.group_instance_id.as_deref(),
                };
                let now = self.now_ms();
                let seats = &coordinator.seats;
                seats.change(&request.group_id, |group| group.heartbeat(who, now))
            }
        };
        let code = beaten.err().map_or(0, |error| error.code());
        HeartbeatResponse::default().with_error_code(code)
    }

    /// Members leave.
    pub async fn leave_group(
        self: &Arc<Self>,
        request: LeaveGroupRequest,
        version: i16,
    ) -> LeaveGroupResponse {
        let answer = LeaveGroupResponse::default();
        let coordinator = match self.coordinator_of_group(&request.group_id).await {
            Err(error) => return answer.with_error_code(error.code()),
            Ok(coordinator) => coordinator,
        };
        let leave = |id: &str, instance: Option<&str>| {
            let now = self.now_ms();
            let seats = &coordinator.seats;
            let left = seats.change(&request.group_id, |group| group.leave(id, instance, now));
            left.err().map_or(0, |error| error.code())
        };
        let answer = if version < 3 {
            answer.with_error_code(leave(&request.member_id, None))
        } else {
            let members = request.members.into_iter().map(|member| {
                let code = leave(&member.member_id, member.group_instance_id.as_deref());
                MemberResponse::default()
                    .with_member_id(member.member_id)
                    .with_group_instance_id(member.group_instance_id)
                    .with_error_code(code)
            });
            answer.with_members(members.collect())
        };
        // Who was told that it has left does not come back, after a crash, as a member that is silent.
        let left = {
            let groups = coordinator.seats.lock();
            let seat = groups.get(request.group_id.as_str());
            seat.map(|seat| seat.group.to_stored())
        };
        let emptied = left.filter(|left| {
            coordinator.fold.look(|offsets| {
                let durable = offsets.group(&request.group_id);
                left.members.is_empty() && durable.is_some_and(|one| !one.members.is_empty())
            })
        });
        if let Some(stored) = emptied {
            let stored = self.store_group(&coordinator, &request.group_id, stored);
            if let Err(error) = stored.await {
                return LeaveGroupResponse::default().with_error_code(error.code());
            }
        }
        answer
    }

    /// Leaves out members that fell silent.
    pub(super) async fn expire_members(self: &Arc<Self>) {
        let open: Vec<_> = self.groups.lock().await.values().cloned().collect();
        let now = self.now_ms();
        for coordinator in open {
            for (group, generation) in coordinator.seats.expire(now) {
                tracing::info!(name: "group.expired", group, generation);
            }
            coordinator.clear_seats();
        }
    }

    /// Forgets groups that have no members, and their positions.
    pub async fn delete_groups(
        self: &Arc<Self>,
        request: DeleteGroupsRequest,
    ) -> DeleteGroupsResponse {
        let mut results = Vec::new();
        for id in request.groups_names {
            let deleted = self.delete_group(&id).await;
            results.push(
                DeletableGroupResult::default()
                    .with_group_id(id)
                    .with_error_code(deleted.err().map_or(0, |error| error.code())),
            );
        }
        DeleteGroupsResponse::default().with_results(results)
    }

    async fn delete_group(self: &Arc<Self>, group: &str) -> Result<(), ResponseError> {
        let coordinator = self.coordinator_of_group(group).await?;
        {
            let groups = coordinator.seats.lock();
            let seat = groups.get(group).ok_or(ResponseError::GroupIdNotFound)?;
            if seat.group.phase() != Phase::Empty || seat.staging > 0 {
                return Err(ResponseError::NonEmptyGroup);
            }
        }
        let mut entries: Vec<Entry> = coordinator.fold.look(|offsets| {
            let all = offsets.of_group(group).map(|(of, _)| Entry::Position {
                group: group.to_owned(),
                of: of.clone(),
                position: None,
            });
            all.collect()
        });
        entries.push(Entry::Group {
            group: group.to_owned(),
            stored: None,
        });
        self.write_entries(&coordinator, &entries, Identity::NOBODY, None)
            .await?;
        coordinator.clear_seats();
        Ok(())
    }
}
