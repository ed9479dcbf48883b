//! A campaign: what an exploration found, and what follows from it.

use crate::{
    check::{Anomaly, Kind},
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// What a plan showed in a fresh process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// `clean`, `detected`, `vacuous`, or a kind of anomaly.
    pub verdict: String,
    /// The digest of the trace.
    pub digest: String,
}

/// A failure: shrunk, and repeated in a fresh process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The seed that found it.
    pub seed: String,
    /// What is wrong, in the shrunk plan.
    pub anomaly: Anomaly,
    /// The digest of the shrunk plan's trace.
    pub digest: String,
    /// The shrunk plan.
    pub plan: Plan,
    /// How many faults the plan had before.
    pub faults_before: usize,
    /// Whether a fresh process showed the same anomaly and the same digest.
    pub reproduced: bool,
    /// If not: what it showed.
    pub instead: Option<String>,
    /// Seeds that failed in the same way, the first ones.
    pub seeds: Vec<String>,
    /// How many.
    pub count: u64,
    /// Where the plan was saved.
    pub saved: Option<PathBuf>,
}

/// What an exploration found: the summary of `fuzz --json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Campaign {
    /// The workload's name.
    pub workload: String,
    /// Which commit was built, if that is known.
    pub commit: Option<String>,
    /// The first seed, and the one after the last that was given out.
    pub seeds: (u64, u64),
    /// Seeds run.
    pub seeds_run: u64,
    /// Seeds per second of wall time.
    pub seeds_per_second: f64,
    /// Virtual time of all runs together.
    pub virtual_seconds: f64,
    /// Wall time.
    pub wall_seconds: f64,
    /// Trace events of all runs.
    pub events: u64,
    /// Faults that struck and named events that happened.
    pub faults: BTreeMap<String, u64>,
    /// How often each legal move of the workload's state machines has happened; 0 for those that never have.
    pub moves: BTreeMap<String, u64>,
    /// Seeds without any fault in their plan.
    pub fault_free: u64,
    /// Commits.
    pub commits: u64,
    /// Facts compared.
    pub compared: u64,
    /// Seeds by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Seeds that showed an anomaly which its claim allows, by claim and kind.
    pub shown: BTreeMap<String, u64>,
    /// The sum of a hash of each seed with its digest: equal campaigns have equal ones, in whichever
    /// order their seeds were run.
    pub digest: String,
    /// What broke.
    pub failures: Vec<Failure>,
}

/// The verdict over a whole campaign, with its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Conclusion {
    /// Exit code 0.
    Clean,
    /// A claim was broken: exit code 1.
    Broken,
    /// The only anomaly is `stuck`: exit code 3.
    Stuck,
    /// A failure did not repeat: exit code 4.
    NotDeterministic,
    /// Every seed was vacuous, or none was run: exit code 5.
    Vacuous,
}

impl Conclusion {
    /// The exit code of a process that concludes so.
    pub fn exit_code(self) -> u8 {
        match self {
            Conclusion::Clean => 0,
            Conclusion::Broken => 1,
            Conclusion::Stuck => 3,
            Conclusion::NotDeterministic => 4,
            Conclusion::Vacuous => 5,
        }
    }
}

impl Campaign {
    /// The verdict over all seeds.
    pub fn conclusion(&self) -> Conclusion {
        let broken = |failure: &&Failure| failure.anomaly.kind != Kind::Stuck;
        let count = |name| self.verdicts.get(name).copied().unwrap_or(0);
        // What was damaged and detected says as much as what was whole.
        let clean = count("clean") + count("detected");
        if self.failures.iter().any(|failure| !failure.reproduced) {
            Conclusion::NotDeterministic
        } else if self.failures.iter().any(|failure| broken(&failure)) {
            Conclusion::Broken
        } else if !self.failures.is_empty() {
            Conclusion::Stuck
        } else if clean == 0 || count("vacuous") > clean {
            Conclusion::Vacuous
        } else {
            Conclusion::Clean
        }
    }
}
