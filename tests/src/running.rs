//! Processes that a test starts: the `seedbed` command, and whatever must not outlive its test.

#![expect(
    clippy::disallowed_methods,
    reason = "processes are watched on a real clock"
)]

use std::{
    io::Read,
    process::{Child, Command, Output, Stdio},
    thread::{self, sleep, JoinHandle},
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

/// The longest that a command of a test may take, on a machine that does much else.
const COMMAND_MAX: Duration = Duration::from_secs(300);

/// Runs a command to its end, which has to come.
pub fn output(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::start(&mut command).output(COMMAND_MAX)
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

    /// Waits for its end, and for no longer than `within`: how it was, and what was said until then on what is
    /// piped.
    pub fn output(mut self, within: Duration) -> Output {
        let stdout = self.0.stdout.take().map(all);
        let stderr = self.0.stderr.take().map(all);
        let status = eventually("the end of a process", within, || {
            self.0.try_wait().expect("it can be asked")
        });
        let said = |pipe: Option<JoinHandle<Vec<u8>>>| {
            pipe.map_or(Vec::new(), |pipe| pipe.join().expect("read"))
        };
        Output {
            status,
            stdout: said(stdout),
            stderr: said(stderr),
        }
    }

    /// With SIGKILL.
    pub fn kill(mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it was killed");
    }
}

/// Reads a pipe to its end, beside whoever waits for the process.
fn all(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("readable");
        bytes
    })
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
