//! Sinks: where output goes, in two phases.
//!
//! | step | when | what |
//! |---|---|---|
//! | write | rows come | they belong to the next checkpoint |
//! | prepare | the barrier has come | they only have to be committed; who would do it is part of the manifest |
//! | commit | the checkpoint is [`Complete`] | they are visible |
//! | abort | the attempt ends | what is not prepared never shows |
//! | recover | an attempt begins | what the manifest says is prepared is committed, the rest of the attempts before is aborted |
//!
//! Only a durable manifest gives a [`Complete`]. A commit whose answer was lost is *unknown*: it is done again, by
//! identity, and never in another way.

pub mod append;
pub mod idempotent;
pub mod objects;
pub mod recover;
pub mod topic;
pub mod transactional;

pub use append::Append;
pub use idempotent::Idempotent;
pub use objects::Objects;
pub use topic::{OnDemand, OutputTopic};
pub use transactional::Transactional;

use crate::{
    checkpoint::{store::StoreError, Complete},
    guarantee::SinkClass,
    ids::CheckpointId,
    log::{
        producer::SendError,
        transactional::{Prepared as Transaction, TransactionError},
    },
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A row of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What tells it apart from other rows.
    pub key: String,
    /// The row itself, as text: JSON, usually.
    pub value: String,
    /// How often a row with this key was written before, as a first result or as a correction of it.
    pub pane: u32,
    /// What else is to be known about it: the headers of its record in a topic.
    pub headers: Vec<(String, String)>,
}

impl Row {
    /// A first result.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Row {
        Row {
            key: key.into(),
            value: value.into(),
            pane: 0,
            headers: Vec::new(),
        }
    }
}

/// What a sink has prepared for a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// How many rows.
    pub rows: u64,
    /// The object that holds them, for a sink that writes objects.
    pub object: Option<String>,
    /// The transaction that holds them, for a sink that writes transactions.
    pub transaction: Option<Transaction>,
}

/// Why a sink cannot go on. Its attempt ends.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The object store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A transaction.
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    /// A row that no topic takes.
    #[error(
        "a row for {topic} of {bytes} bytes, with key `{key}`; a record may have {}",
        crate::log::producer::RECORD_BYTES_MAX
    )]
    TooLarge {
        /// Where it was to go.
        topic: String,
        /// Its key, or the beginning of it.
        key: String,
        /// How large it is.
        bytes: usize,
    },
    /// What a complete checkpoint has prepared can never be committed: output is missing, and the job must not go
    /// on as if it were not.
    #[error("{0}")]
    Gone(String),
}

/// Which sink a job has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SinkKind {
    /// Objects named by checkpoint and task, visible through the manifest.
    Objects,
    /// A topic, in transactions that commit with the checkpoint.
    Transactional,
    /// A topic that is read as a table: the newest version of each key counts.
    Idempotent,
    /// A topic.
    Append,
}

impl SinkKind {
    /// All kinds.
    pub const ALL: [SinkKind; 4] = [
        SinkKind::Objects,
        SinkKind::Transactional,
        SinkKind::Idempotent,
        SinkKind::Append,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            SinkKind::Objects => "objects",
            SinkKind::Transactional => "transactional",
            SinkKind::Idempotent => "idempotent",
            SinkKind::Append => "append",
        }
    }

    /// What it is in a chain.
    pub fn class(self) -> SinkClass {
        match self {
            SinkKind::Objects | SinkKind::Idempotent => SinkClass::Idempotent,
            SinkKind::Transactional => SinkClass::Transactional,
            SinkKind::Append => SinkClass::Append,
        }
    }
}

/// A phase of a sink that goes on while its task does.
pub type Phase<T> = BoxFuture<'static, Result<T, SinkError>>;

/// Where the output of one task goes.
#[async_trait]
pub trait Sink: Send {
    /// Takes rows, in order.
    async fn write(&mut self, rows: Vec<Row>) -> Result<(), SinkError>;

    /// Ends what belongs to a checkpoint, at once; what is written from here on belongs to a later one. The rest
    /// of the phase makes it ready to be committed.
    fn prepare(&mut self, checkpoint: CheckpointId) -> Phase<Prepared>;

    /// Makes visible what was prepared for this checkpoint.
    fn commit(&mut self, complete: &Complete) -> Phase<()>;

    /// What is not prepared never shows. What is may be part of a complete checkpoint, and is left alone.
    async fn abort(&mut self);
}

/// What waits until its checkpoint is complete.
struct Waiting<T>(BTreeMap<CheckpointId, T>);

impl<T> Waiting<T> {
    /// Waits for `checkpoint`.
    fn insert(&mut self, checkpoint: CheckpointId, what: T) {
        self.0.insert(checkpoint, what);
    }

    /// What a complete checkpoint, or one before it, has made ready: notices may be lost, and the newest stands for all.
    fn ready(&mut self, complete: &Complete) -> impl Iterator<Item = T> {
        let later = self.0.split_off(&CheckpointId(complete.checkpoint().0 + 1));
        std::mem::replace(&mut self.0, later).into_values()
    }
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Waiting(BTreeMap::new())
    }
}
