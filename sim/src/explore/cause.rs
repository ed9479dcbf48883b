//! A cause: what failures have in common that are counted together.
//!
//! Pure. The same kind of anomaly, the same claim, and the same faults left when the plan was shrunk, each by its kind and
//! the roles of its nodes. Two failures of one kind whose plans were not compared say nothing about each
//! other: they are not counted together.

use crate::{
    check::{Anomaly, Kind},
    fault::Fault,
    plan::Plan,
};
use std::collections::BTreeSet;

/// Faults by kind and role: `crash worker`, `cut worker broker`.
pub(super) type Roles = BTreeSet<String>;

/// What failures have in common that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cause {
    pub broken: Broken,
    pub faults: Roles,
}

/// What is wrong, without what led to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Broken {
    pub kind: Kind,
    pub claim: String,
}

impl Broken {
    pub fn of(anomaly: &Anomaly) -> Broken {
        Broken {
            kind: anomaly.kind,
            claim: anomaly.claim.clone(),
        }
    }
}

/// Above this many kinds of fault not each part of them is tried.
const PARTS_OF_MAX: usize = 4;

/// The role of a fault: what it is, and what kind of nodes it strikes.
fn role(fault: &Fault) -> String {
    let nodes = fault.what.nodes();
    let roles: Vec<&str> = nodes.iter().map(|name| role_of(name)).collect();
    format!("{} {}", fault.what.kind(), roles.join(" "))
}

/// `worker-2` is a `worker`.
fn role_of(node: &str) -> &str {
    let role = node.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
    if role.is_empty() {
        node
    } else {
        role
    }
}

/// The roles of a plan's faults.
pub(super) fn roles(plan: &Plan) -> Roles {
    plan.faults.iter().map(role).collect()
}

/// The plan with the faults of these roles alone.
pub(super) fn only(plan: &Plan, roles: &Roles) -> Plan {
    let mut part = plan.clone();
    part.faults.retain(|fault| roles.contains(&role(fault)));
    assert!(self::roles(&part).is_subset(roles) && part.faults.len() <= plan.faults.len());
    part
}

/// The parts of a cause's roles, the smaller ones first: if a plan fails with one of them alone, and with
/// none before it, that part is its own cause.
pub(super) fn parts(roles: &Roles) -> Vec<Roles> {
    if roles.len() > PARTS_OF_MAX {
        return vec![Roles::new(), roles.clone()];
    }
    let all: Vec<&String> = roles.iter().collect();
    let mut parts: Vec<Roles> = (0..1usize << all.len())
        .map(|bits| {
            let chosen = all.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
            chosen.map(|(_, role)| (*role).clone()).collect()
        })
        .collect();
    parts.sort_by_key(BTreeSet::len);
    assert!(parts.first().is_some_and(BTreeSet::is_empty) && parts.last() == Some(roles));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_parts_come_first() {
        let roles: Roles = ["crash a".to_owned(), "pause b".to_owned()].into();
        let sizes: Vec<usize> = parts(&roles).iter().map(BTreeSet::len).collect();
        assert_eq!(sizes, [0, 1, 1, 2]);
        assert_eq!(parts(&Roles::new()), [Roles::new()]);
    }

    #[test]
    fn nodes_of_one_kind_have_one_role() {
        assert_eq!(role_of("worker-12"), "worker");
        assert_eq!(role_of("objects"), "objects");
        assert_eq!(role_of("7"), "7");
    }
}
