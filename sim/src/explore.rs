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
//! One seed of a hundred is run a second time, in another process, which costs one percent of the speed: the eighth of
//! each hundred, whoever runs it, or the next one that is not broken: [`Campaign::leaks`].

mod campaign;
mod cause;
mod examine;
mod going;
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
    run::{Report, Workload},
    Seed,
};
use process::{Halt, Start, Worker};
use std::{
    ffi::OsString,
    ops::{Bound, RangeBounds},
    sync::{atomic::AtomicUsize, Arc},
    time::Duration,
};
use worker::{Hello, Job};

/// Wall time within which a seed has to end, unless another is given.
const WALL_MAX: Duration = Duration::from_secs(60);
/// How much memory a worker may have, unless another limit is given.
const MEMORY_MAX: u64 = 4 << 30;

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

    /// What the program under test prints is seen, on stderr: for one seed that somebody looks at.
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
}

/// The test that runs in this thread: its name is the thread's.
fn this_test() -> Option<String> {
    let thread = std::thread::current();
    let name = thread.name().filter(|name| *name != "main");
    name.map(str::to_owned)
}
