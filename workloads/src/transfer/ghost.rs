//! The ghost watches what the brokers say, and finds a broken claim at the event that breaks it. It asks the
//! world what a broker cannot know: whether what it has acknowledged would survive a power loss.

use super::fences::Fences;
use engine::log::{broker::BrokerError, LogError};
use sim::{Kind, Named, Said, Then, World};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

/// What the ghost has seen. Clones share it.
#[derive(Clone, Default)]
pub struct Ghost(Arc<Mutex<Seen>>);

/// Of one transaction: its producer, and its number among those of its transactional id.
pub type Number = (i64, i64);

#[derive(Default)]
struct Seen {
    found: Vec<(Kind, String)>,
    compared: u64,
    /// Of each partition: where it was durable and stable when it last said so.
    bounds: BTreeMap<String, (i64, i64)>,
    /// Of each append of a partition, by its end: file and bytes.
    appended: BTreeMap<(String, i64), (String, i64)>,
    /// Where each partition begins, since retention has taken what was in front of it.
    starts: BTreeMap<String, i64>,
    /// The state of each partition, and of the coordinators, by offset.
    states: BTreeMap<String, BTreeMap<i64, i64>>,
    /// The state that a partition is about to take at an offset, by forgetting what is too old: a restart may find
    /// it, or the one before.
    retaining: BTreeMap<String, (i64, i64)>,
    decided: BTreeMap<Number, Decided>,
    /// The newest epoch of each transactional id and its producer that somebody was given.
    given: BTreeMap<(String, i64), i64>,
    /// How often a transaction has made a move.
    moves: u64,
    fences: Fences,
    /// The partitions from whose ends damage was cut off, with what follows it.
    cut: BTreeSet<String>,
    /// Since when no fault strikes.
    calm_since: Option<Duration>,
}

/// The end of a transaction was decided.
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    /// Whether it commits.
    pub commits: bool,
    /// When.
    pub at: Duration,
}

/// What the ghost says at the end.
pub struct Testimony {
    /// Claims that were broken.
    pub found: Vec<(Kind, String)>,
    /// How much was compared.
    pub compared: u64,
    /// How transactions ended.
    pub decided: BTreeMap<Number, Decided>,
    /// What became of producers, and how often.
    pub moves: BTreeMap<&'static str, u64>,
    /// The folders of partitions from whose ends damage was cut off: a broker has said so.
    pub cut: BTreeSet<String>,
}

/// What the partitions of topics that come and go have in their names.
const PASSING: &str = "/passing.";
/// After the faults have stopped, what they have left is found within this time.
const SETTLED: Duration = Duration::from_secs(5);
/// More findings of a run than this say nothing new.
const FOUND_MAX: usize = 20;

impl Ghost {
    /// Watches a world.
    pub fn watch(&self, world: &World) {
        let (ghost, asked) = (self.clone(), world.clone());
        world.watch(move |said| ghost.0.lock().expect("the ghost").hear(said, &asked));
    }

    /// What it has seen.
    pub fn testimony(&self) -> Testimony {
        let seen = self.0.lock().expect("the ghost");
        Testimony {
            found: seen.found.clone(),
            compared: seen.compared,
            decided: seen.decided.clone(),
            moves: seen.fences.moves.clone(),
            cut: seen.cut.clone(),
        }
    }

    /// Somebody is told that another instance has a transactional id; see [`Fences::told`].
    pub fn told_fenced(&self, who: &str, id: &str, had: Option<(i64, i64)>, why: &str) {
        let mut seen = self.0.lock().expect("the ghost");
        seen.compared += 1;
        if let Some((kind, what)) = seen.fences.told(who, id, had, why) {
            seen.found(kind, what);
        }
    }

    /// No fault strikes from here on.
    pub fn calm(&self, now: Duration) {
        let mut seen = self.0.lock().expect("the ghost");
        seen.calm_since.get_or_insert(now);
    }

    /// A broker has ended. What it refuses because of damage is named; what its disk did not do is not.
    pub fn broker_ended(&self, world: &World, node: &str, error: &BrokerError) {
        let BrokerError::Log(refused) = error else {
            return;
        };
        let path = match &**refused {
            LogError::Io { .. } | LogError::Unchanged { .. } => return,
            LogError::Damaged { path, .. }
            | LogError::DamagedFile { path, .. }
            | LogError::Missing { path, .. } => path,
        };
        let named = Named {
            node: node.to_owned(),
            path: path.clone(),
            then: Then::Refuses,
            what: format!("{node}: {error}"),
        };
        if !world.name_damage(named) {
            let what = format!("{node} refuses what nobody has damaged: {error}");
            self.0.lock().expect("the ghost").found(Kind::Halted, what);
        }
    }

    /// How often a transaction has begun, taken a partition in, been decided or ended.
    pub fn moves(&self) -> u64 {
        self.0.lock().expect("the ghost").moves
    }
}

impl Seen {
    fn found(&mut self, kind: Kind, what: String) {
        if self.found.len() < FOUND_MAX {
            self.found.push((kind, what));
        }
    }

    /// A broker has cut off what no sync had covered, as far as it knows. If something was damaged there, it has
    /// named that, and what was acknowledged of it is gone: of a log's last record alone nobody can tell the two apart.
    fn cut(&mut self, path: &str, from: u64, said: &Said<'_>, world: &World) {
        let named = Named {
            node: said.node.to_owned(),
            path: path.to_owned(),
            then: Then::CutsOff(from),
            what: format!("{}: {path} is cut off at byte {from}", said.node),
        };
        if world.name_damage(named) {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            // It ends where it does now.
            self.bounds.remove(folder);
            self.cut.insert(folder.to_owned());
        }
    }

    fn hear(&mut self, said: &Said<'_>, world: &World) {
        let num = |key| said.num(key).unwrap_or(-1);
        let text = |key| said.text(key).unwrap_or("?").to_owned();
        self.moves += u64::from(said.name.starts_with("transaction."));
        if let Some((kind, what)) = self.fences.hear(said) {
            self.found(kind, what);
        }
        match said.name {
            "broker.failed" => self.failed(&text("error"), said, world),
            "log.opened" if num("end_offset") == 0 && text("partition").contains(PASSING) => {
                self.forget(&text("partition"));
            }
            "log.opened" | "log.synced" => {
                let bounds = (num("end_offset"), num("stable"));
                self.bounded(text("partition"), bounds, said);
            }
            "log.appended" => {
                let file = (text("path"), num("bytes"));
                self.appended
                    .insert((text("partition"), num("end_offset")), file);
            }
            "log.segments-removed" => {
                let (partition, start) = (text("partition"), num("start_offset"));
                self.starts.insert(partition, start);
            }
            "log.acknowledged" => {
                self.acknowledged(text("partition"), num("end_offset"), said, world)
            }
            "log.state" => {
                let at = (num("end_offset"), num("fingerprint"));
                self.state(text("partition"), at, &text("by"), said);
            }
            "log.torn-tail" => {
                let from = num("from").max(0) as u64;
                self.cut(&text("path"), from, said, world);
            }
            "transaction.commit-decided" | "transaction.abort-decided" => {
                let commits = said.name == "transaction.commit-decided";
                let number = (num("producer"), num("number"));
                self.decided(text("id"), number, num("epoch"), commits, said);
            }
            "transaction.initialized" => {
                let given = self
                    .given
                    .entry((text("id"), num("producer")))
                    .or_insert(-1);
                *given = (*given).max(num("epoch"));
            }
            _ => {}
        }
    }

    /// When all faults are over, and what they have left is dealt with, no broker ends.
    fn failed(&mut self, error: &str, said: &Said<'_>, world: &World) {
        let mut files = world.damaged().into_iter();
        let is_damaged = files.any(|file| file.node == said.node);
        let is_calm = self
            .calm_since
            .is_some_and(|since| since + SETTLED < said.at);
        if is_calm && !is_damaged {
            let what = format!("{} has ended without a fault: {error}", said.node);
            self.found(Kind::Halted, what);
        }
    }

    /// A partition of a topic that comes and goes begins anew: what its lives hold is a claim of its own.
    fn forget(&mut self, partition: &str) {
        self.bounds.remove(partition);
        self.appended.retain(|(of, _), _| of != partition);
        self.states.remove(partition);
    }

    /// Stable is durable, and neither ever goes back.
    fn bounded(&mut self, partition: String, (end, stable): (i64, i64), said: &Said<'_>) {
        self.compared += 1;
        if stable > end {
            let what = format!(
                "{} says that {partition} is stable up to {stable}, and durable up to {end}",
                said.node
            );
            self.found(Kind::Unstable, what);
        }
        let before = self.bounds.insert(partition.clone(), (end, stable));
        let (end_before, stable_before) = before.unwrap_or((0, 0));
        if end < end_before {
            let what = format!(
                "{partition} was durable up to {end_before}, and is up to {end} on {}",
                said.node
            );
            self.found(Kind::Lost, what);
        }
        if stable < stable_before {
            let what = format!(
                "{partition} was stable up to {stable_before}, and is up to {stable} on {}",
                said.node
            );
            self.found(Kind::Unstable, what);
        }
    }

    /// What is acknowledged would survive a power loss, unless it is too old to be kept.
    fn acknowledged(&mut self, partition: String, end: i64, said: &Said<'_>, world: &World) {
        // Its topic may be on its way out.
        if partition.contains(PASSING) {
            return;
        }
        if self
            .starts
            .get(&partition)
            .is_some_and(|start| end <= *start)
        {
            return;
        }
        let from = (partition.clone(), i64::MIN);
        let last = self
            .appended
            .range(from..=(partition.clone(), end))
            .next_back();
        if let Some((_, (path, bytes))) = last {
            self.compared += 1;
            if !world.is_durable(said.node, path, *bytes as u64) {
                let what = format!(
                    "{} has acknowledged {partition} up to {end}, and a power loss would take it",
                    said.node
                );
                self.found(Kind::Unsynced, what);
            }
        }
    }

    /// Rebuilt state is what it was, live.
    fn state(
        &mut self,
        partition: String,
        (end, fingerprint): (i64, i64),
        by: &str,
        said: &Said<'_>,
    ) {
        let states = self.states.entry(partition.clone()).or_default();
        let retaining = self.retaining.get(&partition) == Some(&(end, fingerprint));
        match by {
            "retaining" => drop(self.retaining.insert(partition, (end, fingerprint))),
            "opened" | "rebuilt" => {
                // What was never durable is gone, and other records may come to stand there.
                states.split_off(&(end + 1));
                let before = states.insert(end, fingerprint);
                self.compared += u64::from(before.is_some());
                if before.is_some_and(|before| before != fingerprint) && !retaining {
                    let what = format!(
                        "the state of {partition} at offset {end} is another one after a restart of {}",
                        said.node
                    );
                    self.found(Kind::Diverged, what);
                }
            }
            _ => drop(states.insert(end, fingerprint)),
        }
    }

    /// A transaction ends once, in one way, and for its newest owner.
    fn decided(&mut self, id: String, number: Number, epoch: i64, commits: bool, said: &Said<'_>) {
        self.compared += 1;
        let decided = Decided {
            commits,
            at: said.at,
        };
        // A coordinator that comes back says again what it had decided.
        let before = self.decided.entry(number).or_insert(decided).commits;
        if before != commits {
            let what = format!("transaction {} of {id} was decided in both ways", number.1);
            self.found(Kind::Disagreed, what);
        }
        let given = self.given.get(&(id.clone(), number.0)).copied();
        if commits && given.is_some_and(|given| epoch < given) {
            let what = format!(
                "{id} committed under epoch {epoch}, after epoch {} was given to its successor",
                given.unwrap_or(-1)
            );
            self.found(Kind::Unfenced, what);
        }
    }
}
