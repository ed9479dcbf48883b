//! A failure on one screen, ending in the command that repeats it.

use crate::{
    check::Anomaly,
    explore::{Again, Failure, Leak, Unexamined},
    plan::Plan,
    trace::Parting,
};
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

/// A failure that was examined. `again` is the command that repeats it.
pub fn failure(failure: &Failure, again: &str) -> String {
    let before = Some(failure.faults_before);
    let mut text = screen(&failure.plan, &failure.anomaly, before, again);
    match &failure.again {
        Again::Same => {}
        Again::Other { instead, parting } => {
            let _ = write!(
                text,
                "\nLEAK  a fresh process showed {} with digest {}, and not {}: not deterministic",
                instead.verdict, instead.digest, failure.digest
            );
            text += &parting.as_ref().map_or(String::new(), parted);
        }
        Again::Unconfirmed(why) => {
            let _ = write!(text, "\nNOTE  could not be confirmed: {why}");
        }
    }
    text
}

/// A seed that was run twice, and was not the same.
pub fn leak(leak: &Leak) -> String {
    let Leak {
        seed,
        plan,
        first,
        second,
        ..
    } = leak;
    let mut text = format!(
        "LEAK  {} seed={seed}: a second run, in another process and with other keys of hash maps, differs\n      \
         {} with digest {}\n      {} with digest {}",
        plan.workload, first.verdict, first.digest, second.verdict, second.digest
    );
    text += &leak.parting.as_ref().map_or_else(
        || "\n      and with their traces kept they did not part".into(),
        parted,
    );
    if let Some([left, right]) = &leak.saved {
        let (left, right) = (left.display(), right.display());
        let _ = write!(text, "\nagain cargo sim trace {left} {right}");
    }
    text
}

/// Where two traces part, as `trace A B` shows it.
fn parted(parting: &Parting) -> String {
    let mut text = format!("\n      the traces part at event {}", parting.line);
    for line in &parting.before {
        let _ = write!(text, "\n        {line}");
    }
    let end = "(the trace has ended)";
    for (mark, line) in [("<", &parting.left), (">", &parting.right)] {
        let _ = write!(text, "\n      {mark} {}", line.as_deref().unwrap_or(end));
    }
    text
}

/// Failing seeds that nobody has examined, on one line.
pub fn unexamined(others: &Unexamined) -> String {
    let Unexamined {
        kind,
        claim,
        count,
        seeds,
    } = others;
    let claim = match claim.is_empty() {
        true => String::new(),
        false => format!(" ({claim})"),
    };
    format!(
        "{kind}{claim} in {count} seeds that were not examined, whose cause may be another: {}",
        seeds.iter().take(20).cloned().collect::<Vec<_>>().join(" ")
    )
}
