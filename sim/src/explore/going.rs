//! An exploration that goes on: workers take seeds, what they find comes together, and ends as a campaign.

use super::{
    campaign::{Campaign, Ended},
    cause::Cause,
    process::{Halt, Start, Worker},
    twice::Due,
    worker::Job,
    Explore, News, Progress,
};
use crate::{
    check::Verdict,
    fault::What,
    plan::Plan,
    run::{self, Report},
    Seed,
};
use std::{
    cmp::Reverse,
    sync::{
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        Arc, Mutex,
    },
    time::{Duration, Instant},
};

/// How often whoever keeps what was found is told that time has passed.
const MOMENT: Duration = Duration::from_secs(10);

/// What all threads of an exploration share.
pub(super) struct Shared {
    pub begun: Instant,
    /// How many seeds were given out.
    next: AtomicU64,
    due: Due,
    pub stop: Stop,
    pub found: Mutex<Found>,
}

/// When an exploration stops.
pub(super) struct Stop {
    /// No more seeds are to be run.
    no_more: AtomicBool,
    /// The number of the signal that ends it at once, or zero.
    signal: Arc<AtomicUsize>,
}

impl Stop {
    pub fn no_more(&self) {
        self.no_more.store(true, Ordering::Relaxed);
    }

    pub fn is_now(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }
}

/// What has been found so far.
#[derive(Default)]
pub(super) struct Found {
    pub campaign: Campaign,
    digest: u128,
    /// The cause of each failure of the campaign.
    pub causes: Vec<Cause>,
    /// Failures that are being examined.
    pub examining: usize,
    /// Wall time that went into examining.
    pub examined: Duration,
    told: Duration,
}

impl Explore {
    pub(super) fn explore(&self) -> Campaign {
        let start = self.start();
        let shared = Shared {
            begun: Instant::now(),
            next: AtomicU64::new(0),
            due: Due::default(),
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

    pub(super) fn stop(&self) -> Stop {
        Stop {
            no_more: AtomicBool::new(false),
            signal: self.signal.clone(),
        }
    }

    fn work(&self, shared: &Shared, start: &Start) -> Result<(), Halt> {
        let mut worker = Worker::new(start, &shared.stop);
        let mut twin = Worker::new(start, &shared.stop);
        while let Some((nth, seed)) = self.next(shared) {
            let mut plan = run::draw(&*self.workload, Seed(seed));
            (self.adjust)(&mut plan);
            let mut report = worker.run(&Job::of(&plan))?;
            let passed = !matches!(report.verdict, Verdict::Broken(_));
            if shared.due.is_now(nth, passed) {
                report = self.twice(shared, &mut worker, &mut twin, &plan, report)?;
            }
            self.add(shared, &plan, &report);
            if let Verdict::Broken(_) = &report.verdict {
                self.fail(shared, &mut worker, &plan, &report)?;
            }
            self.tell(shared, None);
        }
        Ok(())
    }

    /// The next seed, if there is to be one, and how many of this share of the seeds come before it.
    fn next(&self, shared: &Shared) -> Option<(u64, u64)> {
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
                return Some((nth / self.shard.1, seed));
            }
        }
    }

    pub(super) fn tell(&self, shared: &Shared, doing: Option<String>) {
        let progress = {
            let found = shared.found.lock().expect("found");
            Progress {
                seeds_run: found.campaign.seeds_run,
                failed: found.campaign.failed,
                elapsed: shared.begun.elapsed(),
                doing,
            }
        };
        (self.progress)(&progress);
    }

    /// Tells whoever keeps what was found.
    pub(super) fn keep(&self, shared: &Shared, found: &mut Found, news: &mut News<'_>) {
        self.fill(shared, found);
        (self.keep)(&found.campaign, news);
    }

    fn add(&self, shared: &Shared, plan: &Plan, report: &Report) {
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

    /// Fills in what follows from the rest, and what has not happened.
    fn fill(&self, shared: &Shared, found: &mut Found) {
        let campaign = &mut found.campaign;
        campaign.workload = self.workload.name().to_owned();
        for name in self.workload.moves() {
            campaign.moves.entry(name).or_default();
        }
        let shape = self.workload.shape();
        let counted = (shape.kinds.into_iter())
            .chain(shape.detects)
            .flat_map(What::counted_as);
        for name in counted.chain(What::UNASKED) {
            campaign.faults.entry(name.to_owned()).or_default();
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
        campaign.assert_sums();
        campaign
    }
}
