//! Seeds × guarantees × sinks: each cell keeps its promise; each weaker one shows its anomaly.
//!
//! `SEEDBED_SEED`, `SEEDBED_SEEDS` and `SEEDBED_FOR` steer every cell from outside.

use engine::{guarantee::Guarantee, sink::SinkKind};
use sim::{explore::Conclusion, Explore, Kind, Plan, Workload};
use std::sync::Arc;
use workloads::{canary::Canary, revenue::settings::Settings, revenue::workload::RevenueWorkload};

const SEEDS: std::ops::Range<u64> = 0..60;

fn revenue(guarantee: Guarantee, sink: SinkKind, unchecked: bool) -> Explore {
    let workload: Arc<dyn Workload> = Arc::new(RevenueWorkload { records: 300 });
    let adjust = move |plan: &mut Plan| {
        let settings = Settings::of(&plan.params).expect("it was drawn");
        let settings = Settings {
            guarantee,
            sink,
            unchecked,
            ..settings
        };
        plan.params = settings.to_params();
    };
    Explore::new(workload).seeds(SEEDS).adjust(adjust)
}

fn is_steered() -> bool {
    let names = ["SEEDBED_SEED", "SEEDBED_SEEDS", "SEEDBED_FOR"];
    names.iter().any(|name| std::env::var_os(name).is_some())
}

#[test]
fn exactly_once_into_objects() {
    let campaign = revenue(Guarantee::ExactlyOnce, SinkKind::Objects, false).check();
    assert!(campaign.commits > 0 && campaign.compared > 0);
    assert!(!campaign
        .shown
        .keys()
        .any(|name| name.starts_with("fact_revenue_1m")));
}

#[test]
fn at_least_once_into_objects() {
    revenue(Guarantee::AtLeastOnce, SinkKind::Objects, false).check();
}

#[test]
fn at_most_once_into_objects() {
    revenue(Guarantee::AtMostOnce, SinkKind::Objects, false).check();
}

#[test]
fn at_least_once_into_a_topic_repeats_and_never_loses() {
    let campaign = revenue(Guarantee::AtLeastOnce, SinkKind::Append, false).check();
    let shown = campaign
        .shown
        .get("fact_revenue_1m: duplicated")
        .copied()
        .unwrap_or(0);
    assert!(
        shown > 0 || is_steered(),
        "no seed showed a duplicate: {:?}",
        campaign.shown
    );
}

#[test]
fn at_most_once_into_a_topic_loses_and_never_repeats() {
    let campaign = revenue(Guarantee::AtMostOnce, SinkKind::Append, false)
        .seeds(0..400)
        .check();
    let shown = campaign
        .shown
        .get("fact_revenue_1m: lost")
        .copied()
        .unwrap_or(0);
    assert!(
        shown > 0 || is_steered(),
        "no seed showed a loss: {:?}",
        campaign.shown
    );
}

#[test]
fn exactly_once_into_a_topic_is_more_than_the_chain_gives() {
    let explore = revenue(Guarantee::ExactlyOnce, SinkKind::Append, true);
    let campaign = explore.fails_max(1).run();
    assert_eq!(campaign.conclusion(), Conclusion::Broken);
    let failure = &campaign.failures[0];
    assert_eq!(failure.anomaly.kind, Kind::Duplicated);
    assert!(failure.plan.faults.len() <= 3, "{:?}", failure.plan.faults);
    assert!(failure.reproduced, "{:?}", failure.instead);
}

#[test]
fn the_canary_dies() {
    let campaign = Explore::new(Arc::new(Canary))
        .seeds(0..200)
        .fails_max(1)
        .run();
    assert_eq!(campaign.conclusion(), Conclusion::Broken);
    assert_eq!(campaign.failures[0].anomaly.kind, Kind::Lost);
    assert!(campaign.failures[0].reproduced);
}
