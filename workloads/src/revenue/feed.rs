//! The feed: a file of events into their topic, each line once, however often it is begun anew.
//!
//! Lines go in transactions, each with the number of the line behind its last one as the position of a group. Who
//! begins anew takes over the transactional id, so that whatever its predecessor has open is aborted, reads the
//! position, and goes on from there.

use super::{event::OrderEvent, EVENTS};
use engine::{
    ids::{Offset, PartitionId},
    log::{
        cluster::Cluster,
        member,
        producer::ProducerConfig,
        transactional::{TransactionError, TransactionalConfig, TransactionalProducer},
        TopicPartition,
    },
    record::NewRecord,
    state::stable_hash,
};
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc,
    },
};

/// The group whose position is the next line, and the transactional id that writes it.
const FEED: &str = "revenue-feed";
/// Lines of a transaction.
const LINES: usize = 20_000;
/// So often in a row may a transaction fail without any progress.
const TRIES: usize = 5;

/// Why a file could not be fed.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The file.
    #[error("{}{}: {what}", file.display(), line.map_or(String::new(), |line| format!(", line {line}")))]
    Input {
        /// Which.
        file: PathBuf,
        /// Where.
        line: Option<u64>,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] TransactionError),
}

/// How many lines are in the log.
pub type Fed = Arc<AtomicU64>;

/// Reads a file of events, one JSON object a line, to its end: how many lines it has. What is no event is named.
pub fn check(path: &Path) -> Result<u64, FeedError> {
    let mut lines = 0;
    for line in lines_of(path)? {
        let line = line.map_err(|error| wrong(path, Some(lines + 1), &error.to_string()))?;
        lines += 1;
        if !line.trim().is_empty() {
            OrderEvent::parse(line.as_bytes()).map_err(|what| {
                let right =
                    "an object with event_id, order_id, status, amount_cents and event_time";
                wrong(
                    path,
                    Some(lines),
                    &format!("{what}; {right} would be right"),
                )
            })?;
        }
    }
    match lines {
        0 => Err(wrong(path, None, "it holds no event")),
        lines => Ok(lines),
    }
}

fn wrong(path: &Path, line: Option<u64>, what: &str) -> FeedError {
    FeedError::Input {
        file: path.to_owned(),
        line,
        what: what.to_owned(),
    }
}

fn lines_of(path: &Path) -> Result<impl Iterator<Item = io::Result<String>>, FeedError> {
    let file = File::open(path).map_err(|error| wrong(path, None, &error.to_string()))?;
    Ok(BufReader::with_capacity(1 << 20, file).lines())
}

/// Feeds a file that was checked, from where an earlier one has come to, into so many partitions. A transaction that
/// cannot commit, or may have, is no reason to give up while others do: it begins anew, and asks where it is.
pub async fn feed(
    cluster: &Cluster,
    path: &Path,
    partitions: i32,
    producer: ProducerConfig,
    fed: &Fed,
) -> Result<(), FeedError> {
    let (mut reached, mut tries) = (0, 0);
    loop {
        let error = match feed_on(cluster, path, partitions, producer.clone(), fed).await {
            Err(FeedError::Log(
                error @ (TransactionError::Abortable(_) | TransactionError::Unknown(_)),
            )) => error,
            done => return done,
        };
        let now = fed.load(Ordering::Relaxed);
        tries = if now > reached { 1 } else { tries + 1 };
        reached = now;
        if tries == TRIES {
            return Err(error.into());
        }
    }
}

/// Feeds until something goes wrong.
async fn feed_on(
    cluster: &Cluster,
    path: &Path,
    partitions: i32,
    producer: ProducerConfig,
    fed: &Fed,
) -> Result<(), FeedError> {
    let config = TransactionalConfig {
        producer,
        ..TransactionalConfig::new(FEED)
    };
    let mut producer = TransactionalProducer::new(cluster.clone(), config).await?;
    // Any partition of the topic will do: the position is a line.
    let line = TopicPartition::new(EVENTS, PartitionId(0));
    let position = member::position(cluster, FEED, &line).await;
    let mut next = position.map_or(0, |position| position.0 as u64);
    fed.store(next, Ordering::Relaxed);
    let clock = cluster.host().clock.clone();
    let mut lines = lines_of(path)?.skip(next as usize).peekable();
    while lines.peek().is_some() {
        producer.begin().await?;
        for text in lines.by_ref().take(LINES) {
            let text = text.map_err(|error| wrong(path, Some(next + 1), &error.to_string()))?;
            next += 1;
            if text.trim().is_empty() {
                continue;
            }
            let event = OrderEvent::parse(text.as_bytes());
            let key = event
                .map_err(|what| wrong(path, Some(next), &what))?
                .order_id;
            let partition = (stable_hash(&key) % partitions as u64) as i32;
            let record = NewRecord {
                key: Some(key.into()),
                value: Some(text.into()),
                headers: Vec::new(),
                timestamp_ms: clock.now_ms(),
            };
            let to = TopicPartition::new(EVENTS, PartitionId(partition));
            producer.send(&to, record).await?;
        }
        let position = [(line.clone(), Offset(next as i64))];
        producer.send_positions(FEED, None, &position).await?;
        producer.commit().await?;
        fed.store(next, Ordering::Relaxed);
    }
    Ok(())
}
