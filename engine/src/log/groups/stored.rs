//! Pure: what is durable of a group, and how a group comes back from it.

use super::{Group, Member, Phase};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is durable of a group.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stored {
    /// Its generation.
    pub generation: i32,
    /// What kind of group it is; `consumer` for consumers.
    pub protocol_type: String,
    /// How its partitions are shared.
    pub protocol: String,
    /// Which member assigns.
    pub leader: String,
    /// Its members, by their ids.
    pub members: BTreeMap<String, StoredMember>,
}

/// What is durable of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMember {
    /// A name that it keeps across restarts, if it has one (KIP-345).
    pub instance: Option<String>,
    /// Its client id.
    pub client: String,
    /// After so long a silence it is left out.
    pub session_ms: u64,
    /// So long may it take to join again.
    pub rebalance_ms: u64,
    /// What it said about itself under the group's protocol.
    pub metadata: Vec<u8>,
    /// What it was assigned.
    pub assignment: Vec<u8>,
}

impl Group {
    /// A group as it was stored. Its members have their whole sessions to be heard again.
    pub fn restore(stored: &Stored, now: u64) -> Group {
        let members = stored.members.iter().map(|(id, member)| {
            let metadata = Bytes::from(member.metadata.clone());
            let member = Member {
                instance: member.instance.clone(),
                client: member.client.clone(),
                session_ms: member.session_ms,
                rebalance_ms: member.rebalance_ms,
                protocols: vec![(stored.protocol.clone(), metadata)],
                assignment: member.assignment.clone().into(),
                heard: now,
                waits: false,
                generation: Some(stored.generation),
            };
            (id.clone(), member)
        });
        let members: BTreeMap<String, Member> = members.collect();
        Group {
            phase: match members.is_empty() {
                true => Phase::Empty,
                false => Phase::Stable,
            },
            generation: stored.generation,
            protocol_type: stored.protocol_type.clone(),
            protocol: stored.protocol.clone(),
            leader: stored.leader.clone(),
            members,
            prepared_by: 0,
        }
    }

    /// What would be durable of it.
    pub fn to_stored(&self) -> Stored {
        let members = self.members.iter().map(|(id, member)| {
            let stored = StoredMember {
                instance: member.instance.clone(),
                client: member.client.clone(),
                session_ms: member.session_ms,
                rebalance_ms: member.rebalance_ms,
                metadata: self.metadata_of(member).to_vec(),
                assignment: member.assignment.to_vec(),
            };
            (id.clone(), stored)
        });
        Stored {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: members.collect(),
        }
    }

    /// The leader's assignment is durable.
    pub fn stored(&mut self, stored: &Stored, now: u64) {
        if self.phase != Phase::Completing || self.generation != stored.generation {
            return;
        }
        self.phase = Phase::Stable;
        for (id, member) in &mut self.members {
            let assigned = stored.members.get(id);
            member.assignment = assigned.map_or_else(Bytes::new, |to| to.assignment.clone().into());
            member.heard = now;
            member.waits = false;
        }
    }
}
