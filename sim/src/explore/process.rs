//! A worker as its parent sees it: started, asked, watched, and started again after it has died.

use super::{
    going::Stop,
    worker::{Hello, Job, READY, WORKER},
};
use crate::{
    check::{Anomaly, Kind},
    run::Report,
};
use std::{
    collections::VecDeque,
    ffi::OsString,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

/// How a worker is started, and what it is told.
pub(super) struct Start {
    pub arguments: Vec<OsString>,
    pub hello: Hello,
    /// Wall time within which a run has to end.
    pub wall_max: Duration,
    /// Whether what the program under test prints goes where the parent's goes.
    pub aloud: bool,
}

/// Why there is no report.
pub(super) enum Halt {
    /// The exploration is to stop.
    Stopped,
    /// No worker can be started: why.
    Unable(String),
}

/// A process that runs plans; a new one after each death.
pub(super) struct Worker<'a> {
    start: &'a Start,
    stop: &'a Stop,
    process: Option<Process>,
}

impl<'a> Worker<'a> {
    pub fn new(start: &'a Start, stop: &'a Stop) -> Self {
        Worker {
            start,
            stop,
            process: None,
        }
    }

    /// Another one, which shares nothing with this one.
    pub fn another(&self) -> Worker<'a> {
        Worker::new(self.start, self.stop)
    }

    /// How many plans its process has been given, if that still runs.
    pub fn runs(&self) -> u64 {
        self.process.as_ref().map_or(0, |process| process.runs)
    }

    /// Runs a plan. A process that does not come back with a report is an anomaly of that plan.
    pub fn run(&mut self, job: &Job) -> Result<Report, Halt> {
        let mut process = match self.process.take() {
            Some(process) => process,
            None => Process::start(self.start, self.stop)?,
        };
        match process.ask(job, self.start.wall_max, self.stop)? {
            Ok(report) => {
                self.process = Some(process);
                Ok(report)
            }
            Err(anomaly) => Ok(Report::of_nothing(anomaly)),
        }
    }
}

struct Process {
    child: Child,
    socket: BufReader<UnixStream>,
    said: Said,
    aloud: bool,
    runs: u64,
}

/// How often a parent that waits looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);
/// Wall time within which a worker has to come to its exploration.
const START_MAX: Duration = Duration::from_secs(120);

/// What came of waiting for a line.
enum Line {
    Said(String),
    End,
    Late,
    Stopped,
}

impl Process {
    fn start(start: &Start, stop: &Stop) -> Result<Process, Halt> {
        let unable = |error: io::Error| Halt::Unable(error.to_string());
        let mut process = Process::spawn(start).map_err(unable)?;
        let hello = serde_json::to_string(&start.hello).expect("plain data");
        // A worker that is dead already is found to be so by the answer that does not come.
        let _ = process.write(&hello);
        match process.line(START_MAX, stop).map_err(unable)? {
            Line::Said(line) if line == READY => Ok(process),
            Line::Said(line) => Err(Halt::Unable(format!("it said `{line}`"))),
            Line::Stopped => Err(Halt::Stopped),
            Line::Late => Err(Halt::Unable(format!(
                "it has not come to its exploration within {} s",
                START_MAX.as_secs()
            ))),
            Line::End => {
                let died = process.died();
                let why = died.why.join("; ");
                Err(Halt::Unable(format!("{}: {why}", died.what)))
            }
        }
    }

    fn spawn(start: &Start) -> io::Result<Process> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(LOOK))?;
        let mut command = Command::new(this_program()?);
        command
            .args(&start.arguments)
            .env(WORKER, "1")
            // A run gives its memory back at its end. In huge pages, far more would be cleared anew for the next one than
            // it needs; programs with another allocator do not care.
            .env("MIMALLOC_ALLOW_THP", "0")
            .stdin(OwnedFd::from(theirs))
            .stderr(Stdio::piped())
            // A signal from the terminal is for the parent, which then ends its workers.
            .process_group(0);
        command.stdout(match start.aloud {
            // Results are on stdout, and what the program under test says is none.
            true => Stdio::from(io::stderr().as_fd().try_clone_to_owned()?),
            false => Stdio::null(),
        });
        let mut child = command.spawn()?;
        // The command holds the worker's end of the socket: with it, no end would ever be seen here.
        drop(command);
        let said = Said::default();
        if let Some(stderr) = child.stderr.take() {
            let (said, aloud) = (said.clone(), start.aloud);
            std::thread::spawn(move || said.listen(stderr, aloud));
        }
        Ok(Process {
            child,
            socket: BufReader::new(ours),
            said,
            aloud: start.aloud,
            runs: 0,
        })
    }

    fn ask(
        &mut self,
        job: &Job,
        wall_max: Duration,
        stop: &Stop,
    ) -> Result<Result<Report, Anomaly>, Halt> {
        self.said.forget();
        self.runs += 1;
        let job = serde_json::to_string(job).expect("plain data");
        let answered = match self.write(&job) {
            Ok(()) => self.line(wall_max, stop),
            Err(_) => Ok(Line::End),
        };
        match answered {
            Ok(Line::Said(line)) => match serde_json::from_str(&line) {
                Ok(report) => Ok(Ok(report)),
                Err(error) => Err(Halt::Unable(format!("a report is not to be read: {error}"))),
            },
            Ok(Line::Stopped) => Err(Halt::Stopped),
            Ok(Line::Late) => Ok(Err(Anomaly {
                kind: Kind::Hung,
                claim: String::new(),
                what: format!("no end after {} s of wall time", wall_max.as_secs_f64()),
                why: vec!["its process was killed; its trace has no end".into()],
            })),
            Ok(Line::End) | Err(_) => Ok(Err(self.died())),
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let socket = self.socket.get_mut();
        socket.write_all(format!("{line}\n").as_bytes())
    }

    fn line(&mut self, within: Duration, stop: &Stop) -> io::Result<Line> {
        let begun = Instant::now();
        let mut bytes = Vec::new();
        loop {
            match self.socket.read_until(b'\n', &mut bytes) {
                Ok(_) if bytes.pop() == Some(b'\n') => {
                    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
                    return Ok(Line::Said(text));
                }
                Ok(_) => return Ok(Line::End),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
            if stop.is_now() {
                return Ok(Line::Stopped);
            }
            if begun.elapsed() >= within {
                return Ok(Line::Late);
            }
        }
    }

    /// How the process has died, as far as it can be known.
    fn died(&mut self) -> Anomaly {
        self.said.wait();
        // A process that is about to end, or has ended, keeps its status; one that has closed its socket and goes on
        // is ended.
        let _ = self.child.kill();
        let status = self.child.wait().ok();
        let lines = self.said.lines();
        let says = |text: &str| lines.iter().any(|line| line.contains(text));
        // The standard library says these two, and then aborts.
        let overflowed = says("has overflowed its stack");
        let exhausted = says("memory allocation of ") && says(" bytes failed");
        let (kind, claim, what) = match status {
            _ if exhausted => (
                Kind::Exhausted,
                String::new(),
                "the program asked for more memory than a run may have".into(),
            ),
            _ if overflowed => (
                Kind::Aborted,
                "stack overflow".into(),
                "the program's stack overflowed".into(),
            ),
            Some(status) => of_status(status),
            None => (
                Kind::Aborted,
                String::new(),
                "the worker's process is gone".into(),
            ),
        };
        Anomaly {
            kind,
            claim,
            what,
            why: lines,
        }
    }
}

fn of_status(status: ExitStatus) -> (Kind, String, String) {
    match (status.code(), status.signal()) {
        (Some(code), _) => (
            Kind::Exited,
            format!("exit {code}"),
            format!("the program ended its process, with exit code {code}"),
        ),
        (None, signal) => {
            let signal = signal.unwrap_or(0);
            let text = format!("the process died of signal {signal}");
            (Kind::Aborted, format!("signal {signal}"), text)
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.aloud {
            // Whoever looks at it sees all that it has said, and this process may end next.
            self.said.wait();
        }
    }
}

/// This program as it was started, although its file may have been built anew since.
fn this_program() -> io::Result<PathBuf> {
    let running = Path::new("/proc/self/exe");
    match running.exists() {
        true => Ok(running.to_owned()),
        false => std::env::current_exe(),
    }
}

/// What a worker has said on stderr during the run: the last lines of it.
#[derive(Clone, Default)]
struct Said(Arc<Heard>);

#[derive(Default)]
struct Heard {
    lines: Mutex<Lines>,
    ended: Condvar,
}

#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    over: bool,
}

/// How many lines are kept, and how long one may be.
const LINES_MAX: usize = 8;
const LINE_BYTES_MAX: u64 = 400;
/// How long the end of a process that has closed its socket is waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Said {
    fn listen(&self, stderr: impl Read, aloud: bool) {
        let mut stderr = BufReader::new(stderr);
        loop {
            let mut line = Vec::new();
            let read = (&mut stderr)
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line);
            if !matches!(read, Ok(count) if count > 0) {
                break;
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if aloud {
                eprintln!("{line}");
            }
            let mut lines = self.0.lines.lock().expect("lines");
            if lines.last.len() == LINES_MAX {
                lines.last.pop_front();
            }
            lines.last.extend((!line.is_empty()).then_some(line));
        }
        self.0.lines.lock().expect("lines").over = true;
        self.0.ended.notify_all();
    }

    /// Waits for the end of what a process says that ends or has ended, which something that it has started may delay.
    fn wait(&self) {
        let lines = self.0.lines.lock().expect("lines");
        let waited = self
            .0
            .ended
            .wait_timeout_while(lines, LAST_WORDS, |lines| !lines.over);
        drop(waited.expect("lines"));
    }

    fn forget(&self) {
        self.0.lines.lock().expect("lines").last.clear();
    }

    fn lines(&self) -> Vec<String> {
        self.0
            .lines
            .lock()
            .expect("lines")
            .last
            .iter()
            .cloned()
            .collect()
    }
}
