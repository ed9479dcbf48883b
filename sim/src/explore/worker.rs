//! A worker: a process in which seeds are run, one after the other.
//!
//! It is this very program, started again: a test binary with the name of the test, any other program with
//! its own arguments. It goes the way that its parent has gone, and takes the parent's word for whatever an
//! exploration before has found, until it comes to the one that it was started for; there it stays. Plans
//! come in over its standard input, which is a socket, a line each, and reports go back the same way: what
//! the program under test prints disturbs nobody. When its parent is gone, it ends.

use super::Campaign;
use crate::{
    plan::Plan,
    run::{self, Limits, Report, Workload},
};
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    io::{self, BufRead, BufReader, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{mpsc, Arc, Mutex, OnceLock},
    time::Duration,
};

/// Says to a process that it is a worker.
pub(super) const WORKER: &str = "SEEDBED_WORKER";

/// What a worker says when it has come to its exploration.
pub(super) const READY: &str = "ready";

/// The first thing that a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The workload of the exploration that it is started for.
    pub workload: String,
    /// What the explorations before that one have found, in this thread of the parent.
    pub before: Vec<Campaign>,
    /// How much memory it may have, in bytes.
    pub memory_max: u64,
}

/// A run that is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// The plan, as text: its only form that is known to round-trip to the last bit.
    plan: String,
    keep_trace: bool,
    other_keys: bool,
}

impl Job {
    pub fn of(plan: &Plan) -> Job {
        Job {
            plan: plan.to_text(),
            keep_trace: false,
            other_keys: false,
        }
    }

    pub fn keeping_trace(self) -> Job {
        Job {
            keep_trace: true,
            ..self
        }
    }

    pub fn with_other_keys(self) -> Job {
        Job {
            other_keys: true,
            ..self
        }
    }
}

/// In a process that was started as a worker: runs the plans of these workloads that it is given, and never
/// returns. A program that says of its explorations that it serves ([`super::Explore::serves`]) calls this
/// first of all.
pub fn serve(workloads: &[Arc<dyn Workload>]) {
    if let Some(session) = session() {
        session.work(workloads);
    }
}

/// Whether this process is a worker.
pub(crate) fn is_worker() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| std::env::var_os(WORKER).is_some())
}

thread_local! {
    /// What the explorations of this thread have found so far.
    static FOUND: RefCell<Vec<Campaign>> = const { RefCell::new(Vec::new()) };
}

/// What the explorations of this thread have found so far: what a worker is told.
pub(super) fn found_before() -> Vec<Campaign> {
    FOUND.with(|found| found.borrow().clone())
}

/// An exploration of this thread has ended.
pub(super) fn remember(campaign: &Campaign) {
    FOUND.with(|found| found.borrow_mut().push(campaign.clone()));
}

/// In a worker that has come to an exploration: stays, if it is the one that it was started for, and returns
/// what the parent has found if it is an earlier one. Returns `None` in any other process.
pub(super) fn answer(workload: &Arc<dyn Workload>) -> Option<Campaign> {
    let session = session()?;
    let nth = FOUND.with(|found| found.borrow().len());
    match session.hello.before.get(nth) {
        Some(campaign) => Some(campaign.clone()),
        None => session.work(std::slice::from_ref(workload)),
    }
}

/// A worker's conversation with its parent.
struct Session {
    hello: Hello,
    socket: UnixStream,
    lines: Mutex<Option<BufReader<UnixStream>>>,
}

fn session() -> Option<&'static Session> {
    static SESSION: OnceLock<Session> = OnceLock::new();
    is_worker().then(|| SESSION.get_or_init(|| Session::open().expect("a worker has a parent")))
}

impl Session {
    fn open() -> io::Result<Session> {
        let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut lines = BufReader::new(socket.try_clone()?);
        let mut hello = String::new();
        lines.read_line(&mut hello)?;
        Ok(Session {
            hello: serde_json::from_str(&hello)?,
            socket,
            lines: Mutex::new(Some(lines)),
        })
    }

    fn work(&self, workloads: &[Arc<dyn Workload>]) -> ! {
        let named = |name: &str| workloads.iter().find(|one| one.name() == name);
        let wanted = &self.hello.workload;
        assert!(
            named(wanted).is_some(),
            "a worker for `{wanted}` has come to an exploration of something else: explorations of one \
             test are to be begun on its own thread, and in the same order each time"
        );
        limit_memory(self.hello.memory_max);
        let lines = self.lines.lock().expect("lines").take();
        let lines = lines.expect("a worker works once");
        let (queue, jobs) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.lines() {
                let job = line.and_then(|line| Ok(serde_json::from_str::<Job>(&line)?));
                let Ok(job) = job else { break };
                if queue.send(job).is_err() {
                    break;
                }
            }
            // The parent is gone, or has had enough: whatever is running, nobody waits for it.
            std::process::exit(0);
        });
        self.say(READY);
        for job in jobs {
            let plan = Plan::parse(&job.plan).expect("the parent has made it");
            let limits = Limits {
                keep_trace: job.keep_trace,
                other_keys: job.other_keys,
                // The parent watches the time.
                wall_max: Duration::MAX,
                ..Limits::default()
            };
            let workload = named(&plan.workload).expect("the parent explores it");
            let report: Report = run::run(workload, &plan, &limits);
            self.say(&serde_json::to_string(&report).expect("plain data"));
        }
        std::process::exit(0)
    }

    fn say(&self, line: &str) {
        let said = (&self.socket).write_all(format!("{line}\n").as_bytes());
        if said.is_err() {
            // The parent is gone.
            std::process::exit(0);
        }
    }
}

/// Beyond this much the system gives no memory, and an allocation that fails ends the process.
fn limit_memory(bytes: u64) {
    if let Err(error) = rlimit::Resource::DATA.set(bytes, bytes) {
        eprintln!("memory is not limited to {bytes} bytes: {error}");
    }
    // A worker may well abort, and nobody wants its core.
    if let Err(error) = rlimit::Resource::CORE.set(0, 0) {
        eprintln!("core files are not switched off: {error}");
    }
}
