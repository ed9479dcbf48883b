//! Processes that a test starts: the `seedbed` command, and whatever must not outlive its test.

#![expect(
    clippy::disallowed_methods,
    reason = "processes are watched on a real clock"
)]

use std::{
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant},
};

/// How often a test looks whether something has happened.
const LOOK: Duration = Duration::from_millis(20);

/// The `seedbed` command, in a folder.
#[cfg(madsim)]
pub fn seedbed(folder: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed-under-test"));
    command.args(arguments).current_dir(folder);
    command
}

/// Waits until something is there, and for no longer than `within`.
pub fn eventually<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not within {within:?}: {what}");
        sleep(LOOK);
    }
}

/// A process that does not outlive its test.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Running {
        Running(command.spawn().expect("it starts"))
    }

    /// With SIGKILL.
    pub fn kill(mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it was killed");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
