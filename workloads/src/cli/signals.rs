//! The signals that tell a process to stop: ctrl-C (SIGINT) and SIGTERM.

use super::BadInput;
use futures::{select_biased, FutureExt};
use std::future::Future;
use tokio::signal::unix::{signal, Signal, SignalKind};

/// From the moment it is there, a signal no longer ends the process: whoever has it waits for them.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens for them.
    pub fn new() -> Result<Signals, BadInput> {
        let listen = |kind| signal(kind).map_err(BadInput::new);
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for one; the exit code that a shell gives for it: 128 and its number.
    pub async fn next(&mut self) -> u8 {
        let kind = select_biased! {
            _ = self.interrupt.recv().boxed_local().fuse() => SignalKind::interrupt(),
            _ = self.terminate.recv().boxed_local().fuse() => SignalKind::terminate(),
        };
        128 + kind.as_raw_value() as u8
    }

    /// What `work` comes to; or, if one comes before that, its exit code.
    pub async fn unless_told<T>(&mut self, work: impl Future<Output = T>) -> Result<T, u8> {
        let mut work = std::pin::pin!(work.fuse());
        select_biased! {
            code = self.next().boxed_local().fuse() => Err(code),
            done = work => Ok(done),
        }
    }
}
