//! `World`: the nodes, network, disks and clocks of one run. The only file that starts madsim.
//!
//! It owns its parts and strikes faults at them; what a fault does to the network or to a disk is
//! written there. Faults end by themselves: a node comes back, a cut heals.

use crate::{
    disk::Disks,
    fault::{Fault, Trigger, What},
    net::Net,
    node::{Host, HostId, NodeIndex, Nodes, State},
    plan::Plan,
    trace::{self, Value},
    witness::Said,
};
use futures::{select_biased, FutureExt};
use madsim::runtime::Runtime;
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Notify;

/// After the program of a node has ended by itself, its supervisor starts it again this much later.
const RESTART_AFTER: Duration = Duration::from_millis(500);

/// The nodes, network, disks and clocks of one run.
#[derive(Clone)]
pub struct World {
    nodes: Arc<Nodes>,
    net: Arc<Net>,
    disks: Arc<Disks>,
    agenda: Arc<Agenda>,
    damage: Arc<Mutex<DamageAtRest>>,
    observer: NodeIndex,
}

/// What was damaged at rest, and what the program under test has said of it.
#[derive(Default)]
struct DamageAtRest {
    files: Vec<DamagedFile>,
    named: Vec<Named>,
}

/// What the program under test says of something that was damaged at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// On whose disk.
    pub node: String,
    /// Which file; if that one is missing, it may be any in the folder of what is missed.
    pub path: String,
    /// What becomes of it.
    pub then: Then,
    /// At which place, and what is wrong with it: a line for people.
    pub what: String,
}

/// What the program under test does about damage that it has named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It ends: nobody gets anything of it.
    Refuses,
    /// It goes on without what the file holds from this byte on.
    CutsOff(u64),
}

impl Named {
    /// Whether it is this damage that is named. A file whose neighbour is missing is as good as that one: which files
    /// there should be is what a folder is read for.
    fn is_of(&self, file: &DamagedFile) -> bool {
        let is_there = match self.then {
            Then::Refuses => {
                let folder =
                    |path: &str| path.rsplit_once('/').map(|(folder, _)| folder.to_owned());
                let (named, damaged) = (folder(&self.path), folder(&file.path));
                self.path == file.path || (named.is_some() && named == damaged)
            }
            Then::CutsOff(from) => self.path == file.path && from <= file.position,
        };
        self.node == file.node && is_there
    }
}

/// A file that was damaged at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFile {
    /// On whose disk.
    pub node: String,
    /// Which file.
    pub path: String,
    /// From which byte on; 0 if the whole file is another one, or gone.
    pub position: u64,
}

/// What will happen at a time: faults that strike, and the ends of those that have struck.
#[derive(Default)]
struct Agenda {
    due: Mutex<BTreeMap<(Duration, u64), Action>>,
    changed: Notify,
}

#[derive(Clone, Debug)]
enum Action {
    Strike(What),
    Start(NodeIndex),
    Resume(NodeIndex, u64),
    Heal(NodeIndex, NodeIndex),
    Release(NodeIndex, NodeIndex),
    Unhang(NodeIndex, NodeIndex),
    Room(NodeIndex),
    Fast(NodeIndex),
}

impl World {
    /// Builds a world for `plan` in this thread, which must be a fresh one, and runs `body` in it.
    /// The nodes' trace and counters outlive it in `nodes`.
    pub(crate) fn run<F: Future>(
        plan: &Plan,
        nodes: &Arc<Nodes>,
        body: impl FnOnce(World) -> F,
    ) -> F::Output {
        let seed = plan.seed.stream("schedule", 0).next();
        let runtime = Runtime::with_seed_and_config(seed, madsim::Config::default());
        runtime.add_simulator::<Net>();
        runtime.add_simulator::<Disks>();
        let body = async {
            let world = World {
                nodes: nodes.clone(),
                net: madsim::plugin::simulator::<Net>(),
                disks: madsim::plugin::simulator::<Disks>(),
                agenda: Arc::default(),
                damage: Arc::default(),
                observer: nodes.add("observer"),
            };
            let time = madsim::time::TimeHandle::current();
            assert!(nodes.time.set(time).is_ok(), "one world per registry");
            world
                .net
                .configure(plan.seed, plan.network.clone(), nodes.clone());
            world
                .disks
                .configure(plan.seed, plan.disk.clone(), &plan.faults);
            let striking = world.clone();
            nodes.on_strike(move |what| striking.strike(what));
            let agenda = madsim::task::spawn_local(world.clone().keep_agenda());
            let output = body(world.clone()).await;
            agenda.abort();
            world.end().await;
            output
        };
        trace::listening(nodes, || runtime.block_on(body))
    }

    /// Adds a node whose process runs `main`, in each of its incarnations. When `main` ends, the
    /// process has exited, and is started again half a second later.
    pub fn node<F, Fut>(&self, name: &str, main: F)
    where
        F: Fn(Host) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let index = self.nodes.add(name);
        let world = self.clone();
        let main = Arc::new(main);
        let init = move || {
            let (world, main) = (world.clone(), main.clone());
            async move {
                world.nodes.joined(index, madsim::plugin::node());
                main(world.host(index)).await;
                world.exited(index);
                // The node is dead now; its last task ends at this await.
                std::future::pending::<()>().await;
            }
        };
        let handle = madsim::runtime::Handle::current();
        handle.create_node().name(name).init(init).build();
    }

    /// The host of the observer: a node that nothing disturbs, for clients of the final phase.
    pub fn observer(&self) -> Host {
        self.host(self.observer)
    }

    /// Virtual time since the start of the run.
    pub fn now(&self) -> Duration {
        self.nodes.now()
    }

    /// Watches the named events of the program under test as they happen. What watches must not wait, and
    /// changes nothing in the world; there is one watcher.
    pub fn watch(&self, watcher: impl Fn(&Said<'_>) + Send + Sync + 'static) {
        self.nodes.watch(watcher);
    }

    /// Whether the first `bytes` of a file of a node would survive a power loss.
    pub fn is_durable(&self, node: &str, path: &str, bytes: u64) -> bool {
        let index = self.nodes.find(node);
        index.is_some_and(|index| self.disks.is_durable(index, path, bytes))
    }

    /// The files that were damaged at rest so far.
    pub fn damaged(&self) -> Vec<DamagedFile> {
        self.damage.lock().expect("damage").files.clone()
    }

    /// The program under test has named damage. It counts, and is kept once, only if that file of that disk is damaged:
    /// whether it is.
    pub fn name_damage(&self, named: Named) -> bool {
        let mut damage = self.damage.lock().expect("damage");
        let is_damaged = damage.files.iter().any(|file| named.is_of(file));
        if is_damaged && !damage.named.contains(&named) {
            damage.named.push(named);
        }
        is_damaged
    }

    /// What the program under test has named.
    pub fn named(&self) -> Vec<Named> {
        self.damage.lock().expect("damage").named.clone()
    }

    /// Whether each file that was damaged was named.
    pub(crate) fn has_named_all(&self) -> bool {
        let damage = self.damage.lock().expect("damage");
        let is_named = |file: &DamagedFile| damage.named.iter().any(|named| named.is_of(file));
        damage.files.iter().all(is_named)
    }

    /// Whether the program under test has ended because of damage that it has named.
    pub(crate) fn has_refused(&self) -> bool {
        let damage = self.damage.lock().expect("damage");
        damage.named.iter().any(|named| named.then == Then::Refuses)
    }

    /// Counts something that the summary of a campaign shows.
    pub fn count(&self, name: &str) {
        self.nodes.trace.count(name);
    }

    /// Adds an event of the workload itself to the trace.
    pub fn note(&self, name: &str, fields: &[(&str, Value<'_>)]) {
        self.nodes.note(self.observer, name, fields);
    }

    /// Ends all tasks, and takes apart what holds on to itself: a task that waits is held by what it
    /// waits for, and holds on to that. Otherwise no run would give its memory back.
    async fn end(&self) {
        for node in 0..self.nodes.len() as NodeIndex {
            self.nodes.stop(node, State::Down);
            if node != self.observer {
                self.kill(node);
            }
        }
        // The executor drops the tasks of dead nodes when it comes to them.
        madsim::time::sleep(Duration::from_millis(2)).await;
        self.net.forget();
        self.nodes.forget_world();
    }

    fn host(&self, node: NodeIndex) -> Host {
        Host {
            id: HostId {
                node,
                incarnation: self.nodes.incarnation(node),
            },
            name: self.nodes.name(node),
            nodes: self.nodes.clone(),
            net: self.net.clone(),
            disks: self.disks.clone(),
        }
    }

    /// Lets the faults of a plan wait for their time, step or event.
    pub(crate) fn arm(&self, faults: &[Fault]) {
        self.nodes.arm(faults);
        for fault in faults {
            if let Trigger::Time(ms) = fault.at {
                let after = Duration::from_millis(ms).saturating_sub(self.now());
                self.schedule(after, Action::Strike(fault.what.clone()));
            }
        }
    }

    /// Calm: no fault strikes from here on, links are healed and held bytes released, disks work,
    /// paused processes go on, dead ones are started. Bytes that are lost stay lost, connections that
    /// are half open stay half open, and clocks keep their skew.
    pub(crate) fn calm(&self) {
        self.note("world.calm", &[]);
        self.nodes.disarm();
        self.agenda.due.lock().expect("agenda").clear();
        self.net.heal_all();
        self.disks.heal_all();
        for node in 0..self.nodes.len() as NodeIndex {
            if node == self.observer {
                continue;
            }
            if self.nodes.state(node) == State::Up {
                self.resume(node);
            } else {
                self.start(node);
            }
        }
    }

    /// Every task of every node, by the place that spawned it: who waits, when nobody goes on.
    pub fn tasks(&self) -> String {
        let tasks = madsim::runtime::Handle::current()
            .metrics()
            .num_tasks_by_node_by_spawn();
        // A dependency's file is named without the folder that this machine keeps it in.
        let trimmed = tasks
            .lines()
            .filter(|line| !line.contains("madsim-"))
            .map(|line| {
                line.split_once("/registry/src/")
                    .map_or(line, |(_, file)| file)
            });
        trimmed.collect::<Vec<_>>().join("\n")
    }

    fn strike(&self, what: &What) {
        let index = |name: &String| self.nodes.find(name).expect("the plan was checked");
        let nodes = &self.nodes;
        let ms = Duration::from_millis;
        match what {
            What::Crash { node, down } => self.crash(index(node), ms(*down)),
            What::PowerLoss { node, down } => self.power_loss(index(node), ms(*down)),
            What::Pause { node, lasts } => self.pause(index(node), ms(*lasts)),
            What::Cut {
                from,
                to,
                both,
                lasts,
            } => {
                let (from, to) = (index(from), index(to));
                self.cut(from, to, ms(*lasts));
                if *both {
                    self.cut(to, from, ms(*lasts));
                }
                nodes.trace.count(if *both { "cut" } else { "cut-one-way" });
            }
            What::Hold { from, to, lasts } => {
                let (from, to) = (index(from), index(to));
                self.struck(from, "hold", Some(to));
                self.net.hold(from, to);
                self.schedule(ms(*lasts), Action::Release(from, to));
            }
            What::LostAck { client, server } => {
                // Counted when an answer is lost.
                self.net.lose_next_answer(index(client), index(server));
            }
            What::Reset { a, b } => {
                let (a, b) = (index(a), index(b));
                if self.net.reset(a, b) > 0 {
                    self.struck(a, "reset", Some(b));
                }
            }
            What::ConnectHang { from, to, lasts } => {
                // Counted when a connect hangs.
                let (from, to) = (index(from), index(to));
                self.net.hang(from, to);
                self.schedule(ms(*lasts), Action::Unhang(from, to));
            }
            What::DiskError { node, op, times } => {
                // Counted when an operation fails.
                self.disks.fail_next(index(node), *op, *times);
            }
            What::NoSpace { node, lasts } => {
                // Counted when a write fails.
                self.disks.fill(index(node), true);
                self.schedule(ms(*lasts), Action::Room(index(node)));
            }
            What::SlowDisk {
                node,
                factor,
                lasts,
            } => {
                self.struck(index(node), "slow-disk", None);
                self.disks.slow(index(node), *factor);
                self.schedule(ms(*lasts), Action::Fast(index(node)));
            }
            What::BitRot(spot)
            | What::LostFile(spot)
            | What::Misdirected(spot)
            | What::StaleFile(spot) => self.damage(index(&spot.node), what),
        }
    }

    /// Damages what is at rest on a disk; counted only if there was something that fits.
    fn damage(&self, node: NodeIndex, what: &What) {
        let Some(wound) = self.disks.decay(node, what, self.nodes.has_run(node)) else {
            return;
        };
        let kind = what.kind();
        self.nodes.trace.count(kind);
        let fields = [
            ("path", Value::Text(&wound.path)),
            ("position", Value::Num(wound.position)),
        ];
        self.nodes.note(node, kind, &fields);
        self.damage.lock().expect("damage").files.push(DamagedFile {
            node: self.nodes.name(node).to_string(),
            path: wound.path,
            position: wound.position,
        });
    }

    /// Traces a fault, and counts it for the summary.
    fn struck(&self, node: NodeIndex, kind: &'static str, peer: Option<NodeIndex>) {
        self.nodes.trace.count(kind);
        let peer = peer.map(|peer| self.nodes.name(peer));
        let fields = peer.as_deref().map(|peer| ("peer", Value::Text(peer)));
        self.nodes.note(node, kind, fields.as_slice());
    }

    fn crash(&self, node: NodeIndex, down: Duration) {
        if self.nodes.stop(node, State::Down) {
            self.struck(node, "crash", None);
            self.net.crash(node);
            self.kill(node);
            self.schedule(down, Action::Start(node));
        }
    }

    fn power_loss(&self, node: NodeIndex, down: Duration) {
        if self.nodes.stop(node, State::Off) {
            self.struck(node, "power-loss", None);
            self.net.power_loss(node);
            self.kill(node);
            let damage = self.disks.power_loss(node);
            let counts = [
                ("page-kept", damage.pages_kept),
                ("page-lost", damage.pages_lost),
                ("page-torn", damage.pages_torn),
                ("length-lost", damage.lengths_lost),
                ("entry-lost", damage.entries_lost),
            ];
            for (name, count) in counts {
                (0..count).for_each(|_| self.nodes.trace.count(name));
            }
            let fields = counts.map(|(name, count)| (name, Value::Num(count)));
            self.nodes.note(node, "disk.damage", &fields);
            self.schedule(down, Action::Start(node));
        }
    }

    /// The program of a node has ended by itself.
    fn exited(&self, node: NodeIndex) {
        if self.nodes.stop(node, State::Down) {
            self.struck(node, "exit", None);
            self.net.crash(node);
            self.kill(node);
            self.schedule(RESTART_AFTER, Action::Start(node));
        }
    }

    fn kill(&self, node: NodeIndex) {
        madsim::runtime::Handle::current().kill(&*self.nodes.name(node));
    }

    fn start(&self, node: NodeIndex) {
        if self.nodes.state(node) != State::Up {
            self.nodes.start(node);
            self.struck(node, "restart", None);
            madsim::runtime::Handle::current().restart(&*self.nodes.name(node));
        }
    }

    fn pause(&self, node: NodeIndex, lasts: Duration) {
        if self.nodes.state(node) == State::Up {
            self.struck(node, "pause", None);
            madsim::runtime::Handle::current().pause(&*self.nodes.name(node));
            let incarnation = self.nodes.incarnation(node);
            self.schedule(lasts, Action::Resume(node, incarnation));
        }
    }

    fn resume(&self, node: NodeIndex) {
        madsim::runtime::Handle::current().resume(&*self.nodes.name(node));
    }

    fn cut(&self, from: NodeIndex, to: NodeIndex, lasts: Duration) {
        let peer = self.nodes.name(to);
        self.nodes.note(from, "cut", &[("to", Value::Text(&peer))]);
        self.net.cut(from, to);
        self.schedule(lasts, Action::Heal(from, to));
    }

    fn schedule(&self, after: Duration, action: Action) {
        let mut due = self.agenda.due.lock().expect("agenda");
        let at = self.nodes.now() + after;
        let next = due.range((at, 0)..=(at, u64::MAX)).next_back();
        let order = next.map_or(0, |((_, order), _)| order + 1);
        due.insert((at, order), action);
        drop(due);
        self.agenda.changed.notify_one();
    }

    async fn keep_agenda(self) {
        loop {
            let next = {
                let mut due = self.agenda.due.lock().expect("agenda");
                match due.first_entry() {
                    Some(entry) if entry.key().0 <= self.now() => Ok(entry.remove()),
                    Some(entry) => Err(Some(entry.key().0)),
                    None => Err(None),
                }
            };
            match next {
                Ok(action) => self.act(action),
                Err(None) => self.agenda.changed.notified().await,
                Err(Some(at)) => {
                    select_biased! {
                        () = crate::net::sleep(at.saturating_sub(self.now())).fuse() => {}
                        () = self.agenda.changed.notified().fuse() => {}
                    }
                }
            }
        }
    }

    fn act(&self, action: Action) {
        match action {
            Action::Strike(what) => self.strike(&what),
            Action::Start(node) => self.start(node),
            Action::Resume(node, incarnation) => {
                if self.nodes.incarnation(node) == incarnation
                    && self.nodes.state(node) == State::Up
                {
                    self.nodes.note(node, "resume", &[]);
                    self.resume(node);
                }
            }
            Action::Heal(from, to) => self.net.heal(from, to),
            Action::Release(from, to) => self.net.release(from, to),
            Action::Unhang(from, to) => self.net.unhang(from, to),
            Action::Room(node) => self.disks.fill(node, false),
            Action::Fast(node) => self.disks.slow(node, 1),
        }
    }
}
