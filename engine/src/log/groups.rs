//! Pure: the members of a consumer group (Kafka's classic protocol), and who may commit for it.
//!
//! | from | to | when |
//! |---|---|---|
//! | Empty, Completing, Stable | Preparing | a member joins, leaves or falls silent |
//! | Preparing | Completing | all members have joined again, or the time for it is over: a new generation |
//! | Preparing | Empty | nobody is left |
//! | Completing | Stable | the leader's assignment is durable |
//!
//! Times are milliseconds of the coordinator's own monotonic clock.

mod stored;

pub use stored::{Stored, StoredMember};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use std::collections::BTreeMap;

/// Where a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// It has no members.
    #[default]
    Empty,
    /// It waits for its members to join.
    Preparing,
    /// It waits for its leader to assign.
    Completing,
    /// Every member knows what it has.
    Stable,
}

/// What a member takes besides what it says.
const MEMBER_BYTES: usize = 300;
/// What one of its protocols takes besides its name and what is said under it.
const PROTOCOL_BYTES: usize = 100;

/// A group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    phase: Phase,
    generation: i32,
    protocol_type: String,
    protocol: String,
    leader: String,
    members: BTreeMap<String, Member>,
    /// When members that have not joined are left out.
    prepared_by: u64,
}

#[derive(Clone, Debug)]
struct Member {
    instance: Option<String>,
    client: String,
    session_ms: u64,
    rebalance_ms: u64,
    protocols: Vec<(String, Bytes)>,
    assignment: Bytes,
    heard: u64,
    /// It waits for the group: to be prepared, or for its assignment.
    waits: bool,
    /// The generation that it is in; nothing while it is to join again.
    generation: Option<i32>,
}

/// A member joins.
#[derive(Clone, Debug)]
pub struct Join {
    /// Who.
    pub member: String,
    /// A name that it keeps across restarts, if it has one.
    pub instance: Option<String>,
    /// Its client id.
    pub client: String,
    /// After so long a silence it is left out.
    pub session_ms: u64,
    /// So long may it take to join again.
    pub rebalance_ms: u64,
    /// `consumer` for consumers.
    pub protocol_type: String,
    /// How it can share partitions, with what it says about itself, the best first.
    pub protocols: Vec<(String, Bytes)>,
}

impl Join {
    /// The memory that its member will take, about: what is said of the group's kind counts, too.
    pub fn bytes(&self) -> usize {
        let instance = self.instance.as_ref().map_or(0, String::len);
        let said = bytes_said(&self.protocols);
        let names = self.member.len() + instance + self.client.len() + self.protocol_type.len();
        MEMBER_BYTES + names + said
    }
}

impl Member {
    fn bytes(&self) -> usize {
        let instance = self.instance.as_ref().map_or(0, String::len);
        let said = bytes_said(&self.protocols) + self.assignment.len();
        MEMBER_BYTES + instance + self.client.len() + said
    }
}

fn bytes_said(protocols: &[(String, Bytes)]) -> usize {
    let each = protocols.iter();
    each.map(|(name, own)| PROTOCOL_BYTES + name.len() + own.len())
        .sum()
}

/// What a member that has joined is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The group's generation.
    pub generation: i32,
    /// What kind of group it is.
    pub protocol_type: String,
    /// How its partitions are shared.
    pub protocol: String,
    /// Which member assigns.
    pub leader: String,
    /// For the leader: all members with what they say about themselves.
    pub members: Vec<(String, Option<String>, Bytes)>,
}

impl Joined {
    /// The memory that it takes, about.
    pub fn bytes(&self) -> usize {
        let members = self.members.iter().map(|(id, instance, own)| {
            MEMBER_BYTES + id.len() + instance.as_ref().map_or(0, String::len) + own.len()
        });
        let names = self.protocol_type.len() + self.protocol.len() + self.leader.len();
        MEMBER_BYTES + names + members.sum::<usize>()
    }
}

/// What an assignment comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sync {
    /// The leader has not assigned yet.
    Wait,
    /// This is to be made durable, and then told to [`Group::stored`].
    Store(Stored),
    /// This is what the member has.
    Assigned(Bytes),
}

/// Who speaks for a group: a generation and a member of it.
#[derive(Clone, Copy, Debug)]
pub struct Speaker<'a> {
    /// Its generation; -1 if it is not a member.
    pub generation: i32,
    /// Its member id; empty if it is not a member.
    pub member: &'a str,
    /// Its instance, if it has one.
    pub instance: Option<&'a str>,
}

impl Group {
    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Its generation.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// The memory that it takes, about, besides its name.
    pub fn bytes(&self) -> usize {
        let members = self.members.iter();
        let members: usize = members.map(|(id, member)| id.len() + member.bytes()).sum();
        members + self.protocol_type.len() + self.protocol.len() + self.leader.len()
    }

    /// What one of its members takes of that; nothing if it is not there.
    pub fn bytes_of(&self, id: &str) -> usize {
        let member = self.members.get(id);
        member.map_or(0, |member| id.len() + member.bytes())
    }

    fn metadata_of(&self, member: &Member) -> Bytes {
        let own = member
            .protocols
            .iter()
            .find(|(name, _)| *name == self.protocol);
        own.map_or_else(Bytes::new, |(_, metadata)| metadata.clone())
    }

    /// A member joins, or joins again. Its answer is [`Group::joined`], once there is one.
    pub fn join(&mut self, join: Join, now: u64) -> Result<(), ResponseError> {
        let is_shared = |(name, _): &(String, Bytes)| {
            let others = self.members.iter().filter(|(id, _)| **id != join.member);
            others
                .into_iter()
                .all(|(_, other)| other.protocols.iter().any(|(own, _)| own == name))
        };
        let fits = self.members.is_empty() || self.protocol_type == join.protocol_type;
        if !fits || join.protocols.is_empty() || !join.protocols.iter().any(is_shared) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        if let Some(instance) = &join.instance {
            // The one that had this name before is replaced.
            self.members.retain(|id, member| {
                *id == join.member || member.instance.as_ref() != Some(instance)
            });
        }
        self.protocol_type = join.protocol_type;
        let known = self.members.get(&join.member);
        let is_unchanged = known.is_some_and(|known| {
            known.protocols == join.protocols && known.generation == Some(self.generation)
        });
        let keeps = match self.phase {
            Phase::Stable => is_unchanged && self.leader != join.member,
            // Its last answer was lost.
            Phase::Completing => is_unchanged,
            Phase::Empty | Phase::Preparing => false,
        };
        let generation = known.and_then(|known| known.generation).filter(|_| keeps);
        let assignment = known.map_or_else(Bytes::new, |known| known.assignment.clone());
        let member = Member {
            instance: join.instance,
            client: join.client,
            session_ms: join.session_ms,
            rebalance_ms: join.rebalance_ms,
            protocols: join.protocols,
            assignment,
            heard: now,
            waits: !keeps,
            generation,
        };
        self.members.insert(join.member.clone(), member);
        if !keeps {
            self.prepare(now);
            let member = self.members.get_mut(&join.member).expect("just joined");
            member.waits = true;
            self.advance(now);
        }
        Ok(())
    }

    /// Everybody is to join again.
    fn prepare(&mut self, now: u64) {
        if self.phase == Phase::Preparing {
            return;
        }
        self.phase = Phase::Preparing;
        for member in self.members.values_mut() {
            member.waits = false;
            member.generation = None;
        }
        let longest = self
            .members
            .values()
            .map(|member| member.rebalance_ms)
            .max();
        self.prepared_by = now + longest.unwrap_or(0);
    }

    /// Begins the next generation if nobody is waited for any more.
    fn advance(&mut self, now: u64) {
        if self.phase != Phase::Preparing {
            return;
        }
        if now >= self.prepared_by {
            self.members.retain(|_, member| member.waits);
        }
        if !self.members.values().all(|member| member.waits) {
            return;
        }
        self.generation += 1;
        if self.members.is_empty() {
            self.phase = Phase::Empty;
            self.leader.clear();
            return;
        }
        self.phase = Phase::Completing;
        if !self.members.contains_key(&self.leader) {
            self.leader = self.members.keys().next().expect("not empty").clone();
        }
        let shared = self.members[&self.leader]
            .protocols
            .iter()
            .find(|(name, _)| {
                let mut all = self.members.values();
                all.all(|member| member.protocols.iter().any(|(own, _)| own == name))
            });
        self.protocol = shared.map_or_else(String::new, |(name, _)| name.clone());
        for member in self.members.values_mut() {
            member.waits = false;
            member.generation = Some(self.generation);
            member.assignment = Bytes::new();
            member.heard = now;
        }
    }

    /// What a member that has joined is told; nothing while it has to wait.
    pub fn joined(&self, id: &str) -> Option<Result<Joined, ResponseError>> {
        let Some(member) = self.members.get(id) else {
            return Some(Err(ResponseError::UnknownMemberId));
        };
        let generation = member.generation?;
        let is_leader = self.leader == id && self.phase == Phase::Completing;
        let members = self
            .members
            .iter()
            .filter(|_| is_leader)
            .map(|(id, member)| {
                (
                    id.clone(),
                    member.instance.clone(),
                    self.metadata_of(member),
                )
            });
        Some(Ok(Joined {
            generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: members.collect(),
        }))
    }

    /// A member asks for its assignment; the leader brings everybody's.
    pub fn sync(
        &mut self,
        who: Speaker<'_>,
        assignments: Vec<(String, Bytes)>,
        now: u64,
    ) -> Result<Sync, ResponseError> {
        self.check(who)?;
        let is_leader = self.leader == who.member;
        let member = self.members.get_mut(who.member).expect("checked");
        member.heard = now;
        match self.phase {
            Phase::Stable => Ok(Sync::Assigned(member.assignment.clone())),
            Phase::Completing if is_leader => {
                member.waits = true;
                let mut next = self.clone();
                for (id, assignment) in assignments {
                    if let Some(member) = next.members.get_mut(&id) {
                        member.assignment = assignment;
                    }
                }
                Ok(Sync::Store(next.to_stored()))
            }
            Phase::Completing => {
                member.waits = true;
                Ok(Sync::Wait)
            }
            Phase::Preparing | Phase::Empty => Err(ResponseError::RebalanceInProgress),
        }
    }

    /// Whether `who` is a member of this generation (KIP-447's fence, among others).
    pub fn check(&self, who: Speaker<'_>) -> Result<(), ResponseError> {
        let member = self.members.get(who.member);
        if let Some(instance) = who.instance {
            let owner = self
                .members
                .iter()
                .find(|(_, m)| m.instance.as_deref() == Some(instance));
            match owner {
                Some((id, _)) if id != who.member => return Err(ResponseError::FencedInstanceId),
                _ => {}
            }
        }
        match member {
            None => Err(ResponseError::UnknownMemberId),
            Some(_) if who.generation != self.generation => Err(ResponseError::IllegalGeneration),
            Some(_) => Ok(()),
        }
    }

    /// Whether `who` may commit positions: a member of this generation, or anybody while there are no
    /// members.
    pub fn check_commit(&self, who: Speaker<'_>) -> Result<(), ResponseError> {
        match who.generation < 0 && who.member.is_empty() {
            true if self.phase == Phase::Empty => Ok(()),
            true => Err(ResponseError::UnknownMemberId),
            false => {
                self.check(who)?;
                match self.phase {
                    Phase::Completing => Err(ResponseError::RebalanceInProgress),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Whether `who` may commit positions within a transaction: a member of this generation, or somebody who
    /// does not claim to be one (then the transactional id is the only fence).
    pub fn check_transactional(&self, who: Speaker<'_>) -> Result<(), ResponseError> {
        match who.generation < 0 && who.member.is_empty() {
            true => Ok(()),
            false => self.check(who),
        }
    }

    /// A member is still there.
    pub fn heartbeat(&mut self, who: Speaker<'_>, now: u64) -> Result<(), ResponseError> {
        self.check(who)?;
        if let Some(member) = self.members.get_mut(who.member) {
            member.heard = now;
        }
        match self.phase {
            Phase::Preparing => Err(ResponseError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// A member leaves, by its id or by its instance.
    pub fn leave(
        &mut self,
        id: &str,
        instance: Option<&str>,
        now: u64,
    ) -> Result<(), ResponseError> {
        let by_instance = self
            .members
            .iter()
            .find(|(_, member)| instance.is_some() && member.instance.as_deref() == instance);
        let id = match by_instance {
            Some((known, _)) if id.is_empty() => known.clone(),
            _ => id.to_owned(),
        };
        self.members
            .remove(&id)
            .ok_or(ResponseError::UnknownMemberId)?;
        self.prepare(now);
        self.advance(now);
        Ok(())
    }

    /// Leaves out who was silent for too long, and goes on without who does not join. Whether anything
    /// has changed.
    pub fn expire(&mut self, now: u64) -> bool {
        let before = self.members.len();
        // Who waits for us cannot be heard.
        self.members
            .retain(|_, member| member.waits || now < member.heard + member.session_ms);
        let (generation, phase) = (self.generation, self.phase);
        if self.members.len() < before {
            self.prepare(now);
        }
        self.advance(now);
        self.members.len() < before || self.generation != generation || self.phase != phase
    }

    /// Its members for people: id, instance, client, metadata, assignment.
    pub fn members(&self) -> impl Iterator<Item = (&str, Option<&str>, &str, Bytes, Bytes)> {
        self.members.iter().map(|(id, member)| {
            let (metadata, assignment) = (self.metadata_of(member), member.assignment.clone());
            (
                id.as_str(),
                member.instance.as_deref(),
                member.client.as_str(),
                metadata,
                assignment,
            )
        })
    }

    /// What kind of group it is.
    pub fn protocol_type(&self) -> &str {
        &self.protocol_type
    }

    /// How its partitions are shared.
    pub fn protocol(&self) -> &str {
        &self.protocol
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(member: &str) -> Join {
        Join {
            member: member.into(),
            instance: None,
            client: "c".into(),
            session_ms: 1000,
            rebalance_ms: 2000,
            protocol_type: "consumer".into(),
            protocols: vec![("range".into(), Bytes::from_static(b"topics"))],
        }
    }

    fn speaker(member: &str, generation: i32) -> Speaker<'_> {
        Speaker {
            generation,
            member,
            instance: None,
        }
    }

    /// A group of `a` and `b`, with an assignment each.
    fn stable() -> Group {
        let mut group = Group::default();
        group.join(join("a"), 0).unwrap();
        assert_eq!(group.joined("a").unwrap().unwrap().leader, "a");
        group.join(join("b"), 10).unwrap();
        assert_eq!(group.joined("b"), None, "a has to join again");
        let late = group.heartbeat(speaker("a", 1), 20);
        assert_eq!(late, Err(ResponseError::RebalanceInProgress));
        group.join(join("a"), 30).unwrap();
        let leader = group.joined("a").unwrap().unwrap();
        assert_eq!((leader.generation, leader.members.len()), (2, 2));
        assert_eq!(group.sync(speaker("b", 2), vec![], 40), Ok(Sync::Wait));
        let to = |id: &str| (id.to_owned(), Bytes::copy_from_slice(id.as_bytes()));
        let stored = group.sync(speaker("a", 2), vec![to("a"), to("b")], 50);
        let Ok(Sync::Store(stored)) = stored else {
            panic!("{stored:?}")
        };
        assert_eq!(group.phase(), Phase::Completing, "it is not durable yet");
        group.stored(&stored, 60);
        let assigned = group.sync(speaker("b", 2), vec![], 70);
        assert_eq!(assigned, Ok(Sync::Assigned(Bytes::from_static(b"b"))));
        group
    }

    #[test]
    fn who_is_silent_is_left_out_and_may_not_commit() {
        let mut group = stable();
        group.heartbeat(speaker("a", 2), 900).unwrap();
        assert!(!group.expire(1000));
        assert!(group.expire(1071), "b was last heard at 70");
        assert_eq!(
            group.check_commit(speaker("b", 2)),
            Err(ResponseError::UnknownMemberId)
        );
        group.join(join("a"), 1100).unwrap();
        assert_eq!(group.generation(), 3);
        let zombie = group.check_transactional(speaker("b", 2));
        assert_eq!(zombie, Err(ResponseError::UnknownMemberId));
        let stale = group.check_transactional(speaker("a", 2));
        assert_eq!(stale, Err(ResponseError::IllegalGeneration));
        assert_eq!(group.check_transactional(speaker("", -1)), Ok(()));
    }

    #[test]
    fn who_does_not_join_again_is_left_out() {
        let mut group = stable();
        group.join(join("c"), 100).unwrap();
        group.join(join("a"), 200).unwrap();
        assert_eq!(group.joined("c"), None, "b may still come");
        group.expire(2101);
        assert_eq!(group.joined("c").unwrap().unwrap().generation, 3);
        assert_eq!(group.joined("b"), Some(Err(ResponseError::UnknownMemberId)));
    }

    #[test]
    fn a_group_that_is_restored_goes_on() {
        let group = stable();
        let mut again = Group::restore(&group.to_stored(), 5000);
        assert_eq!(again.to_stored(), group.to_stored());
        assert_eq!(again.heartbeat(speaker("b", 2), 5500), Ok(()));
    }
}
