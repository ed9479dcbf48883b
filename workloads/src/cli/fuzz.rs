//! `fuzz`: seeds in, failures out.

use super::{
    choice::{self, Adjust},
    night::Night,
    write_out, BadInput, FuzzArguments,
};
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use sim::{
    explore::{parse_duration, parse_range, Conclusion, Confirmed},
    Campaign, Explore, Plan, What,
};
use std::{
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

/// How long a fuzz run takes if nobody says.
const DEFAULT_TIME: Duration = Duration::from_secs(30);

pub(super) fn fuzz(arguments: &FuzzArguments) -> Result<u8, BadInput> {
    let workload = choice::workload(&arguments.workload)?;
    let adjust = Adjust::new(&*workload, &arguments.plan)?;
    let night = Night::new(arguments.out.as_deref())?;
    let json = arguments
        .json
        .as_deref()
        .filter(|path| path.as_os_str() != "-");
    if let Some(path) = json {
        // Found out now rather than in the morning.
        std::fs::write(path, "").map_err(|error| super::cannot_write(path, &error))?;
    }
    let mut explore = Explore::new(workload.clone()).confirm(confirm);
    if let Some(text) = &arguments.seeds {
        let seeds = parse_range(text);
        explore = explore.seeds(seeds.map_err(|error| BadInput::new(format!("--seeds: {error}")))?);
    } else {
        let lasts = match &arguments.lasts {
            None => DEFAULT_TIME,
            Some(text) => {
                parse_duration(text).map_err(|error| BadInput::new(format!("--for: {error}")))?
            }
        };
        let first = fresh_seed();
        explore = explore.seeds(first..u64::MAX).lasts(lasts);
    }
    if let Some(text) = &arguments.shard {
        let (index, of) = parse_shard(text)?;
        explore = explore.shard(index, of);
    }
    if arguments.fail_fast {
        explore = explore.fails_max(1);
    }
    if let Some(jobs) = arguments.jobs {
        if jobs == 0 {
            return Err(BadInput::new("--jobs: 0 threads run nothing"));
        }
        explore = explore.jobs(jobs);
    }
    let bar = bar(arguments);
    let shown = bar.clone();
    let last = AtomicU64::new(0);
    explore = explore.progress(move |progress| {
        let seconds = progress.elapsed.as_secs();
        if shown.length() != Some(progress.seeds_run) {
            match shown.length() {
                Some(length) if length > 0 && is_by_time(&shown) => {
                    shown.set_position(seconds.min(length))
                }
                _ => shown.set_position(progress.seeds_run),
            }
        }
        let rate = progress.seeds_run as f64 / progress.elapsed.as_secs_f64();
        let doing = progress.doing.as_deref().unwrap_or("");
        shown.set_message(format!(
            "{} seeds, {rate:.0}/s, {} failed {doing}",
            progress.seeds_run, progress.failed
        ));
        // A log of a long night shows that it is alive.
        if shown.is_hidden() && seconds / 600 > last.swap(seconds / 600, Ordering::Relaxed) {
            anstream::eprintln!("{} min: {} seeds", seconds / 60, progress.seeds_run);
        }
    });
    let (changed, extra) = (adjust.clone(), adjust.to_arguments());
    explore = explore.adjust(move |plan| changed.apply(plan));
    let mut campaign = explore.run();
    bar.finish_and_clear();
    campaign.commit = commit();
    night.save(&mut campaign)?;
    let explore = explore.again(move |failure| match &failure.saved {
        Some(path) => format!("cargo sim replay {}", path.display()),
        None => format!("cargo sim replay {}{extra}", failure.seed),
    });
    let quiet = arguments
        .json
        .as_deref()
        .is_some_and(|path| path.as_os_str() == "-");
    if !quiet {
        for failure in &campaign.failures {
            anstream::println!("{}\n", explore.screen(failure));
        }
        print(&campaign);
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&campaign).map_err(BadInput::new)?;
        write_out(path, &text)?;
    }
    Ok(campaign.conclusion().exit_code())
}

/// Only picks which seeds are run, and is printed.
#[allow(clippy::disallowed_methods)]
fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() * 1_000_000)
}

fn parse_shard(text: &str) -> Result<(u64, u64), BadInput> {
    let parts = text.split_once('/');
    let parsed = parts.and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
    let valid = parsed.filter(|(index, of)| index < of);
    valid.ok_or_else(|| {
        BadInput::new(format!(
            "--shard: `{text}` is not a share; 0/4 is the first of four"
        ))
    })
}

/// A bar over seeds, or over time.
fn bar(arguments: &FuzzArguments) -> ProgressBar {
    let range = arguments
        .seeds
        .as_ref()
        .and_then(|text| parse_range(text).ok());
    let (length, prefix) = match range {
        Some(range) => (range.end - range.start, "seeds"),
        None => {
            let lasts = arguments
                .lasts
                .as_ref()
                .and_then(|text| parse_duration(text).ok());
            (lasts.unwrap_or(DEFAULT_TIME).as_secs(), "time")
        }
    };
    let bar = ProgressBar::new(length).with_prefix(prefix);
    let style = ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn is_by_time(bar: &ProgressBar) -> bool {
    bar.prefix() == "time"
}

/// Repeats a plan in a fresh process of this program.
pub(super) fn confirm(plan: &Plan) -> Result<Confirmed, String> {
    let name = format!("seedbed-{}-{}.plan", std::process::id(), plan.seed);
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, plan.to_text()).map_err(|error| error.to_string())?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(program)
        .arg("replay")
        .arg(&path)
        .args(["--json", "-"])
        .output();
    // A temporary file that stays harms nobody.
    let _ = std::fs::remove_file(&path);
    let output = output.map_err(|error| error.to_string())?;
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("no answer of a fresh process: {error}"))
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success()).then(|| text.trim().to_owned())
}

/// The summary, for people.
fn print(campaign: &Campaign) {
    let conclusion = campaign.conclusion();
    let color = match conclusion {
        Conclusion::Clean => AnsiColor::Green,
        Conclusion::Vacuous => AnsiColor::Yellow,
        _ => AnsiColor::Red,
    };
    let style = Style::new().fg_color(Some(color.into())).bold();
    let word = match conclusion {
        Conclusion::Clean => "CLEAN",
        Conclusion::Broken => "BROKEN",
        Conclusion::Stuck => "STUCK",
        Conclusion::NotDeterministic => "NOT DETERMINISTIC",
        Conclusion::Vacuous => "VACUOUS",
    };
    let per_wall = campaign.virtual_seconds / campaign.wall_seconds;
    anstream::println!(
        "{style}{word}{style:#}  {}: {} seeds in {:.1} s ({:.1} a second)",
        campaign.workload,
        campaign.seeds_run,
        campaign.wall_seconds,
        campaign.seeds_per_second
    );
    let line = |name: &str, text: String| anstream::println!("  {name:<9} {text}");
    line(
        "seeds",
        format!("{:#x}..{:#x}", campaign.seeds.0, campaign.seeds.1),
    );
    let verdicts = campaign
        .verdicts
        .iter()
        .map(|(name, count)| format!("{name} {count}"));
    line("verdicts", verdicts.collect::<Vec<_>>().join(", "));
    line(
        "virtual",
        format!(
            "{:.0} s, {per_wall:.0} x wall time",
            campaign.virtual_seconds
        ),
    );
    line(
        "work",
        format!(
            "{} events, {} commits, {} facts compared",
            campaign.events, campaign.commits, campaign.compared
        ),
    );
    for (name, count) in &campaign.shown {
        line(
            "shown",
            format!("{name} in {count} seeds, which is allowed"),
        );
    }
    let (engine, faults): (Vec<_>, Vec<_>) = campaign
        .faults
        .iter()
        .partition(|(name, _)| name.contains('.'));
    let join = |counts: Vec<(&String, &u64)>| {
        let texts: Vec<_> = counts
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        texts
            .chunks(6)
            .map(|row| row.join(", "))
            .collect::<Vec<_>>()
    };
    line("faults", format!("none in {} seeds", campaign.fault_free));
    join(faults).into_iter().for_each(|row| line("", row));
    for (index, row) in join(engine).into_iter().enumerate() {
        line(if index == 0 { "engine" } else { "" }, row);
    }
    let moves = campaign.moves.iter().filter(|(_, count)| **count > 0);
    let happened = moves.clone().count();
    if !campaign.moves.is_empty() {
        let all = campaign.moves.len();
        line("moves", format!("{happened} of {all} legal ones"));
    }
    for (name, count) in moves {
        line("", format!("{count:>9} {name}"));
    }
    let unmade = campaign.moves.iter().filter(|(_, count)| **count == 0);
    let unmade: Vec<&str> = unmade.map(|(name, _)| name.as_str()).collect();
    let missing = never_struck(campaign);
    if !missing.is_empty() {
        line("never", missing.join(", "));
    }
    for (index, row) in unmade.chunks(2).enumerate() {
        let name = if missing.is_empty() && index == 0 {
            "never"
        } else {
            ""
        };
        line(name, row.join(", "));
    }
    line("digest", campaign.digest.clone());
    for failure in &campaign.failures {
        line(
            "failed",
            format!(
                "{} in {} seeds: {}",
                failure.anomaly.kind,
                failure.count,
                failure.seeds.join(" ")
            ),
        );
    }
}

/// Kinds of fault, and of damage, that did not occur.
fn never_struck(campaign: &Campaign) -> Vec<&'static str> {
    let damage = [
        "cut-one-way",
        "half-open",
        "heavy-tail",
        "read-error",
        "write-error",
        "sync-error",
        "page-kept",
        "page-lost",
        "page-torn",
        "length-lost",
        "entry-lost",
        "restart",
    ];
    // A disk error is counted by the operation that failed.
    let kinds = What::KINDS.into_iter().filter(|kind| *kind != "disk-error");
    let all = kinds.chain(damage);
    all.filter(|kind| !campaign.faults.contains_key(*kind))
        .collect()
}
