//! Pure: the chain, its links, and the guarantee of the whole.
//!
//! Exactly-once is a chain: a source that can be read again, dedup where the source repeats itself, an
//! idempotent producer, a consistent checkpoint, and a sink that is transactional or idempotent. The
//! end of the chain gives what its weakest link gives. A job that claims more is refused.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// What a reader of the output may rely on.
///
/// ```
/// use engine::guarantee::Guarantee;
///
/// let claimed: Guarantee = "exactly-once".parse().unwrap();
/// assert!(Guarantee::AtLeastOnce.covers(Guarantee::AtLeastOnce));
/// assert!(!Guarantee::AtLeastOnce.covers(claimed));
/// // What never loses and never repeats keeps both weaker promises.
/// assert!(claimed.covers(Guarantee::AtMostOnce) && claimed.covers(Guarantee::AtLeastOnce));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guarantee {
    /// Nothing twice; something may be lost.
    AtMostOnce,
    /// Nothing lost; something may be there twice.
    AtLeastOnce,
    /// Nothing lost, nothing twice.
    ExactlyOnce,
}

impl Guarantee {
    /// All of them, the weakest first.
    pub const ALL: [Guarantee; 3] = [
        Guarantee::AtMostOnce,
        Guarantee::AtLeastOnce,
        Guarantee::ExactlyOnce,
    ];

    /// Whether a chain that gives `self` may claim `claimed`.
    pub fn covers(self, claimed: Guarantee) -> bool {
        self == claimed || self == Guarantee::ExactlyOnce
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Guarantee::AtMostOnce => "at-most-once",
            Guarantee::AtLeastOnce => "at-least-once",
            Guarantee::ExactlyOnce => "exactly-once",
        }
    }
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no guarantee.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a guarantee: at-most-once, at-least-once and exactly-once are")]
pub struct GuaranteeError(String);

impl FromStr for Guarantee {
    type Err = GuaranteeError;

    fn from_str(text: &str) -> Result<Self, GuaranteeError> {
        let named = Guarantee::ALL
            .into_iter()
            .find(|guarantee| guarantee.name() == text);
        named.ok_or_else(|| GuaranteeError(text.to_owned()))
    }
}

/// One link of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Which link: `source`, `dedup`, `producer`, `checkpoint`, `sink`.
    pub name: &'static str,
    /// What it is here.
    pub is: String,
    /// What it gives.
    pub gives: Guarantee,
    /// Why.
    pub why: &'static str,
}

/// The links of a job, in the order in which data flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// The links.
    pub links: Vec<Link>,
}

/// Whether whoever writes the source may write an event twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Each event is in the source once.
    Once,
    /// An event may be there several times, with the same id.
    Repeats,
}

/// What tells repeated events apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deduplication {
    /// Nothing.
    None,
    /// Their ids, but they are forgotten while events may still come.
    TooShort,
    /// Their ids, for as long as events may come.
    Window,
}

/// What a sink is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkClass {
    /// Writing the same output again has no further effect.
    Idempotent,
    /// Output is committed with its checkpoint, or not at all.
    Transactional,
    /// What is written is there, as often as it was written. When it is written depends on the claim:
    /// for at-most-once behind the checkpoint, otherwise at once.
    Append,
}

/// A claim that the chain does not keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the job claims {claimed}, its chain gives {}: the weakest link is the {} ({}), which {}",
    weakest.gives, weakest.name, weakest.is, weakest.why
)]
pub struct Refused {
    /// What was claimed.
    pub claimed: Guarantee,
    /// The first link that does not cover it.
    pub weakest: Link,
}

impl Chain {
    /// The chain of a job over the log, with aligned checkpoints.
    pub fn new(
        upstream: Upstream,
        dedup: Deduplication,
        sink: (&str, SinkClass),
        claimed: Guarantee,
    ) -> Chain {
        let exactly = Guarantee::ExactlyOnce;
        let mut links = vec![Link {
            name: "source",
            is: "log".into(),
            gives: exactly,
            why: "can be read again from any position",
        }];
        let (is, gives, why) = match (upstream, dedup) {
            (Upstream::Once, Deduplication::None) => (
                "none",
                exactly,
                "is not needed: each event is in the source once",
            ),
            (Upstream::Repeats, Deduplication::None) => (
                "none",
                Guarantee::AtLeastOnce,
                "is missing: the source repeats events",
            ),
            (_, Deduplication::Window) => (
                "(key, event id)",
                exactly,
                "keeps the first of each event, in log order, within its window",
            ),
            (_, Deduplication::TooShort) => (
                "(key, event id)",
                Guarantee::AtLeastOnce,
                "forgets events sooner than late ones are refused: its window must be as long as the lateness",
            ),
        };
        links.push(Link {
            name: "dedup",
            is: is.into(),
            gives,
            why,
        });
        links.push(Link {
            name: "producer",
            is: "idempotent".into(),
            gives: exactly,
            why: "writes a batch once, however often it is sent",
        });
        links.push(Link {
            name: "checkpoint",
            is: "aligned barriers".into(),
            gives: exactly,
            why: "holds state and positions of one cut",
        });
        let (name, class) = sink;
        let (gives, why) = match (class, claimed) {
            (SinkClass::Idempotent, _) => (exactly, "makes output visible with its checkpoint"),
            (SinkClass::Transactional, _) => (exactly, "commits output with its checkpoint"),
            (SinkClass::Append, Guarantee::AtMostOnce) => (
                Guarantee::AtMostOnce,
                "writes once its checkpoint is complete, and never again",
            ),
            (SinkClass::Append, _) => (
                Guarantee::AtLeastOnce,
                "writes at once, and again after a restore",
            ),
        };
        links.push(Link {
            name: "sink",
            is: name.to_owned(),
            gives,
            why,
        });
        Chain { links }
    }

    /// What the chain gives as a whole.
    pub fn gives(&self) -> Guarantee {
        let weakest = self.links.iter().map(|link| link.gives).min();
        weakest.unwrap_or(Guarantee::ExactlyOnce)
    }

    /// Refuses a claim that the chain does not keep.
    pub fn check(&self, claimed: Guarantee) -> Result<(), Refused> {
        match self.links.iter().find(|link| !link.gives.covers(claimed)) {
            None => Ok(()),
            Some(link) => Err(Refused {
                claimed,
                weakest: link.clone(),
            }),
        }
    }
}

/// How long a transaction may be open, and what it has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionTimes {
    /// The timeout that the job asks for.
    pub timeout: Duration,
    /// The longest that the brokers give (`transaction.max.timeout.ms`).
    pub max: Duration,
    /// Between two checkpoints.
    pub checkpoint_interval: Duration,
    /// The longest that a checkpoint takes.
    pub checkpoint_timeout: Duration,
    /// The longest that nobody runs the job.
    pub downtime: Duration,
}

impl TransactionTimes {
    /// Kafka's `transaction.max.timeout.ms`, unless somebody has changed it.
    pub const KAFKA_MAX: Duration = Duration::from_secs(15 * 60);

    /// Where these times break the chain: a transaction that is prepared when its time is over is aborted by its
    /// broker, and with it the output of a checkpoint that may be complete. The job halts then, rather than
    /// going on without it.
    ///
    /// ```
    /// use engine::guarantee::TransactionTimes;
    /// use std::time::Duration;
    ///
    /// let minutes = |count: u64| Duration::from_secs(60 * count);
    /// let times = TransactionTimes {
    ///     timeout: minutes(15),
    ///     max: TransactionTimes::KAFKA_MAX,
    ///     checkpoint_interval: minutes(1),
    ///     checkpoint_timeout: minutes(2),
    ///     downtime: minutes(10),
    /// };
    /// assert!(times.warnings().is_empty());
    /// let hour = TransactionTimes { downtime: minutes(60), ..times };
    /// assert!(hour.warnings()[0].contains("shorter than the 63 min"));
    /// ```
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let needed = self.checkpoint_interval + self.checkpoint_timeout + self.downtime;
        let given = self.timeout.min(self.max);
        if given < needed {
            warnings.push(format!(
                "a transaction may be open for {}, which is shorter than the {} that an interval, a checkpoint and \
                 the longest downtime may take: raise the transaction timeout, or expect the job to halt",
                words(given),
                words(needed)
            ));
        }
        if self.timeout > self.max {
            warnings.push(format!(
                "the transaction timeout of {} is more than the brokers give ({}): they refuse it; raise their \
                 transaction.max.timeout.ms",
                words(self.timeout),
                words(self.max)
            ));
        }
        warnings
    }
}

/// A duration for people.
fn words(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 60 && seconds % 60 == 0 => format!("{} min", seconds / 60),
        _ => format!("{time:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_gives_what_its_weakest_link_gives_and_no_more() {
        use Deduplication::{None as Without, TooShort, Window};
        use Guarantee::*;
        let cases = [
            (
                Upstream::Repeats,
                Window,
                SinkClass::Transactional,
                ExactlyOnce,
                None,
            ),
            (
                Upstream::Repeats,
                Window,
                SinkClass::Transactional,
                AtMostOnce,
                None,
            ),
            (
                Upstream::Repeats,
                TooShort,
                SinkClass::Transactional,
                ExactlyOnce,
                Some("dedup"),
            ),
            (
                Upstream::Once,
                Without,
                SinkClass::Idempotent,
                ExactlyOnce,
                None,
            ),
            (
                Upstream::Repeats,
                Window,
                SinkClass::Idempotent,
                ExactlyOnce,
                None,
            ),
            (
                Upstream::Repeats,
                Without,
                SinkClass::Idempotent,
                ExactlyOnce,
                Some("dedup"),
            ),
            (
                Upstream::Repeats,
                Without,
                SinkClass::Idempotent,
                AtLeastOnce,
                None,
            ),
            (
                Upstream::Repeats,
                Without,
                SinkClass::Append,
                AtMostOnce,
                Some("dedup"),
            ),
            (
                Upstream::Repeats,
                Window,
                SinkClass::Append,
                ExactlyOnce,
                Some("sink"),
            ),
            (
                Upstream::Repeats,
                Window,
                SinkClass::Append,
                AtLeastOnce,
                None,
            ),
            (
                Upstream::Repeats,
                Window,
                SinkClass::Append,
                AtMostOnce,
                None,
            ),
        ];
        for (upstream, dedup, class, claimed, weakest) in cases {
            let chain = Chain::new(upstream, dedup, ("s", class), claimed);
            let refused = chain
                .check(claimed)
                .err()
                .map(|refused| refused.weakest.name);
            assert_eq!(
                refused, weakest,
                "{upstream:?} {dedup:?} {class:?} {claimed}"
            );
        }
    }
}
