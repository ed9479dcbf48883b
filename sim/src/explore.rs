//! Exploring: seeds in, failures out.
//!
//! Seeds are spread over threads, each run in a fresh one. A failure is shrunk, and then repeated in a
//! fresh process; one that does not repeat is a determinism leak, and says so. Failures that look alike
//! (the same kind of anomaly, the same kinds of fault left) are one failure with many seeds.

mod campaign;
mod confirm;

pub use campaign::{Campaign, Conclusion, Confirmed, Failure};

use crate::{
    check::{Anomaly, Kind, Verdict},
    plan::Plan,
    report,
    run::{self, Limits, Report, Workload},
    shrink::shrink,
    Seed,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc, Mutex,
    },
    time::{Duration, Instant},
};

/// How many failures of one kind are shrunk and confirmed; the others are counted by their seeds.
const SHRUNK_PER_KIND: usize = 3;
/// Seeds that are remembered for one failure.
const SEEDS_KEPT: usize = 20;
/// Wall time for shrinking one failure.
const SHRINK_BUDGET: Duration = Duration::from_secs(60);

/// Explores a workload; see the crate's example.
pub fn explore(workload: impl Workload) -> Explore {
    Explore::new(Arc::new(workload))
}

/// What to explore, and how.
#[derive(Clone)]
pub struct Explore {
    workload: Arc<dyn Workload>,
    seeds: Range<u64>,
    lasts: Option<Duration>,
    jobs: usize,
    shard: (u64, u64),
    adjust: Arc<dyn Fn(&mut Plan) + Send + Sync>,
    confirm: Arc<Confirm>,
    again: Arc<dyn Fn(&Failure) -> String + Send + Sync>,
    progress: Arc<dyn Fn(&Progress) + Send + Sync>,
    fails_max: usize,
}

/// Repeats a plan in a fresh process, or says why it could not.
type Confirm = dyn Fn(&Plan) -> Result<Confirmed, String> + Send + Sync;

/// How far an exploration is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Seeds run.
    pub seeds_run: u64,
    /// Seeds that broke a claim.
    pub failed: u64,
    /// Wall time since the start.
    pub elapsed: Duration,
    /// What it is doing besides, if it is: shrinking.
    pub doing: Option<String>,
}

/// What all threads of an exploration share.
struct Shared {
    begun: Instant,
    next: AtomicU64,
    seeds_run: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    campaign: Campaign,
    digest: u128,
    shrunk: BTreeMap<Kind, usize>,
    seeds_of_kind: BTreeMap<Kind, Vec<String>>,
    count_of_kind: BTreeMap<Kind, u64>,
}

impl Explore {
    /// Explores a workload; 64 seeds unless told otherwise.
    pub fn new(workload: Arc<dyn Workload>) -> Self {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        Explore {
            workload,
            seeds: 0..64,
            lasts: None,
            jobs,
            shard: (0, 1),
            adjust: Arc::new(|_| {}),
            confirm: Arc::new(confirm::by_same_program),
            again: Arc::new(|failure| format!("SEEDBED_SEED={} cargo test", failure.seed)),
            progress: Arc::new(|_| {}),
            fails_max: usize::MAX,
        }
    }

    /// Explores these seeds.
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// Explores seeds from the first on until this much wall time has passed.
    pub fn lasts(mut self, lasts: Duration) -> Self {
        self.lasts = Some(lasts);
        self
    }

    /// How many threads.
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs.max(1);
        self
    }

    /// Only every `of`-th seed, beginning with the `index`-th.
    pub fn shard(mut self, index: u64, of: u64) -> Self {
        assert!(index < of, "shard {index} of {of}");
        self.shard = (index, of);
        self
    }

    /// Changes every plan after it was drawn.
    pub fn adjust(mut self, adjust: impl Fn(&mut Plan) + Send + Sync + 'static) -> Self {
        self.adjust = Arc::new(adjust);
        self
    }

    /// Ends after so many different failures.
    pub fn fails_max(mut self, fails_max: usize) -> Self {
        self.fails_max = fails_max;
        self
    }

    /// How to repeat a plan in a fresh process.
    pub fn confirm(
        mut self,
        confirm: impl Fn(&Plan) -> Result<Confirmed, String> + Send + Sync + 'static,
    ) -> Self {
        self.confirm = Arc::new(confirm);
        self
    }

    /// The command that repeats a failure.
    pub fn again(mut self, again: impl Fn(&Failure) -> String + Send + Sync + 'static) -> Self {
        self.again = Arc::new(again);
        self
    }

    /// Is told how far it is, after each seed.
    pub fn progress(mut self, progress: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(progress);
        self
    }

    /// Explores, in a `#[test]`: panics with everything one needs to know if it is not clean.
    /// `SEEDBED_SEED`, `SEEDBED_SEEDS` and `SEEDBED_FOR` say from outside what to explore.
    pub fn check(self) -> Campaign {
        let explore = self.steered(&|name| std::env::var(name).ok());
        let campaign = explore.run();
        if campaign.conclusion() != Conclusion::Clean {
            let mut text = format!(
                "{}: {:?} after {} seeds, {:?}\n",
                campaign.workload,
                campaign.conclusion(),
                campaign.seeds_run,
                campaign.verdicts
            );
            for failure in &campaign.failures {
                text += &explore.screen(failure);
                text += &format!("\nwith the plan\n{}\n", failure.plan.to_text());
            }
            panic!("{text}");
        }
        campaign
    }

    /// A failure on one screen.
    pub fn screen(&self, failure: &Failure) -> String {
        let again = (self.again)(failure);
        let mut text = report::screen(
            &failure.plan,
            &failure.anomaly,
            Some(failure.faults_before),
            &again,
        );
        if !failure.reproduced {
            let instead = failure.instead.as_deref().unwrap_or("nothing");
            text = format!("{text}\nLEAK  a fresh process showed {instead}: not deterministic");
        }
        text
    }

    fn steered(mut self, env: &dyn Fn(&str) -> Option<String>) -> Self {
        if let Some(text) = env("SEEDBED_SEED") {
            let Seed(seed) = text
                .parse()
                .unwrap_or_else(|error| panic!("SEEDBED_SEED: {error}"));
            self.seeds = seed..seed + 1;
        }
        if let Some(text) = env("SEEDBED_SEEDS") {
            let seeds = parse_range(&text).unwrap_or_else(|error| panic!("SEEDBED_SEEDS: {error}"));
            self.seeds = seeds;
        }
        if let Some(text) = env("SEEDBED_FOR") {
            let lasts =
                parse_duration(&text).unwrap_or_else(|error| panic!("SEEDBED_FOR: {error}"));
            self.lasts = Some(lasts);
        }
        self
    }

    /// Explores.
    pub fn run(&self) -> Campaign {
        confirm::answer(&self.workload);
        let shared = Shared {
            begun: Instant::now(),
            next: AtomicU64::new(self.seeds.start),
            seeds_run: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            found: Mutex::default(),
        };
        std::thread::scope(|scope| {
            // The thread that asked keeps its name, by which a test is found again.
            let name = std::thread::current().name().map(str::to_owned);
            for _ in 0..self.jobs {
                let builder = std::thread::Builder::new();
                let builder = name.iter().fold(builder, |b, name| b.name(name.clone()));
                let work = || self.work(&shared);
                builder
                    .spawn_scoped(scope, work)
                    .expect("the system gives a thread");
            }
        });
        self.conclude(shared)
    }

    fn work(&self, shared: &Shared) {
        while !shared.stop.load(Ordering::Relaxed) {
            if self
                .lasts
                .is_some_and(|lasts| shared.begun.elapsed() >= lasts)
            {
                return;
            }
            let seed = shared.next.fetch_add(1, Ordering::Relaxed);
            if self.lasts.is_none() && seed >= self.seeds.end {
                return;
            }
            if seed % self.shard.1 != self.shard.0 {
                continue;
            }
            let mut plan = run::draw(&*self.workload, Seed(seed));
            (self.adjust)(&mut plan);
            let report = run::run(&self.workload, &plan, &Limits::default());
            self.add(shared, &plan, &report);
            if let Verdict::Broken(anomalies) = &report.verdict {
                shared.failed.fetch_add(1, Ordering::Relaxed);
                self.fail(shared, plan, anomalies[0].kind);
            }
            self.tell(shared, None);
        }
    }

    fn tell(&self, shared: &Shared, doing: Option<String>) {
        (self.progress)(&Progress {
            seeds_run: shared.seeds_run.load(Ordering::Relaxed),
            failed: shared.failed.load(Ordering::Relaxed),
            elapsed: shared.begun.elapsed(),
            doing,
        });
    }

    fn add(&self, shared: &Shared, plan: &Plan, report: &Report) {
        shared.seeds_run.fetch_add(1, Ordering::Relaxed);
        let mut found = shared.found.lock().expect("found");
        let campaign = &mut found.campaign;
        campaign.seeds_run += 1;
        campaign.virtual_seconds += report.virtual_seconds;
        campaign.events += report.events;
        campaign.commits += report.commits;
        campaign.compared += report.compared;
        *campaign
            .verdicts
            .entry(report.verdict.name().to_owned())
            .or_default() += 1;
        for name in report.shown.keys() {
            *campaign.shown.entry(name.clone()).or_default() += 1;
        }
        for (name, count) in &report.counts {
            *campaign.faults.entry(name.clone()).or_default() += count;
        }
        for (name, count) in &report.moves {
            *campaign.moves.entry(name.clone()).or_default() += count;
        }
        campaign.fault_free += u64::from(plan.faults.is_empty());
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(&plan.seed.0.to_le_bytes());
        hasher.update(report.digest.as_bytes());
        found.digest = found.digest.wrapping_add(hasher.digest128());
    }

    /// Shrinks and confirms a failure, unless enough of its kind were.
    fn fail(&self, shared: &Shared, plan: Plan, kind: Kind) {
        {
            let mut found = shared.found.lock().expect("found");
            *found.count_of_kind.entry(kind).or_default() += 1;
            let seeds = found.seeds_of_kind.entry(kind).or_default();
            if seeds.len() < SEEDS_KEPT {
                seeds.push(plan.seed.to_string());
            }
            let shrunk = found.shrunk.entry(kind).or_default();
            *shrunk += 1;
            if *shrunk > SHRUNK_PER_KIND {
                return;
            }
        }
        self.tell(
            shared,
            Some(format!("shrinking {} of seed {}", kind, plan.seed)),
        );
        let failure = self.examine(plan, kind);
        let mut found = shared.found.lock().expect("found");
        let like = |other: &&mut Failure| shape_of(other) == shape_of(&failure);
        if let Some(same) = found.campaign.failures.iter_mut().find(like) {
            same.count += 1;
            same.seeds.push(failure.seed);
        } else {
            found.campaign.failures.push(failure);
        }
        if found.campaign.failures.len() >= self.fails_max {
            shared.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Makes a failure of a plan that failed: shrunk, and repeated in a fresh process.
    pub fn examine(&self, plan: Plan, kind: Kind) -> Failure {
        let (seed, faults_before) = (plan.seed.to_string(), plan.faults.len());
        let failure = |plan, report: Report, reproduced, instead| Failure {
            seed: seed.clone(),
            anomaly: report.verdict.anomaly().cloned().unwrap_or(Anomaly {
                kind,
                what: "seen once, and not again".into(),
                why: Vec::new(),
            }),
            digest: report.digest,
            plan,
            faults_before,
            reproduced,
            instead,
            seeds: vec![seed.clone()],
            count: 1,
            saved: None,
        };
        let Some(shrunk) = shrink(&self.workload, &plan, kind, SHRINK_BUDGET) else {
            let report = run::run(&self.workload, &plan, &Limits::default());
            let instead = format!("{} the second time, here", report.verdict.name());
            return failure(plan, report, false, Some(instead));
        };
        let expected = Confirmed {
            verdict: shrunk.report.verdict.name().to_owned(),
            digest: shrunk.report.digest.clone(),
        };
        let (reproduced, instead) = match (self.confirm)(&shrunk.plan) {
            Ok(confirmed) if confirmed == expected => (true, None),
            Ok(other) => (
                false,
                Some(format!("{} with digest {}", other.verdict, other.digest)),
            ),
            Err(error) => (false, Some(error)),
        };
        failure(shrunk.plan, shrunk.report, reproduced, instead)
    }

    fn conclude(&self, shared: Shared) -> Campaign {
        let found = shared.found.into_inner().expect("found");
        let mut campaign = found.campaign;
        campaign.workload = self.workload.name().to_owned();
        for name in self.workload.moves() {
            campaign.moves.entry(name).or_default();
        }
        campaign.wall_seconds = shared.begun.elapsed().as_secs_f64();
        campaign.seeds_per_second = campaign.seeds_run as f64 / campaign.wall_seconds;
        let next = shared.next.into_inner();
        let end = if self.lasts.is_some() {
            next
        } else {
            next.min(self.seeds.end)
        };
        campaign.seeds = (self.seeds.start, end);
        campaign.digest = format!("{:032x}", found.digest);
        // Failures of a kind of which enough were shrunk belong to the first one of it.
        for (kind, count) in found.count_of_kind {
            let of_kind = campaign.failures.iter().filter(|f| f.anomaly.kind == kind);
            let known: BTreeSet<String> = of_kind.clone().flat_map(|f| f.seeds.clone()).collect();
            let counted: u64 = of_kind.map(|f| f.count).sum();
            let first = campaign
                .failures
                .iter_mut()
                .find(|f| f.anomaly.kind == kind);
            if let Some(first) = first {
                first.count += count.saturating_sub(counted);
                let seeds = found.seeds_of_kind.get(&kind).into_iter().flatten();
                let others = seeds.filter(|seed| !known.contains(*seed));
                first.seeds.extend(others.cloned());
            }
        }
        campaign
            .failures
            .sort_by_key(|failure| failure.anomaly.kind);
        campaign
    }
}

/// Failures of the same shape are the same failure.
fn shape_of(failure: &Failure) -> (Kind, bool, BTreeSet<&'static str>) {
    let kinds = failure.plan.faults.iter().map(|fault| fault.what.kind());
    (failure.anomaly.kind, failure.reproduced, kinds.collect())
}

/// Reads `A..B`, or a single seed.
pub fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let seed = |text: &str| {
        text.parse()
            .map(|Seed(seed)| seed)
            .map_err(|e| e.to_string())
    };
    let range = match text.split_once("..") {
        None => {
            let from = seed(text)?;
            from..from.saturating_add(1)
        }
        Some((from, to)) => seed(from)?..seed(to)?,
    };
    if range.is_empty() {
        return Err(format!("`{text}` holds no seed: write A..B with A below B"));
    }
    Ok(range)
}

/// Reads `30s`, `10m`, `8h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration: write 30s, 10m or 8h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let number = &text[..text.len() - unit.len_utf8()];
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(factor).filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_durations_are_read_or_refused() {
        assert_eq!(parse_range("3..7"), Ok(3..7));
        assert_eq!(parse_range("0x10"), Ok(16..17));
        for text in ["", "7..3", "5..5", "a..b", "1..", "-1..3"] {
            assert!(parse_range(text).unwrap_err().contains('`'), "{text}");
        }
        assert_eq!(parse_duration("8h"), Ok(Duration::from_secs(8 * 3600)));
        for text in ["", "8", "h", "0s", "5d", "99999999999999999999h", "1é"] {
            assert!(parse_duration(text).unwrap_err().contains("30s"), "{text}");
        }
    }
}
