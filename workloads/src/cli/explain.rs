//! `explain`: the chain of a job, its links, and the guarantee of the whole.

use super::{BadInput, ExplainArguments};
use crate::revenue::pipeline::revenue;
use engine::{
    graph::Upstream,
    guarantee::{Chain, Guarantee, SinkClass, TransactionTimes},
    job::JobConfig,
    sink::SinkKind,
};

pub(super) fn explain(arguments: &ExplainArguments) -> Result<u8, BadInput> {
    if arguments.workload != "revenue" {
        let text = format!(
            "`{}` has no chain to explain; revenue has",
            arguments.workload
        );
        return Err(BadInput::new(text));
    }
    let job = &arguments.job;
    let claimed = job.guarantee.unwrap_or(Guarantee::ExactlyOnce);
    let sink = job.sink.unwrap_or(SinkKind::Objects);
    let pipeline = revenue(Upstream::Repeats, 0);
    let config = JobConfig::new("revenue", claimed, sink);
    let chain = pipeline.links(&config);
    let warnings = warnings(&config, arguments);
    if arguments.json {
        let json = serde_json::json!({
            "workload": arguments.workload,
            "graph": pipeline.graph().describe(),
            "claims": claimed,
            "gives": chain.gives(),
            "links": chain.links,
            "warnings": warnings,
        });
        anstream::println!("{json:#}");
    } else {
        print(
            &arguments.workload,
            &pipeline.graph().describe(),
            claimed,
            &chain,
        );
        for warning in warnings {
            anstream::println!("warning: {warning}");
        }
    }
    match chain.check(claimed) {
        Err(refused) if !job.unchecked => Err(BadInput::new(refused)),
        _ => Ok(0),
    }
}

/// Where the brokers' settings break the chain.
fn warnings(config: &JobConfig, arguments: &ExplainArguments) -> Vec<String> {
    let times = TransactionTimes {
        timeout: *arguments.transaction_timeout,
        max: *arguments.broker_max,
        checkpoint_interval: *arguments.checkpoint_interval,
        checkpoint_timeout: config.checkpoint_timeout,
        downtime: *arguments.downtime,
    };
    match config.sink.class() {
        SinkClass::Transactional => times.warnings(),
        SinkClass::Idempotent | SinkClass::Append => Vec::new(),
    }
}

fn print(workload: &str, graph: &str, claimed: Guarantee, chain: &Chain) {
    anstream::println!("{workload}: {graph}");
    let weakest = chain.check(claimed).err().map(|refused| refused.weakest);
    for link in &chain.links {
        let mark = if weakest.as_ref() == Some(link) {
            "  <- the weakest link"
        } else {
            ""
        };
        anstream::println!(
            "  {:<11} {:<17} {:<14} {}{mark}",
            link.name,
            link.is,
            link.gives,
            link.why
        );
    }
    anstream::println!("claims {claimed}, gives {}", chain.gives());
}
