//! Examining a failure: which cause it has, its plan made smaller, and repeated in a fresh process.

use super::{
    campaign::{Again, FailedSeed, Failure, Shown, Unexamined},
    cause::{self, Broken, Cause},
    going::{Found, Shared},
    process::{Halt, Worker},
    twice,
    worker::Job,
    Explore, News,
};
use crate::{
    check::{Anomaly, Kind},
    plan::Plan,
    run::Report,
    shrink::shrink,
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// How many causes of one broken claim are looked for.
const CAUSES_MAX: usize = 8;
/// Seeds that are remembered for one cause.
const SEEDS_KEPT: usize = 1000;
/// Wall time for shrinking one failure.
const SHRINK_BUDGET: Duration = Duration::from_secs(60);
/// Wall time that may go into examining before it is weighed against all wall time.
const EXAMINE_MIN: Duration = Duration::from_secs(60);

impl Explore {
    /// A seed has failed: it is told, and examined if there is time for it.
    pub(super) fn fail(
        &self,
        shared: &Shared,
        worker: &mut Worker<'_>,
        plan: &Plan,
        report: &Report,
    ) -> Result<(), Halt> {
        let anomaly = report.verdict.anomaly().expect("it has failed");
        let broken = Broken::of(anomaly);
        let seed = FailedSeed {
            seed: plan.seed.to_string(),
            verdict: anomaly.kind,
            what: anomaly.what.clone(),
            digest: report.digest.clone(),
        };
        {
            let mut found = shared.found.lock().expect("found");
            found.campaign.failed += 1;
            self.keep(shared, &mut found, &mut News::Failed(&seed));
            if !self.claims(shared, &mut found, &broken) {
                found.leave(&broken, &seed.seed);
                return Ok(());
            }
        }
        let begun = Instant::now();
        self.tell(
            shared,
            Some(format!("examining {} of seed {}", broken.kind, seed.seed)),
        );
        let done = self.place(shared, worker, plan, report, &broken);
        let mut found = shared.found.lock().expect("found");
        found.examining -= 1;
        found.examined += begun.elapsed();
        match done {
            Ok(None) => {}
            Ok(Some(failure)) => self.include(shared, &mut found, failure),
            Err(halt) => {
                found.leave(&broken, &seed.seed);
                return Err(halt);
            }
        }
        if found.campaign.failures.len() >= self.fails_max {
            shared.stop.no_more();
        }
        Ok(())
    }

    /// Whether a failure may be examined: the number of causes, and the time that goes into them, are bounded.
    fn claims(&self, shared: &Shared, found: &mut Found, broken: &Broken) -> bool {
        let causes = found.causes.iter().filter(|cause| cause.broken == *broken);
        let has_time = found.examined < EXAMINE_MIN.max(shared.begun.elapsed() / 2);
        let is_wanted = found.campaign.failures.len() + found.examining < self.fails_max;
        if !has_time || !is_wanted || causes.count() >= CAUSES_MAX {
            return false;
        }
        found.examining += 1;
        if self.fails_max == 1 {
            // Whatever else fails now would not be asked for any more.
            shared.stop.no_more();
        }
        true
    }

    /// Counts a failure to a cause that is known, or returns it examined.
    fn place(
        &self,
        shared: &Shared,
        worker: &mut Worker<'_>,
        plan: &Plan,
        report: &Report,
        broken: &Broken,
    ) -> Result<Option<Failure>, Halt> {
        let known: BTreeSet<Cause> = {
            let found = shared.found.lock().expect("found");
            let causes = found.causes.iter().filter(|cause| cause.broken == *broken);
            causes.cloned().collect()
        };
        let mut by_size: Vec<&Cause> = known.iter().collect();
        by_size.sort_by_key(|cause| cause.faults.len());
        let (all, mut tried) = (cause::roles(plan), BTreeSet::new());
        'known: for cause in by_size {
            for part in cause::parts(&cause.faults) {
                if !part.is_subset(&all) || !tried.insert(part.clone()) {
                    continue;
                }
                let fails = part == all || {
                    let report = worker.run(&Job::of(&cause::only(plan, &part)))?;
                    report.verdict.anomaly().map(Broken::of).as_ref() == Some(broken)
                };
                if fails {
                    let cause = Cause {
                        broken: broken.clone(),
                        faults: part,
                    };
                    if known.contains(&cause) {
                        let mut found = shared.found.lock().expect("found");
                        found.count_to(&cause, &plan.seed.to_string());
                        return Ok(None);
                    }
                    // With fewer faults than any cause that is known has.
                    break 'known;
                }
            }
        }
        self.examine(worker, plan, report).map(Some)
    }

    /// A failure that was examined becomes a cause, or is counted to the cause that another thread has found
    /// in the meantime.
    fn include(&self, shared: &Shared, found: &mut Found, mut failure: Failure) {
        let cause = Cause {
            broken: Broken::of(&failure.anomaly),
            faults: cause::roles(&failure.plan),
        };
        let is_proven = !matches!(failure.again, Again::Other { .. });
        if is_proven && found.causes.contains(&cause) {
            return found.count_to(&cause, &failure.seed);
        }
        found.causes.push(cause);
        self.keep(shared, found, &mut News::Failure(&mut failure));
        found.campaign.failures.push(failure);
        self.keep(shared, found, &mut News::Moment);
    }

    /// Makes a failure of a plan that failed: shrunk, and repeated in a fresh process.
    pub(super) fn examine(
        &self,
        worker: &mut Worker<'_>,
        plan: &Plan,
        first: &Report,
    ) -> Result<Failure, Halt> {
        let anomaly = first.verdict.anomaly().expect("it has failed").clone();
        let seed = plan.seed.to_string();
        let failure = |plan: &Plan, anomaly: Anomaly, report: &Report, again| Failure {
            seed: seed.clone(),
            anomaly,
            digest: report.digest.clone(),
            plan: plan.clone(),
            faults_before: 0,
            again,
            seeds: vec![seed.clone()],
            count: 1,
            saved: None,
        };
        let mut run = |plan: &Plan| worker.run(&Job::of(plan));
        let budget = match anomaly.kind {
            // Each try takes all the time that a run may take: one is made, without any fault.
            Kind::Hung => Duration::from_millis(1),
            _ => SHRINK_BUDGET,
        };
        let shrunk = shrink(&*self.workload, plan, &anomaly, budget, &mut run)?;
        let mut failure = match shrunk {
            Err(second) => {
                let again = self.compare(worker, plan, &anomaly, first, &second)?;
                failure(plan, anomaly, first, again)
            }
            Ok(shrunk) => {
                let mut fresh = worker.another();
                let report = fresh.run(&Job::of(&shrunk.plan))?;
                let anomaly = (shrunk.report.verdict.anomaly()).expect("it fails").clone();
                let again =
                    self.compare(&mut fresh, &shrunk.plan, &anomaly, &shrunk.report, &report)?;
                failure(&shrunk.plan, anomaly, &shrunk.report, again)
            }
        };
        failure.faults_before = plan.faults.len();
        Ok(failure)
    }

    /// What two runs of one plan say about it.
    fn compare(
        &self,
        worker: &mut Worker<'_>,
        plan: &Plan,
        anomaly: &Anomaly,
        first: &Report,
        second: &Report,
    ) -> Result<Again, Halt> {
        let same = second.verdict.anomaly().map(Broken::of) == Some(Broken::of(anomaly));
        let (left, right) = (shown(first), shown(second));
        if same && left == right {
            return Ok(Again::Same);
        }
        if is_cut_short(first) || is_cut_short(second) {
            return Ok(Again::Unconfirmed(format!(
                "a fresh process showed {} instead of {}, and what the machine does to a process is \
                 not in the plan",
                right.verdict, left.verdict
            )));
        }
        let parted = twice::part(worker, plan)?;
        Ok(Again::Other {
            instead: right,
            parting: parted.map(|parted| parted.parting),
        })
    }
}

impl Found {
    /// Counts a seed to a cause.
    fn count_to(&mut self, cause: &Cause, seed: &str) {
        let at = self.causes.iter().position(|known| known == cause);
        let failure = &mut self.campaign.failures[at.expect("a cause has its failure")];
        failure.count += 1;
        if failure.seeds.len() < SEEDS_KEPT {
            failure.seeds.push(seed.to_owned());
        }
    }

    /// Counts a seed that is not examined.
    fn leave(&mut self, broken: &Broken, seed: &str) {
        let others = &mut self.campaign.unexamined;
        let same = |one: &&mut Unexamined| one.kind == broken.kind && one.claim == broken.claim;
        match others.iter_mut().find(same) {
            Some(same) => {
                same.count += 1;
                if same.seeds.len() < SEEDS_KEPT {
                    same.seeds.push(seed.to_owned());
                }
            }
            None => others.push(Unexamined {
                kind: broken.kind,
                claim: broken.claim.clone(),
                count: 1,
                seeds: vec![seed.to_owned()],
            }),
        }
    }
}

/// Whether the machine may have ended a run: what wall time, memory and signals do to a process is not decided by
/// the plan alone.
pub(super) fn is_cut_short(report: &Report) -> bool {
    let kind = report.verdict.anomaly().map(|anomaly| anomaly.kind);
    kind.is_some_and(|kind| matches!(kind, Kind::Hung | Kind::Exhausted | Kind::Aborted))
}

pub(super) fn shown(report: &Report) -> Shown {
    Shown {
        verdict: report.verdict.name().to_owned(),
        digest: report.digest.clone(),
    }
}
