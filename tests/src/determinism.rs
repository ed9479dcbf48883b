//! A seed is a run: the same trace in any process, build, order and number of threads.

use sim::{run, run::draw, Limits, Seed, Workload};
use std::sync::Arc;
use workloads::revenue::workload::RevenueWorkload;

fn revenue() -> Arc<dyn Workload> {
    Arc::new(RevenueWorkload { records: 200 })
}

fn trace_of(workload: &Arc<dyn Workload>, seed: u64) -> String {
    let plan = draw(&**workload, Seed(seed));
    let limits = Limits {
        keep_trace: true,
        ..Limits::default()
    };
    run(workload, &plan, &limits).trace.expect("it was asked for")
}

fn assert_same(what: &str, left: &str, right: &str) {
    if let Some(parting) = sim::trace::parting(left, right) {
        panic!("{what}: {parting:#?}");
    }
}

#[test]
fn the_first_run_of_a_process_is_like_the_hundredth() {
    let workload = revenue();
    let first: Vec<String> = (0..5).map(|seed| trace_of(&workload, seed)).collect();
    for seed in 100..190 {
        trace_of(&workload, seed);
    }
    for (seed, first) in first.iter().enumerate() {
        let again = trace_of(&workload, seed as u64);
        assert_same(&format!("seed {seed}, first and hundredth run"), first, &again);
    }
}
