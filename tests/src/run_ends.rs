//! How `cargo live run` ends: with a whole, counted table and exit code 0, or with what is missing; stopped, it says how to
//! go on; and it knows its input.

#![expect(
    clippy::disallowed_methods,
    reason = "processes are watched on a real clock"
)]

use crate::real_broker::{on_a_runtime, Broker};
use engine::{
    ids::PartitionId,
    log::{
        producer::{Producer, ProducerConfig},
        TopicPartition,
    },
    record::NewRecord,
};
use std::{
    fs,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use workloads::revenue::{sample::events, SUMS};

/// A folder with a file of events, and a run in it.
struct Stand {
    folder: TempDir,
    sink: &'static str,
    /// Over these brokers, if not over its own.
    brokers: Option<String>,
}

/// A run, which does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Kills it with -9, in the middle.
    fn kill(&mut self) {
        assert!(self.is_running(), "it has ended before it was killed");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn signal(&self, signal: &str) {
        let id = self.0.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }
}

/// How a run has ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    table: String,
    said: String,
}

impl Stand {
    fn new(sink: &'static str, count: u64) -> Stand {
        let folder = tempfile::tempdir().unwrap();
        let brokers = None;
        let stand = Stand {
            folder,
            sink,
            brokers,
        };
        stand.write(&stand.input(), 0, count);
        stand
    }

    fn input(&self) -> PathBuf {
        self.folder.path().join("events.jsonl")
    }

    /// A file in the run's folder.
    fn kept(&self, path: &str) -> PathBuf {
        self.folder.path().join("run").join(path)
    }

    /// Adds events to a file: from the `from`-th on, so many.
    fn write(&self, path: &Path, from: u64, count: u64) {
        let file = fs::OpenOptions::new().create(true).append(true).open(path);
        let mut file = BufWriter::new(file.unwrap());
        for event in events(from + count).skip(from as usize) {
            file.write_all(&event.to_bytes()).unwrap();
            file.write_all(b"\n").unwrap();
        }
        file.flush().unwrap();
    }

    fn command(&self, input: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed-under-test"));
        command.arg("run").arg("--input").arg(input).arg("--dir");
        command.arg(self.folder.path().join("run"));
        command.args(["--json", "--checkpoint-ms", "150", "--sink", self.sink]);
        if let Some(brokers) = &self.brokers {
            command.args(["--brokers", brokers]);
        }
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self) -> Process {
        self.start_on(&self.input())
    }

    fn start_on(&self, input: &Path) -> Process {
        Process(self.command(input).spawn().unwrap())
    }

    fn run_on(&self, input: &Path) -> Ended {
        ended(self.start_on(input))
    }

    /// The entries of the job's manifest log.
    fn manifests(&self) -> Vec<PathBuf> {
        files(&self.kept("objects"), "/manifest/")
    }

    fn run(&self) -> Ended {
        self.run_on(&self.input())
    }

    /// The table that the oracle-checked run of a fresh folder prints for the same file.
    fn expected(&self) -> String {
        let fresh = Stand {
            folder: tempfile::tempdir().unwrap(),
            sink: self.sink,
            brokers: None,
        };
        fs::copy(self.input(), fresh.input()).unwrap();
        let ended = fresh.run();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.table
    }

    /// It ends with this code, no table, and all of these words.
    fn refuses(&self, ended: &Ended, code: i32, words: &[&str]) {
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert_eq!(ended.table, "", "{ended:?}");
        assert!(!ended.said.contains("panicked"), "{ended:?}");
        for word in words {
            assert!(ended.said.contains(word), "no `{word}` in {}", ended.said);
        }
    }
}

/// A run that takes longer does not end.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for a process.
fn ended(mut process: Process) -> Ended {
    let (mut stdout, mut stderr) = (process.0.stdout.take(), process.0.stderr.take());
    let reading = std::thread::spawn(move || {
        let mut table = String::new();
        stdout.as_mut().map(|out| out.read_to_string(&mut table));
        table
    });
    let hearing = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.as_mut().map(|err| err.read_to_string(&mut said));
        said
    });
    let begun = Instant::now();
    let code = loop {
        if let Some(status) = process.0.try_wait().unwrap() {
            break status.code();
        }
        if begun.elapsed() > PATIENCE {
            drop(process);
            panic!("no end within {PATIENCE:?}: {}", hearing.join().unwrap());
        }
        sleep(Duration::from_millis(10));
    };
    Ended {
        code,
        table: reading.join().unwrap(),
        said: hearing.join().unwrap(),
    }
}

/// The ports on which a process listens.
#[cfg(target_os = "linux")]
fn ports(process: &Process) -> Vec<u16> {
    let of = |path: &str| format!("/proc/{}/{path}", process.0.id());
    let Ok(descriptors) = fs::read_dir(of("fd")) else {
        return Vec::new();
    };
    let sockets: Vec<String> = descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    let table = fs::read_to_string(of("net/tcp")).unwrap_or_default();
    let listening = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_listening = fields[3] == "0A";
        let is_its = sockets.contains(&format!("socket:[{}]", fields[9]));
        let port = fields[1].rsplit(':').next()?;
        (is_listening && is_its).then(|| u16::from_str_radix(port, 16).ok())?
    });
    listening.collect()
}

#[cfg(target_os = "linux")]
#[test]
fn whoever_has_no_token_stops_nothing() {
    let stand = Stand::new("transactional", 150_000);
    let mut process = stand.start();
    // A `Stop`, a `Hello`, a `Dial`, and what is none of them, as they were before there was a token.
    let told: [&[u8]; 5] = [
        &[0, 0, 0, 1, 1],
        &[0, 0, 0, 4, 0, 1, b'w', 0],
        &[0, 0, 0, 2, 0, 0],
        &[0x7f, 0xff, 0xff, 0xff, 0],
        b"GET / HTTP/1.1\r\n\r\n",
    ];
    let (mut sent, mut open) = (0, Vec::new());
    while process.is_running() {
        for port in ports(&process) {
            for bytes in told {
                if let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) {
                    let _ = connection.write_all(bytes);
                    sent += 1;
                    open.push(connection);
                }
            }
        }
        open.drain(..open.len().saturating_sub(200));
        sleep(Duration::from_millis(20));
    }
    assert!(sent > 100, "only {sent} were sent");
    let ended = ended(process);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.table, stand.expected());
}

#[test]
fn a_file_that_has_grown_is_fed_further_and_another_one_is_refused() {
    for sink in ["transactional", "idempotent", "objects"] {
        let stand = Stand::new(sink, 3_000);
        let first = stand.run();
        assert_eq!(first.code, Some(0), "{first:?}");
        let again = stand.run();
        assert_eq!((again.code, &again.table), (Some(0), &first.table));
        // Elsewhere, it is still the same file.
        let moved = stand.folder.path().join("moved.jsonl");
        fs::rename(stand.input(), &moved).unwrap();
        assert_eq!(stand.run_on(&moved).table, first.table);
        let other = stand.folder.path().join("other.jsonl");
        stand.write(&other, 1, 5_000);
        let said = stand.run_on(&other);
        stand.refuses(&said, 2, &["other.jsonl", "are not those that were fed"]);
        let shorter = stand.folder.path().join("shorter.jsonl");
        stand.write(&shorter, 0, 2_000);
        let said = stand.run_on(&shorter);
        stand.refuses(
            &said,
            2,
            &["shorter.jsonl", "bytes, and", "a folder of its own"],
        );
        fs::rename(&moved, stand.input()).unwrap();
        for grown in [1, 2] {
            stand.write(&stand.input(), grown * 3_000, 3_000);
            // Killed on the way, as soon as the job goes on or a step later, it goes on nevertheless.
            let reached = stand.manifests().len() + grown as usize;
            let mut killed = stand.start();
            while stand.manifests().len() < reached {
                assert!(killed.is_running(), "the job does not go on");
                sleep(Duration::from_millis(1));
            }
            killed.kill();
            let ended = stand.run();
            assert_eq!(ended.code, Some(0), "{ended:?}");
            assert_eq!(ended.table, stand.expected(), "{sink}");
        }
    }
}

#[test]
fn what_cannot_be_read_twice_is_no_input() {
    let stand = Stand::new("transactional", 10);
    for path in ["/dev/stdin", "/proc/self/fd/0"] {
        let said = stand.run_on(Path::new(path));
        stand.refuses(
            &said,
            2,
            &[path, "cannot be read twice", "a file that stays"],
        );
    }
    let said = stand.run_on(stand.folder.path());
    stand.refuses(&said, 2, &["it is a folder"]);
    let pipe = stand.folder.path().join("pipe");
    assert!(Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap()
        .success());
    let said = stand.run_on(&pipe);
    stand.refuses(&said, 2, &["cannot be read twice"]);
}

/// The files below a folder whose paths contain `part`, in order.
fn files(folder: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.display().to_string().contains(part) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_missing_is_named_and_no_table_is_printed() {
    let transactional = Stand::new("transactional", 3_000);
    let objects = Stand::new("objects", 3_000);
    for stand in [&transactional, &objects] {
        let first = stand.run();
        assert_eq!(first.code, Some(0), "{first:?}");
        let away = stand.folder.path().join("away");
        // While it is away, each of these is missed; then everything is as it was.
        let missed = |kept: PathBuf, code: i32, words: &[&str]| {
            fs::rename(&kept, &away).unwrap();
            let said = stand.run();
            stand.refuses(&said, code, words);
            if kept.exists() {
                fs::remove_dir_all(&kept).unwrap();
            }
            fs::rename(&away, &kept).unwrap();
        };
        let manifests = stand.manifests();
        let second = manifests[1].clone();
        missed(
            second,
            2,
            &["manifest/00000000000000000001 is damaged: it is missing"],
        );
        missed(
            stand.kept("objects"),
            2,
            &["the job is not there", "3000 lines were fed"],
        );
        let identity = stand.kept("objects/jobs/revenue/identity");
        missed(identity, 2, &["the job is not there"]);
        if stand.sink == "objects" {
            let output = files(&stand.kept("objects"), "/output/");
            let name = output[0].file_name().unwrap().to_str().unwrap();
            missed(output[0].clone(), 2, &[name, "it is not there"]);
        }
        let again = stand.run();
        assert_eq!(
            (again.code, again.table),
            (Some(0), first.table),
            "{}",
            again.said
        );
    }
    // A job that has forgotten its newest checkpoints writes rows again that are there.
    let manifests = transactional.manifests();
    let has_rows = |path: &&PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        text.contains("\"complete\"") && text.contains("\"transaction\": {")
    };
    let newest = manifests.iter().rposition(|path| has_rows(&path)).unwrap();
    for path in &manifests[newest..] {
        fs::remove_file(path).unwrap();
    }
    let said = transactional.run();
    transactional.refuses(&said, 1, &["rows are there", "exactly-once is broken"]);
}

#[test]
fn a_row_that_nobody_has_prepared_is_a_broken_claim() {
    let logs = tempfile::tempdir().unwrap();
    let broker = Broker::start(logs.path(), "127.0.0.1:0");
    let mut stand = Stand::new("transactional", 3_000);
    stand.brokers = Some(broker.address.clone());
    let first = stand.run();
    assert_eq!(first.code, Some(0), "{first:?}");
    let row = first.table.lines().next().unwrap().to_owned();
    let cluster = broker.cluster(&logs);
    on_a_runtime(async move {
        let producer = Producer::new(cluster, ProducerConfig::default()).await;
        let record = NewRecord {
            value: Some(row.into()),
            ..NewRecord::default()
        };
        let to = TopicPartition::new(SUMS, PartitionId(0));
        producer.send(&to, record).await.await.unwrap();
    });
    let said = stand.run();
    stand.refuses(
        &said,
        1,
        &["rows are there", "exactly-once is broken", "No table"],
    );
}

#[test]
fn the_end_of_a_line_that_was_fed_is_noted_once() {
    let stand = Stand::new("objects", 300);
    let whole = fs::read(stand.input()).unwrap();
    fs::write(stand.input(), whole.strip_suffix(b"\n").unwrap()).unwrap();
    let first = stand.run();
    assert_eq!(first.code, Some(0), "{first:?}");
    fs::write(stand.input(), whole).unwrap();
    let ended = stand.run();
    assert_eq!((ended.code, ended.table), (Some(0), first.table));
    let manifests = stand.manifests();
    let again = stand.run();
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(stand.manifests(), manifests, "nothing was left to do");
}

#[test]
fn told_to_stop_before_its_brokers_answer_it_ends() {
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stand = Stand::new("transactional", 10);
        stand.brokers = Some(mute.local_addr().unwrap().to_string());
        let process = stand.start();
        let asked = mute.accept().unwrap();
        process.signal(signal);
        let told = Instant::now();
        let said = ended(process);
        drop(asked);
        stand.refuses(&said, code, &["before anything was fed or read"]);
        assert!(told.elapsed() < Duration::from_secs(10), "{said:?}");
    }
}

#[test]
fn told_to_stop_it_ends_behind_a_savepoint_and_says_how_to_go_on() {
    let stand = Stand::new("transactional", 400_000);
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let mut process = stand.start();
        // Piped, it says every few seconds how far it is.
        let mut stderr = BufReader::new(process.0.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("of 400000 events in the log; "), "{line}");
        process.signal(signal);
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        let ended = ended(process);
        assert_eq!((ended.code, &*ended.table), (Some(code), ""), "{said}");
        assert!(said.contains("stopped behind savepoint"), "{said}");
        assert!(
            said.contains("the same command goes on from there"),
            "{said}"
        );
    }
    let ended = stand.run();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.table, stand.expected());
}
