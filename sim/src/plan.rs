//! `Plan`: everything that will happen in a run, as plain data, with a text form that round-trips.
//!
//! A plan is drawn from its seed before anything runs. A failure file *is* a plan: it outlives the
//! commit that found it, where the seed alone would mean another run.

use crate::{
    fault::{DiskOp, Fault, Spot, Trigger, What},
    Seed,
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    strategy::{BoxedStrategy, Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use rand_core::RngCore;
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

/// What can happen to one node of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// It may crash, and be paused.
    pub process: bool,
    /// It may lose power, and its disk may fail: it must come back from what it has synced.
    pub durable: bool,
    /// Links to these nodes may be disturbed.
    pub talks_to: Vec<String>,
    /// Named events of this node at which a fault may strike.
    pub events: Vec<String>,
}

/// The nodes of a workload, how long faults go on, and which kinds it must survive, or detect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The nodes.
    pub machines: Vec<Machine>,
    /// Faults strike within this many milliseconds of virtual time.
    pub faults_ms: u64,
    /// The kinds of fault within the workload's budget.
    pub kinds: Vec<&'static str>,
    /// The kinds of damage at rest ([`What::DAMAGE`]) that it need not survive, and must never pass over in silence.
    pub detects: Vec<&'static str>,
}

impl Shape {
    /// No nodes yet; every kind of fault but damage at rest, within ten seconds.
    pub fn new() -> Self {
        Shape {
            machines: Vec::new(),
            faults_ms: 10_000,
            kinds: What::KINDS.to_vec(),
            detects: Vec::new(),
        }
    }

    /// Adds a node that keeps data on its disk, and must come back from it.
    pub fn durable(self, name: &str, talks_to: &[&str]) -> Self {
        self.machine(name, true, true, talks_to)
    }

    /// Adds a node that keeps nothing, and may crash or be paused.
    pub fn process(self, name: &str, talks_to: &[&str]) -> Self {
        self.machine(name, true, false, talks_to)
    }

    /// Adds a node that stays up: only its links are disturbed.
    pub fn steady(self, name: &str, talks_to: &[&str]) -> Self {
        self.machine(name, false, false, talks_to)
    }

    /// Names the events of the node added last at which a fault may strike.
    pub fn events(mut self, names: &[&str]) -> Self {
        let machine = self.machines.last_mut().expect("a node was added");
        machine.events = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Faults strike within this many milliseconds of virtual time.
    pub fn faults_for(mut self, ms: u64) -> Self {
        self.faults_ms = ms;
        self
    }

    /// Damage at rest is never silent: a few seeds have some.
    pub fn detecting(mut self) -> Self {
        self.detects = What::DAMAGE.to_vec();
        self
    }

    fn machine(mut self, name: &str, process: bool, durable: bool, talks_to: &[&str]) -> Self {
        self.machines.push(Machine {
            name: name.to_owned(),
            process,
            durable,
            talks_to: talks_to.iter().map(|peer| (*peer).to_owned()).collect(),
            events: Vec::new(),
        });
        self
    }

    fn names(&self, keep: impl Fn(&Machine) -> bool) -> Vec<String> {
        let kept = self.machines.iter().filter(|machine| keep(machine));
        kept.map(|machine| machine.name.clone()).collect()
    }

    fn links(&self) -> Vec<(String, String)> {
        let mut links = Vec::new();
        for machine in &self.machines {
            for peer in &machine.talks_to {
                links.push((machine.name.clone(), peer.clone()));
            }
        }
        links
    }
}

impl Default for Shape {
    fn default() -> Self {
        Shape::new()
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
    /// The plan of `seed`: the same one whenever shape and parameters are the same.
    pub fn draw(workload: &str, seed: Seed, shape: &Shape, params: BoxedStrategy<Params>) -> Plan {
        let mut key = [0; 32];
        seed.stream("plan", 0).fill_bytes(&mut key);
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &key);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let tree = Plan::strategy(workload, seed, shape, params).new_tree(&mut runner);
        let mut plan = tree.expect("no strategy of a plan rejects").current();
        let has_damage = seed.stream("damaged", 0).below(DAMAGED_ONE_IN) == 0;
        if has_damage && !plan.faults.is_empty() {
            plan.damage(shape, &shape.detects);
        }
        plan
    }

    /// Draws one fault of these kinds of damage at rest instead of those that the plan has; none if no node keeps
    /// anything. All else stays as it is: damage is drawn from a stream of its own.
    ///
    /// A program seldom reads again what it has open, so half of the damage strikes a node that the plan takes down
    /// just then, if there is one.
    pub fn damage(&mut self, shape: &Shape, kinds: &[&'static str]) {
        self.faults.retain(|fault| fault.what.damage().is_none());
        let durable = shape.names(|machine| machine.durable);
        if kinds.is_empty() || durable.is_empty() {
            return;
        }
        let mut draws = self.seed.stream("damage", 0);
        let mut index = |len: usize| draws.below(len as u64) as usize;
        let kind = kinds[index(kinds.len())];
        let (mut node, mut ms) = (
            durable[index(durable.len())].clone(),
            index(shape.faults_ms.max(1) as usize) as u64,
        );
        let downs = self.faults.iter().filter_map(|fault| match &fault.what {
            What::Crash { node, down } | What::PowerLoss { node, down } => match fault.at {
                Trigger::Time(at) if durable.contains(node) => Some((node.clone(), at + down / 2)),
                _ => None,
            },
            _ => None,
        });
        let downs: Vec<(String, u64)> = downs.collect();
        if index(2) == 0 && !downs.is_empty() {
            (node, ms) = downs[index(downs.len())].clone();
        }
        let spot = Spot {
            node,
            file: String::new(),
            pick: index(PICKS) as u64,
        };
        self.faults.push(Fault {
            at: Trigger::Time(ms),
            what: match kind {
                "bit-rot" => What::BitRot(spot),
                "lost-file" => What::LostFile(spot),
                "misdirected" => What::Misdirected(spot),
                "stale-file" => What::StaleFile(spot),
                other => unreachable!("`{other}` is not a kind of damage"),
            },
        });
    }

    /// Plans for a workload, with swarm (Groce et al., 2012): each plan switches whole kinds of fault
    /// off, weighs the rest differently, and one in eight has no fault at all.
    pub fn strategy(
        workload: &str,
        seed: Seed,
        shape: &Shape,
        params: BoxedStrategy<Params>,
    ) -> BoxedStrategy<Plan> {
        let workload = workload.to_owned();
        (params, network(), disk(), faults(shape))
            .prop_map(move |(params, network, disk, faults)| Plan {
                workload: workload.clone(),
                seed,
                params,
                network,
                disk,
                faults,
            })
            .boxed()
    }

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

/// One of so many seeds has damage at rest, if its workload detects that.
const DAMAGED_ONE_IN: u64 = 16;
/// A place is picked by a number below this.
const PICKS: usize = 1 << 32;

/// The last line of the text form.
const END: &str = "# end of plan";

fn network() -> impl Strategy<Value = NetProfile> {
    (
        100u64..3000,
        0u64..30,
        0u64..60,
        select(vec![16u64, 64, 256]),
    )
        .prop_map(
            |(latency_us, tail_per_mille, split_per_mille, window)| NetProfile {
                latency_us,
                tail_per_mille,
                split_per_mille,
                window_bytes: window * 1024,
            },
        )
}

fn disk() -> impl Strategy<Value = DiskProfile> {
    (10u64..300, 200u64..8000).prop_map(|(access_us, sync_us)| DiskProfile { access_us, sync_us })
}

fn faults(shape: &Shape) -> BoxedStrategy<Vec<Fault>> {
    let shape = shape.clone();
    let kinds = shape.kinds.len();
    (0u32..8, vec(0u32..5, kinds), 1usize..14)
        .prop_flat_map(move |(calm, skew, count)| {
            // About a half of the kinds is off; the rest weighs one or four.
            let weigh = |draw: u32| match draw {
                0..=1 => 0,
                2..=3 => 1,
                _ => 4,
            };
            let kinds = shape.kinds.iter().zip(skew);
            let choices: Vec<_> = kinds
                .filter(|(_, draw)| weigh(*draw) > 0)
                .filter_map(|(kind, draw)| Some((weigh(draw), fault_of(kind, &shape)?)))
                .collect();
            if calm == 0 || choices.is_empty() {
                return Just(Vec::new()).boxed();
            }
            vec(proptest::strategy::Union::new_weighted(choices), count).boxed()
        })
        .boxed()
}

fn trigger(shape: &Shape) -> BoxedStrategy<Trigger> {
    let steps = shape.names(|machine| machine.process || machine.durable);
    // Each node as often as any other, however much it has to say.
    let saying = shape.machines.iter().filter(|m| !m.events.is_empty());
    let events: Vec<_> = saying
        .map(|machine| (Just(machine.name.clone()), select(machine.events.clone())))
        .collect();
    let time = (0..shape.faults_ms).prop_map(Trigger::Time).boxed();
    let mut choices = vec![(3, time)];
    if !steps.is_empty() {
        let step = (select(steps), 1u64..1500).prop_map(|(node, n)| Trigger::Step { node, n });
        choices.push((3, step.boxed()));
    }
    if !events.is_empty() {
        let event = proptest::strategy::Union::new(events);
        let event =
            (event, 1u64..12).prop_map(|((node, name), n)| Trigger::Event { node, name, n });
        choices.push((3, event.boxed()));
    }
    proptest::strategy::Union::new_weighted(choices).boxed()
}

/// Faults of one kind, or nothing if the shape has no node for it. Half of those that a node's step or event sets off
/// strike that very node, or a link of it: what it does just then is what they are to disturb.
fn fault_of(kind: &'static str, shape: &Shape) -> Option<BoxedStrategy<Fault>> {
    let anywhere = what_of(kind, shape, None)?;
    let shape = shape.clone();
    let fault = (trigger(&shape), any::<bool>()).prop_flat_map(move |(at, near)| {
        let node = at.node().filter(|_| near);
        let there = node.and_then(|node| what_of(kind, &shape, Some(node)));
        let what = there.unwrap_or_else(|| anywhere.clone());
        what.prop_map(move |what| Fault {
            at: at.clone(),
            what,
        })
    });
    Some(fault.boxed())
}

/// What faults of one kind do, anywhere or to one node; nothing if there is no node for it.
fn what_of(kind: &str, shape: &Shape, to: Option<&str>) -> Option<BoxedStrategy<What>> {
    let meant = |name: &str| to.is_none_or(|node| node == name);
    let pick = |mut names: Vec<String>| {
        names.retain(|name| meant(name));
        (!names.is_empty()).then(|| select(names))
    };
    let process = pick(shape.names(|machine| machine.process));
    let durable = pick(shape.names(|machine| machine.durable));
    let mut links = shape.links();
    links.retain(|(from, to)| meant(from) || meant(to));
    let link = (!links.is_empty()).then(|| select(links));
    // Mostly short, sometimes longer than any timeout of the system.
    let lasts = prop_oneof![3 => 50u64..2000, 2 => 2000u64..8000, 1 => 8000u64..20_000];
    let what = match kind {
        "crash" => (process?, lasts)
            .prop_map(|(node, down)| What::Crash { node, down })
            .boxed(),
        "power-loss" => (durable?, lasts)
            .prop_map(|(node, down)| What::PowerLoss { node, down })
            .boxed(),
        "pause" => (process?, lasts)
            .prop_map(|(node, lasts)| What::Pause { node, lasts })
            .boxed(),
        "cut" => (link?, 0u8..3, lasts)
            .prop_map(|((from, to), way, lasts)| {
                let (from, to) = if way == 1 { (to, from) } else { (from, to) };
                What::Cut {
                    from,
                    to,
                    both: way == 2,
                    lasts,
                }
            })
            .boxed(),
        "hold" => (link?, any::<bool>(), lasts)
            .prop_map(|((from, to), back, lasts)| {
                let (from, to) = if back { (to, from) } else { (from, to) };
                What::Hold { from, to, lasts }
            })
            .boxed(),
        "lost-ack" => link?
            .prop_map(|(client, server)| What::LostAck { client, server })
            .boxed(),
        "reset" => link?.prop_map(|(a, b)| What::Reset { a, b }).boxed(),
        "connect-hang" => (link?, lasts)
            .prop_map(|((from, to), lasts)| What::ConnectHang { from, to, lasts })
            .boxed(),
        "disk-error" => {
            let op = select(vec![DiskOp::Read, DiskOp::Write, DiskOp::Sync]);
            (durable?, op, 1u64..4)
                .prop_map(|(node, op, times)| What::DiskError { node, op, times })
                .boxed()
        }
        "no-space" => (durable?, lasts)
            .prop_map(|(node, lasts)| What::NoSpace { node, lasts })
            .boxed(),
        "slow-disk" => (durable?, 5u64..100, lasts)
            .prop_map(|(node, factor, lasts)| What::SlowDisk {
                node,
                factor,
                lasts,
            })
            .boxed(),
        other => unreachable!("`{other}` is not a kind of fault"),
    };
    Some(what)
}

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
