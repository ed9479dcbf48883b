//! `explain`: the chain of a job, its links, and the guarantee of the whole.

use super::{BadInput, ExplainArguments};
use crate::revenue::pipeline::revenue;
use engine::{
    graph::Upstream,
    guarantee::{Chain, Guarantee, SinkClass, TransactionTimes},
    job::JobConfig,
    sink::SinkKind,
};
use std::time::Duration;

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
    let warnings = warnings(&config, arguments)?;
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
fn warnings(config: &JobConfig, arguments: &ExplainArguments) -> Result<Vec<String>, BadInput> {
    let time = |name: &str, text: &Option<String>, otherwise: Duration| match text {
        None => Ok(otherwise),
        Some(text) => parse_time(text).ok_or_else(|| {
            BadInput::new(format!(
                "{name}: `{text}` is not a time; 500ms, 30s, 10m and 8h are"
            ))
        }),
    };
    let times = TransactionTimes {
        timeout: time(
            "--transaction-timeout",
            &arguments.transaction_timeout,
            config.transaction_timeout,
        )?,
        max: time(
            "--broker-max",
            &arguments.broker_max,
            TransactionTimes::KAFKA_MAX,
        )?,
        checkpoint_interval: time(
            "--checkpoint-interval",
            &arguments.checkpoint_interval,
            config.checkpoint_interval,
        )?,
        checkpoint_timeout: config.checkpoint_timeout,
        downtime: time("--downtime", &arguments.downtime, Duration::from_secs(600))?,
    };
    Ok(match config.sink.class() {
        SinkClass::Transactional => times.warnings(),
        SinkClass::Idempotent | SinkClass::Append => Vec::new(),
    })
}

/// Reads a time such as `30s`.
fn parse_time(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(ms).map(Duration::from_millis)
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
