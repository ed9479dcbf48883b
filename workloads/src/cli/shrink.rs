//! `shrink`: the smallest plan with the same kind of anomaly.

use super::{choice, fuzz, write_out, BadInput, ShrinkArguments};
use sim::{report, run, Explore, Limits};

pub(super) fn shrink(arguments: &ShrinkArguments) -> Result<u8, BadInput> {
    let (workload, plan) = choice::read_plan(&arguments.file)?;
    let before = run(&workload, &plan, &Limits::default());
    let Some(anomaly) = before.verdict.anomaly() else {
        let verdict = before.verdict.name();
        anstream::println!("{}: {verdict}; nothing to shrink", arguments.file.display());
        return Ok(0);
    };
    let failure = Explore::new(workload)
        .confirm(fuzz::confirm)
        .examine(plan, anomaly.kind);
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => arguments.file.with_extension("min.plan"),
    };
    let story = format!("# {}: {}\n", failure.anomaly.kind, failure.anomaly.what);
    write_out(&out, (story + &failure.plan.to_text()).trim_end())?;
    let again = format!("cargo sim replay {}", out.display());
    let faults_before = Some(failure.faults_before);
    let screen = report::screen(&failure.plan, &failure.anomaly, faults_before, &again);
    anstream::println!("{screen}");
    if !failure.reproduced {
        let instead = failure.instead.as_deref().unwrap_or("nothing");
        anstream::println!("LEAK  a fresh process showed {instead}: not deterministic");
        return Ok(4);
    }
    Ok(0)
}
