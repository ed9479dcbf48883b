//! The smallest plan with the same kind of anomaly: faults first, then parameters.
//!
//! Delta debugging (Zeller and Hildebrandt, 2002) over the list of faults; kinds and claims are compared, never
//! messages.

use crate::{
    check::Anomaly,
    plan::Plan,
    run::{Report, Workload},
};
use std::time::{Duration, Instant};

/// A plan that was made smaller.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest plan found.
    pub plan: Plan,
    /// What it showed.
    pub report: Report,
    /// How many plans were tried.
    pub tried: u64,
}

/// Shrinks `plan`, which shows `anomaly`, for at most `budget` of wall time; `run` runs a plan. Returns what
/// it has shown instead, if the plan does not show the anomaly, and the error of `run`.
pub fn shrink<E>(
    workload: &dyn Workload,
    plan: &Plan,
    anomaly: &Anomaly,
    budget: Duration,
    run: &mut dyn FnMut(&Plan) -> Result<Report, E>,
) -> Result<Result<Shrunk, Report>, E> {
    let report = run(plan)?;
    if !is_same(anomaly, &report) {
        return Ok(Err(report));
    }
    let mut search = Search {
        workload,
        anomaly,
        until: Instant::now() + budget,
        run,
        tried: 1,
        best: (plan.clone(), report),
    };
    search.faults()?;
    search.params()?;
    search.faults()?;
    let (smaller, report) = search.best;
    let tried = search.tried;
    assert!(
        is_same(anomaly, &report),
        "the smallest plan fails in the same way"
    );
    assert!(smaller.faults.len() <= plan.faults.len());
    assert!((smaller.faults.iter()).all(|fault| plan.faults.contains(fault)));
    Ok(Ok(Shrunk {
        plan: smaller,
        report,
        tried,
    }))
}

/// Whether a run shows the same: what it is, and of which claim, and never how it is said.
fn is_same(anomaly: &Anomaly, report: &Report) -> bool {
    let shown = report.verdict.anomaly();
    shown.is_some_and(|shown| shown.kind == anomaly.kind && shown.claim == anomaly.claim)
}

struct Search<'a, E> {
    workload: &'a dyn Workload,
    anomaly: &'a Anomaly,
    until: Instant,
    run: &'a mut dyn FnMut(&Plan) -> Result<Report, E>,
    tried: u64,
    best: (Plan, Report),
}

impl<E> Search<'_, E> {
    /// Runs a candidate; if it fails in the same way it is the best so far.
    fn fails(&mut self, plan: &Plan) -> Result<bool, E> {
        self.tried += 1;
        let report = (self.run)(plan)?;
        let same = is_same(self.anomaly, &report);
        if same {
            self.best = (plan.clone(), report);
        }
        Ok(same)
    }

    fn best(&self) -> Plan {
        self.best.0.clone()
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Takes away ever smaller runs of faults, until none can be spared.
    fn faults(&mut self) -> Result<(), E> {
        let mut size = self.best().faults.len();
        while size > 0 {
            let mut from = 0;
            while from < self.best().faults.len() && !self.is_over() {
                let mut candidate = self.best();
                let to = (from + size).min(candidate.faults.len());
                candidate.faults.drain(from..to);
                if !self.fails(&candidate)? {
                    from += size;
                }
            }
            size /= 2;
        }
        Ok(())
    }

    fn params(&mut self) -> Result<(), E> {
        loop {
            let before = self.best();
            for params in self.workload.smaller(&before.params) {
                if self.is_over() {
                    return Ok(());
                }
                let candidate = Plan {
                    params,
                    ..before.clone()
                };
                if self.fails(&candidate)? {
                    break;
                }
            }
            if self.best() == before {
                return Ok(());
            }
        }
    }
}
