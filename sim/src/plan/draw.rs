//! A plan is drawn: with swarm, and damage at rest apart from everything else.

use super::{DiskProfile, NetProfile, Params, Plan, Shape};
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

/// One of so many seeds has damage at rest, if its workload detects that.
const DAMAGED_ONE_IN: u64 = 16;
/// A place is picked by a number below this.
const PICKS: usize = 1 << 32;

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
        assert_eq!(plan.check(shape), Ok(()), "what is drawn makes sense");
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
        let damage = self
            .faults
            .iter()
            .filter(|fault| fault.what.damage().is_some());
        assert_eq!(
            damage.count(),
            1,
            "one of them can be told from its consequences"
        );
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
}

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
