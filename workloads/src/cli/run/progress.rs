//! What a run shows while it works: a bar on a terminal, a line every few seconds elsewhere.

use crate::revenue::feed::Progress;
use engine::checkpoint::{Entry, Store};
use indicatif::{ProgressBar, ProgressStyle};
use std::{convert::Infallible, io::IsTerminal, sync::atomic::Ordering, time::Duration};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Looks between two lines, where there is no terminal.
const LOOKS_A_LINE: u32 = 8;

/// Shows on stderr how far feed and job are, until it is dropped.
pub(super) async fn show(fed: &Progress, lines: u64, store: &Store) -> Infallible {
    let bar = Bar(ProgressBar::new(lines));
    let style = "{bar:30} {human_pos}/{human_len} events in the log, {per_sec}; {msg}";
    bar.0
        .set_style(ProgressStyle::with_template(style).expect("a right template"));
    bar.0.enable_steady_tick(Duration::from_millis(200));
    let is_terminal = std::io::stderr().is_terminal();
    let mut job = "no checkpoint yet".to_owned();
    for look in 1u32.. {
        let fed = fed.load(Ordering::Relaxed);
        bar.0.set_position(fed);
        if let Ok(Some((_, Entry::Complete(manifest)))) = store.newest().await {
            let read: i64 = manifest.positions().values().map(|at| at.0).sum();
            job = format!("checkpoint {}, {read} read", manifest.checkpoint);
            bar.0.set_message(job.clone());
        }
        if !is_terminal && look % LOOKS_A_LINE == 2 {
            anstream::eprintln!("{fed} of {lines} events in the log; {job}");
        }
        tokio::time::sleep(LOOK).await;
    }
    unreachable!("it looks for ever")
}

/// Whatever ends the run, the bar does not stay.
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
