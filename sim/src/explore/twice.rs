//! Running a seed twice: what does not come from the plan shows itself as two traces of one plan.
//!
//! The second run is in another process, where addresses, the process id, counters of the process and the
//! ids of threads are others; and the keys of its hash maps, which otherwise the seed draws, are the
//! system's. What comes from any of these and reaches an event parts the digests, whether or not a claim
//! breaks.

use super::{
    campaign::Leak,
    examine::{is_cut_short, shown},
    going::Shared,
    process::{Halt, Worker},
    worker::Job,
    Explore, News,
};
use crate::{
    plan::Plan,
    run::Report,
    trace::{parting, Parting},
};
use std::sync::atomic::{AtomicU64, Ordering};

/// One seed of this many is run twice, which costs that share of the speed.
const EVERY: u64 = 100;
/// Which of them: an early one, for a short exploration has one, too.
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

/// Which seeds are run twice: one of each hundred, by its place among the seeds, and not by who runs it; if it has
/// failed, the next one that has not.
#[derive(Default)]
pub(super) struct Due {
    /// How many have failed whose turn it was.
    owed: AtomicU64,
}

impl Due {
    /// Whether the `nth` seed, which has passed or not, is run twice.
    pub fn is_now(&self, nth: u64, passed: bool) -> bool {
        let turn = nth % EVERY == FROM;
        match (turn, passed) {
            (true, true) => true,
            (true, false) => {
                self.owed.fetch_add(1, Ordering::Relaxed);
                false
            }
            (false, true) => {
                let less = |owed: u64| owed.checked_sub(1);
                let taken = (self.owed).fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                taken.is_ok()
            }
            (false, false) => false,
        }
    }
}

impl Explore {
    /// Runs a plan once more, and compares. Returns what counts as the seed's report: the second one, if its
    /// process did not come to the end, for that is a failure as it is in a first run, and no leak.
    pub(super) fn twice(
        &self,
        shared: &Shared,
        worker: &mut Worker<'_>,
        twin: &mut Worker<'_>,
        plan: &Plan,
        first: Report,
    ) -> Result<Report, Halt> {
        let left = shown(&first);
        let mut second = twin.run(&Job::of(plan).with_other_keys())?;
        if shown(&second) == left && twin.runs() == worker.runs() {
            // What counts the runs of its process has counted as many: one more parts them.
            second = twin.run(&Job::of(plan).with_other_keys())?;
        }
        if is_cut_short(&second) {
            return Ok(second);
        }
        let right = shown(&second);
        shared.found.lock().expect("found").campaign.run_twice += 1;
        if left == right {
            return Ok(first);
        }
        let kept = {
            let mut found = shared.found.lock().expect("found");
            found.campaign.parted += 1;
            found.campaign.leaks.len() < LEAKS_MAX
        };
        if !kept {
            return Ok(first);
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
        Ok(first)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_turn_of_a_seed_that_fails_is_the_next_ones() {
        let due = Due::default();
        let twice = |seeds: std::ops::Range<u64>, fails: &dyn Fn(u64) -> bool| -> Vec<u64> {
            seeds.filter(|nth| due.is_now(*nth, !fails(*nth))).collect()
        };
        assert_eq!(twice(0..120, &|_| false), [7, 107]);
        assert_eq!(twice(200..220, &|nth| nth < 210), [210]);
        assert!(twice(300..500, &|_| true).is_empty());
        assert_eq!(twice(500..510, &|_| false), [500, 501, 507]);
    }
}
