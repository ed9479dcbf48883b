//! Exploring: seeds in, failures out.
//!
//! Seeds are run in worker processes, one for each job, each of which runs many seeds, one after the other,
//! each in a fresh thread. So a program under test that exits, aborts, overflows its stack, loops for ever or
//! eats memory fails with its seed, and the exploration goes on with a new worker; inside `cargo test` too,
//! where `exit(0)` would otherwise end all tests as if they had passed. A worker costs a few milliseconds
//! when it starts, and some hundred microseconds a seed.
//!
//! | what ends a run | how it is noticed | its kind of anomaly |
//! |---|---|---|
//! | a panic | caught in the worker | `panicked` |
//! | `exit` | the worker's status | `exited` |
//! | an abort, a signal, an overflow of the stack | the worker's status | `aborted` |
//! | more memory than [`Explore::memory_max`] | the system refuses it, and the worker aborts | `exhausted` |
//! | a loop that never awaits, a lock that nobody frees | no report within [`Explore::wall_max`] | `hung` |
//!
//! A failure is shrunk, and then repeated in a fresh process. Failures are counted together if the same claim
//! breaks in the same way under faults of the same roles, and not without one of these: each failing seed is
//! tried with the faults of a known cause alone, and shrunk if it has another. What nobody had time to
//! examine is listed as such.
//!
//! One seed of a hundred that is not broken is run a second time, in another process, which costs one percent of
//! the speed: [`Campaign::leaks`].

mod campaign;
mod cause;
mod examine;
mod process;
mod steer;
mod twice;
mod worker;

pub use campaign::{
    Again, Campaign, Conclusion, Ended, FailedSeed, Failure, Leak, Shown, Unexamined,
};
pub use steer::{fresh_seed, parse_duration, parse_range};
pub(crate) use worker::is_worker;
pub use worker::serve;

use crate::{
    check::Verdict,
    plan::Plan,
    report,
    run::{self, Report, Workload},
    Seed,
};
use cause::Cause;
use process::{Halt, Start, Worker};
use std::{
    cmp::Reverse,
    ffi::OsString,
    ops::{Bound, RangeBounds},
    sync::{
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        Arc, Mutex,
    },
    time::{Duration, Instant},
};
use worker::{Hello, Job};

/// Wall time within which a seed has to end, unless another is given.
const WALL_MAX: Duration = Duration::from_secs(60);
/// How much memory a worker may have, unless another limit is given.
const MEMORY_MAX: u64 = 4 << 30;
/// How often whoever keeps what was found is told that time has passed.
const MOMENT: Duration = Duration::from_secs(10);

/// Explores a workload; see the crate's example.
pub fn explore(workload: impl Workload) -> Explore {
    Explore::new(Arc::new(workload))
}

/// What to explore, and how.
#[derive(Clone)]
pub struct Explore {
    workload: Arc<dyn Workload>,
    /// The first and the last seed; `None` if there is none.
    seeds: Option<(u64, u64)>,
    lasts: Option<Duration>,
    jobs: usize,
    shard: (u64, u64),
    adjust: Arc<dyn Fn(&mut Plan) + Send + Sync>,
    again: Arc<dyn Fn(&Failure) -> String + Send + Sync>,
    progress: Arc<dyn Fn(&Progress) + Send + Sync>,
    keep: Arc<Keep>,
    fails_max: usize,
    wall_max: Duration,
    memory_max: u64,
    serves: bool,
    aloud: bool,
    signal: Arc<AtomicUsize>,
}

/// Writes down what becomes known, as it does.
type Keep = dyn Fn(&Campaign, &mut News<'_>) + Send + Sync;

/// What has become known.
pub enum News<'a> {
    /// A seed has failed.
    Failed(&'a FailedSeed),
    /// A cause was found, or a failure that does not repeat.
    Failure(&'a mut Failure),
    /// A seed was run twice, and was not the same.
    Leak(&'a mut Leak),
    /// Some seconds have passed.
    Moment,
}

/// How far an exploration is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Seeds run.
    pub seeds_run: u64,
    /// Seeds that broke a claim.
    pub failed: u64,
    /// Wall time since the start.
    pub elapsed: Duration,
    /// What it is doing besides, if it is: examining a failure.
    pub doing: Option<String>,
}

/// What all threads of an exploration share.
struct Shared {
    begun: Instant,
    /// How many seeds were given out.
    next: AtomicU64,
    seeds_run: AtomicU64,
    failed: AtomicU64,
    stop: Stop,
    found: Mutex<Found>,
}

/// When an exploration stops.
struct Stop {
    /// No more seeds are to be run.
    no_more: AtomicBool,
    /// The number of the signal that ends it at once, or zero.
    signal: Arc<AtomicUsize>,
}

impl Stop {
    fn no_more(&self) {
        self.no_more.store(true, Ordering::Relaxed);
    }

    fn is_now(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }
}

#[derive(Default)]
struct Found {
    campaign: Campaign,
    digest: u128,
    /// The cause of each failure of the campaign.
    causes: Vec<Cause>,
    /// Failures that are being examined.
    examining: usize,
    /// Wall time that went into examining.
    examined: Duration,
    told: Duration,
}

impl Explore {
    /// Explores a workload; 64 seeds unless told otherwise.
    pub fn new(workload: Arc<dyn Workload>) -> Self {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        Explore {
            workload,
            seeds: Some((0, 63)),
            lasts: None,
            jobs,
            shard: (0, 1),
            adjust: Arc::new(|_| {}),
            again: Arc::new(|failure| {
                let test = this_test().map_or(String::new(), |test| format!(" {test}"));
                format!("SEEDBED_SEED={} cargo test{test}", failure.seed)
            }),
            progress: Arc::new(|_| {}),
            keep: Arc::new(|_, _| {}),
            fails_max: usize::MAX,
            wall_max: WALL_MAX,
            memory_max: MEMORY_MAX,
            serves: false,
            aloud: false,
            signal: Arc::default(),
        }
    }

    /// Explores these seeds.
    pub fn seeds(mut self, seeds: impl RangeBounds<u64>) -> Self {
        let first = match seeds.start_bound() {
            Bound::Included(first) => Some(*first),
            Bound::Excluded(before) => before.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let last = match seeds.end_bound() {
            Bound::Included(last) => Some(*last),
            Bound::Excluded(after) => after.checked_sub(1),
            Bound::Unbounded => Some(u64::MAX),
        };
        let both = first.zip(last);
        self.seeds = both.filter(|(first, last)| first <= last);
        self
    }

    /// Explores seeds from the first on until this much wall time has passed.
    pub fn lasts(mut self, lasts: Duration) -> Self {
        self.lasts = Some(lasts);
        self
    }

    /// How many workers.
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

    /// Wall time within which a seed has to end; 60 seconds unless told otherwise.
    pub fn wall_max(mut self, wall_max: Duration) -> Self {
        self.wall_max = wall_max;
        self
    }

    /// How much memory a worker may have, in bytes; 4 GiB unless told otherwise.
    pub fn memory_max(mut self, memory_max: u64) -> Self {
        self.memory_max = memory_max;
        self
    }

    /// This program calls [`serve`] before anything else: its workers need no arguments, and do nothing that
    /// it does before it explores.
    pub fn serves(mut self) -> Self {
        self.serves = true;
        self
    }

    /// What the program under test prints is seen: for one seed that somebody looks at.
    pub fn aloud(mut self) -> Self {
        self.aloud = true;
        self
    }

    /// Ends at once when this becomes the number of a signal, with what was found until then.
    pub fn ends_on(mut self, signal: Arc<AtomicUsize>) -> Self {
        self.signal = signal;
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

    /// Is told what becomes known, as it does, together with what is known so far: whatever ends this
    /// process, it has been told of all that was found before.
    pub fn keeps(
        mut self,
        keep: impl Fn(&Campaign, &mut News<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.keep = Arc::new(keep);
        self
    }

    /// Explores, in a `#[test]`: panics with everything one needs to know if it is not clean.
    /// `SEEDBED_SEED`, `SEEDBED_SEEDS` and `SEEDBED_FOR` say from outside what to explore.
    pub fn check(self) -> Campaign {
        let steered = steer::steered(self, &|name| std::env::var(name).ok());
        let explore = steered.unwrap_or_else(|error| panic!("{error}"));
        let campaign = explore.run();
        let conclusion = campaign.conclusion();
        let is_whole = matches!(campaign.ended, Ended::Done | Ended::Enough);
        if conclusion != Conclusion::Clean || !is_whole {
            panic!("{}", explore.told(&campaign));
        }
        campaign
    }

    /// All that one needs to know of a campaign that is not clean.
    fn told(&self, campaign: &Campaign) -> String {
        let mut text = format!(
            "{}: {:?} after {} seeds from {} on, {:?}\n",
            campaign.workload,
            campaign.conclusion(),
            campaign.seeds_run,
            Seed(campaign.seeds.0),
            campaign.verdicts
        );
        if let Ended::Unable(why) = &campaign.ended {
            text += &format!("no worker process can be started: {why}\n");
        }
        for failure in &campaign.failures {
            text += &self.screen(failure);
            text += &format!("\nwith the plan\n{}\n", failure.plan.to_text());
        }
        for others in &campaign.unexamined {
            text += &format!("{}\n", report::unexamined(others));
        }
        for leak in &campaign.leaks {
            text += &format!("{}\n", report::leak(leak));
        }
        text
    }

    /// A failure on one screen.
    pub fn screen(&self, failure: &Failure) -> String {
        report::failure(failure, &(self.again)(failure))
    }

    /// Explores. In a worker it does not return, or returns what the parent has found.
    pub fn run(&self) -> Campaign {
        let campaign = match worker::answer(&self.workload) {
            Some(campaign) => campaign,
            None => self.explore(),
        };
        worker::remember(&campaign);
        campaign
    }

    fn explore(&self) -> Campaign {
        let start = self.start();
        let shared = Shared {
            begun: Instant::now(),
            next: AtomicU64::new(0),
            seeds_run: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            stop: self.stop(),
            found: Mutex::default(),
        };
        self.keep(
            &shared,
            &mut shared.found.lock().expect("found"),
            &mut News::Moment,
        );
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    if let Err(Halt::Unable(why)) = self.work(&shared, &start) {
                        shared.found.lock().expect("found").campaign.ended = Ended::Unable(why);
                        shared.stop.no_more();
                    }
                });
            }
        });
        self.conclude(shared)
    }

    /// Runs a plan in a worker; the program has to serve ([`Explore::serves`]). Returns what it shows; the
    /// error says why no worker can be started.
    pub fn run_plan(&self, plan: &Plan, keep_trace: bool) -> Result<Report, String> {
        let job = match keep_trace {
            true => Job::of(plan).keeping_trace(),
            false => Job::of(plan),
        };
        self.in_worker(|worker| worker.run(&job))
    }

    /// Examines a plan that fails: shrinks it, and repeats it in a fresh process; the program has to serve
    /// ([`Explore::serves`]). Returns what the plan shows if it does not fail; the error says why no worker
    /// can be started.
    pub fn examine_plan(&self, plan: &Plan) -> Result<Result<Failure, Report>, String> {
        self.in_worker(|worker| {
            let report = worker.run(&Job::of(plan))?;
            Ok(match &report.verdict {
                Verdict::Broken(_) => Ok(self.examine(worker, plan, &report)?),
                _ => Err(report),
            })
        })
    }

    fn in_worker<T>(
        &self,
        body: impl FnOnce(&mut Worker<'_>) -> Result<T, Halt>,
    ) -> Result<T, String> {
        assert!(self.serves, "a worker has to come to this");
        let (start, stop) = (self.start(), self.stop());
        let done = body(&mut Worker::new(&start, &stop));
        done.map_err(|halt| match halt {
            Halt::Unable(why) => format!("no worker process can be started: {why}"),
            Halt::Stopped => "ended by a signal".into(),
        })
    }

    fn stop(&self) -> Stop {
        Stop {
            no_more: AtomicBool::new(false),
            signal: self.signal.clone(),
        }
    }

    fn start(&self) -> Start {
        let arguments: Vec<OsString> = match this_test() {
            _ if self.serves => Vec::new(),
            // A test that is usually left out is not left out here.
            Some(test) => [&*test, "--exact", "--include-ignored", "--nocapture"]
                .map(OsString::from)
                .into(),
            None => std::env::args_os().skip(1).collect(),
        };
        Start {
            arguments,
            hello: Hello {
                workload: self.workload.name().to_owned(),
                before: worker::found_before(),
                memory_max: self.memory_max,
            },
            wall_max: self.wall_max,
            aloud: self.aloud,
        }
    }

    fn work(&self, shared: &Shared, start: &Start) -> Result<(), Halt> {
        let mut worker = Worker::new(start, &shared.stop);
        let mut twin = Worker::new(start, &shared.stop);
        let mut nth = 0;
        while let Some(seed) = self.next(shared) {
            let mut plan = run::draw(&*self.workload, Seed(seed));
            (self.adjust)(&mut plan);
            let report = worker.run(&Job::of(&plan))?;
            self.add(shared, &plan, &report);
            if let Verdict::Broken(_) = &report.verdict {
                shared.failed.fetch_add(1, Ordering::Relaxed);
                self.fail(shared, &mut worker, &plan, &report)?;
            } else if twice::is_due(nth) {
                self.twice(shared, &mut worker, &mut twin, &plan, &report)?;
            }
            nth += 1;
            self.tell(shared, None);
        }
        Ok(())
    }

    /// The next seed, if there is to be one.
    fn next(&self, shared: &Shared) -> Option<u64> {
        let (first, last) = self.seeds?;
        loop {
            let is_over = |lasts| shared.begun.elapsed() >= lasts;
            if shared.stop.no_more.load(Ordering::Relaxed)
                || shared.stop.is_now()
                || self.lasts.is_some_and(is_over)
            {
                return None;
            }
            let nth = shared.next.fetch_add(1, Ordering::Relaxed);
            let seed = first.checked_add(nth).filter(|seed| *seed <= last)?;
            if seed % self.shard.1 == self.shard.0 {
                return Some(seed);
            }
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

    /// Tells whoever keeps what was found.
    fn keep(&self, shared: &Shared, found: &mut Found, news: &mut News<'_>) {
        self.fill(shared, found);
        (self.keep)(&found.campaign, news);
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
        let elapsed = shared.begun.elapsed();
        if elapsed >= found.told + MOMENT {
            found.told = elapsed;
            self.keep(shared, &mut found, &mut News::Moment);
        }
    }

    /// Fills in what follows from the rest.
    fn fill(&self, shared: &Shared, found: &mut Found) {
        let campaign = &mut found.campaign;
        campaign.workload = self.workload.name().to_owned();
        for name in self.workload.moves() {
            campaign.moves.entry(name).or_default();
        }
        campaign.wall_seconds = shared.begun.elapsed().as_secs_f64();
        campaign.seeds_per_second = campaign.seeds_run as f64 / campaign.wall_seconds;
        if let Some((first, last)) = self.seeds {
            let next = first.saturating_add(shared.next.load(Ordering::Relaxed));
            campaign.seeds = (first, next.min(last.saturating_add(1)));
        }
        campaign.digest = format!("{:032x}", found.digest);
    }

    fn conclude(&self, shared: Shared) -> Campaign {
        let mut found = shared.found.lock().expect("found");
        self.fill(&shared, &mut found);
        let mut campaign = std::mem::take(&mut found.campaign);
        let signal = self.signal.load(Ordering::Relaxed);
        campaign.ended = match campaign.ended {
            Ended::Unable(why) => Ended::Unable(why),
            _ if signal != 0 => Ended::Signal(signal),
            _ if campaign.failed > 0 && campaign.failures.len() >= self.fails_max => Ended::Enough,
            _ => Ended::Done,
        };
        // What most seeds show is seen first.
        campaign
            .failures
            .sort_by_key(|failure| (Reverse(failure.count), failure.anomaly.kind));
        campaign
    }
}

/// The test that runs in this thread: its name is the thread's.
fn this_test() -> Option<String> {
    let thread = std::thread::current();
    let name = thread.name().filter(|name| *name != "main");
    name.map(str::to_owned)
}
