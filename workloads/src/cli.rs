//! The `seedbed` command: `cargo sim VERB …`, or `cargo live VERB …` for the build without simulation.
//!
//! Exit codes: 0 clean, 1 a claim was broken, 2 usage or bad input, 3 stuck, 4 not deterministic,
//! 5 vacuous; 130 and 143 if SIGINT or SIGTERM has ended a `run`, or a campaign that had found nothing by then, or, as
//! a second signal, any campaign at once. Diagnostics go to stderr, results to stdout.

mod explain;
#[cfg(not(madsim))]
mod broker;
#[cfg(madsim)]
mod choice;
#[cfg(madsim)]
mod fuzz;
#[cfg(madsim)]
mod limit;
#[cfg(madsim)]
mod list;
#[cfg(madsim)]
mod night;
#[cfg(madsim)]
mod replay;
#[cfg(not(madsim))]
mod run;
#[cfg(madsim)]
mod shrink;
#[cfg(not(madsim))]
mod signals;
#[cfg(madsim)]
mod summary;
#[cfg(madsim)]
mod trace;

use clap::{Parser, Subcommand};
use engine::guarantee::Guarantee;
use engine::{ids::PartitionId, log::TopicPartition, sink::SinkKind};
use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

/// Deterministic simulation testing for exactly-once streams.
#[derive(Parser, Debug)]
#[command(name = "seedbed", version, max_term_width = 100)]
#[command(
    after_help = "Without a verb: fuzz the revenue workload for 30 seconds.\n\n\
    Exit codes: 0 clean, 1 a claim was broken, 2 usage or bad input, 3 stuck, \
    4 not deterministic, 5 vacuous; 130 and 143 if SIGINT or SIGTERM has ended a campaign \
    that had found nothing by then, or a run; a second signal ends any campaign at once."
)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Explore seeds, and report what breaks.
    Fuzz(FuzzArguments),
    /// Run one seed or one plan file.
    Replay(ReplayArguments),
    /// Find the smallest plan with the same kind of anomaly.
    Shrink(ShrinkArguments),
    /// Read a trace; of two, show the first event that differs, and what led to it.
    Trace(TraceArguments),
    /// Show the chain of a job, its links, and the guarantee of the whole.
    Explain(ExplainArguments),
    /// List workloads, faults and checkers.
    List(ListArguments),
    /// Run the log on real disks and sockets, for any client of Kafka (`cargo live broker`).
    Broker(BrokerArguments),
    /// Run a pipeline on real disks and sockets over a file of events (`cargo live run`).
    Run(RunArguments),
}

/// How a workload is run.
#[derive(clap::Args, Debug, Clone, Default)]
struct JobArguments {
    /// What the job claims: at-most-once, at-least-once or exactly-once.
    #[arg(long)]
    guarantee: Option<Guarantee>,
    /// Where the output goes: objects, transactional, idempotent or append.
    #[arg(long, value_parser = parse_sink)]
    sink: Option<SinkKind>,
    /// Run a job that claims more than its chain gives.
    #[arg(long)]
    unchecked: bool,
}

/// How plans are drawn.
#[derive(clap::Args, Debug, Clone)]
struct PlanArguments {
    #[command(flatten)]
    job: JobArguments,
    /// Which faults: all, none, or a list of kinds with commas between them. With all, a few seeds have damage at
    /// rest; with a list that names kinds of it (see `list`), each seed has.
    #[arg(long, default_value = "all")]
    faults: String,
    /// Events per seed [default: 1000].
    #[arg(long)]
    records: Option<u64>,
    /// Events of your own, one JSON object a line, instead of drawn ones.
    #[arg(long, value_name = "FILE.jsonl")]
    input: Option<PathBuf>,
}

/// What one run may take: it has broken its limit, and how it ended, if it takes more.
#[derive(clap::Args, Debug, Clone)]
struct LimitArguments {
    /// A seed that takes longer, by the wall clock, has hung.
    #[arg(long, value_name = "TIME", default_value = SEED_TIMEOUT, value_parser = parse_seed_timeout)]
    seed_timeout: Duration,
    /// A seed that needs more memory than this many MiB is broken.
    #[arg(long, value_name = "MIB", default_value_t = MEMORY,
        value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    memory: u64,
}

const SEED_TIMEOUT: &str = "60s";
const MEMORY: u64 = 4096;

#[derive(clap::Args, Debug)]
struct FuzzArguments {
    /// Which workload.
    #[arg(default_value = "revenue")]
    workload: String,
    /// Which seeds, as A..B; without it, fresh ones.
    #[arg(long, value_name = "A..B", conflicts_with = "lasts")]
    seeds: Option<String>,
    /// For how long: 30s, 10m, 8h.
    #[arg(long = "for", value_name = "TIME")]
    lasts: Option<String>,
    /// How many worker processes [default: one for each core].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Only the I-th of N shares of the seeds, I from 0.
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,
    /// End with the first failure.
    #[arg(long)]
    fail_fast: bool,
    #[command(flatten)]
    plan: PlanArguments,
    /// A folder for what is found, written as it is found: failures/ with a plan for each cause,
    /// failures.jsonl with each failing seed, junit.xml and summary.json. Refused if it holds these of an
    /// earlier campaign.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the summary as JSON; - is stdout.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitArguments,
    /// Print every event and move that was counted.
    #[arg(long)]
    verbose: bool,
}

#[derive(clap::Args, Debug)]
struct ReplayArguments {
    /// A seed, or a plan file.
    what: String,
    /// Which workload, for a seed [default: revenue].
    #[arg(long)]
    workload: Option<String>,
    #[command(flatten)]
    plan: PlanArguments,
    /// Write the trace.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write the plan.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Write verdict, digest and counts as JSON; - is stdout.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitArguments,
}

#[derive(clap::Args, Debug)]
struct ShrinkArguments {
    /// A plan file that fails.
    file: PathBuf,
    /// Where the smaller plan goes [default: FILE with .min before its ending].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitArguments,
}

#[derive(clap::Args, Debug)]
struct TraceArguments {
    /// A trace, as `replay --trace` writes it.
    file: PathBuf,
    /// Another one.
    file2: Option<PathBuf>,
    /// Only events whose name or node holds this text.
    #[arg(long)]
    only: Option<String>,
}

#[derive(clap::Args, Debug)]
struct ExplainArguments {
    /// Which workload.
    #[arg(default_value = "revenue")]
    workload: String,
    #[command(flatten)]
    job: JobArguments,
    /// How long a transaction may be open, as the job asks.
    #[arg(long, value_name = "TIME", default_value = "15m")]
    transaction_timeout: humantime::Duration,
    /// The longest that the brokers give: their transaction.max.timeout.ms.
    #[arg(long, value_name = "TIME", default_value = "15m")]
    broker_max: humantime::Duration,
    /// Between two checkpoints.
    #[arg(long, value_name = "TIME", default_value = "1s")]
    checkpoint_interval: humantime::Duration,
    /// The longest that nobody may run the job.
    #[arg(long, value_name = "TIME", default_value = "10m")]
    downtime: humantime::Duration,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct ListArguments {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
#[cfg_attr(madsim, allow(dead_code))]
struct BrokerArguments {
    /// The folder that keeps the log. One broker has it at a time.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where to listen, and what clients are told to connect to.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    listen: String,
    /// A segment that is at least this large is followed by a new one.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    segment_bytes: u64,
    /// A partition that is larger loses its oldest segments [default: none does]. This, and the flags beside it, hold
    /// for topics that are not configured otherwise (retention.bytes, retention.ms, segment.bytes).
    #[arg(long, value_name = "BYTES")]
    retention_bytes: Option<u64>,
    /// A segment all of whose records are older goes.
    #[arg(long, value_name = "HOURS", default_value_t = 168,
        value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    retention_hours: u64,
    /// Go on without what a partition held that was damaged or lost: its folder was moved away, and it begins anew.
    #[arg(long, value_name = "TOPIC/PARTITION", value_parser = parse_partition)]
    without: Vec<TopicPartition>,
    /// Create a topic, of one partition, when a client first asks for it, unless it asks not to.
    #[arg(long)]
    auto_create_topics: bool,
}

fn parse_partition(text: &str) -> Result<TopicPartition, String> {
    let parts = text.rsplit_once('/');
    let parsed = parts.and_then(|(topic, index)| Some((topic, index.parse().ok()?)));
    match parsed {
        Some((topic, index)) => Ok(TopicPartition::new(topic, PartitionId(index))),
        None => Err("not TOPIC/PARTITION; orders/0 would be".into()),
    }
}

#[derive(clap::Args, Debug)]
#[cfg_attr(madsim, allow(dead_code))]
struct RunArguments {
    /// Which workload.
    #[arg(default_value = "revenue")]
    workload: String,
    /// The events, one JSON object a line.
    #[arg(long, value_name = "FILE.jsonl")]
    input: PathBuf,
    /// The folder that keeps log and checkpoints. Begun again with it, the run goes on where it was.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Use these brokers (Apache Kafka, or `cargo live broker`) instead of one in this process.
    #[arg(long, value_name = "HOST:PORT,…")]
    brokers: Option<String>,
    #[command(flatten)]
    job: JobArguments,
    /// Partitions of the topics.
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Tasks that share the windows.
    #[arg(long, default_value_t = 2)]
    window_tasks: usize,
    /// Workers in this process.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Milliseconds between two checkpoints.
    #[arg(long, value_name = "MS", default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    checkpoint_ms: u64,
    /// Print rows as JSON lines.
    #[arg(long)]
    json: bool,
}

/// The watch over seeds looks ten times a second: less than a second would not be kept.
fn parse_seed_timeout(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time of at least 1s, as 30s or 10m");
    let time = humantime::parse_duration(text).map_err(|_| wrong())?;
    (time >= Duration::from_secs(1))
        .then_some(time)
        .ok_or_else(wrong)
}

fn parse_sink(text: &str) -> Result<SinkKind, String> {
    let named = SinkKind::ALL.into_iter().find(|sink| sink.name() == text);
    let names = SinkKind::ALL.map(SinkKind::name).join(", ");
    named.ok_or_else(|| format!("`{text}` is not a sink: {names} are"))
}

/// Usage or input that is wrong: what, where, and what would be right. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BadInput(String);

impl BadInput {
    fn new(text: impl ToString) -> Self {
        BadInput(text.to_string())
    }
}

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    main_of(Known::default())
}

/// The workloads that the command knows, in the simulated build: by which names they are called is what each
/// says of itself.
#[cfg(madsim)]
pub struct Known(pub Vec<std::sync::Arc<dyn sim::Workload>>);

/// The build without simulation explores none.
#[cfg(not(madsim))]
#[derive(Default)]
pub struct Known {}

#[cfg(madsim)]
impl Default for Known {
    fn default() -> Self {
        Known(crate::all())
    }
}

/// Runs the command that this process was started with, over these workloads. In a worker of an exploration
/// it does not return.
pub fn main_of(known: Known) -> ExitCode {
    #[cfg(madsim)]
    sim::explore::serve(&known.0);
    run(std::env::args_os().collect(), &known)
}

fn run(arguments: Vec<OsString>, known: &Known) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; clap knows which stream they belong on.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let done = match arguments.verb {
        Some(Verb::Explain(arguments)) => explain::explain(&arguments),
        verb => of_this_build(verb, known),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            anstream::eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

#[cfg(madsim)]
fn of_this_build(verb: Option<Verb>, known: &Known) -> Result<u8, BadInput> {
    match verb {
        None => {
            let thirty_seconds = ["seedbed", "fuzz", "--for", "30s"];
            let parsed = Arguments::try_parse_from(thirty_seconds).map_err(BadInput::new)?;
            of_this_build(parsed.verb, known)
        }
        Some(Verb::Fuzz(arguments)) => fuzz::fuzz(&arguments, known),
        Some(Verb::Replay(arguments)) => replay::replay(&arguments, known),
        Some(Verb::Shrink(arguments)) => shrink::shrink(&arguments, known),
        Some(Verb::Trace(arguments)) => trace::trace(&arguments),
        Some(Verb::List(arguments)) => list::list(&arguments, known),
        Some(Verb::Explain(arguments)) => explain::explain(&arguments),
        Some(Verb::Broker(_) | Verb::Run(_)) => Err(BadInput::new(
            "this is the simulated build, which has no real disks and sockets; use `cargo live` for broker and run",
        )),
    }
}

#[cfg(not(madsim))]
fn of_this_build(verb: Option<Verb>, _: &Known) -> Result<u8, BadInput> {
    match verb {
        Some(Verb::Broker(arguments)) => broker::broker(&arguments),
        Some(Verb::Run(arguments)) => run::run(&arguments),
        _ => Err(BadInput::new(
            "this is the build without simulation, which has `broker`, `run` and `explain`; \
             use `cargo sim` for fuzz, replay, shrink, trace and list",
        )),
    }
}

/// Writes to a file, or to stdout if the path is `-`.
#[cfg(madsim)]
fn write_out(path: &std::path::Path, text: &str) -> Result<(), BadInput> {
    if path.as_os_str() == "-" {
        anstream::println!("{text}");
        return Ok(());
    }
    std::fs::write(path, format!("{text}\n")).map_err(|error| cannot_write(path, &error))
}

/// Writes a file that is there as a whole or, whatever ends this process, as it was before.
#[cfg(madsim)]
fn write_whole(path: &std::path::Path, text: &str) -> Result<(), BadInput> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path));
    written.map_err(|error| cannot_write(path, &error))
}

#[cfg(madsim)]
fn cannot_write(path: &std::path::Path, error: &std::io::Error) -> BadInput {
    BadInput::new(format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
