//! Plans that once failed: each must be clean now. Their stories stand on top of them.

use sim::{run, run::check_plan, Limits, Plan, Verdict};
use std::{fs, path::Path};

#[test]
fn no_plan_that_once_failed_fails_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let workloads = workloads::all();
    let mut run_plans = 0;
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("readable").path();
        let text = fs::read_to_string(&path).expect("readable");
        assert!(
            text.starts_with('#'),
            "{} has no story on top",
            path.display()
        );
        let plan = Plan::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let workload = workloads.iter().find(|one| one.name() == plan.workload);
        let workload = workload.unwrap_or_else(|| panic!("no workload {}", plan.workload));
        check_plan(&**workload, &plan)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let report = run(workload, &plan, &Limits::default());
        let is_damaged = plan
            .faults
            .iter()
            .any(|fault| fault.what.damage().is_some());
        match report.verdict {
            Verdict::Clean => {}
            Verdict::Detected(_) if is_damaged => {}
            other => panic!("{}: {other:?}", path.display()),
        }
        run_plans += 1;
    }
    assert!(run_plans > 0, "there is a plan");
}
