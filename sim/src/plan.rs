//! `Plan`: everything that will happen in a run, as plain data, with a text form that round-trips.
//!
//! A plan is drawn from its seed before anything runs. A failure file *is* a plan: it outlives the
//! commit that found it, where the seed alone would mean another run.

mod draw;
mod shape;

pub use shape::{Machine, Shape};

use crate::{
    fault::{Fault, Trigger},
    Seed,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Named parameters of a workload: sizes, choices and knobs (timeouts, intervals, batch sizes).
pub type Params = BTreeMap<String, toml::Value>;

/// Everything that will happen in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Which workload.
    pub workload: String,
    /// What keys the draws of network, disks, data and schedule.
    #[serde(with = "seed_text")]
    pub seed: Seed,
    /// The workload's parameters.
    pub params: Params,
    /// How the network behaves when it behaves.
    pub network: NetProfile,
    /// How the disks behave when they behave.
    pub disk: DiskProfile,
    /// What goes wrong, and when.
    #[serde(default, rename = "fault", skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// Latency and shape of all links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetProfile {
    /// Microseconds: the mean over all links. Each has a mean of its own, from a half to twice of it; a
    /// delivery takes between a half and one and a half of that.
    pub latency_us: u64,
    /// How many deliveries of 1,000 take ten to a hundred times as long: the heavy tail.
    pub tail_per_mille: u64,
    /// How many writes of 1,000 arrive in two pieces, cut anywhere.
    pub split_per_mille: u64,
    /// How many bytes a connection takes before its reader has read them.
    pub window_bytes: u64,
}

/// Latency of all disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskProfile {
    /// Microseconds for a read or a write; between a half and one and a half of it.
    pub access_us: u64,
    /// Microseconds for a sync; likewise.
    pub sync_us: u64,
}

impl Default for NetProfile {
    fn default() -> Self {
        NetProfile {
            latency_us: 500,
            tail_per_mille: 5,
            split_per_mille: 20,
            window_bytes: 256 * 1024,
        }
    }
}

impl Default for DiskProfile {
    fn default() -> Self {
        DiskProfile {
            access_us: 50,
            sync_us: 2000,
        }
    }
}

/// Why a text is not a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// It does not parse; the message names line and field.
    #[error("not a plan: {0}")]
    Text(String),
    /// It parses, but makes no sense for its workload.
    #[error("the plan is wrong: {0}")]
    Sense(String),
}

impl Plan {
    /// Reads the text form. One that was cut off is refused, wherever it was cut: half a plan may
    /// well be a plan, but another one.
    pub fn parse(text: &str) -> Result<Plan, PlanError> {
        if text.lines().rev().find(|line| !line.trim().is_empty()) != Some(END) {
            let text = format!("it is cut off: its last line should be `{END}`");
            return Err(PlanError::Text(text));
        }
        toml::from_str(text).map_err(|error| PlanError::Text(error.to_string().trim().to_owned()))
    }

    /// The text form.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("a plan is plain data") + END + "\n"
    }

    /// Whether every node that the faults name exists, and damage at rest is something that the workload detects.
    pub fn check(&self, shape: &Shape) -> Result<(), PlanError> {
        let names = shape.names(|_| true);
        for (index, fault) in self.faults.iter().enumerate() {
            let kind = fault.what.kind();
            if fault.what.damage().is_some() && !shape.detects.contains(&kind) {
                return Err(PlanError::Sense(format!(
                    "fault {} is {kind}; {} does not say what becomes of damage at rest",
                    index + 1,
                    self.workload
                )));
            }
            let mut named = fault.what.nodes();
            match &fault.at {
                Trigger::Step { node, .. } | Trigger::Event { node, .. } => named.push(node),
                Trigger::Time(_) => {}
            }
            for node in named {
                if !names.iter().any(|name| name == node) {
                    return Err(PlanError::Sense(format!(
                        "fault {} ({} {}) names node `{node}`; the nodes of {} are {}",
                        index + 1,
                        fault.at,
                        fault.what,
                        self.workload,
                        names.join(", ")
                    )));
                }
            }
            if fault.what.lasts() > 3_600_000 {
                return Err(PlanError::Sense(format!(
                    "fault {} lasts longer than an hour of virtual time",
                    index + 1
                )));
            }
        }
        Ok(())
    }
}

/// The last line of the text form.
const END: &str = "# end of plan";

mod seed_text {
    use crate::Seed;
    use serde::{de::Error, Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(seed: &Seed, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(seed)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Seed, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::What;
    use proptest::prelude::*;

    fn shape() -> Shape {
        Shape::new()
            .durable("server", &[])
            .events(&["kv.stored"])
            .process("client", &["server"])
    }

    fn no_params() -> BoxedStrategy<Params> {
        Just(Params::new()).boxed()
    }

    proptest! {
        #[test]
        fn the_text_form_round_trips(
            plan in Plan::strategy("kv", Seed(7), &shape(), no_params())
        ) {
            prop_assert_eq!(Plan::parse(&plan.to_text()), Ok(plan.clone()));
            prop_assert_eq!(plan.check(&shape()), Ok(()));
        }

        #[test]
        fn a_damaged_text_is_refused_or_still_a_plan(at in 0usize..2000, byte in 32u8..127) {
            let plan = Plan::draw("kv", Seed(3), &shape(), no_params());
            let mut text = plan.to_text().into_bytes();
            let at = at % text.len();
            text[at] = byte;
            // Either way: an answer, not a panic.
            let _ = Plan::parse(&String::from_utf8(text).unwrap());
        }
    }

    #[test]
    fn a_text_that_was_cut_off_is_refused() {
        let text = Plan::draw("kv", Seed(3), &shape(), no_params()).to_text();
        for cut in 0..text.len() - 1 {
            assert!(Plan::parse(&text[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn damage_is_drawn_apart_and_only_where_it_is_detected() {
        let (silent, detecting) = (shape(), shape().detecting());
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..2000 {
            let plain = Plan::draw("kv", Seed(seed), &silent, no_params());
            let mut damaged = Plan::draw("kv", Seed(seed), &detecting, no_params());
            assert_eq!(Plan::parse(&damaged.to_text()), Ok(damaged.clone()));
            assert_eq!(damaged.check(&detecting), Ok(()));
            let is_damage = |fault: &&Fault| fault.what.damage().is_some();
            kinds.extend(
                damaged
                    .faults
                    .iter()
                    .filter(is_damage)
                    .map(|f| f.what.kind()),
            );
            if damaged != plain {
                let refused = damaged.check(&silent).unwrap_err().to_string();
                assert!(refused.contains("kv does not say"), "{refused}");
            }
            damaged.faults.retain(|fault| fault.what.damage().is_none());
            assert_eq!(damaged, plain, "all else is as it was");
        }
        assert_eq!(kinds, What::DAMAGE.into());
    }

    #[test]
    fn some_plans_have_no_fault_and_every_kind_occurs() {
        let plans: Vec<Plan> = (0..400)
            .map(|seed| Plan::draw("kv", Seed(seed), &shape(), no_params()))
            .collect();
        let calm = plans.iter().filter(|plan| plan.faults.is_empty()).count();
        assert!((20..150).contains(&calm), "{calm} of 400 have no fault");
        for kind in What::KINDS {
            let with = plans.iter().filter(|plan| {
                let mut faults = plan.faults.iter();
                faults.any(|fault| fault.what.kind() == kind)
            });
            assert!(with.count() > 20, "{kind}");
        }
    }

    #[test]
    fn a_node_that_does_not_exist_is_named() {
        let mut plan = Plan::draw("kv", Seed(3), &shape(), no_params());
        plan.faults = vec![Fault {
            at: Trigger::Time(5),
            what: What::Pause {
                node: "ghost".into(),
                lasts: 1,
            },
        }];
        let error = plan.check(&shape()).unwrap_err().to_string();
        assert!(
            error.contains("`ghost`") && error.contains("server, client"),
            "{error}"
        );
    }
}
