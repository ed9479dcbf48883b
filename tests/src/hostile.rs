//! A broker among hostile peers: it answers those who mean well within a second, loses nothing of theirs, and keeps
//! to 512 MB, whatever the others send, or do not read. A program of its own: how long an answer takes is measured, and
//! nothing else runs beside it.
//!
//! Half a minute by default; `SEEDBED_HOSTILE_SECONDS` says how long instead.

#![cfg(any(not(madsim), feature = "kafka-clients"))]

/// Processes that a test starts.
#[expect(dead_code, reason = "other tests do more with them")]
mod running;

/// Stock clients.
#[cfg(feature = "kafka-clients")]
#[expect(dead_code, reason = "other tests do more with them")]
mod stock;

/// The hostile, and somebody who means well.
mod siege;

use siege::{judge, lasts, lay_out, mean_well, Siege};

/// A client that means well produces and reads beside all of them.
#[cfg(not(madsim))]
#[test]
fn a_good_client_is_served_beside_hostile_ones() {
    use running::Running;
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };

    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed-under-test"));
    command.args(["broker", "--listen", "127.0.0.1:0", "--dir"]);
    command.arg(dir.path()).stdout(Stdio::piped());
    let mut broker = Running::start(&mut command);
    let mut line = String::new();
    let said = broker.0.stdout.as_mut().unwrap();
    BufReader::new(said).read_line(&mut line).unwrap();
    let address = line.split([' ', ',']).nth(2).unwrap_or_default().to_owned();
    assert!(line.starts_with("listening on"), "{line}");

    lay_out(&address);
    let siege = Siege::begin(&address);
    let served = mean_well(&address, |since| since >= lasts());
    judge(broker.0.id(), served);
    siege.end();
}

/// Stock clients consume, transform and produce in transactions beside all of them; each record is there once.
#[cfg(feature = "kafka-clients")]
#[test]
fn stock_clients_lose_nothing_beside_hostile_ones() {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::Instant,
    };
    use stock::{Broker, Client};

    let broker = Broker::start();
    let at = broker.address.clone();
    lay_out(&at);
    let siege = Siege::begin(&at);
    let done = AtomicBool::new(false);
    let (served, rounds) = thread::scope(|scope| {
        let good = scope.spawn(|| mean_well(&at, |_| done.load(Ordering::Relaxed)));
        let (begun, mut rounds) = (Instant::now(), 0);
        while rounds == 0 || begun.elapsed() < lasts() {
            for client in [Client::Librdkafka, Client::Java] {
                let name = format!("beside-{rounds}");
                for mode in ["seed", "work", "verify"] {
                    client.run(mode, &at, &name, 300);
                }
                rounds += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
        (good.join().expect("it is served"), rounds)
    });
    println!("{rounds} rounds of stock clients");
    judge(broker.process.as_ref().expect("it runs").0.id(), served);
    siege.end();
}
