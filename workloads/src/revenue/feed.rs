//! The feed: a file of events into their topic, each line once, however often it is begun anew.
//!
//! Lines go in transactions, each with the number of the line after its last one as the position of a group. Beside the
//! position stands what was read so far: how many bytes, their hash, and for which job. A feed that begins anew takes over
//! the transactional id, so that whatever its predecessor has open is aborted, reads the position, and goes on from
//! there, if the file still begins with what was fed.

mod lines;

use super::{event::OrderEvent, EVENTS};
use engine::{
    ids::{Offset, PartitionId},
    log::{
        cluster::Cluster,
        member::{self, Noted},
        producer::ProducerConfig,
        transactional::{TransactionError, TransactionalConfig, TransactionalProducer},
        TopicPartition,
    },
    record::NewRecord,
    state::stable_hash,
};
use lines::Lines;
use serde::{Deserialize, Serialize};
use std::{
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
    /// What stands beside the position was not written by a feed like this one.
    #[error("the position of group {FEED} in the log comes with `{0}`, which no feed of this version has written")]
    Note(String),
}

/// How many lines are in the log.
pub type Progress = Arc<AtomicU64>;

/// A file of events that was read to its end: what of it is to be fed.
#[derive(Clone, Debug)]
pub struct Input {
    path: PathBuf,
    /// How many lines it has.
    pub lines: u64,
    /// How long it is. What is added to it later is not fed by this feed.
    pub bytes: u64,
}

/// What was fed of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fed {
    /// The number of the next line.
    #[serde(skip)]
    pub lines: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Their hash, XXH3 of 128 bits.
    pub hash: String,
    /// The [`Identity`](engine::checkpoint::Identity) of the job for which.
    pub job: String,
}

/// A feed of a file into so many partitions, for a job.
pub struct Feed {
    /// Where it goes.
    pub cluster: Cluster,
    /// What is fed.
    pub input: Input,
    /// How many partitions the topic has.
    pub partitions: i32,
    /// How its producer batches and waits.
    pub producer: ProducerConfig,
    /// For which job.
    pub job: String,
}

impl Input {
    /// Reads a file of events, one JSON object a line, to its end. What is no event is named; what is no file that can be
    /// read again is refused.
    pub fn check(path: &Path) -> Result<Input, FeedError> {
        let wrong = |what: &str| wrong(path, None, what);
        let metadata = path.metadata().map_err(|error| wrong(&error.to_string()))?;
        let is_device = ["/dev", "/proc"].iter().any(|root| path.starts_with(root));
        if !metadata.is_file() || is_device {
            let what = match metadata.is_dir() {
                true => "it is a folder",
                false => "it cannot be read twice",
            };
            let right = "a file that stays would be right: it is read on after an interruption";
            return Err(wrong(&format!("{what}; {right}")));
        }
        let mut lines = Lines::open(path, metadata.len())?;
        while let Some(text) = lines.next()? {
            if !text.trim().is_empty() {
                OrderEvent::parse(text.as_bytes()).map_err(|what| {
                    let right =
                        "an object with event_id, order_id, status, amount_cents and event_time";
                    lines.wrong(&format!("{what}; {right} would be right"))
                })?;
            }
        }
        match lines.number() {
            0 => Err(wrong("it holds no event")),
            number => Ok(Input {
                path: path.to_owned(),
                lines: number,
                bytes: lines.bytes(),
            }),
        }
    }
}

fn wrong(path: &Path, line: Option<u64>, what: &str) -> FeedError {
    FeedError::Input {
        file: path.to_owned(),
        line,
        what: what.to_owned(),
    }
}

/// Where the position of the feed stands. Any partition of the topic will do: the position is a line.
fn place() -> TopicPartition {
    TopicPartition::new(EVENTS, PartitionId(0))
}

impl Feed {
    /// What was fed before, by whoever it was; nothing if nothing was. Nobody else feeds from here on.
    pub async fn fed(&self) -> Result<Option<Fed>, FeedError> {
        drop(self.take_over().await?);
        read_fed(&self.cluster).await
    }

    async fn take_over(&self) -> Result<TransactionalProducer, TransactionError> {
        let config = TransactionalConfig {
            producer: self.producer.clone(),
            ..TransactionalConfig::new(FEED)
        };
        TransactionalProducer::new(self.cluster.clone(), config).await
    }

    /// Refuses a file that does not begin with what was fed.
    pub fn check(&self, fed: &Fed) -> Result<(), FeedError> {
        self.lines_after(Some(fed)).map(drop)
    }

    fn lines_after(&self, fed: Option<&Fed>) -> Result<Lines, FeedError> {
        let mut lines = Lines::open(&self.input.path, self.input.bytes)?;
        if let Some(fed) = fed {
            lines.skip(fed)?;
        }
        Ok(lines)
    }

    /// Feeds what was not fed yet. A transaction that cannot commit, or may have, is no reason to give up while others do: it
    /// begins anew, and asks where it is.
    pub async fn run(&self, progress: &Progress) -> Result<(), FeedError> {
        let (mut reached, mut tries) = (0, 0);
        loop {
            let error = match self.run_on(progress).await {
                Err(FeedError::Log(
                    error @ (TransactionError::Abortable(_) | TransactionError::Unknown(_)),
                )) => error,
                done => return done,
            };
            let now = progress.load(Ordering::Relaxed);
            tries = if now > reached { 1 } else { tries + 1 };
            reached = now;
            if tries == TRIES {
                return Err(error.into());
            }
        }
    }

    /// Feeds until something goes wrong.
    async fn run_on(&self, progress: &Progress) -> Result<(), FeedError> {
        let mut producer = self.take_over().await?;
        let fed = read_fed(&self.cluster).await?;
        let mut lines = self.lines_after(fed.as_ref())?;
        progress.store(lines.number(), Ordering::Relaxed);
        let clock = self.cluster.host().clock.clone();
        // The end of a line that was fed before it had one is noted like a line.
        let mut noted = fed.map_or(0, |fed| fed.bytes);
        while noted < self.input.bytes {
            producer.begin().await?;
            for _ in 0..LINES {
                let Some(text) = lines.next()? else {
                    break;
                };
                if text.trim().is_empty() {
                    continue;
                }
                let event = OrderEvent::parse(text.as_bytes());
                let key = event.map_err(|what| lines.wrong(&what))?.order_id;
                let partition = (stable_hash(&key) % self.partitions as u64) as i32;
                let record = NewRecord {
                    key: Some(key.into()),
                    value: Some(lines.text().to_owned().into()),
                    headers: Vec::new(),
                    timestamp_ms: clock.now_ms(),
                };
                let to = TopicPartition::new(EVENTS, PartitionId(partition));
                producer.send(&to, record).await?;
            }
            let fed = lines.fed(&self.job);
            if fed.bytes <= noted {
                let right = "a file that only grows would be right";
                return Err(lines.wrong(&format!("it ends here, and was longer; {right}")));
            }
            let position = [(place(), Offset(fed.lines as i64))];
            let note = serde_json::to_string(&fed).expect("plain data");
            producer.send_noted(FEED, None, &position, &note).await?;
            producer.commit().await?;
            progress.store(fed.lines, Ordering::Relaxed);
            noted = fed.bytes;
        }
        Ok(())
    }
}

async fn read_fed(cluster: &Cluster) -> Result<Option<Fed>, FeedError> {
    let Some(Noted { position, metadata }) = member::noted(cluster, FEED, &place()).await else {
        return Ok(None);
    };
    let fed: Fed = serde_json::from_str(&metadata).map_err(|_| FeedError::Note(metadata))?;
    Ok(Some(Fed {
        lines: position.0 as u64,
        ..fed
    }))
}
