//! The history: what clients asked and were told, ok, failed, or unknown.
//!
//! A timeout, a lost reply and a reset connection are `unknown`: the operation may have happened.

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

    /// All operations, in the order in which they were asked.
    pub fn ops(&self) -> Vec<Op<A, R>> {
        self.0.lock().expect("history").clone()
    }
}
