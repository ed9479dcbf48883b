//! `list`: workloads, faults and checkers.

use super::{BadInput, Known, ListArguments};
use sim::{Kind, What};

pub(super) fn list(arguments: &ListArguments, known: &Known) -> Result<u8, BadInput> {
    let Known(workloads) = known;
    if arguments.json {
        let names = workloads.iter().map(
            |workload| serde_json::json!({ "name": workload.name(), "about": workload.about() }),
        );
        let json = serde_json::json!({
            "workloads": names.collect::<Vec<_>>(),
            "faults": What::KINDS,
            "damage": What::DAMAGE,
            "checkers": Kind::ALL.map(Kind::name),
        });
        anstream::println!("{json:#}");
        return Ok(0);
    }
    anstream::println!("workloads");
    for workload in workloads {
        anstream::println!("  {:<10} {}", workload.name(), workload.about());
    }
    anstream::println!("faults     {}", What::KINDS.join(", "));
    anstream::println!("damage     {}", What::DAMAGE.join(", "));
    anstream::println!("checkers   {}", Kind::ALL.map(Kind::name).join(", "));
    Ok(0)
}
