//! Sinks: where output goes. Write, prepare, commit.
//!
//! A sink prepares with each checkpoint, and commits with a [`Complete`], which only a durable manifest
//! gives. What it has prepared is part of the manifest.

pub mod append;
pub mod objects;

pub use append::Append;
pub use objects::Objects;

use crate::{
    checkpoint::{store::StoreError, Complete},
    guarantee::SinkClass,
    ids::CheckpointId,
    log::producer::SendError,
};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A row of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What tells it apart from other rows.
    pub key: String,
    /// The row itself, as text: JSON, usually.
    pub value: String,
}

impl Row {
    /// The row as the bytes of a record or of a line.
    pub fn bytes(&self) -> Bytes {
        Bytes::from(self.value.clone().into_bytes())
    }
}

/// What a sink has prepared for a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The object that holds the output, for a sink that writes objects.
    pub object: Option<String>,
    /// How many rows.
    pub rows: u64,
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
}

/// Which sink a job has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SinkKind {
    /// Objects named by checkpoint and task, visible through the manifest.
    Objects,
    /// A topic.
    Append,
}

impl SinkKind {
    /// All kinds.
    pub const ALL: [SinkKind; 2] = [SinkKind::Objects, SinkKind::Append];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            SinkKind::Objects => "objects",
            SinkKind::Append => "append",
        }
    }

    /// What it is in a chain.
    pub fn class(self) -> SinkClass {
        match self {
            SinkKind::Objects => SinkClass::Idempotent,
            SinkKind::Append => SinkClass::Append,
        }
    }
}

/// Where the output of one task goes.
#[async_trait]
pub trait Sink: Send {
    /// Takes rows, in order.
    async fn write(&mut self, rows: Vec<Row>) -> Result<(), SinkError>;

    /// Makes what was written since the last checkpoint ready to be committed with this one.
    async fn prepare(&mut self, checkpoint: CheckpointId) -> Result<Prepared, SinkError>;

    /// Makes what was prepared visible.
    async fn commit(&mut self, complete: &Complete) -> Result<(), SinkError>;
}
