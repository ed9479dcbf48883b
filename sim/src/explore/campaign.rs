//! A campaign: what an exploration found, and what follows from it.

use crate::{
    check::{Anomaly, Kind},
    plan::Plan,
    trace::Parting,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// What a run of a plan showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// `clean`, `detected`, `vacuous`, or a kind of anomaly.
    pub verdict: String,
    /// The digest of the trace.
    pub digest: String,
}

/// What became of a failure when it was run again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Again {
    /// A fresh process showed the same anomaly and the same digest.
    Same,
    /// It showed something else: the plan does not decide what happens.
    Other {
        /// What it showed instead.
        instead: Shown,
        /// Where the two runs part, if they did once more.
        parting: Option<Parting>,
    },
    /// Nothing is proven: why it could not be run again, or what cannot be compared.
    Unconfirmed(String),
}

/// A failure that was examined: shrunk, and repeated in a fresh process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The seed that found it.
    pub seed: String,
    /// What is wrong, in the shrunk plan.
    pub anomaly: Anomaly,
    /// The digest of the shrunk plan's trace; of zeros if the run did not come to its end.
    pub digest: String,
    /// The shrunk plan.
    pub plan: Plan,
    /// How many faults the plan had before.
    pub faults_before: usize,
    /// Whether it repeats.
    pub again: Again,
    /// Seeds that fail in the same way, the first ones. Each was shrunk to faults of the same roles, or fails under
    /// its faults of these roles alone, and under those of no part of the roles; above four roles, only the part
    /// without any fault was tried.
    pub seeds: Vec<String>,
    /// How many.
    pub count: u64,
    /// Where the plan was saved.
    pub saved: Option<PathBuf>,
}

impl Failure {
    /// Whether a fresh process showed the same anomaly and the same digest.
    pub fn reproduced(&self) -> bool {
        self.again == Again::Same
    }
}

/// A seed that broke a claim, as it was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FailedSeed {
    /// Which.
    pub seed: String,
    /// The kind of its first anomaly.
    pub verdict: Kind,
    /// What is wrong, in one line.
    pub what: String,
    /// The digest of its trace; of zeros if the run did not come to its end.
    pub digest: String,
}

/// Failing seeds whose cause nobody has looked for: there were too many, or no time was left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unexamined {
    /// The kind of anomaly that they have in common.
    pub kind: Kind,
    /// The claim.
    pub claim: String,
    /// How many.
    pub count: u64,
    /// The first of them.
    pub seeds: Vec<String>,
}

/// A seed that was run twice, and was not the same: a leak of determinism.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leak {
    /// Which.
    pub seed: String,
    /// Its plan.
    pub plan: Plan,
    /// What the first run showed.
    pub first: Shown,
    /// What the second one showed: another process, with other addresses and other keys of hash maps.
    pub second: Shown,
    /// The first event in which they differ; `None` if they did not when their traces were kept.
    pub parting: Option<Parting>,
    /// Both traces, until they are saved.
    #[serde(skip)]
    pub traces: Option<[String; 2]>,
    /// Where they were saved.
    pub saved: Option<[PathBuf; 2]>,
}

/// How an exploration ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// It has not: whoever reads this reads of a campaign that goes on, or that was killed.
    #[default]
    NotYet,
    /// All its seeds were run, or its time is over.
    Done,
    /// It had found as many failures as it was asked for.
    Enough,
    /// A signal has ended it: its number.
    Signal(usize),
    /// No worker could be started: why.
    Unable(String),
}

/// What an exploration found: the summary of `fuzz --json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Campaign {
    /// The workload's name.
    pub workload: String,
    /// Which commit was built, if that is known.
    pub commit: Option<String>,
    /// How it ended.
    pub ended: Ended,
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
    /// Faults that struck and named events that happened; 0 for what the workload may meet, and never has.
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
    /// Seeds that broke a claim.
    pub failed: u64,
    /// The causes that were found, each with the seeds that were examined and have it.
    pub failures: Vec<Failure>,
    /// Failing seeds that belong to no cause, since nobody has examined them.
    pub unexamined: Vec<Unexamined>,
    /// Seeds that were run a second time, in another process, to the end.
    pub run_twice: u64,
    /// How many of them were not the same.
    pub parted: u64,
    /// The first of these.
    pub leaks: Vec<Leak>,
}

/// The verdict over a whole campaign, with its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Conclusion {
    /// Exit code 0.
    Clean,
    /// A claim was broken: exit code 1.
    Broken,
    /// The only anomaly is that runs do not end: exit code 3.
    Stuck,
    /// A seed was run twice, and was not the same: exit code 4.
    NotDeterministic,
    /// No seed was clean or detected, or fewer were than were vacuous: exit code 5.
    Vacuous,
}

impl Conclusion {
    /// The exit code of a process that concludes so.
    pub fn exit_code(self) -> u8 {
        let code = match self {
            Conclusion::Clean => 0,
            Conclusion::Broken => 1,
            Conclusion::Stuck => 3,
            Conclusion::NotDeterministic => 4,
            Conclusion::Vacuous => 5,
        };
        assert_eq!(code == 0, self == Conclusion::Clean);
        assert_ne!(code, 2, "that is bad input's");
        code
    }

    /// What follows from these kinds of anomaly alone.
    pub fn of_kinds(kinds: impl IntoIterator<Item = Kind>) -> Conclusion {
        let endless = |kind: Kind| matches!(kind, Kind::Stuck | Kind::Hung);
        match kinds.into_iter().all(endless) {
            true => Conclusion::Stuck,
            false => Conclusion::Broken,
        }
    }
}

impl Campaign {
    /// The verdict over all seeds.
    pub fn conclusion(&self) -> Conclusion {
        let count = |name| self.verdicts.get(name).copied().unwrap_or(0);
        // What was damaged and detected says as much as what was whole.
        let clean = count("clean") + count("detected");
        let differed = |failure: &Failure| matches!(failure.again, Again::Other { .. });
        if self.parted > 0 || self.failures.iter().any(differed) {
            return Conclusion::NotDeterministic;
        }
        if self.failed > 0 {
            let examined = self.failures.iter().map(|failure| failure.anomaly.kind);
            let others = self.unexamined.iter().map(|others| others.kind);
            return Conclusion::of_kinds(examined.chain(others));
        }
        if clean == 0 || count("vacuous") > clean {
            return Conclusion::Vacuous;
        }
        Conclusion::Clean
    }

    /// What adds up in a campaign that has ended.
    pub(super) fn assert_sums(&self) {
        let seeds: u64 = self.verdicts.values().sum();
        assert_eq!(seeds, self.seeds_run, "each seed has one verdict");
        let names = Kind::ALL.map(Kind::name);
        let broken = names.iter().filter_map(|name| self.verdicts.get(*name));
        assert_eq!(
            broken.sum::<u64>(),
            self.failed,
            "what is broken has failed"
        );
        let causes = self.failures.iter().map(|failure| failure.count);
        let others = self.unexamined.iter().map(|others| others.count);
        assert_eq!(
            causes.chain(others).sum::<u64>(),
            self.failed,
            "what has failed is of one cause, or was not examined"
        );
        assert!(self.leaks.len() as u64 <= self.parted && self.parted <= self.run_twice);
    }
}
