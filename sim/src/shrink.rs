//! The smallest plan with the same kind of anomaly: faults first, then parameters.
//!
//! Delta debugging (Zeller and Hildebrandt, 2002) over the list of faults; kinds are compared as values,
//! never messages.

use crate::{
    check::Kind,
    plan::Plan,
    run::{run, Limits, Report, Workload},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

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

/// Shrinks `plan`, which shows an anomaly of `kind`, for at most `budget` of wall time. Nothing, if the
/// plan does not show it.
pub fn shrink(
    workload: &Arc<dyn Workload>,
    plan: &Plan,
    kind: Kind,
    budget: Duration,
) -> Option<Shrunk> {
    let until = Instant::now() + budget;
    let mut search = Search {
        workload,
        kind,
        until,
        tried: 0,
        best: None,
    };
    search.fails(plan).then_some(())?;
    search.faults();
    search.params();
    search.faults();
    let (plan, report) = search.best.expect("the plan itself fails");
    let tried = search.tried;
    Some(Shrunk {
        plan,
        report,
        tried,
    })
}

struct Search<'a> {
    workload: &'a Arc<dyn Workload>,
    kind: Kind,
    until: Instant,
    tried: u64,
    best: Option<(Plan, Report)>,
}

impl Search<'_> {
    /// Runs a candidate; if it fails in the same way it is the best so far.
    fn fails(&mut self, plan: &Plan) -> bool {
        self.tried += 1;
        let report = run(self.workload, plan, &Limits::default());
        let same = (report.verdict.anomaly()).is_some_and(|anomaly| anomaly.kind == self.kind);
        if same {
            self.best = Some((plan.clone(), report));
        }
        same
    }

    fn best(&self) -> Plan {
        self.best.as_ref().expect("the plan itself fails").0.clone()
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Takes away ever smaller runs of faults, until none can be spared.
    fn faults(&mut self) {
        let mut size = self.best().faults.len();
        while size > 0 {
            let mut from = 0;
            while from < self.best().faults.len() && !self.is_over() {
                let mut candidate = self.best();
                let to = (from + size).min(candidate.faults.len());
                candidate.faults.drain(from..to);
                if !self.fails(&candidate) {
                    from += size;
                }
            }
            size /= 2;
        }
    }

    fn params(&mut self) {
        loop {
            let before = self.best();
            for params in self.workload.smaller(&before.params) {
                if self.is_over() {
                    return;
                }
                let candidate = Plan {
                    params,
                    ..before.clone()
                };
                if self.fails(&candidate) {
                    break;
                }
            }
            if self.best() == before {
                return;
            }
        }
    }
}
