//! A failure on one screen, ending in the command that repeats it.

use crate::{check::Anomaly, plan::Plan};
use std::fmt::Write as _;

/// How many lines of reasons fit.
const WHY_MAX: usize = 16;

/// A failure as a person sees it. `again` is the command that repeats it; `before` is how many faults
/// the plan had before it was shrunk.
pub fn screen(plan: &Plan, anomaly: &Anomaly, before: Option<usize>, again: &str) -> String {
    let mut text = String::new();
    let out = &mut text;
    let params: Vec<String> = (plan.params.iter())
        .map(|(name, value)| format!("{name}={}", value.to_string().trim_matches('"')))
        .collect();
    let _ = writeln!(out, "FAIL  {}: {}", anomaly.kind, anomaly.what);
    let _ = writeln!(out, "      {}  seed={}", plan.workload, plan.seed);
    for line in params.chunks(4) {
        let _ = writeln!(out, "      {}", line.join("  "));
    }
    if plan.faults.is_empty() {
        let _ = writeln!(out, "      no faults");
    }
    for (index, fault) in plan.faults.iter().enumerate() {
        let note = match before {
            Some(before) if index == 0 && before > plan.faults.len() => {
                format!("   (shrunk from {before} faults to {})", plan.faults.len())
            }
            _ => String::new(),
        };
        let _ = writeln!(out, "      {}: {}{note}", fault.at, fault.what);
    }
    for (index, line) in anomaly.why.iter().take(WHY_MAX).enumerate() {
        let head = if index == 0 { "why   " } else { "      " };
        let _ = writeln!(out, "{head}{line}");
    }
    if anomaly.why.len() > WHY_MAX {
        let _ = writeln!(
            out,
            "      … and {} lines more",
            anomaly.why.len() - WHY_MAX
        );
    }
    let _ = write!(out, "again {again}");
    text
}
