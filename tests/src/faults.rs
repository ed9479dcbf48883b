//! The world does to a program what its fault model says: each test is a program, a plan with one or two
//! faults, and what the program must have seen.

use async_trait::async_trait;
use futures::future::LocalBoxFuture;
use sim::{
    run, Amount, DiskOp, Fault, Findings, Host, Kind, Ledger, Limits, Named, Plan, Promise, Report,
    Scenario, Seed, Shape, Spot, Then, Trigger, Verdict, What, Workload, World,
};
use std::{
    future::Future,
    io::ErrorKind,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout, Instant},
};

/// What the programs have seen, in order.
type Seen = Arc<Mutex<Vec<String>>>;
type Program = Arc<dyn Fn(Host, Seen) -> LocalBoxFuture<'static, ()> + Send + Sync>;

struct Scene {
    a: Program,
    b: Program,
    seen: Seen,
}

impl Workload for Scene {
    fn name(&self) -> &str {
        "scene"
    }

    fn shape(&self) -> Shape {
        Shape::new()
            .durable("a", &["b"])
            .durable("b", &["a"])
            .faults_for(30_000)
    }

    fn build(&self, world: &World, _: &Plan) -> Box<dyn Scenario> {
        for (name, program) in [("a", &self.a), ("b", &self.b)] {
            let (program, seen) = (program.clone(), self.seen.clone());
            world.node(name, move |host| {
                let (program, seen) = (program.clone(), seen.clone());
                async move {
                    program(host, seen).await;
                    std::future::pending().await
                }
            });
        }
        Box::new(Over)
    }
}

struct Over;

#[async_trait(?Send)]
impl Scenario for Over {
    fn is_fed(&self) -> bool {
        true
    }

    async fn waits_for(&mut self) -> Vec<String> {
        sleep(Duration::from_secs(30)).await;
        Vec::new()
    }

    async fn judge(&mut self) -> Findings {
        let mut ledger = Ledger::new("scene", Promise::exactly_once());
        ledger.must("over", Amount::default());
        ledger.saw("over", Amount::default());
        Findings {
            ledgers: vec![ledger],
            commits: 1,
            ..Findings::default()
        }
    }
}

fn program<F: Future<Output = ()> + 'static>(
    main: impl Fn(Host, Seen) -> F + Send + Sync + 'static,
) -> Program {
    Arc::new(move |host, seen| Box::pin(main(host, seen)))
}

fn idle() -> Program {
    program(|_, _| async {})
}

fn say(seen: &Seen, text: impl Into<String>) {
    seen.lock().unwrap().push(text.into());
}

fn play(a: Program, b: Program, faults: &[(Trigger, What)]) -> (Vec<String>, Report) {
    let seen = Seen::default();
    let scene: Arc<dyn Workload> = Arc::new(Scene {
        a,
        b,
        seen: seen.clone(),
    });
    let mut plan = run::draw(&*scene, Seed(4));
    plan.network.tail_per_mille = 0;
    plan.faults = (faults.iter().cloned())
        .map(|(at, what)| Fault { at, what })
        .collect();
    let report = run(&scene, &plan, &Limits::default());
    let seen = seen.lock().unwrap().clone();
    (seen, report)
}

/// Echoes bytes for ever.
fn echo() -> Program {
    program(|host, _| async move {
        let listener = host.listen(7).unwrap();
        while let Ok((mut stream, _)) = listener.accept().await {
            while let Ok(byte) = stream.read_u8().await {
                if stream.write_u8(byte).await.is_err() {
                    break;
                }
            }
        }
    })
}

async fn ask(host: &Host, limit: Duration) -> String {
    let asked = async {
        let mut stream = host.connect("b:7").await?;
        stream.write_u8(1).await?;
        stream.read_u8().await
    };
    match timeout(limit, asked).await {
        Err(_) => "timeout".into(),
        Ok(Err(error)) => format!("{:?}", error.kind()),
        Ok(Ok(_)) => "ok".into(),
    }
}

/// Asks once, at the start of the program's first incarnation.
fn ask_once(limit_ms: u64) -> Program {
    program(move |host, seen| async move {
        sleep(Duration::from_millis(100)).await;
        say(&seen, ask(&host, Duration::from_millis(limit_ms)).await);
    })
}

fn names(a: &str, b: &str) -> (String, String) {
    (a.into(), b.into())
}

#[test]
fn a_crash_at_a_step_is_exact() {
    // Each number is written in a step of its own: 1 is the open, 2 to 11 the writes.
    let a = program(|host, seen| async move {
        let file = host.disk().open("f").await.unwrap();
        if host.incarnation() > 0 {
            say(
                &seen,
                format!("{:?}", file.read_at(0, 99).await.unwrap().as_ref()),
            );
            return;
        }
        for number in 0..10 {
            file.write_at(u64::from(number), &[number]).await.unwrap();
        }
    });
    for step in 2..12 {
        let at = Trigger::Step {
            node: "a".into(),
            n: step,
        };
        let what = What::Crash {
            node: "a".into(),
            down: 100,
        };
        let (seen, _) = play(a.clone(), idle(), &[(at, what)]);
        let written: Vec<u8> = (0..step as u8 - 2).collect();
        assert_eq!(
            seen,
            [format!("{written:?}")],
            "a crash keeps the page cache"
        );
    }
}

#[test]
fn a_crash_resets_and_a_power_loss_is_silent() {
    let (seen, report) = play(ask_once(9000), echo(), &[]);
    assert_eq!((seen[0].as_str(), report.verdict), ("ok", Verdict::Clean));
    let at = || Trigger::Step {
        node: "b".into(),
        n: 2,
    };
    let crash = What::Crash {
        node: "b".into(),
        down: 20_000,
    };
    let (seen, _) = play(ask_once(9000), echo(), &[(at(), crash)]);
    assert!(
        seen[0].contains("Reset") || seen[0] == "UnexpectedEof",
        "{seen:?}"
    );
    let power = What::PowerLoss {
        node: "b".into(),
        down: 20_000,
    };
    let (seen, report) = play(ask_once(9000), echo(), &[(at(), power)]);
    assert_eq!(seen, ["timeout"]);
    assert_eq!(report.counts["half-open"], 1);
}

#[test]
fn a_half_open_connection_is_reset_once_its_host_is_back() {
    let a = program(|host, seen| async move {
        let mut stream = host.connect("b:7").await.unwrap();
        for _ in 0..40 {
            sleep(Duration::from_millis(500)).await;
            if stream.write_u8(1).await.is_err() {
                return say(&seen, "write refused");
            }
            let answer = timeout(Duration::from_millis(100), stream.read_u8()).await;
            if let Ok(Err(error)) = answer {
                return say(&seen, format!("{:?}", error.kind()));
            }
        }
    });
    let power = What::PowerLoss {
        node: "b".into(),
        down: 5000,
    };
    let (seen, _) = play(a, echo(), &[(Trigger::Time(2000), power)]);
    assert!(
        seen[0] == "ConnectionReset" || seen[0] == "write refused",
        "{seen:?}"
    );
}

#[test]
fn a_cut_delays_and_a_lost_ack_delivers_and_resets() {
    let (from, to) = names("b", "a");
    let cut = What::Cut {
        from,
        to,
        both: false,
        lasts: 5000,
    };
    let at = || Trigger::Time(0);
    let (seen, _) = play(ask_once(3000), echo(), &[(at(), cut.clone())]);
    assert_eq!(seen, ["timeout"]);
    let (seen, _) = play(ask_once(9000), echo(), &[(at(), cut)]);
    assert_eq!(seen, ["ok"], "after the heal");
    let (client, server) = names("a", "b");
    let lost = What::LostAck { client, server };
    let b = program(|host, seen| async move {
        let listener = host.listen(7).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let byte = stream.read_u8().await.unwrap();
        say(&seen, format!("delivered {byte}"));
        let _ = stream.write_u8(byte).await;
        sleep(Duration::from_secs(1)).await;
    });
    let (seen, _) = play(ask_once(9000), b, &[(at(), lost)]);
    assert_eq!(seen, ["delivered 1", "ConnectionReset"]);
}

#[test]
fn held_bytes_arrive_after_their_own_retry() {
    let a = program(|host, _| async move {
        sleep(Duration::from_millis(100)).await;
        let mut first = host.connect("b:7").await.unwrap();
        sleep(Duration::from_millis(500)).await;
        first.write_all(b"1").await.unwrap();
        // Gives up, and tries again once the link passes bytes.
        drop(first);
        sleep(Duration::from_secs(3)).await;
        let mut second = host.connect("b:7").await.unwrap();
        second.write_all(b"2").await.unwrap();
        sleep(Duration::from_secs(10)).await;
    });
    let b = program(|host, seen| async move {
        let listener = host.listen(7).unwrap();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                while let Ok(byte) = stream.read_u8().await {
                    say(&seen, char::from(byte));
                }
            });
        }
    });
    let (from, to) = names("a", "b");
    let hold = What::Hold {
        from,
        to,
        lasts: 2000,
    };
    let (seen, _) = play(a, b, &[(Trigger::Time(300), hold)]);
    assert_eq!(
        seen,
        ["1", "2"],
        "the first was held, not lost, though its sender had closed"
    );
}

#[test]
fn a_connect_hangs_and_then_times_out() {
    let (from, to) = names("a", "b");
    let hang = What::ConnectHang {
        from,
        to,
        lasts: 25_000,
    };
    let (seen, _) = play(ask_once(30_000), echo(), &[(Trigger::Time(0), hang)]);
    assert_eq!(seen, ["TimedOut"], "as long as an operating system tries");
}

#[test]
fn a_paused_program_wakes_up_without_knowing() {
    let a = program(|_, seen| async move {
        for _ in 0..30 {
            let before = Instant::now();
            sleep(Duration::from_millis(100)).await;
            let late = before.elapsed() > Duration::from_secs(2);
            late.then(|| say(&seen, "late"));
        }
    });
    let pause = What::Pause {
        node: "a".into(),
        lasts: 3000,
    };
    let (seen, _) = play(a, idle(), &[(Trigger::Time(1000), pause)]);
    assert_eq!(seen, ["late"]);
}

#[test]
fn a_disk_fails_as_it_is_told() {
    let a = program(|host, seen| async move {
        let file = host.disk().open("f").await.unwrap();
        file.write_at(0, b"x").await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let kind = |result: std::io::Result<()>| result.map_err(|error| error.kind());
        say(&seen, format!("{:?}", kind(file.sync().await)));
        say(
            &seen,
            format!("{:?}", kind(file.read_at(0, 1).await.map(drop))),
        );
        say(&seen, format!("{:?}", kind(file.write_at(1, b"yz").await)));
        say(&seen, format!("{:?}", kind(file.write_at(0, b"X").await)));
    });
    let error = |op| What::DiskError {
        node: "a".into(),
        op,
        times: 1,
    };
    let full = What::NoSpace {
        node: "a".into(),
        lasts: 9000,
    };
    let at = || Trigger::Time(500);
    let faults = [
        (at(), error(DiskOp::Sync)),
        (at(), error(DiskOp::Read)),
        (at(), full),
    ];
    let (seen, _) = play(a, idle(), &faults);
    let full = format!("Err({:?})", ErrorKind::StorageFull);
    assert_eq!(seen, ["Err(Other)", "Err(Other)", full.as_str(), "Ok(())"]);
}

fn spot(file: &str, pick: u64) -> Spot {
    Spot {
        node: "a".into(),
        file: file.into(),
        pick,
    }
}

/// Writes two files that are durable and rest, one that was synced late, and one that never was; then a file that takes
/// the place of another, and one that is removed. Says what is there at the end.
fn keeper() -> Program {
    program(|host, seen| async move {
        let disk = host.disk();
        let open = async |path: &str, byte: u8, len: usize| {
            let file = disk.open(path).await.unwrap();
            file.write_at(0, &vec![byte; len]).await.unwrap();
            file
        };
        let one = open("one", 1, 5000).await;
        for file in [&one, &open("two", 2, 5000).await, &open("gone", 3, 9).await] {
            file.sync().await.unwrap();
        }
        open("new", 4, 9).await.sync().await.unwrap();
        open("old", 5, 9).await.sync().await.unwrap();
        disk.sync_dir("").await.unwrap();
        disk.rename("new", "old").await.unwrap();
        disk.remove("gone").await.unwrap();
        disk.sync_dir("").await.unwrap();
        sleep(Duration::from_secs(4)).await;
        let _dirty = open("dirty", 6, 9).await;
        open("late", 7, 9).await.sync().await.unwrap();
        disk.sync_dir("").await.unwrap();
        sleep(Duration::from_secs(2)).await;
        for path in disk.list("").await.unwrap() {
            let file = disk.open(&path).await.unwrap();
            let bytes = file.read_at(0, 9999).await.unwrap();
            let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
            say(&seen, format!("{path} {} {sum}", bytes.len()));
        }
        let open_before = one.read_at(0, 9999).await.unwrap();
        say(&seen, format!("open {}", open_before.len()));
    })
}

/// What the keeper says, with and without one piece of damage at five seconds.
fn kept(what: What) -> (Vec<String>, Vec<String>, Report) {
    let (whole, _) = play(keeper(), idle(), &[]);
    let (seen, report) = play(keeper(), idle(), &[(Trigger::Time(5000), what)]);
    (whole, seen, report)
}

#[test]
fn what_rests_is_damaged_and_nothing_else() {
    for pick in 0..40 {
        let (whole, seen, report) = kept(What::BitRot(spot("", pick)));
        let changed: Vec<_> = (whole.iter().zip(&seen)).filter(|(a, b)| a != b).collect();
        assert_eq!(changed.len(), 1, "one bit of one file: {seen:?}");
        let name = changed[0].0.split(' ').next().unwrap();
        assert!(["old", "one", "two"].contains(&name), "{name} rests");
        assert_eq!(report.counts["bit-rot"], 1);

        let (whole, seen, _) = kept(What::LostFile(spot("", pick)));
        assert_eq!(whole.len(), seen.len() + 1, "one is lost: {seen:?}");
        assert!(seen.iter().any(|line| line.starts_with("late")));
        assert_eq!(seen.last().unwrap(), "open 5000", "who has it open has it");

        let (whole, seen, report) = kept(What::Misdirected(spot("one", pick)));
        let others = |lines: &[String]| lines.iter().filter(|l| !l.starts_with("one")).count();
        assert_eq!(others(&whole), others(&seen));
        let is_other = whole != seen;
        assert_eq!(is_other, report.counts.contains_key("misdirected"));

        let (whole, seen, report) = kept(What::StaleFile(spot("", pick)));
        assert_ne!(whole, seen);
        let is_gone = |line: &String| line.starts_with("gone") || line.starts_with("new");
        let is_back = seen.iter().any(is_gone);
        let is_old = whole.len() == seen.len();
        assert!(is_back || is_old, "{seen:?}");
        assert_eq!(report.counts["stale-file"], 1);
    }
    for fresh in ["late", "dirty"] {
        let (whole, seen, report) = kept(What::BitRot(spot(fresh, 1)));
        assert_eq!(whole, seen, "{fresh} does not rest");
        assert!(!report.counts.contains_key("bit-rot"));
    }
}

#[test]
fn nothing_comes_to_rest_while_its_program_does_not_run() {
    let damages: [fn(Spot) -> What; 3] = [What::BitRot, What::LostFile, What::StaleFile];
    for damage in damages {
        for (crashed_ms, strikes) in [(500, false), (4500, true)] {
            let (node, down) = ("a".to_owned(), 3000);
            let faults = [
                (Trigger::Time(crashed_ms), What::Crash { node, down }),
                (Trigger::Time(crashed_ms + 2900), damage(spot("", 1))),
            ];
            let (_, report) = play(keeper(), idle(), &faults);
            let kind = damage(spot("", 1)).kind();
            let struck = report.counts.contains_key(kind);
            assert_eq!(struck, strikes, "{kind}, crashed at {crashed_ms} ms");
        }
    }
}

/// What a program says of its file once it is not what it was.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Nothing,
    /// It ends, and names its file.
    Refuses,
    /// It ends, and names another file.
    RefusesAnother,
    /// It goes on without what is there from the damaged byte on; that explains what it lacks.
    CutsOff,
    /// So it does, and something is twice that nothing explains.
    CutsOffAndRepeats,
    /// It goes on without what is after the damaged byte.
    CutsOffTooLate,
}

/// A program that reads its file again and again, and says something of it, or does not.
struct Reading(Says);

struct Reads(Says, Arc<Mutex<bool>>);

impl Workload for Reading {
    fn name(&self) -> &str {
        "reading"
    }

    fn shape(&self) -> Shape {
        Shape::new()
            .durable("a", &[])
            .faults_for(10_000)
            .detecting()
    }

    fn build(&self, world: &World, _: &Plan) -> Box<dyn Scenario> {
        let (says, seen_by) = (self.0, world.clone());
        let is_wrong = Arc::new(Mutex::new(false));
        let noted = is_wrong.clone();
        world.node("a", move |host| {
            let (seen_by, noted) = (seen_by.clone(), noted.clone());
            async move {
                let file = host.disk().open("f").await.unwrap();
                file.write_at(0, &[7; 64]).await.unwrap();
                file.sync().await.unwrap();
                host.disk().sync_dir("").await.unwrap();
                let at = loop {
                    sleep(Duration::from_millis(500)).await;
                    let bytes = file.read_at(0, 64).await.unwrap();
                    if let Some(at) = bytes.iter().position(|byte| *byte != 7) {
                        break at;
                    }
                };
                *noted.lock().unwrap() = true;
                let (path, then) = match says {
                    Says::Nothing => return,
                    Says::Refuses => ("f", Then::Refuses),
                    Says::RefusesAnother => ("g", Then::Refuses),
                    Says::CutsOff | Says::CutsOffAndRepeats => ("f", Then::CutsOff(at as u64)),
                    Says::CutsOffTooLate => ("f", Then::CutsOff(at as u64 + 1)),
                };
                let counts = seen_by.name_damage(Named {
                    node: "a".into(),
                    path: path.into(),
                    then,
                    what: format!("{path} is damaged at byte {at}"),
                });
                let is_another = matches!(says, Says::RefusesAnother | Says::CutsOffTooLate);
                assert_eq!(counts, !is_another, "{says:?}");
            }
        });
        Box::new(Reads(says, is_wrong))
    }
}

#[async_trait(?Send)]
impl Scenario for Reads {
    fn is_fed(&self) -> bool {
        true
    }

    async fn waits_for(&mut self) -> Vec<String> {
        Vec::new()
    }

    async fn judge(&mut self) -> Findings {
        let mut ledger = Ledger::new("the file", Promise::exactly_once());
        ledger.must("f", Amount::default());
        let is_wrong = *self.1.lock().unwrap();
        if !is_wrong {
            ledger.saw("f", Amount::default());
        }
        ledger.explain([Kind::Lost]);
        if is_wrong && self.0 == Says::CutsOffAndRepeats {
            ledger.found(Kind::Duplicated, "f is there twice");
        }
        Findings {
            ledgers: vec![ledger],
            commits: 1,
            ..Findings::default()
        }
    }
}

#[test]
fn damage_that_is_named_is_detected_and_what_it_does_not_explain_is_a_failure() {
    for (says, expected) in [
        (Says::Nothing, "lost"),
        (Says::Refuses, "detected"),
        (Says::RefusesAnother, "lost"),
        (Says::CutsOff, "detected"),
        (Says::CutsOffAndRepeats, "duplicated"),
        (Says::CutsOffTooLate, "lost"),
    ] {
        let workload: Arc<dyn Workload> = Arc::new(Reading(says));
        let mut plan = run::draw(&*workload, Seed(4));
        plan.faults.clear();
        let report = run(&workload, &plan, &Limits::default());
        assert_eq!(report.verdict, Verdict::Clean);
        plan.faults = vec![Fault {
            at: Trigger::Time(5000),
            what: What::BitRot(spot("", 3)),
        }];
        let verdict = run(&workload, &plan, &Limits::default()).verdict;
        assert_eq!(verdict.name(), expected, "{says:?}: {verdict:?}");
        if let Verdict::Detected(named) = verdict {
            assert!(named[0].starts_with("f is damaged at byte"), "{named:?}");
        }
    }
}

#[test]
fn a_program_that_never_waits_is_stuck_not_endless() {
    let a = program(|_, _| async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let (_, report) = play(a, idle(), &[]);
    let anomaly = report.verdict.anomaly().expect("it is found");
    assert_eq!(anomaly.kind, Kind::Stuck);
    assert!(anomaly.what.contains("poll budget"), "{}", anomaly.what);
}

#[test]
fn a_panic_is_a_verdict_with_its_place() {
    let a = program(|_, _| async { panic!("on purpose") });
    let (_, report) = play(a, idle(), &[]);
    let anomaly = report.verdict.anomaly().expect("it is found");
    assert_eq!(anomaly.kind, Kind::Panicked);
    assert!(
        anomaly.what.contains("on purpose at tests/src/faults.rs"),
        "{}",
        anomaly.what
    );
}
