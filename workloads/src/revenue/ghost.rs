//! The ghost watches what the job's processes say, and finds a broken claim at the event that breaks it.

use super::moves::Moves;
use sim::{Kind, Ledger, Promise, Said, World};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

/// What the ghost has seen. Clones share it.
#[derive(Clone, Default)]
pub struct Ghost(Arc<Mutex<Seen>>);

/// The state of the window tasks at the cut of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// The sum of their fingerprints.
    pub fingerprint: u64,
    /// The least of their watermarks.
    pub watermark: Option<i64>,
    /// Who they are.
    pub tasks: BTreeSet<String>,
}

/// What the ghost says at the end.
#[derive(Clone, Debug, Default)]
pub struct Testimony {
    /// Claims that were broken.
    pub found: Vec<(Kind, String)>,
    /// How much was compared.
    pub compared: u64,
    /// The state at the cut of each checkpoint that was aligned, by whichever attempt.
    pub cuts: BTreeMap<i64, Cut>,
    /// Checkpoints that are complete.
    pub complete: BTreeSet<i64>,
    /// What was prepared, by checkpoint: the tasks whose sink holds something.
    pub prepared: BTreeMap<i64, BTreeSet<String>>,
    /// What was committed of it, by the task or for it.
    pub committed: BTreeMap<i64, BTreeSet<String>>,
}

impl Testimony {
    /// What was found, as a ledger.
    pub fn to_ledger(&self) -> Ledger {
        let mut ledger = Ledger::new("the job", Promise::exactly_once());
        ledger.compared_here(self.compared);
        for (kind, what) in &self.found {
            ledger.found(*kind, what.clone());
        }
        ledger
    }
}

#[derive(Default)]
struct Seen {
    testimony: Testimony,
    /// Records that went into an edge in front of a checkpoint's barrier.
    sent: BTreeMap<(String, i64), i64>,
    /// The last barrier on each edge, where it comes out: of which process.
    barriers: BTreeMap<(String, u64, String), i64>,
    /// The last checkpoint that each task of a process has aligned.
    aligned: BTreeMap<(String, u64, String), i64>,
    /// Who has taken each transactional id.
    ids: BTreeMap<String, (String, u64)>,
    /// Attempts, checkpoints and prepared output.
    moves: Moves,
}

/// More findings of a run than this say nothing new.
const FOUND_MAX: usize = 20;

impl Ghost {
    /// Watches a world.
    pub fn watch(&self, world: &World) {
        let ghost = self.clone();
        world.watch(move |said| ghost.0.lock().expect("the ghost").hear(said));
    }

    /// How often each legal move has happened.
    pub fn moves(&self) -> BTreeMap<String, u64> {
        self.0.lock().expect("the ghost").moves.counts()
    }

    /// What it has seen.
    pub fn testimony(&self) -> Testimony {
        self.0.lock().expect("the ghost").testimony.clone()
    }
}

impl Seen {
    fn found(&mut self, kind: Kind, what: String) {
        if self.testimony.found.len() < FOUND_MAX {
            self.testimony.found.push((kind, what));
        }
    }

    fn hear(&mut self, said: &Said<'_>) {
        for illegal in self.moves.hear(said) {
            self.found(Kind::Misordered, illegal);
        }
        let num = |key| said.num(key).unwrap_or(-1);
        let text = |key| said.text(key).unwrap_or("?").to_owned();
        let who = || (said.node.to_owned(), said.incarnation, text("task"));
        let checkpoint = num("checkpoint");
        match said.name {
            "edge.barrier-sent" => {
                self.sent.insert((text("edge"), checkpoint), num("records"));
            }
            "edge.barrier-received" => self.barrier_came(said, text("edge"), checkpoint),
            "window.aligned" => {
                let fingerprint = num("fingerprint") as u64;
                let cut = self.testimony.cuts.entry(checkpoint).or_default();
                cut.fingerprint = cut.fingerprint.wrapping_add(fingerprint);
                cut.tasks.insert(text("task"));
                let watermark = num("watermark");
                let others = cut.watermark.replace(watermark);
                self.testimony.compared += 1;
                if others.is_some_and(|others| others != watermark) {
                    let what = format!(
                        "{} is at watermark {watermark} at the cut of checkpoint {checkpoint}, another task at {}",
                        text("task"),
                        others.expect("just seen")
                    );
                    self.found(Kind::Miscut, what);
                }
                let before = self.aligned.insert(who(), checkpoint);
                if before.is_some_and(|before| before >= checkpoint) {
                    let what = format!(
                        "{} aligned checkpoint {checkpoint} after a later one",
                        text("task")
                    );
                    self.found(Kind::Misordered, what);
                }
            }
            "sink.prepared" if said.text("handle") == Some("true") || num("handle") == 1 => {
                let prepared = self.testimony.prepared.entry(checkpoint).or_default();
                prepared.insert(text("task"));
            }
            "checkpoint.complete" if !self.testimony.complete.insert(checkpoint) => {
                let what = format!("checkpoint {checkpoint} was completed twice");
                self.found(Kind::Duplicated, what);
            }
            "sink.committed" | "sink.recovered" => {
                self.testimony.compared += 1;
                let committed = self.testimony.committed.entry(checkpoint).or_default();
                committed.insert(text("task"));
                // The manifest may be durable before the coordinator is told so: then its event comes later, or never.
                // What is not complete in the end is found there.
            }
            // Whatever strikes, nothing is there that does not heal: nobody may give up.
            "job.gave-up" => self.found(Kind::Halted, text("why")),
            "producer.initialized" => {
                let (id, by) = (text("id"), (said.node.to_owned(), said.incarnation));
                self.testimony.compared += 1;
                if let Some(before) = self.ids.insert(id.clone(), by.clone()) {
                    let what = format!(
                        "{id} is the transactional id of two: on {}#{}, and on {}#{}",
                        before.0, before.1, by.0, by.1
                    );
                    self.found(Kind::Collided, what);
                }
            }
            _ => {}
        }
    }

    fn barrier_came(&mut self, said: &Said<'_>, edge: String, checkpoint: i64) {
        let received = said.num("records").unwrap_or(-1);
        self.testimony.compared += 1;
        let sent = self.sent.get(&(edge.clone(), checkpoint)).copied();
        if sent != Some(received) {
            let what = format!(
                "{received} records came through edge {edge} in front of the barrier of checkpoint {checkpoint}, {sent:?} were sent"
            );
            self.found(Kind::Miscut, what);
        }
        let place = (said.node.to_owned(), said.incarnation, edge.clone());
        let before = self.barriers.insert(place, checkpoint);
        if before.is_some_and(|before| before >= checkpoint) {
            let what = format!("barrier {checkpoint} came through edge {edge} after {before:?}");
            self.found(Kind::Misordered, what);
        }
    }
}
