//! `replay`: one run of a seed or of a plan file.

use super::{
    cannot_write,
    choice::{self, Adjust},
    write_out, BadInput, Known, ReplayArguments,
};
use sim::{explore::Conclusion, report, Explore, Plan, Report, Seed, Verdict, Workload};
use std::{path::Path, sync::Arc};

pub(super) fn replay(arguments: &ReplayArguments, known: &Known) -> Result<u8, BadInput> {
    let (workload, plan, again) = plan(arguments, known)?;
    if let Some(path) = &arguments.save {
        write_out(path, &plan.to_text())?;
    }
    if let Some(path) = &arguments.trace {
        std::fs::write(path, "").map_err(|error| cannot_write(path, &error))?;
    }
    // In a worker: a program that exits or aborts is a verdict, too.
    let explore = Explore::new(workload).serves().aloud();
    let report = (arguments.limits.bound(explore))
        .run_plan(&plan, arguments.trace.is_some())
        .map_err(BadInput::new)?;
    if let (Some(path), Some(text)) = (&arguments.trace, &report.trace) {
        std::fs::write(path, text).map_err(|error| cannot_write(path, &error))?;
    }
    let quiet = arguments
        .json
        .as_deref()
        .is_some_and(|path| path.as_os_str() == "-");
    if !quiet {
        print(&plan, &report, &again);
    }
    if let Some(path) = &arguments.json {
        write_out(path, &json(&plan, &report))?;
    }
    Ok(exit_code(&report.verdict))
}

fn plan(
    arguments: &ReplayArguments,
    known: &Known,
) -> Result<(Arc<dyn Workload>, Plan, String), BadInput> {
    let what = &arguments.what;
    let path = Path::new(what);
    let seed = what.parse::<Seed>();
    if path.exists() || seed.is_err() && looks_like_a_file(what) {
        let (workload, mut plan) = choice::read_plan(known, path)?;
        if let Some(name) = arguments
            .workload
            .as_ref()
            .filter(|name| **name != plan.workload)
        {
            return Err(BadInput::new(format!(
                "--workload {name}: {what} is a plan of workload {}, and runs no other",
                plan.workload
            )));
        }
        // What the command line says of plans holds for this one, too.
        let adjust = Adjust::new(&*workload, &arguments.plan)?;
        adjust.apply(&mut plan);
        sim::run::check_plan(&*workload, &plan)
            .map_err(|error| BadInput::new(format!("{what}, as it was changed: {error}")))?;
        let (changes, limits) = (adjust.to_arguments(), arguments.limits.to_arguments());
        let again = format!("cargo sim replay {what}{changes}{limits}");
        return Ok((workload, plan, again));
    }
    let Seed(seed) =
        seed.map_err(|error| BadInput::new(format!("{error}, or name a plan file")))?;
    let name = arguments.workload.as_deref().unwrap_or("revenue");
    let workload = choice::workload(known, name)?;
    let adjust = Adjust::new(&*workload, &arguments.plan)?;
    let plan = adjust.draw(&*workload, seed);
    let again = adjust.replay_of(Seed(seed)) + &arguments.limits.to_arguments();
    Ok((workload, plan, again))
}

fn looks_like_a_file(text: &str) -> bool {
    text.contains('/') || text.contains(".plan")
}

fn print(plan: &Plan, report: &Report, again: &str) {
    match &report.verdict {
        Verdict::Broken(anomalies) => {
            anstream::println!("{}", report::screen(plan, &anomalies[0], None, again));
            for other in anomalies.iter().skip(1).take(5) {
                anstream::println!("also  {}: {}", other.kind, other.what);
            }
            if anomalies.len() > 6 {
                anstream::println!("also  {} more", anomalies.len() - 6);
            }
        }
        Verdict::Detected(named) => {
            anstream::println!("DETECTED  {} seed={}", plan.workload, plan.seed);
            named
                .iter()
                .for_each(|line| anstream::println!("      {line}"));
            anstream::println!("again {again}");
        }
        Verdict::Vacuous(why) => anstream::println!("VACUOUS  {why}\nagain {again}"),
        Verdict::Clean => anstream::println!(
            "CLEAN  {} seed={}  {} faults  {:.1} s of virtual time, {} commits, {} facts compared",
            plan.workload,
            plan.seed,
            plan.faults.len(),
            report.virtual_seconds,
            report.commits,
            report.compared
        ),
    }
    for (name, count) in &report.shown {
        anstream::println!("shown {name}, {count} times, which is allowed");
    }
    anstream::println!("digest {}", report.digest);
}

fn json(plan: &Plan, report: &Report) -> String {
    let json = serde_json::json!({
        "workload": plan.workload,
        "seed": plan.seed.to_string(),
        "verdict": report.verdict.name(),
        "anomalies": match &report.verdict {
            Verdict::Broken(anomalies) => anomalies.clone(),
            _ => Vec::new(),
        },
        "named": match &report.verdict {
            Verdict::Detected(named) => named.clone(),
            _ => Vec::new(),
        },
        "vacuous": match &report.verdict {
            Verdict::Vacuous(why) => Some(why),
            _ => None,
        },
        "digest": report.digest,
        "virtual_seconds": report.virtual_seconds,
        "events": report.events,
        "commits": report.commits,
        "compared": report.compared,
        "shown": report.shown,
        "counts": report.counts,
    });
    format!("{json:#}")
}

/// The exit code of one run.
fn exit_code(verdict: &Verdict) -> u8 {
    let conclusion = match verdict {
        Verdict::Clean | Verdict::Detected(_) => Conclusion::Clean,
        Verdict::Vacuous(_) => Conclusion::Vacuous,
        Verdict::Broken(anomalies) => Conclusion::of_kinds([anomalies[0].kind]),
    };
    conclusion.exit_code()
}
