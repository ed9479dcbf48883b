//! The guarantee matrix: {at-most-once, at-least-once, exactly-once} × {objects, transactional, idempotent, append} × {a
//! source that repeats itself, or not} × {dedup, or none}. Each cell keeps its promise; each weaker one shows its
//! anomaly within its seeds; a claim that its chain does not keep is refused.
//!
//! `SEEDBED_SEED`, `SEEDBED_SEEDS` and `SEEDBED_FOR` steer every cell from outside.

use engine::{guarantee::Guarantee, sink::SinkKind};
use sim::{explore::Conclusion, Explore, Kind, Plan, Workload};
use std::sync::Arc;
use workloads::{canary::Canary, revenue::settings::Settings, revenue::workload::RevenueWorkload};

/// Seeds of a cell that has nothing to show.
const SEEDS: std::ops::Range<u64> = 0..24;
/// Seeds within which a weaker cell shows what it is weaker in.
const SEEDS_TO_SHOW: std::ops::Range<u64> = 0..150;

/// A cell of the matrix.
#[derive(Clone, Copy, Debug)]
struct Cell {
    guarantee: Guarantee,
    sink: SinkKind,
    repeats: bool,
    dedup: bool,
}

impl Cell {
    fn all(guarantee: Guarantee, sink: SinkKind) -> impl Iterator<Item = Cell> {
        let sources = [(true, true), (true, false), (false, true), (false, false)];
        sources.into_iter().map(move |(repeats, dedup)| Cell {
            guarantee,
            sink,
            repeats,
            dedup,
        })
    }

    fn adjust(self, plan: &mut Plan, unchecked: bool) {
        let settings = Settings::of(&plan.params).expect("it was drawn");
        let settings = settings.with(self.guarantee, self.sink);
        let settings = Settings {
            dedup: self.dedup,
            unchecked,
            ..if self.repeats {
                settings
            } else {
                settings.once()
            }
        };
        plan.params = settings.to_params();
    }

    fn explore(self, unchecked: bool) -> Explore {
        let workload: Arc<dyn Workload> = Arc::new(RevenueWorkload { records: 200 });
        Explore::new(workload)
            .seeds(SEEDS)
            .adjust(move |plan| self.adjust(plan, unchecked))
    }

    /// Whether the chain gives what is claimed; that of a plan is asked.
    fn is_refused(self) -> Option<String> {
        let workload: Arc<dyn Workload> = Arc::new(RevenueWorkload { records: 200 });
        let mut plan = sim::run::draw(&*workload, sim::Seed(0));
        self.adjust(&mut plan, false);
        let refused = sim::run::check_plan(&*workload, &plan).err();
        refused.map(|error| error.to_string())
    }
}

fn is_steered() -> bool {
    let names = ["SEEDBED_SEED", "SEEDBED_SEEDS", "SEEDBED_FOR"];
    names.iter().any(|name| std::env::var_os(name).is_some())
}

/// Runs the cells of a guarantee and a sink. `weak`: what they may show, and must; without it, nothing.
fn row(guarantee: Guarantee, sink: SinkKind, weak: Option<&str>) {
    for cell in Cell::all(guarantee, sink) {
        let repeats_count = cell.repeats && !cell.dedup;
        if let Some(refused) = cell.is_refused() {
            // Only who may show duplicates may leave them in.
            assert!(
                repeats_count && guarantee != Guarantee::AtLeastOnce,
                "{cell:?}: {refused}"
            );
            assert!(
                refused.contains("the weakest link is the dedup"),
                "{cell:?}: {refused}"
            );
            continue;
        }
        assert!(
            !repeats_count || guarantee == Guarantee::AtLeastOnce,
            "{cell:?} is not refused"
        );
        let expected = match (repeats_count, weak) {
            (true, _) => Some("duplicated"),
            (false, weak) => weak,
        };
        let seeds = if expected.is_some() {
            SEEDS_TO_SHOW
        } else {
            SEEDS
        };
        let campaign = cell.explore(false).seeds(seeds).check();
        assert!(campaign.commits > 0 && campaign.compared > 0, "{cell:?}");
        let name = |kind: &str| format!("fact_revenue_1m: {kind}");
        let shown: Vec<&String> = (campaign.shown.keys())
            .filter(|shown| shown.starts_with("fact_revenue_1m"))
            .collect();
        match expected {
            None => assert!(shown.is_empty(), "{cell:?} shows {shown:?}"),
            Some(kind) => assert!(
                shown == [&name(kind)] || is_steered(),
                "{cell:?} shows {shown:?} and not {kind}"
            ),
        }
    }
}

#[test]
fn exactly_once_into_transactions() {
    row(Guarantee::ExactlyOnce, SinkKind::Transactional, None);
}

#[test]
fn exactly_once_into_a_table() {
    row(Guarantee::ExactlyOnce, SinkKind::Idempotent, None);
}

#[test]
fn exactly_once_into_objects() {
    row(Guarantee::ExactlyOnce, SinkKind::Objects, None);
}

#[test]
fn exactly_once_into_a_topic_is_refused() {
    for cell in Cell::all(Guarantee::ExactlyOnce, SinkKind::Append) {
        let refused = cell.is_refused().expect("it is refused");
        assert!(
            refused.contains("claims exactly-once"),
            "{cell:?}: {refused}"
        );
    }
}

#[test]
fn at_least_once_into_transactions() {
    row(Guarantee::AtLeastOnce, SinkKind::Transactional, None);
}

#[test]
fn at_least_once_into_a_table() {
    row(Guarantee::AtLeastOnce, SinkKind::Idempotent, None);
}

#[test]
fn at_least_once_into_objects() {
    row(Guarantee::AtLeastOnce, SinkKind::Objects, None);
}

#[test]
fn at_least_once_into_a_topic_repeats_and_never_loses() {
    row(Guarantee::AtLeastOnce, SinkKind::Append, Some("duplicated"));
}

#[test]
fn at_most_once_into_transactions() {
    row(Guarantee::AtMostOnce, SinkKind::Transactional, None);
}

#[test]
fn at_most_once_into_a_table() {
    row(Guarantee::AtMostOnce, SinkKind::Idempotent, None);
}

#[test]
fn at_most_once_into_objects() {
    row(Guarantee::AtMostOnce, SinkKind::Objects, None);
}

#[test]
fn at_most_once_into_a_topic_loses_and_never_repeats() {
    row(Guarantee::AtMostOnce, SinkKind::Append, Some("lost"));
}

#[test]
fn exactly_once_into_a_topic_is_more_than_the_chain_gives() {
    let cell = Cell {
        guarantee: Guarantee::ExactlyOnce,
        sink: SinkKind::Append,
        repeats: true,
        dedup: true,
    };
    let campaign = cell.explore(true).seeds(0..150).fails_max(1).run();
    assert_eq!(campaign.conclusion(), Conclusion::Broken);
    let failure = &campaign.failures[0];
    assert_eq!(failure.anomaly.kind, Kind::Duplicated);
    assert!(failure.plan.faults.len() <= 3, "{:?}", failure.plan.faults);
    assert!(failure.reproduced(), "{:?}", failure.again);
}

#[test]
fn the_canary_dies() {
    let campaign = Explore::new(Arc::new(Canary))
        .seeds(0..200)
        .fails_max(1)
        .run();
    assert_eq!(campaign.conclusion(), Conclusion::Broken);
    assert_eq!(campaign.failures[0].anomaly.kind, Kind::Lost);
    assert!(campaign.failures[0].reproduced());
}
