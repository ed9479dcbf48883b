//! Checkers: one claim each, named after the anomaly that breaks it.
//!
//! What is claimed is written into a [`Ledger`]: facts that must be there, facts that may be there
//! (their outcome is unknown), and what was seen. A [`Promise`] says which anomalies the claim allows:
//! what is allowed is counted as shown, what is not is a verdict.

pub mod duplicated;
pub mod lost;
pub mod phantom;
pub mod stuck;
pub mod torn;

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A named way in which a claim was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Something acknowledged, or due, is not there.
    Lost,
    /// Something took effect twice.
    Duplicated,
    /// Something is there in part.
    Torn,
    /// Something is there that nothing explains.
    Phantom,
    /// A reader of committed records saw one of an aborted transaction (Adya's G1a).
    AbortedRead,
    /// A reader of committed records saw one before its transaction was decided.
    PrecommittedRead,
    /// Two readers saw different values at one place.
    Inconsistent,
    /// A reader passed by something that it should have seen, or went back.
    Skipped,
    /// Something is in another order than its writer gave it.
    Misordered,
    /// A log's control records make no sense.
    Ungrammatical,
    /// Who was told how something ended was told otherwise than it did.
    Disagreed,
    /// Something of an incarnation took effect after its successor had taken over.
    Unfenced,
    /// An incarnation was refused as if it had a successor, and it has none.
    Misfenced,
    /// What is declared as stable is not, or does not become so.
    Unstable,
    /// Something was acknowledged before it was durable.
    Unsynced,
    /// The positions of a transaction are not those of its output.
    Mismatched,
    /// What was rebuilt after a restart is not what was there before it.
    Diverged,
    /// A checkpoint is not of one cut: its state is not that of its positions.
    Miscut,
    /// Something was committed that was not to be, or not yet.
    Premature,
    /// Something that was prepared was never committed, though it was to be.
    Undecided,
    /// What a reader had seen went away, or changed.
    Retracted,
    /// Something that is referred to is not there.
    Unreachable,
    /// Two of something that should have names of their own share one.
    Collided,
    /// The system has given up, and said why.
    Halted,
    /// The system did not finish its work after all faults had ended.
    Stuck,
    /// The program panicked.
    Panicked,
    /// The program ended its process.
    Exited,
    /// The process died of a signal: an abort, a stack that overflowed.
    Aborted,
    /// The program asked for more memory than a run may have.
    Exhausted,
    /// The run did not come back within its wall time: a loop that never awaits, a lock that nobody frees.
    Hung,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 30] = [
        Kind::Lost,
        Kind::Duplicated,
        Kind::Torn,
        Kind::Phantom,
        Kind::AbortedRead,
        Kind::PrecommittedRead,
        Kind::Inconsistent,
        Kind::Skipped,
        Kind::Misordered,
        Kind::Ungrammatical,
        Kind::Disagreed,
        Kind::Unfenced,
        Kind::Misfenced,
        Kind::Unstable,
        Kind::Unsynced,
        Kind::Mismatched,
        Kind::Diverged,
        Kind::Miscut,
        Kind::Premature,
        Kind::Undecided,
        Kind::Retracted,
        Kind::Unreachable,
        Kind::Collided,
        Kind::Halted,
        Kind::Stuck,
        Kind::Panicked,
        Kind::Exited,
        Kind::Aborted,
        Kind::Exhausted,
        Kind::Hung,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Lost => "lost",
            Kind::Duplicated => "duplicated",
            Kind::Torn => "torn",
            Kind::Phantom => "phantom",
            Kind::AbortedRead => "aborted-read",
            Kind::PrecommittedRead => "precommitted-read",
            Kind::Inconsistent => "inconsistent",
            Kind::Skipped => "skipped",
            Kind::Misordered => "misordered",
            Kind::Ungrammatical => "ungrammatical",
            Kind::Disagreed => "disagreed",
            Kind::Unfenced => "unfenced",
            Kind::Misfenced => "misfenced",
            Kind::Unstable => "unstable",
            Kind::Unsynced => "unsynced",
            Kind::Mismatched => "mismatched",
            Kind::Diverged => "diverged",
            Kind::Miscut => "miscut",
            Kind::Premature => "premature",
            Kind::Undecided => "undecided",
            Kind::Retracted => "retracted",
            Kind::Unreachable => "unreachable",
            Kind::Collided => "collided",
            Kind::Halted => "halted",
            Kind::Stuck => "stuck",
            Kind::Panicked => "panicked",
            Kind::Exited => "exited",
            Kind::Aborted => "aborted",
            Kind::Exhausted => "exhausted",
            Kind::Hung => "hung",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A broken claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anomaly {
    /// Which kind.
    pub kind: Kind,
    /// Which claim was broken, by the name of its ledger; where, if the program panicked or died. Shrinking
    /// and the causes of a campaign compare it together with the kind.
    pub claim: String,
    /// What is wrong, in one line.
    pub what: String,
    /// What led to it, a line each.
    pub why: Vec<String>,
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every claim held.
    Clean,
    /// A claim was broken; the first anomaly names the verdict.
    Broken(Vec<Anomaly>),
    /// Something was damaged at rest, and the program under test has said so: by file and place, a line each.
    Detected(Vec<String>),
    /// Nothing was committed or compared: the run says nothing.
    Vacuous(String),
}

impl Verdict {
    /// `clean`, `detected`, `vacuous`, or the kind of the first anomaly.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Clean => "clean",
            Verdict::Detected(_) => "detected",
            Verdict::Vacuous(_) => "vacuous",
            Verdict::Broken(anomalies) => anomalies[0].kind.name(),
        }
    }

    /// The first anomaly, if there is one.
    pub fn anomaly(&self) -> Option<&Anomaly> {
        match self {
            Verdict::Broken(anomalies) => anomalies.first(),
            _ => None,
        }
    }
}

/// How much of something: how many parts, and what they add up to (or a hash of them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Amount {
    /// Parts.
    pub count: u64,
    /// Their sum.
    pub sum: i64,
}

/// Something that was seen, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub amount: Amount,
    pub place: String,
}

/// Which anomalies a claim allows.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Promise {
    /// The kinds that may show.
    pub allowed: BTreeSet<Kind>,
}

impl Promise {
    /// Nothing lost, nothing twice.
    pub fn exactly_once() -> Self {
        Promise::default()
    }

    /// Nothing lost.
    pub fn at_least_once() -> Self {
        Promise {
            allowed: [Kind::Duplicated].into(),
        }
    }

    /// Nothing twice.
    pub fn at_most_once() -> Self {
        Promise {
            allowed: [Kind::Lost].into(),
        }
    }
}

/// One claim about keyed facts: what must be there, what may be there, and what was seen.
///
/// ```
/// use sim::{Amount, Kind, Ledger, Promise};
///
/// let one = Amount { count: 1, sum: 0 };
/// let mut ledger = Ledger::new("keys", Promise::exactly_once());
/// ledger.must("a", one);
/// ledger.must("b", one);
/// ledger.may("c", one);
/// ledger.saw("a", one);
/// let (anomalies, _) = ledger.check();
/// assert_eq!(anomalies[0].kind, Kind::Lost);
/// assert_eq!(anomalies[0].what, "keys: b is missing");
/// ```
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(crate) claim: String,
    promise: Promise,
    pub(crate) must: BTreeMap<String, Amount>,
    pub(crate) may: BTreeMap<String, Amount>,
    pub(crate) seen: BTreeMap<String, Vec<Sighting>>,
    found: Vec<Anomaly>,
    elsewhere: u64,
    explained: BTreeSet<Kind>,
}

impl Ledger {
    /// An empty ledger for the claim that is called `claim`.
    pub fn new(claim: &str, promise: Promise) -> Self {
        Ledger {
            claim: claim.to_owned(),
            promise,
            must: BTreeMap::new(),
            may: BTreeMap::new(),
            seen: BTreeMap::new(),
            found: Vec::new(),
            elsewhere: 0,
            explained: BTreeSet::new(),
        }
    }

    /// What it is called.
    pub fn claim(&self) -> &str {
        &self.claim
    }

    /// This must be seen.
    pub fn must(&mut self, key: impl Into<String>, amount: Amount) {
        self.must.insert(key.into(), amount);
    }

    /// This may be seen: its outcome is unknown.
    pub fn may(&mut self, key: impl Into<String>, amount: Amount) {
        self.may.insert(key.into(), amount);
    }

    /// This was seen.
    pub fn saw(&mut self, key: impl Into<String>, amount: Amount) {
        self.saw_at(key, amount, "");
    }

    /// This was seen, at a place that helps to explain it: an offset, a checkpoint.
    pub fn saw_at(&mut self, key: impl Into<String>, amount: Amount, place: impl Into<String>) {
        let place = place.into();
        self.seen
            .entry(key.into())
            .or_default()
            .push(Sighting { amount, place });
    }

    /// The reader itself found something wrong.
    pub fn found(&mut self, kind: Kind, what: impl Into<String>) {
        self.found.push(Anomaly {
            kind,
            claim: self.claim.clone(),
            what: format!("{}: {}", self.claim, what.into()),
            why: Vec::new(),
        });
    }

    /// The reader itself has compared so many facts, and said with [`Ledger::found`] what is wrong.
    pub fn compared_here(&mut self, count: u64) {
        self.elsewhere += count;
    }

    /// What was damaged at rest, and named, explains anomalies of these kinds. They break no claim if the program
    /// goes on without what is damaged.
    pub fn explain(&mut self, kinds: impl IntoIterator<Item = Kind>) {
        self.explained.extend(kinds);
    }

    /// Whether named damage explains such an anomaly of this claim.
    pub(crate) fn is_explained(&self, anomaly: &Anomaly) -> bool {
        self.explained.contains(&anomaly.kind)
    }

    /// How many facts were compared.
    pub fn compared(&self) -> u64 {
        let seen: usize = self.seen.values().map(Vec::len).sum();
        self.elsewhere + (self.must.len() + seen) as u64
    }

    /// The anomalies that the promise does not allow, and how many of each kind it allows were shown.
    pub fn check(&self) -> (Vec<Anomaly>, BTreeMap<Kind, u64>) {
        let mut all = self.found.clone();
        all.extend(duplicated::check(self));
        all.extend(lost::check(self));
        all.extend(torn::check(self));
        all.extend(phantom::check(self));
        let mut shown = BTreeMap::new();
        all.retain(|anomaly| {
            let allowed = self.promise.allowed.contains(&anomaly.kind);
            if allowed {
                *shown.entry(anomaly.kind).or_default() += 1;
            }
            !allowed
        });
        (all, shown)
    }

    pub(crate) fn expected(&self, key: &str) -> Option<&Amount> {
        self.must.get(key).or_else(|| self.may.get(key))
    }

    /// An anomaly of `key`, with the places where it was seen.
    pub(crate) fn anomaly(&self, kind: Kind, key: &str, what: String) -> Anomaly {
        let seen = self.seen.get(key).into_iter().flatten();
        let places = seen.filter(|sighting| !sighting.place.is_empty());
        let why = places.map(|seen| {
            let Amount { count, sum } = seen.amount;
            format!("{}: {key}, {count} parts that add up to {sum}", seen.place)
        });
        Anomaly {
            kind,
            claim: self.claim.clone(),
            what: format!("{}: {what}", self.claim),
            why: why.collect(),
        }
    }
}
