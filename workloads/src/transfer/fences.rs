//! Fences: a producer that is told that it is fenced has a successor that fenced it.
//!
//! A client that is fenced for no reason begins anew, and nothing of what it writes is wrong: so nobody else notices that
//! a producer cannot renew its epoch (KIP-360), or is taken for a zombie after its transaction has timed out (KIP-588).

use sim::{Kind, Said};
use std::collections::{BTreeMap, BTreeSet};

/// Which producer epochs were raised, by whom, and who was told of it.
#[derive(Default)]
pub struct Fences {
    /// Of each transactional id: the producers and epochs of instances that have taken it over, as they were decided.
    taken: BTreeMap<String, Vec<(i64, i64)>>,
    /// The newest epoch of each producer, whatever it was raised for.
    raised: BTreeMap<i64, i64>,
    /// The transactional ids whose last transaction has timed out, and which nobody has initialized since.
    timed_out: BTreeSet<String>,
    /// How often each of [`MOVES`] has happened.
    pub moves: BTreeMap<&'static str, u64>,
}

/// What can become of a producer: each must happen in some seed, or the claim says little.
pub const MOVES: [&str; 2] = [
    "producer: initialized > renews > initialized",
    "producer: timed out > renews > initialized",
];

impl Fences {
    /// Takes note of what is said; says what is wrong with it.
    pub fn hear(&mut self, said: &Said<'_>) -> Option<(Kind, String)> {
        let num = |key| said.num(key).unwrap_or(-1);
        let text = |key| said.text(key).unwrap_or("?");
        match said.name {
            "transaction.epoch-raised" => {
                let (producer, epoch) = (num("producer"), num("epoch"));
                let newest = self.raised.entry(producer).or_insert(epoch);
                *newest = epoch.max(*newest);
                let id = text("id").to_owned();
                match text("by") {
                    "take-over" => {
                        self.timed_out.remove(&id);
                        self.taken.entry(id).or_default().push((producer, epoch));
                    }
                    "clock" => drop(self.timed_out.insert(id)),
                    _ => {}
                }
                None
            }
            "producer.renewed" => {
                let timed_out = self.timed_out.remove(text("id"));
                let name = MOVES[usize::from(timed_out)];
                *self.moves.entry(name).or_default() += 1;
                None
            }
            "producer.ended" if FENCING.contains(&text("why")) => {
                let (producer, epoch) = (num("producer"), num("epoch"));
                let newest = self.raised.get(&producer).copied();
                newest.is_none_or(|newest| newest <= epoch).then(|| {
                    let what = format!(
                        "producer {producer} of {} was refused at epoch {epoch} by {} ({}), and nobody has raised it",
                        said.node,
                        text("to"),
                        text("why")
                    );
                    (Kind::Misfenced, what)
                })
            }
            _ => None,
        }
    }

    /// `who` is told that another instance has taken over `id`, which it had under this producer and epoch; nothing:
    /// it had none yet, so that nobody can have taken it.
    pub fn told(
        &mut self,
        who: &str,
        id: &str,
        had: Option<(i64, i64)>,
        why: &str,
    ) -> Option<(Kind, String)> {
        let had_what = match had {
            None => "before it had an epoch".to_owned(),
            Some((producer, epoch)) => {
                let mut taken = self.taken.get(id).into_iter().flatten();
                if taken.any(|(by, at)| *by != producer || *at > epoch) {
                    return None;
                }
                format!("from its epoch {epoch}")
            }
        };
        let what =
            format!("{who} was told that {id} was taken over {had_what} ({why}), and nobody has");
        Some((Kind::Misfenced, what))
    }
}

/// The answers that say of a producer's epoch that it is too old.
const FENCING: [&str; 2] = ["InvalidProducerEpoch", "ProducerFenced"];
