//! Repeating a plan in a fresh process.

use super::Confirmed;
use crate::{
    plan::Plan,
    run::{self, Limits, Workload},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

const CONFIRM: &str = "SEEDBED_CONFIRM";

/// Repeats a plan by starting this very program again: a test binary with the name of the test, which
/// is the name of its thread, or any other program with its own arguments.
pub(super) fn by_same_program(plan: &Plan) -> Result<Confirmed, String> {
    let text = plan.to_text();
    let name = format!("seedbed-confirm-{}-{}.plan", std::process::id(), plan.seed);
    let path = std::env::temp_dir().join(name);
    let done = path.with_extension("confirmed");
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    match std::thread::current().name() {
        Some(test) if test != "main" => command.args([test, "--exact", "--nocapture"]),
        _ => command.args(std::env::args().skip(1)),
    };
    let ended = command.env(CONFIRM, &path).output();
    let answer = std::fs::read_to_string(&done);
    remove(&path);
    remove(&done);
    ended.map_err(|error| error.to_string())?;
    let answer = answer.map_err(|_| "no answer: it did not run the workload".to_owned())?;
    serde_json::from_str(&answer).map_err(|error| error.to_string())
}

fn remove(path: &Path) {
    // It may not be there, and a temporary file that stays harms nobody.
    let _ = std::fs::remove_file(path);
}

/// If this process was started to confirm a plan of this workload: does so, and ends.
pub(super) fn answer(workload: &Arc<dyn Workload>) {
    let Some(path) = std::env::var_os(CONFIRM) else {
        return;
    };
    let path = PathBuf::from(path);
    let text = std::fs::read_to_string(&path).expect("the plan to confirm is there");
    let plan = Plan::parse(&text).expect("the plan to confirm was written by us");
    if plan.workload != workload.name() {
        return;
    }
    let report = run::run(workload, &plan, &Limits::default());
    let confirmed = Confirmed {
        verdict: report.verdict.name().to_owned(),
        digest: report.digest,
    };
    let text = serde_json::to_string(&confirmed).expect("plain data");
    std::fs::write(path.with_extension("confirmed"), text).expect("the folder was writable");
    std::process::exit(0);
}
