//! `broker`: the log on real disks and sockets.

use super::{signals::Signals, BadInput, BrokerArguments};
use engine::{
    host::{
        real::{RealClock, RealDisk, RealEntropy, RealNet},
        Host,
    },
    ids::BrokerId,
    log::{
        broker::{Broker, BrokerConfig, BrokerError, STOPPED_FILE},
        LogError,
    },
};
use futures::FutureExt;
use object_store::memory::InMemory;
use std::{io, path::Path, sync::Arc, time::Duration};

pub(super) fn broker(arguments: &BrokerArguments) -> Result<u8, BadInput> {
    prepare_process();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(BadInput::new)?;
    runtime.block_on(run(arguments))
}

/// Before anything of the engine runs.
pub(super) fn prepare_process() {
    // What goes wrong, with time and place; results alone go to stdout.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    // A broker that may have few connections is still a broker.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
}

async fn run(arguments: &BrokerArguments) -> Result<u8, BadInput> {
    let dir = arguments.dir.display();
    let wrong = |error: io::Error| BadInput::new(format!("{dir}: {error}"));
    check_address(&arguments.listen)?;
    let disk = RealDisk::new(&arguments.dir).map_err(wrong)?;
    let disk = disk.with_open_max(files_open_max());
    let lock = disk.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => BadInput::new(format!(
            "{dir} is in use by another broker; stop that one, or give this one a folder of its own"
        )),
        _ => wrong(error),
    })?;
    let clock = Arc::new(RealClock);
    let host = Host {
        instance: instance(&*clock).into(),
        disk: Arc::new(disk),
        net: Arc::new(RealNet),
        clock,
        entropy: Arc::new(RealEntropy),
        // The log keeps nothing in objects.
        objects: Arc::new(InMemory::new()),
    };
    let config = BrokerConfig {
        segment_bytes: arguments.segment_bytes,
        retention_bytes: arguments.retention_bytes,
        retention: Some(Duration::from_secs(arguments.retention_hours * 3600)),
        auto_create_topics: arguments.auto_create_topics,
        coordinators: COORDINATORS,
        without: arguments.without.clone(),
        connections_max: connections_max(),
        ..BrokerConfig::new(BrokerId(0), vec![arguments.listen.clone()])
    };
    let bound = Broker::bind(host, config).await;
    let bound = bound.map_err(|error| match error {
        BrokerError::Io(error) if error.kind() == io::ErrorKind::AddrInUse => {
            BadInput::new(format!(
                "--listen {}: another program has this port; stop it, or listen on another one",
                arguments.listen
            ))
        }
        BrokerError::Io(error) => BadInput::new(format!(
            "--listen {}, --dir {dir}: {error}",
            arguments.listen
        )),
        error => BadInput::new(explain(&error, &arguments.dir)),
    })?;
    // Whoever reads that line may stop it at once.
    let mut signals = Signals::new()?;
    anstream::println!(
        "listening on {}, keeping {dir}; ctrl-C stops it",
        bound.address()
    );
    let ended = bound.run_until(signals.next().map(drop)).await;
    drop(lock);
    match ended {
        Ok(()) => {
            anstream::println!("stopped; everything that was acknowledged is on the disk");
            Ok(0)
        }
        Err(error) => Err(BadInput::new(explain(&error, &arguments.dir))),
    }
}

/// For calls of the file system: each takes memory, and no disk does more at a time.
const BLOCKING_THREADS: usize = 64;

/// A quarter of the files that the process may have open: the others are for connections, and for what is opened for
/// a moment.
fn files_open_max() -> usize {
    let allowed = rlimit::Resource::NOFILE.get_soft().unwrap_or(256);
    (allowed / 4).clamp(16, 8192) as usize
}

/// Five eighths of them: the log keeps its quarter, and an eighth is for what is opened for a moment.
fn connections_max() -> usize {
    let allowed = rlimit::Resource::NOFILE.get_soft().unwrap_or(256);
    (allowed / 8).saturating_mul(5).clamp(16, 1 << 20) as usize
}

/// Partitions of the coordinators' topics: what is known of groups and transactional ids is spread over them.
const COORDINATORS: i32 = 4;

/// What ended the broker, and what to do now.
pub(super) fn explain(error: &BrokerError, dir: &Path) -> String {
    let BrokerError::Log(damage) = error else {
        return format!("{}: {error}", dir.display());
    };
    let what_to_do = match &**damage {
        LogError::Io { .. } | LogError::Unchanged { .. } => return format!("{}: {error}", dir.display()),
        LogError::DamagedFile { path, .. } if path == STOPPED_FILE => {
            "Bring the file back from a copy; or remove it: the broker then starts as after a crash, and takes \
             what is cut off the end of a partition for what was never acknowledged."
        }
        LogError::Damaged { path, .. } | LogError::Missing { path, .. } if path.contains('/') => {
            "What is before it is whole. Bring the file back from a copy; or, to go on without what the partition \
             holds, move its folder away and start once with `--without` and its name."
        }
        _ => "Bring the file back from a copy; or begin anew in another folder.",
    };
    format!(
        "{error}\n  in {}. Nothing was changed, and nothing is guessed. {what_to_do}",
        dir.display()
    )
}

/// A name that no other process has or had.
pub(super) fn instance(clock: &dyn engine::host::Clock) -> String {
    format!("process-{}-{}", std::process::id(), clock.now_ms())
}

fn check_address(listen: &str) -> Result<(), BadInput> {
    let port = listen
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    match port {
        Some((host, Ok(_))) if !host.is_empty() => Ok(()),
        _ => Err(BadInput::new(format!(
            "--listen: `{listen}` is not HOST:PORT; 127.0.0.1:9092 would be"
        ))),
    }
}
