//! The history: what clients asked and were told, ok, failed, or unknown.
//!
//! A timeout, a lost reply and a reset connection are `unknown`: the operation may have happened.

use crate::check::{Amount, Ledger, Promise};
use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told<R> {
    /// Nothing yet. At the end of a run this means the same as `Unknown`.
    Invoked,
    /// It happened.
    Ok(R),
    /// It did not happen, and never will.
    Failed,
    /// It may have happened, or may happen yet.
    Unknown,
}

/// One operation of a client.
#[derive(Clone, Debug)]
pub struct Op<A, R> {
    /// What was asked.
    pub asked: A,
    /// When, in virtual time.
    pub invoked: Duration,
    /// What the answer was.
    pub told: Told<R>,
}

/// The number of an operation in its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(usize);

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// All operations of a run. Clones share it, and it survives the crash of any node.
#[derive(Clone, Debug)]
pub struct History<A, R>(Arc<Mutex<Vec<Op<A, R>>>>);

impl<A, R> Default for History<A, R> {
    fn default() -> Self {
        History(Arc::default())
    }
}

impl<A: Clone, R: Clone> History<A, R> {
    /// A client asks.
    pub fn invoke(&self, now: Duration, asked: A) -> OpId {
        let mut ops = self.0.lock().expect("history");
        ops.push(Op {
            asked,
            invoked: now,
            told: Told::Invoked,
        });
        OpId(ops.len() - 1)
    }

    /// A client is told. Only the first answer counts.
    pub fn tell(&self, op: OpId, told: Told<R>) {
        let op = &mut self.0.lock().expect("history")[op.0];
        if matches!(op.told, Told::Invoked) {
            op.told = told;
        }
    }

    /// The claim that what happened is there: what a client was told is ok must be, and what it was not told of may
    /// be. Returns it with the number of those that are ok.
    pub fn claim(&self, name: &str, promise: Promise, key: impl Fn(&A) -> String) -> (Ledger, u64) {
        let mut ledger = Ledger::new(name, promise);
        let one = Amount { count: 1, sum: 0 };
        let mut ok = 0;
        for op in self.ops() {
            match op.told {
                Told::Ok(_) => {
                    ok += 1;
                    ledger.must(key(&op.asked), one);
                }
                Told::Unknown | Told::Invoked => ledger.may(key(&op.asked), one),
                Told::Failed => {}
            }
        }
        (ledger, ok)
    }

    /// All operations, in the order in which they were asked.
    pub fn ops(&self) -> Vec<Op<A, R>> {
        self.0.lock().expect("history").clone()
    }
}
