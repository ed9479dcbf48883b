//! `objects`: idempotent. The output of a task between two checkpoints is one object, named by checkpoint
//! and task; a reader finds it through the manifest, and so sees it exactly when, and as often as, the
//! checkpoint is complete.

use super::{Phase, Prepared, Row, Sink, SinkError};
use crate::{
    checkpoint::{store::StoreError, Complete, Manifest, Store, TaskName},
    ids::CheckpointId,
};
use async_trait::async_trait;
use object_store::path::Path;

/// A task's output as objects.
pub struct Objects {
    store: Store,
    task: TaskName,
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

    /// The rows that a checkpoint made visible, with the task that wrote them. A missing object is an
    /// error that names it.
    pub async fn read(
        store: &Store,
        manifest: &Manifest,
    ) -> Result<Vec<(TaskName, Row)>, StoreError> {
        let mut rows = Vec::new();
        for (task, snapshot) in &manifest.tasks {
            if let Some(object) = &snapshot.prepared.object {
                let read = read_rows(store, object).await?;
                rows.extend(read.into_iter().map(|row| (task.clone(), row)));
            }
        }
        Ok(rows)
    }
}

/// The rows of an object.
pub(super) async fn read_rows(store: &Store, object: &str) -> Result<Vec<Row>, StoreError> {
    let damaged = |what: String| StoreError::Damaged {
        path: object.to_owned(),
        what,
    };
    let bytes = store.get(&Path::from(object)).await?;
    let bytes = bytes.ok_or_else(|| damaged("it is not there".into()))?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
}

/// Writes rows as an object.
pub(super) async fn write_rows(
    store: &Store,
    path: Path,
    rows: &[Row],
) -> Result<Prepared, SinkError> {
    let mut prepared = Prepared {
        rows: rows.len() as u64,
        ..Prepared::default()
    };
    if !rows.is_empty() {
        let bytes = serde_json::to_vec(rows).expect("rows are plain data");
        store.put(&path, &bytes).await?;
        prepared.object = Some(path.to_string());
    }
    Ok(prepared)
}

#[async_trait]
impl Sink for Objects {
    async fn write(&mut self, rows: Vec<Row>) -> Result<(), SinkError> {
        self.rows.extend(rows);
        Ok(())
    }

    fn prepare(&mut self, checkpoint: CheckpointId) -> Phase<Prepared> {
        let rows = std::mem::take(&mut self.rows);
        let path = self.store.output_path(checkpoint, &self.task);
        let store = self.store.clone();
        Box::pin(async move { write_rows(&store, path, &rows).await })
    }

    fn commit(&mut self, _: &Complete) -> Phase<()> {
        // The manifest that is complete has made it visible.
        Box::pin(async { Ok(()) })
    }

    async fn abort(&mut self) {}
}
