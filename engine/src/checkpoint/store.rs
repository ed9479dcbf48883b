//! Snapshots and the manifest log, in an object store.
//!
//! The manifest log is a row of objects without gaps, `manifest/00000000000000000017`, each created only
//! if it is not there yet. An entry says that an attempt has begun, or that a checkpoint is complete, so
//! that both race for the same place: once an attempt has begun, no earlier one can complete
//! anything. It needs nothing of a store but create-if-absent. The number of a checkpoint's entry is its id,
//! hence no two attempts share one, and what they write under it never meets.
//!
//! An answer that did not come is unknown: the same entry is created again, and if the place is taken by
//! then, what stands there tells whether it is ours.
//!
//! Every object is sealed (`sealed`): one that was damaged, or that stands in another's place, is refused by
//! name. Entries are never removed, so a gap in the manifest log is damage, too.

use super::{recovery::Beginning, sealed, Entry, JobShape, Manifest, TaskName, TaskSnapshot};
use crate::ids::{AttemptId, CheckpointId};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{path::Path, Error as ObjectError, ObjectStore, ObjectStoreExt, PutMode};
use serde::{de::DeserializeOwned, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// How long an operation is tried before its outcome is left unknown, unless somebody says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries.
const BACKOFF: Duration = Duration::from_millis(200);

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A later attempt has begun: this one may do nothing any more.
    #[error("fenced by entry {0} of the manifest log")]
    Fenced(u64),
    /// No answer for too long: it may or may not have been done.
    #[error("unknown: {0}")]
    Unknown(ObjectError),
    /// The store will not do it, however often it is asked.
    #[error("refused: {0}")]
    Refused(ObjectError),
    /// What is there is not what was written.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Which object.
        path: String,
        /// What is wrong.
        what: String,
    },
}

impl StoreError {
    /// Whether another try brings the same answer.
    pub fn is_definite(&self) -> bool {
        matches!(self, StoreError::Refused(_) | StoreError::Damaged { .. })
    }
}

/// The objects of one job.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    root: String,
    patience: Duration,
}

/// An attempt that has begun, and has not been fenced as far as it knows.
pub struct Attempt {
    store: Store,
    id: AttemptId,
    instance: String,
    next: CheckpointId,
}

/// What came of the wish to begin an attempt.
pub enum Begun {
    /// It has begun, and goes on from a checkpoint.
    Attempt(Attempt, Option<Complete>),
    /// The job has finished.
    Finished(CheckpointId),
    /// The job must not go on: why.
    Halted(String),
}

/// The right to commit: only a manifest that is durable gives it.
#[derive(Clone, Debug)]
pub struct Complete {
    manifest: Arc<Manifest>,
}

impl Complete {
    /// What the checkpoint consists of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Which checkpoint.
    pub fn checkpoint(&self) -> CheckpointId {
        self.manifest.checkpoint
    }
}

impl Store {
    /// The objects of the job called `job`.
    pub fn new(objects: Arc<dyn ObjectStore>, job: &str) -> Self {
        let root = format!("jobs/{job}");
        Store {
            objects,
            root,
            patience: PATIENCE,
        }
    }

    /// Tries each operation for so long; then its outcome is unknown.
    pub fn with_patience(self, patience: Duration) -> Self {
        Store { patience, ..self }
    }

    /// Begins an attempt: fences all earlier ones, then finds the checkpoint to go on from. A job that has finished
    /// goes on only `beyond_finish`.
    pub async fn begin(&self, instance: &str, beyond_finish: bool) -> Result<Begun, StoreError> {
        let mut place = self.newest().await?.map_or(0, |(number, _)| number + 1);
        loop {
            // Entries in front of a free place never change.
            let before = match place.checked_sub(1) {
                None => None,
                Some(before) => self.entry(before).await?,
            };
            let restores = match Beginning::behind(before.as_ref()) {
                Beginning::From(checkpoint) => checkpoint,
                Beginning::Finished(checkpoint) if beyond_finish => Some(checkpoint),
                Beginning::Finished(checkpoint) => return Ok(Begun::Finished(checkpoint)),
                Beginning::Halted(why) => return Ok(Begun::Halted(why)),
            };
            let entry = Entry::Begun {
                instance: instance.to_owned(),
                restores,
            };
            if !self.add(place, &entry).await? {
                place += 1;
                continue;
            }
            let complete = match restores {
                None => None,
                Some(checkpoint) => Some(self.complete(checkpoint).await?),
            };
            let attempt = Attempt {
                store: self.clone(),
                id: AttemptId(place),
                instance: instance.to_owned(),
                next: CheckpointId(place + 1),
            };
            return Ok(Begun::Attempt(attempt, complete));
        }
    }

    /// The newest entry of the manifest log and its number.
    pub async fn newest(&self) -> Result<Option<(u64, Entry)>, StoreError> {
        let folder = Path::from(format!("{}/manifest", self.root));
        let list = || async {
            let listed: Vec<_> = self.objects.list(Some(&folder)).try_collect().await?;
            let numbers = listed.iter().filter_map(|object| {
                let number = object.location.filename()?.parse().ok()?;
                (object.location == self.place(number)).then_some(number)
            });
            Ok(numbers.collect::<BTreeSet<u64>>())
        };
        let numbers = self.definite(list).await?;
        let Some(newest) = numbers.last().copied() else {
            return Ok(None);
        };
        // A list is not of one moment: what it lacks may have been created meanwhile.
        for missing in (0..newest).filter(|number| !numbers.contains(number)) {
            self.present(missing).await?;
        }
        Ok(Some((newest, self.present(newest).await?)))
    }

    /// An entry that must be there, because a later one was seen.
    async fn present(&self, number: u64) -> Result<Entry, StoreError> {
        self.entry(number)
            .await?
            .ok_or_else(|| StoreError::Damaged {
                path: self.place(number).to_string(),
                what: "it is missing, and entries of the manifest log are never removed".into(),
            })
    }

    /// One entry of the manifest log; nothing if its place is free.
    pub async fn entry(&self, number: u64) -> Result<Option<Entry>, StoreError> {
        let path = self.place(number);
        let Some(bytes) = self.get(&path).await? else {
            return Ok(None);
        };
        let entry = serde_json::from_slice(&bytes).map_err(|error| StoreError::Damaged {
            path: path.to_string(),
            what: error.to_string(),
        })?;
        Ok(Some(entry))
    }

    /// Refuses if an attempt is not the newest one, or the job has ended.
    pub async fn check_newest(&self, attempt: AttemptId) -> Result<(), StoreError> {
        match self.newest().await? {
            Some((number, Entry::Begun { .. })) if number == attempt.0 => Ok(()),
            Some((_, Entry::Complete(manifest))) if manifest.attempt == attempt => Ok(()),
            newest => Err(StoreError::Fenced(newest.map_or(0, |(number, _)| number))),
        }
    }

    /// Every complete checkpoint, in order: what a reader of the output sees. A gap is an error that names it.
    pub async fn manifests(&self) -> Result<Vec<Manifest>, StoreError> {
        let mut manifests = Vec::new();
        let count = self.newest().await?.map_or(0, |(newest, _)| newest + 1);
        for number in 0..count {
            if let Entry::Complete(manifest) = self.present(number).await? {
                manifests.push(manifest);
            }
        }
        Ok(manifests)
    }

    /// The right to commit a checkpoint, if its manifest is there.
    pub async fn complete(&self, checkpoint: CheckpointId) -> Result<Complete, StoreError> {
        match self.entry(checkpoint.0).await? {
            Some(Entry::Complete(manifest)) => Ok(Complete {
                manifest: Arc::new(manifest),
            }),
            other => Err(StoreError::Damaged {
                path: self.place(checkpoint.0).to_string(),
                what: format!("a complete checkpoint should be here, there is {other:?}"),
            }),
        }
    }

    /// Creates an entry; whether the place was free, or taken by this very entry.
    async fn add(&self, number: u64, entry: &Entry) -> Result<bool, StoreError> {
        let json = serde_json::to_vec_pretty(entry).expect("plain data");
        match self.create(&self.place(number), &json).await? {
            true => Ok(true),
            // An earlier try of ours may have been applied without an answer.
            false => Ok(self.entry(number).await?.as_ref() == Some(entry)),
        }
    }

    /// Creates an object, unless there is one.
    pub(super) async fn create(&self, path: &Path, bytes: &[u8]) -> Result<bool, StoreError> {
        let bytes = sealed::seal(path.as_ref(), bytes);
        let create = || async {
            let put = self
                .objects
                .put_opts(path, bytes.clone().into(), PutMode::Create.into());
            match put.await {
                Ok(_) => Ok(true),
                Err(ObjectError::AlreadyExists { .. } | ObjectError::Precondition { .. }) => {
                    Ok(false)
                }
                Err(error) => Err(error),
            }
        };
        self.definite(create).await
    }

    /// Reads an object; nothing if it is not there. One that is not as it was written is an error that names it.
    pub async fn get(&self, path: &Path) -> Result<Option<Bytes>, StoreError> {
        let get = || async {
            match self.objects.get(path).await {
                Ok(found) => Ok(Some(found.bytes().await?)),
                Err(ObjectError::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let Some(bytes) = self.definite(get).await? else {
            return Ok(None);
        };
        let opened = sealed::open(path.as_ref(), bytes);
        opened.map(Some).map_err(|what| StoreError::Damaged {
            path: path.to_string(),
            what,
        })
    }

    /// Writes an object under a name that nobody else uses: writing it again changes nothing.
    pub async fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let bytes = sealed::seal(path.as_ref(), bytes);
        let put = || async { self.objects.put(path, bytes.clone().into()).await.map(drop) };
        self.definite(put).await
    }

    /// Reads a task's state out of a snapshot.
    pub async fn read_state<S: DeserializeOwned>(&self, path: &str) -> Result<S, StoreError> {
        let damaged = |what: &str| StoreError::Damaged {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let bytes = self.get(&Path::from(path)).await?;
        let state = bytes.ok_or_else(|| damaged("a manifest refers to it, and it is not there"))?;
        postcard::from_bytes(&state).map_err(|error| damaged(&error.to_string()))
    }

    /// Stores a task's state, as [`encode_state`] gives it, for a checkpoint; the object's path.
    pub async fn write_state(
        &self,
        checkpoint: CheckpointId,
        task: &str,
        state: Vec<u8>,
    ) -> Result<String, StoreError> {
        let path = format!("{}/state/{checkpoint:020}/{task}", self.root);
        self.put(&Path::from(path.as_str()), &state).await?;
        Ok(path)
    }

    /// Removes the state of all checkpoints in front of a complete one, unless they are savepoints. Nothing refers
    /// to it any more: whoever begins an attempt from now on goes on from this checkpoint or a later one, and
    /// an attempt that restores an earlier one is fenced. How many objects were removed.
    pub async fn forget_before(&self, complete: &Complete) -> Result<u64, StoreError> {
        let folder = Path::from(format!("{}/state", self.root));
        let list = || async {
            let listed: Vec<_> = self.objects.list(Some(&folder)).try_collect().await?;
            Ok(listed.into_iter().map(|object| object.location).collect())
        };
        let listed: Vec<Path> = self.definite(list).await?;
        let of = |path: &Path| {
            let relative = path.as_ref().strip_prefix(folder.as_ref())?;
            let id = relative.trim_start_matches('/').split('/').next()?;
            id.parse().ok().map(CheckpointId)
        };
        let old = |path: &&Path| of(path).is_some_and(|id| id < complete.checkpoint());
        let old: Vec<&Path> = listed.iter().filter(old).collect();
        let mut kept = BTreeSet::new();
        for id in old
            .iter()
            .filter_map(|path| of(path))
            .collect::<BTreeSet<_>>()
        {
            if let Some(Entry::Complete(Manifest {
                savepoint: true, ..
            })) = self.entry(id.0).await?
            {
                kept.insert(id);
            }
        }
        let mut removed = 0;
        for path in old {
            if of(path).is_some_and(|id| kept.contains(&id)) {
                continue;
            }
            let remove = || async {
                match self.objects.delete(path).await {
                    Ok(()) | Err(ObjectError::NotFound { .. }) => Ok(()),
                    Err(error) => Err(error),
                }
            };
            self.definite(remove).await?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Where the rows of a sink wait for the end of their checkpoint.
    pub fn staged_path(&self, checkpoint: CheckpointId, task: &str) -> Path {
        Path::from(format!("{}/state/{checkpoint:020}/{task}.rows", self.root))
    }

    /// Where a sink's output for a checkpoint goes.
    pub fn output_path(&self, checkpoint: CheckpointId, task: &str) -> Path {
        Path::from(format!("{}/output/{checkpoint:020}/{task}", self.root))
    }

    pub(super) fn identity_path(&self) -> Path {
        Path::from(format!("{}/identity", self.root))
    }

    fn place(&self, number: u64) -> Path {
        Path::from(format!("{}/manifest/{number:020}", self.root))
    }

    /// Does something that can be done again until there is a definite answer.
    async fn definite<T, F>(&self, mut work: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: std::future::Future<Output = Result<T, ObjectError>>,
    {
        let mut last = None;
        let trying = async {
            loop {
                match work().await {
                    Ok(done) => return Ok(done),
                    Err(error @ ObjectError::Generic { .. }) => last = Some(error),
                    Err(error) => return Err(StoreError::Refused(error)),
                }
                tokio::time::sleep(BACKOFF).await;
            }
        };
        let tried = tokio::time::timeout(self.patience, trying).await;
        tried.unwrap_or_else(|_| {
            Err(StoreError::Unknown(last.unwrap_or(ObjectError::Generic {
                store: "the job's",
                source: "no answer in time".into(),
            })))
        })
    }
}

impl Attempt {
    /// Which attempt.
    pub fn id(&self) -> AttemptId {
        self.id
    }

    /// The id of the next checkpoint.
    pub fn next(&self) -> CheckpointId {
        self.next
    }

    /// Whether a later attempt has begun.
    pub async fn is_fenced(&self) -> Result<bool, StoreError> {
        Ok(self.store.entry(self.next.0).await?.is_some())
    }

    /// Makes the next checkpoint complete, unless a later attempt has begun.
    pub async fn complete(
        &mut self,
        tasks: BTreeMap<TaskName, TaskSnapshot>,
        job: JobShape,
        savepoint: bool,
    ) -> Result<Complete, StoreError> {
        let manifest = Manifest {
            checkpoint: self.next,
            attempt: self.id,
            instance: self.instance.clone(),
            savepoint,
            job,
            tasks,
        };
        self.add(Entry::Complete(manifest.clone())).await?;
        Ok(Complete {
            manifest: Arc::new(manifest),
        })
    }

    /// Ends the attempt, and all others: with the job stopped, finished or halted.
    pub async fn end(mut self, how: Entry) -> Result<(), StoreError> {
        self.add(how).await
    }

    async fn add(&mut self, entry: Entry) -> Result<(), StoreError> {
        if !self.store.add(self.next.0, &entry).await? {
            return Err(StoreError::Fenced(self.next.0));
        }
        self.next = CheckpointId(self.next.0 + 1);
        Ok(())
    }
}

/// A task's state as it is stored.
pub fn encode_state<S: Serialize>(state: &S) -> Vec<u8> {
    postcard::to_stdvec(state).expect("state is plain data")
}
