//! Running a seed twice: what does not come from the plan shows itself as two traces of one plan.
//!
//! The second run is in another process, where addresses, the process id, counters of the process and the
//! ids of threads are others; and the keys of its hash maps, which otherwise the seed draws, are the
//! system's. What comes from any of these and reaches an event parts the digests, whether or not a claim
//! breaks.

use super::{
    campaign::Leak,
    examine::shown,
    process::{Halt, Worker},
    worker::Job,
    Explore, News, Shared,
};
use crate::{
    plan::Plan,
    run::Report,
    trace::{parting, Parting},
};

/// One seed of this many is run twice, which costs that share of the speed.
const EVERY: u64 = 100;
/// Which of them: not the first, when the counters of all processes still agree.
const FROM: u64 = 7;
/// How many leaks are kept with all that is known of them.
const LEAKS_MAX: usize = 5;
/// How often two runs are compared until they part with their traces kept.
const PARTS_TRIES: usize = 3;

/// Two runs of one plan that are not the same.
pub(super) struct Parted {
    pub parting: Parting,
    pub traces: [String; 2],
}

/// Whether the `nth` seed of a worker is run twice.
pub(super) fn is_due(nth: u64) -> bool {
    nth % EVERY == FROM
}

impl Explore {
    /// Runs a plan once more, and compares.
    pub(super) fn twice(
        &self,
        shared: &Shared,
        worker: &mut Worker<'_>,
        twin: &mut Worker<'_>,
        plan: &Plan,
        first: &Report,
    ) -> Result<(), Halt> {
        let second = twin.run(&Job::of(plan).with_other_keys())?;
        let (left, right) = (shown(first), shown(&second));
        shared.found.lock().expect("found").campaign.run_twice += 1;
        if left == right {
            return Ok(());
        }
        let kept = {
            let mut found = shared.found.lock().expect("found");
            found.campaign.parted += 1;
            found.campaign.leaks.len() < LEAKS_MAX
        };
        if !kept {
            return Ok(());
        }
        let parted = part_of(worker, twin, plan)?;
        let (parting, traces) = match parted {
            Some(Parted { parting, traces }) => (Some(parting), Some(traces)),
            None => (None, None),
        };
        let mut leak = Leak {
            seed: plan.seed.to_string(),
            plan: plan.clone(),
            first: left,
            second: right,
            parting,
            traces,
            saved: None,
        };
        let mut found = shared.found.lock().expect("found");
        self.keep(shared, &mut found, &mut News::Leak(&mut leak));
        found.campaign.leaks.push(leak);
        self.keep(shared, &mut found, &mut News::Moment);
        Ok(())
    }
}

/// Where two runs of a plan part, if they do, in the process of a worker and in a fresh one.
pub(super) fn part(worker: &mut Worker<'_>, plan: &Plan) -> Result<Option<Parted>, Halt> {
    let mut other = worker.another();
    part_of(worker, &mut other, plan)
}

fn part_of(
    left: &mut Worker<'_>,
    right: &mut Worker<'_>,
    plan: &Plan,
) -> Result<Option<Parted>, Halt> {
    for _ in 0..PARTS_TRIES {
        let left = left.run(&Job::of(plan).keeping_trace())?;
        let right = right.run(&Job::of(plan).keeping_trace().with_other_keys())?;
        if let (Some(left), Some(right)) = (left.trace, right.trace) {
            if let Some(parting) = parting(&left, &right) {
                return Ok(Some(Parted {
                    parting,
                    traces: [left, right],
                }));
            }
        }
    }
    Ok(None)
}
