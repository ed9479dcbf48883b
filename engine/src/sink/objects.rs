//! `objects`: idempotent. The output of a task between two checkpoints is one object, named by checkpoint
//! and task; a reader finds it through the manifest, and so sees it exactly when, and as often as, the
//! checkpoint is complete.

use super::{Prepared, Row, Sink, SinkError};
use crate::{
    checkpoint::{Complete, Manifest, Store},
    ids::CheckpointId,
};
use async_trait::async_trait;
use object_store::path::Path;

/// A task's output as objects.
pub struct Objects {
    store: Store,
    task: String,
    rows: Vec<Row>,
}

impl Objects {
    /// The output of `task`.
    pub fn new(store: Store, task: &str) -> Self {
        Objects {
            store,
            task: task.to_owned(),
            rows: Vec::new(),
        }
    }

    /// The rows that a checkpoint made visible, by the task that wrote them. A missing object is an
    /// error that names it.
    pub async fn read(store: &Store, manifest: &Manifest) -> Result<Vec<Row>, String> {
        let mut rows = Vec::new();
        for (task, snapshot) in &manifest.tasks {
            let prepared = snapshot.prepared.as_ref();
            let Some(object) = prepared.and_then(|prepared| prepared.object.as_ref()) else {
                continue;
            };
            let read = store.get(&Path::from(object.as_str())).await;
            let bytes = read.map_err(|error| format!("{object} of {task}: {error}"))?;
            let bytes = bytes.ok_or_else(|| format!("{object} of {task} is not there"))?;
            let read: Vec<Row> = serde_json::from_slice(&bytes)
                .map_err(|error| format!("{object} of {task}: {error}"))?;
            rows.extend(read);
        }
        Ok(rows)
    }
}

#[async_trait]
impl Sink for Objects {
    async fn write(&mut self, rows: Vec<Row>) -> Result<(), SinkError> {
        self.rows.extend(rows);
        Ok(())
    }

    async fn prepare(&mut self, checkpoint: CheckpointId) -> Result<Prepared, SinkError> {
        let rows = std::mem::take(&mut self.rows);
        let count = rows.len() as u64;
        if rows.is_empty() {
            return Ok(Prepared {
                object: None,
                rows: 0,
            });
        }
        let path = self.store.output_path(checkpoint, &self.task);
        let bytes = serde_json::to_vec(&rows).expect("rows are plain data");
        self.store.put(&path, bytes.into()).await?;
        Ok(Prepared {
            object: Some(path.to_string()),
            rows: count,
        })
    }

    async fn commit(&mut self, _: &Complete) -> Result<(), SinkError> {
        // The manifest that is complete has made it visible.
        Ok(())
    }
}
