//! `shrink`: the smallest plan with the same kind of anomaly.

use super::{choice, write_out, BadInput, Known, ShrinkArguments};
use sim::{explore::Again, report, Explore};

pub(super) fn shrink(arguments: &ShrinkArguments, known: &Known) -> Result<u8, BadInput> {
    let (workload, plan) = choice::read_plan(known, &arguments.file)?;
    let explore = arguments.limits.bound(Explore::new(workload).serves());
    let examined = explore.examine_plan(&plan);
    let failure = match examined.map_err(BadInput::new)? {
        Ok(failure) => failure,
        Err(report) => {
            let verdict = report.verdict.name();
            anstream::println!("{}: {verdict}; nothing to shrink", arguments.file.display());
            return Ok(0);
        }
    };
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => arguments.file.with_extension("min.plan"),
    };
    let story = format!("# {}: {}\n", failure.anomaly.kind, failure.anomaly.what);
    write_out(&out, (story + &failure.plan.to_text()).trim_end())?;
    let limits = arguments.limits.to_arguments();
    let again = format!("cargo sim replay {}{limits}", out.display());
    anstream::println!("{}", report::failure(&failure, &again));
    Ok(match failure.again {
        Again::Other { .. } => 4,
        Again::Same | Again::Unconfirmed(_) => 0,
    })
}
