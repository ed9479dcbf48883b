//! A run: build, faults, calm, final reads, check.
//!
//! Three watchdogs: a poll budget (nothing waits for time), a bound of virtual time for faults and for
//! calm, and a limit of wall time from outside the run's thread.

use crate::{
    check::{stuck, Anomaly, Kind, Ledger, Verdict},
    explore::is_worker,
    node::Nodes,
    plan::{Params, Plan, PlanError, Shape},
    trace::{self, Digest},
    world::{Named, Then},
    Seed, World,
};
use async_trait::async_trait;
use futures::{select_biased, FutureExt};
use proptest::strategy::{BoxedStrategy, Just, Strategy};
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    hash::RandomState,
    sync::{mpsc, Arc, Once},
    time::Duration,
};

/// Something to run in a world, and how to know that it is right.
pub trait Workload: Send + Sync + 'static {
    /// Its name on the command line and in plans. A plan is run by the workload that bears its name:
    /// what behaves differently is called differently, or is a parameter.
    fn name(&self) -> &str;

    /// One line for people.
    fn about(&self) -> &str {
        ""
    }

    /// Its nodes, and the faults that it must survive.
    fn shape(&self) -> Shape;

    /// Its parameters, drawn per seed.
    fn params(&self) -> BoxedStrategy<Params> {
        Just(Params::new()).boxed()
    }

    /// Whether `params` make sense; the message names the parameter and what would be right.
    fn check_params(&self, _params: &Params) -> Result<(), String> {
        Ok(())
    }

    /// Smaller parameters to try when a failure is shrunk, the smallest first.
    fn smaller(&self, _params: &Params) -> Vec<Params> {
        Vec::new()
    }

    /// The legal moves of its state machines: a campaign says which of them have never happened.
    fn moves(&self) -> Vec<String> {
        Vec::new()
    }

    /// Adds the nodes to a world; input begins to flow.
    fn build(&self, world: &World, plan: &Plan) -> Box<dyn Scenario>;
}

/// A workload that is running.
#[async_trait(?Send)]
pub trait Scenario {
    /// Whether all input has been given.
    fn is_fed(&self) -> bool;

    /// Who still waits for what, once all input has been given; empty when all work is done.
    async fn waits_for(&mut self) -> Vec<String>;

    /// What was found without final reads, for a run that gets stuck: a claim that was broken says more than
    /// that nobody goes on.
    fn overheard(&mut self) -> Vec<Ledger> {
        Vec::new()
    }

    /// Final reads, written into ledgers.
    async fn judge(&mut self) -> Findings;
}

/// What the final reads found.
#[derive(Debug, Default)]
pub struct Findings {
    /// One for each claim.
    pub ledgers: Vec<Ledger>,
    /// How many commits were made; none makes the run vacuous.
    pub commits: u64,
    /// How often each legal move of the workload's state machines has happened.
    pub moves: BTreeMap<String, u64>,
    /// What led to an anomaly: printed if there is one.
    pub why: Vec<String>,
}

/// What a run showed, and what it cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// The hash of the whole trace, in hexadecimal.
    pub digest: String,
    /// Virtual time, in seconds.
    pub virtual_seconds: f64,
    /// Trace events.
    pub events: u64,
    /// Commits made.
    pub commits: u64,
    /// Facts compared.
    pub compared: u64,
    /// Anomalies that their claim allows, and that were shown: by claim and kind.
    pub shown: BTreeMap<String, u64>,
    /// Faults that struck and named events that happened, by name.
    pub counts: BTreeMap<String, u64>,
    /// How often each legal move of the workload's state machines has happened.
    pub moves: BTreeMap<String, u64>,
    /// The trace, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// How to run a plan.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Keep the trace as text.
    pub keep_trace: bool,
    /// Let the standard library draw the keys of its hash maps as it does outside of a world, where they
    /// differ from process to process; otherwise the seed draws them. A program whose run they change
    /// depends on the order of a hash map.
    pub other_keys: bool,
    /// Virtual time after which input that is still not given no longer delays calm.
    pub faults_max: Duration,
    /// Virtual time within which all work must be done once faults have stopped.
    pub calm_max: Duration,
    /// Wall time after which a run is given up.
    pub wall_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            keep_trace: false,
            other_keys: false,
            faults_max: Duration::from_secs(60),
            calm_max: Duration::from_secs(240),
            wall_max: Duration::from_secs(120),
        }
    }
}

/// The plan that `seed` draws for a workload.
pub fn draw(workload: &dyn Workload, seed: Seed) -> Plan {
    Plan::draw(workload.name(), seed, &workload.shape(), workload.params())
}

/// Whether a plan makes sense for a workload.
pub fn check_plan(workload: &dyn Workload, plan: &Plan) -> Result<(), PlanError> {
    if plan.workload != workload.name() {
        let text = format!("it is for workload `{}`", plan.workload);
        return Err(PlanError::Sense(text));
    }
    plan.check(&workload.shape())?;
    workload
        .check_params(&plan.params)
        .map_err(PlanError::Sense)
}

/// Runs a plan, in a fresh thread so that every hash map of the run is seeded by it.
pub fn run(workload: &Arc<dyn Workload>, plan: &Plan, limits: &Limits) -> Report {
    quiet_panics();
    let (sender, receiver) = mpsc::sync_channel(1);
    let (workload, plan, limits) = (workload.clone(), plan.clone(), limits.clone());
    let wall_max = limits.wall_max;
    let thread = std::thread::Builder::new().name(RUN_THREAD.into());
    let spawned = thread.spawn(move || {
        let _ = sender.send(run_here(&*workload, &plan, &limits));
    });
    spawned.expect("the system gives a thread");
    receiver.recv_timeout(wall_max).unwrap_or_else(|error| {
        let (kind, what, why) = match error {
            mpsc::RecvTimeoutError::Timeout => (
                Kind::Hung,
                format!("no end after {} s of wall time", wall_max.as_secs()),
                "the run's thread was abandoned; its trace has no end",
            ),
            mpsc::RecvTimeoutError::Disconnected => (
                Kind::Panicked,
                "the simulator itself panicked after the run".into(),
                "something outlived the run, and holds on to its world",
            ),
        };
        Report::of_nothing(Anomaly {
            kind,
            claim: String::new(),
            what,
            why: vec![why.into()],
        })
    })
}

fn run_here(workload: &dyn Workload, plan: &Plan, limits: &Limits) -> Report {
    if limits.other_keys {
        // The keys of a thread are drawn once, by its first hash map; madsim then finds them drawn.
        let _ = RandomState::new();
    }
    let nodes = Arc::new(Nodes::new(limits.keep_trace));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        World::run(plan, &nodes, |world| phases(world, workload, plan, limits))
    }));
    let ended = nodes
        .time
        .get()
        .map_or(Duration::ZERO, |time| time.elapsed());
    trace::deaf();
    nodes.forget_world();
    // Something that holds on to itself would keep every file and connection of the run.
    debug_assert!(
        outcome.is_err() || Arc::strong_count(&nodes) == 1,
        "a run gives its memory back"
    );
    let (findings, stuck, damage) = outcome.unwrap_or_else(|_| {
        let (what, claim) = PANIC
            .with(|cell| cell.take())
            .unwrap_or_else(|| ("no message".into(), String::new()));
        let kind = match what.contains(trace::POLL_BUDGET) {
            true => Kind::Stuck,
            false => Kind::Panicked,
        };
        let anomaly = Anomaly {
            kind,
            claim,
            what,
            why: Vec::new(),
        };
        (Findings::default(), Some(anomaly), DamageTold::default())
    });
    let mut anomalies: Vec<Anomaly> = Vec::new();
    let mut shown = BTreeMap::new();
    let mut compared = 0;
    // Nothing explains that nobody goes on, or a panic.
    let mut explained = stuck.is_none();
    for ledger in &findings.ledgers {
        let (broken, allowed) = ledger.check();
        explained &= broken.iter().all(|found| ledger.is_explained(found));
        anomalies.extend(broken);
        for (kind, count) in allowed {
            *shown
                .entry(format!("{}: {kind}", ledger.claim))
                .or_default() += count;
        }
        compared += ledger.compared();
    }
    anomalies.extend(stuck);
    if let Some(first) = anomalies.first_mut() {
        first.why.extend(findings.why);
    }
    if !anomalies.is_empty() && !damage.named.is_empty() {
        use std::io::Write;
        let mut f = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open("/tmp/dmg-xx.log")
            .unwrap();
        for a in &anomalies {
            let _ = writeln!(
                f,
                "XX {} {:?} {} {:?} | {} | {}",
                plan.seed,
                damage.named.iter().map(|n| &n.what).collect::<Vec<_>>(),
                damage.all,
                a.kind,
                a.claim,
                a.what.replace('\n', " ")
            );
        }
    }
    let verdict = if damage.is_detected(&anomalies, explained) {
        Verdict::Detected(damage.named.into_iter().map(|named| named.what).collect())
    } else if !anomalies.is_empty() {
        Verdict::Broken(anomalies)
    } else if findings.commits == 0 {
        Verdict::Vacuous("nothing was committed".into())
    } else if compared == 0 {
        Verdict::Vacuous("nothing was compared".into())
    } else {
        Verdict::Clean
    };
    let words = format!("{verdict:?}");
    nodes
        .trace
        .record(ended, 0, "verdict", &[("is", trace::Value::Text(&words))]);
    let finished = nodes.trace.finish();
    Report {
        verdict,
        digest: Digest::to_string(&finished.digest),
        virtual_seconds: ended.as_secs_f64(),
        events: finished.events,
        commits: findings.commits,
        compared,
        shown,
        counts: finished.counts,
        moves: findings.moves,
        trace: finished.text,
    }
}

/// What was named of what was damaged at rest.
#[derive(Debug, Default)]
struct DamageTold {
    named: Vec<Named>,
    /// Each file that was damaged was named.
    all: bool,
}

impl DamageTold {
    fn of(world: &World) -> Self {
        DamageTold {
            named: world.named(),
            all: world.has_named_all(),
        }
    }

    /// Whether a run ends as detected. Who refuses is not judged to the end, so what was overheard of it was
    /// there before, in silence. Who goes on without what is damaged, and says so, may lack it, and nothing else:
    /// `explained` are the anomalies if the damage accounts for each of them.
    fn is_detected(&self, anomalies: &[Anomaly], explained: bool) -> bool {
        if self.named.iter().any(|named| named.then == Then::Refuses) {
            return anomalies.is_empty();
        }
        !self.named.is_empty() && self.all && explained && !anomalies.is_empty()
    }
}

const TICK: Duration = Duration::from_millis(500);

/// Faults, calm, final reads. A system that is stuck is not read, nor is one that refuses what is damaged.
async fn phases(
    world: World,
    workload: &dyn Workload,
    plan: &Plan,
    limits: &Limits,
) -> (Findings, Option<Anomaly>, DamageTold) {
    let (findings, stuck) = phases_of(&world, workload, plan, limits).await;
    (findings, stuck, DamageTold::of(&world))
}

async fn phases_of(
    world: &World,
    workload: &dyn Workload,
    plan: &Plan,
    limits: &Limits,
) -> (Findings, Option<Anomaly>) {
    let mut scenario = workload.build(world, plan);
    world.arm(&plan.faults);
    let faults_min = match plan.faults.is_empty() {
        true => Duration::ZERO,
        false => Duration::from_millis(workload.shape().faults_ms),
    };
    let is_fed = |scenario: &dyn Scenario| scenario.is_fed() || world.has_refused();
    while world.now() < faults_min || (!is_fed(&*scenario) && world.now() < limits.faults_max) {
        madsim::time::sleep(TICK).await;
    }
    world.calm();
    let calm = world.now();
    loop {
        if world.has_refused() {
            return (overheard(&mut *scenario), None);
        }
        let mut waits_for = match scenario.is_fed() {
            true => scenario.waits_for().await,
            false => vec!["not all input was given".into()],
        };
        if waits_for.is_empty() {
            break;
        }
        if world.now() >= calm + limits.calm_max {
            let tasks = world.tasks();
            waits_for.extend(tasks.lines().map(str::to_owned));
            let anomaly = stuck::anomaly(limits.calm_max, waits_for);
            return (overheard(&mut *scenario), Some(anomaly));
        }
        madsim::time::sleep(TICK).await;
    }
    world.note("world.final-reads", &[]);
    let judged = if world.damaged().is_empty() {
        madsim::time::timeout(limits.calm_max, scenario.judge())
            .await
            .ok()
    } else {
        let judging = madsim::time::timeout(limits.calm_max, scenario.judge());
        select_biased! {
            judged = judging.fuse() => judged.ok(),
            () = refusal(world).fuse() => None,
        }
    };
    match judged {
        Some(findings) => (findings, None),
        None if world.has_refused() => (overheard(&mut *scenario), None),
        None => {
            let what = vec!["the final reads did not end".to_owned()];
            let anomaly = stuck::anomaly(limits.calm_max, what);
            (overheard(&mut *scenario), Some(anomaly))
        }
    }
}

/// Ends once somebody refuses what is damaged.
async fn refusal(world: &World) {
    while !world.has_refused() {
        madsim::time::sleep(TICK).await;
    }
}

fn overheard(scenario: &mut dyn Scenario) -> Findings {
    Findings {
        ledgers: scenario.overheard(),
        ..Findings::default()
    }
}

impl Report {
    /// What is known of a run that did not come to its end: what ended it.
    pub(crate) fn of_nothing(anomaly: Anomaly) -> Self {
        Report {
            verdict: Verdict::Broken(vec![anomaly]),
            digest: Digest(0).to_string(),
            virtual_seconds: 0.0,
            events: 0,
            commits: 0,
            compared: 0,
            shown: BTreeMap::new(),
            counts: BTreeMap::new(),
            moves: BTreeMap::new(),
            trace: None,
        }
    }
}

const RUN_THREAD: &str = "seedbed-run";

thread_local! {
    /// What a panic of this thread said, and where it was.
    static PANIC: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Panics inside a run become its verdict, and are not printed; all others are, as before.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() == Some(RUN_THREAD) {
                let text = info.payload_as_str().unwrap_or("a panic without text");
                let place = info.location().map_or(String::new(), |at| {
                    let file = at
                        .file()
                        .rsplit("/registry/src/")
                        .next()
                        .unwrap_or(at.file());
                    format!("{file}:{}", at.line())
                });
                let what = format!("{text} at {place}");
                if is_worker() {
                    // If it ends in an abort, this is all that is left of it.
                    eprintln!("panicked: {what}");
                }
                PANIC.with(|cell| {
                    cell.borrow_mut().get_or_insert((what, place));
                });
            } else {
                before(info);
            }
        }));
    });
}
