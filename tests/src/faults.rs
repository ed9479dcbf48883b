//! The world does to a program what its fault model says: each test is a program, a plan with one or two
//! faults, and what the program must have seen.

use async_trait::async_trait;
use futures::future::LocalBoxFuture;
use sim::{
    run, Amount, DiskOp, Fault, Findings, Host, Kind, Ledger, Limits, Plan, Promise, Report,
    Scenario, Seed, Shape, Trigger, Verdict, What, Workload, World,
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
