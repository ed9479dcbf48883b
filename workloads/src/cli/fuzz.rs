//! `fuzz`: seeds in, failures out.

use super::{
    choice::{self, Adjust},
    night::{Night, Repeat},
    summary, write_out, BadInput, FuzzArguments, Known,
};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use sim::{
    explore::{fresh_seed, parse_duration, parse_range, Conclusion, Ended},
    Campaign, Explore,
};
use std::{
    ops::RangeInclusive,
    process::Command,
    sync::{
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        Arc,
    },
    time::Duration,
};

/// How long a fuzz run takes if nobody says.
const DEFAULT_TIME: Duration = Duration::from_secs(30);

pub(super) fn fuzz(arguments: &FuzzArguments, known: &Known) -> Result<u8, BadInput> {
    let workload = choice::workload(known, &arguments.workload)?;
    let adjust = Adjust::new(&*workload, &arguments.plan)?;
    let limits = arguments.limits.to_arguments();
    let mut explore = arguments.limits.bound(Explore::new(workload).serves());
    let seeds = seeds(arguments)?;
    explore = match &seeds {
        Some(seeds) => explore.seeds(seeds.clone()),
        None => explore.seeds(fresh_seed()..).lasts(lasts(arguments)?),
    };
    if let Some(text) = &arguments.shard {
        let (index, of) = parse_shard(text)?;
        explore = explore.shard(index, of);
    }
    if arguments.fail_fast {
        explore = explore.fails_max(1);
    }
    if let Some(jobs) = arguments.jobs {
        explore = explore.jobs(jobs.into());
    }
    let json = arguments.json.as_deref();
    let json_file = json.filter(|path| path.as_os_str() != "-");
    let extra = adjust.clone();
    let again: Arc<Repeat> = Arc::new(move |failure| match &failure.saved {
        Some(path) => format!("cargo sim replay {}{limits}", path.display()),
        None => extra.replay_of(&failure.seed) + &limits,
    });
    let out = arguments.out.as_deref();
    let night = Arc::new(Night::new(out, json_file, commit(), again.clone())?);
    // Found out now rather than in the morning.
    night.end(&mut Campaign::default())?;
    let signal = Arc::new(AtomicUsize::new(0));
    listen(&signal)?;
    let bar = bar(seeds.as_ref(), lasts(arguments)?);
    let keeping = night.clone();
    explore = shown(explore, &bar)
        .ends_on(signal)
        .adjust(move |plan| adjust.apply(plan))
        .keeps(move |campaign, news| keeping.note(campaign, news))
        .again(move |failure| again(failure));
    let mut campaign = explore.run();
    bar.finish_and_clear();
    let saved = night.end(&mut campaign);
    match json {
        Some(path) if json_file.is_none() => {
            let text = serde_json::to_string_pretty(&campaign).map_err(BadInput::new)?;
            write_out(path, &text)?;
        }
        _ => summary::print(&campaign, &explore, arguments.verbose),
    }
    saved?;
    exit_code(&campaign)
}

/// The exit code of a campaign. One that ended before its time is not clean, whatever it has not found.
fn exit_code(campaign: &Campaign) -> Result<u8, BadInput> {
    let conclusion = campaign.conclusion();
    match (&campaign.ended, conclusion) {
        (Ended::Unable(why), _) => Err(BadInput::new(format!(
            "no worker process can be started: {why}"
        ))),
        (Ended::Signal(signal), Conclusion::Clean | Conclusion::Vacuous) => Ok(128 + *signal as u8),
        _ => Ok(conclusion.exit_code()),
    }
}

/// The first SIGINT or SIGTERM ends the campaign with its summary, the second one ends the process.
fn listen(signal: &Arc<AtomicUsize>) -> Result<(), BadInput> {
    let again = Arc::new(AtomicBool::new(false));
    for number in [SIGINT, SIGTERM] {
        let exit = 128 + number;
        let listened =
            signal_hook::flag::register_conditional_shutdown(number, exit, again.clone())
                .and_then(|_| signal_hook::flag::register(number, again.clone()))
                .and_then(|_| {
                    signal_hook::flag::register_usize(number, signal.clone(), number as usize)
                });
        listened.map_err(BadInput::new)?;
    }
    Ok(())
}

fn seeds(arguments: &FuzzArguments) -> Result<Option<RangeInclusive<u64>>, BadInput> {
    let seeds = arguments.seeds.as_deref().map(parse_range).transpose();
    seeds.map_err(|error| BadInput::new(format!("--seeds: {error}")))
}

fn lasts(arguments: &FuzzArguments) -> Result<Duration, BadInput> {
    let lasts = arguments.lasts.as_deref().map(parse_duration).transpose();
    let lasts = lasts.map_err(|error| BadInput::new(format!("--for: {error}")))?;
    Ok(lasts.unwrap_or(DEFAULT_TIME))
}

/// Shows on a bar how far an exploration is.
fn shown(explore: Explore, bar: &ProgressBar) -> Explore {
    let (shown, last) = (bar.clone(), AtomicU64::new(0));
    explore.progress(move |progress| {
        let seconds = progress.elapsed.as_secs();
        match shown.length() {
            Some(length) if is_by_time(&shown) => shown.set_position(seconds.min(length)),
            _ => shown.set_position(progress.seeds_run),
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
    })
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
fn bar(seeds: Option<&RangeInclusive<u64>>, lasts: Duration) -> ProgressBar {
    let (length, prefix) = match seeds {
        Some(seeds) => ((seeds.end() - seeds.start()).saturating_add(1), "seeds"),
        None => (lasts.as_secs(), "time"),
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

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success()).then(|| text.trim().to_owned())
}
