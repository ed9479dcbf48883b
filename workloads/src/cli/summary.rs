//! The summary of a campaign, for people: what has failed, ten lines, and the verdict last, where it is seen.

use super::night::cut_short;
use anstyle::{AnsiColor, Style};
use sim::{
    explore::{Again, Conclusion},
    report, Campaign, Explore, Failure,
};
use std::collections::BTreeSet;

/// How many failures and leaks are shown on a screen of their own, and how many on a line.
const SCREENS_MAX: usize = 3;
const LINES_MAX: usize = 2;
/// How many seeds stand on a line.
const SEEDS_MAX: usize = 6;

/// Prints what was found. `verbose`: each event and move that was counted, too.
pub(super) fn print(campaign: &Campaign, explore: &Explore, verbose: bool) {
    for failure in campaign.failures.iter().take(SCREENS_MAX) {
        anstream::println!("{}\n", explore.screen(failure));
    }
    for leak in campaign.leaks.iter().take(SCREENS_MAX) {
        anstream::println!("{}\n", report::leak(leak));
    }
    let never = never(campaign);
    if verbose {
        counted(campaign);
        rows("never", &never, 2);
    }
    let line = |name: &str, text: String| anstream::println!("  {name:<9} {text}");
    line("seeds", seeds(campaign));
    let verdicts = campaign.verdicts.iter();
    let verdicts = verdicts.map(|(name, count)| format!("{name} {count}"));
    line("verdicts", verdicts.collect::<Vec<_>>().join(", "));
    line("work", work(campaign));
    line("digest", campaign.digest.clone());
    if !campaign.shown.is_empty() {
        let shown = campaign.shown.iter();
        let shown: Vec<_> = shown
            .map(|(name, count)| format!("{name} in {count} seeds"))
            .collect();
        line("shown", format!("{}, which is allowed", shown.join(", ")));
    }
    if !never.is_empty() && !verbose {
        let text = format!(
            "{} faults and moves of all; --verbose names them",
            never.len()
        );
        line("never", text);
    }
    let failed = failed(campaign);
    for text in failed.iter().take(LINES_MAX) {
        line("failed", text.clone());
    }
    if failed.len() > LINES_MAX {
        let more = failed.len() - LINES_MAX;
        line(
            "",
            format!("{more} more causes; --json and --out have them all"),
        );
    }
    verdict(campaign);
}

fn seeds(campaign: &Campaign) -> String {
    let (first, after) = campaign.seeds;
    let twice = match (campaign.run_twice, campaign.parted) {
        (0, _) => "none run twice".to_owned(),
        (twice, 0) => format!("{twice} run twice, the same each time"),
        (twice, parted) => format!("{twice} run twice, of which {parted} PARTED"),
    };
    format!(
        "{first:#x}..{after:#x}, {} without faults, {twice}",
        campaign.fault_free
    )
}

fn work(campaign: &Campaign) -> String {
    format!(
        "{} events, {} commits, {} facts compared, {:.0} s of virtual time ({:.0} x wall time)",
        campaign.events,
        campaign.commits,
        campaign.compared,
        campaign.virtual_seconds,
        campaign.virtual_seconds / campaign.wall_seconds
    )
}

/// A line for each cause, and for what was not examined.
fn failed(campaign: &Campaign) -> Vec<String> {
    let causes = campaign.failures.iter().map(|failure| {
        let note = match failure.again {
            Again::Same => "",
            Again::Other { .. } => ", NOT DETERMINISTIC",
            Again::Unconfirmed(_) => ", not confirmed",
        };
        let seeds: Vec<&str> = failure
            .seeds
            .iter()
            .take(SEEDS_MAX)
            .map(String::as_str)
            .collect();
        let more = if failure.count > seeds.len() as u64 {
            " …"
        } else {
            ""
        };
        format!(
            "{} under {} in {} seeds{note}: {}{more}",
            failure.anomaly.kind,
            kinds(failure),
            failure.count,
            seeds.join(" ")
        )
    });
    let others = campaign.unexamined.iter().map(|others| {
        let kind = others.kind;
        format!(
            "{kind} in {} more seeds, whose cause was not looked for",
            others.count
        )
    });
    causes.chain(others).collect()
}

/// The kinds of fault that a failure needs.
fn kinds(failure: &Failure) -> String {
    let faults = failure.plan.faults.iter();
    let kinds: BTreeSet<&str> = faults.map(|fault| fault.what.kind()).collect();
    match kinds.is_empty() {
        true => "no faults".into(),
        false => kinds.into_iter().collect::<Vec<_>>().join(" and "),
    }
}

fn verdict(campaign: &Campaign) {
    let conclusion = campaign.conclusion();
    let (color, word) = match conclusion {
        Conclusion::Clean => (AnsiColor::Green, "CLEAN"),
        Conclusion::Broken => (AnsiColor::Red, "BROKEN"),
        Conclusion::Stuck => (AnsiColor::Red, "STUCK"),
        Conclusion::NotDeterministic => (AnsiColor::Red, "NOT DETERMINISTIC"),
        Conclusion::Vacuous => (AnsiColor::Yellow, "VACUOUS"),
    };
    let style = Style::new().fg_color(Some(color.into())).bold();
    let failed = match campaign.failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    let ended = cut_short(&campaign.ended).map_or(String::new(), |why| format!("; {why}"));
    anstream::println!(
        "{style}{word}{style:#}  {}: {} seeds in {:.1} s ({:.1} a second){failed}{ended}",
        campaign.workload,
        campaign.seeds_run,
        campaign.wall_seconds,
        campaign.seeds_per_second
    );
}

/// What happened, and how often.
fn counted(campaign: &Campaign) {
    let counts = campaign.faults.iter().filter(|(_, count)| **count > 0);
    let (engine, faults): (Vec<_>, Vec<_>) = counts.partition(|(name, _)| name.contains('.'));
    let texts = |counts: Vec<(&String, &u64)>| -> Vec<String> {
        let texts = counts.iter().map(|(name, count)| format!("{name} {count}"));
        texts.collect()
    };
    rows("faults", &texts(faults), 6);
    rows("engine", &texts(engine), 6);
    let moves = campaign.moves.iter().filter(|(_, count)| **count > 0);
    let moves: Vec<String> = moves
        .map(|(name, count)| format!("{count:>9} {name}"))
        .collect();
    rows("moves", &moves, 1);
}

fn rows(name: &str, texts: &[String], wide: usize) {
    for (index, row) in texts.chunks(wide).enumerate() {
        let name = if index == 0 { name } else { "" };
        anstream::println!("  {name:<9} {}", row.join(", "));
    }
}

/// What the workload may meet and has not, and legal moves that were not made.
fn never(campaign: &Campaign) -> Vec<String> {
    let counts = campaign.faults.iter().chain(&campaign.moves);
    let never = counts.filter(|(_, count)| **count == 0);
    never.map(|(name, _)| name.clone()).collect()
}
