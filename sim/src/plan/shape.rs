//! What can happen to which node of a workload.

use crate::fault::What;

/// What can happen to one node of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// It may crash, and be paused.
    pub process: bool,
    /// It may lose power, and its disk may fail: it must come back from what it has synced.
    pub durable: bool,
    /// Links to these nodes may be disturbed.
    pub talks_to: Vec<String>,
    /// Named events of this node at which a fault may strike.
    pub events: Vec<String>,
}

/// The nodes of a workload, how long faults go on, and which kinds it must survive, or detect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The nodes.
    pub machines: Vec<Machine>,
    /// Faults strike within this many milliseconds of virtual time.
    pub faults_ms: u64,
    /// The kinds of fault within the workload's budget.
    pub kinds: Vec<&'static str>,
    /// The kinds of damage at rest ([`What::DAMAGE`]) that it need not survive, and must never pass over in silence.
    pub detects: Vec<&'static str>,
}

impl Shape {
    /// No nodes yet; every kind of fault but damage at rest, within ten seconds.
    pub fn new() -> Self {
        Shape {
            machines: Vec::new(),
            faults_ms: 10_000,
            kinds: What::KINDS.to_vec(),
            detects: Vec::new(),
        }
    }

    /// Adds a node that keeps data on its disk, and must come back from it.
    pub fn durable(self, name: &str, talks_to: &[&str]) -> Self {
        self.machine(name, true, true, talks_to)
    }

    /// Adds a node that keeps nothing, and may crash or be paused.
    pub fn process(self, name: &str, talks_to: &[&str]) -> Self {
        self.machine(name, true, false, talks_to)
    }

    /// Adds a node that stays up: only its links are disturbed.
    pub fn steady(self, name: &str, talks_to: &[&str]) -> Self {
        self.machine(name, false, false, talks_to)
    }

    /// Names the events of the node added last at which a fault may strike.
    pub fn events(mut self, names: &[&str]) -> Self {
        let machine = self.machines.last_mut().expect("a node was added");
        machine.events = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Faults strike within this many milliseconds of virtual time.
    pub fn faults_for(mut self, ms: u64) -> Self {
        self.faults_ms = ms;
        self
    }

    /// Damage at rest is never silent: a few seeds have some.
    pub fn detecting(mut self) -> Self {
        self.detects = What::DAMAGE.to_vec();
        self
    }

    fn machine(mut self, name: &str, process: bool, durable: bool, talks_to: &[&str]) -> Self {
        self.machines.push(Machine {
            name: name.to_owned(),
            process,
            durable,
            talks_to: talks_to.iter().map(|peer| (*peer).to_owned()).collect(),
            events: Vec::new(),
        });
        self
    }

    pub(super) fn names(&self, keep: impl Fn(&Machine) -> bool) -> Vec<String> {
        let kept = self.machines.iter().filter(|machine| keep(machine));
        kept.map(|machine| machine.name.clone()).collect()
    }

    pub(super) fn links(&self) -> Vec<(String, String)> {
        let mut links = Vec::new();
        for machine in &self.machines {
            for peer in &machine.talks_to {
                links.push((machine.name.clone(), peer.clone()));
            }
        }
        links
    }
}

impl Default for Shape {
    fn default() -> Self {
        Shape::new()
    }
}
