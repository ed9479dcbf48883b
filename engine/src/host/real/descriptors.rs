//! The files of a disk that are open: a bounded number of them, whatever number of files is in use.
//!
//! A file is opened when it is used, and closed when others need its place: the one that was used least recently, roughly
//! (the clock algorithm). One with bytes that were not synced is synced first, since an error of the system's own writing
//! would be told to nobody afterwards; if that sync fails, the file's next sync says so. A file that is removed or
//! replaced while somebody has it stays open for them.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Mutex, MutexGuard, PoisonError, Weak,
    },
};
use tokio::sync::Semaphore;

/// The open files of a disk.
#[derive(Debug)]
pub(super) struct Descriptors {
    open_max: usize,
    /// Held by each operation: fewer of them go on at a time than files may be open, so that one can be closed.
    turns: Semaphore,
    /// The files that somebody has, by the paths under which they are.
    files: Mutex<BTreeMap<PathBuf, Weak<Shared>>>,
    /// Those that are open, in the order in which they are looked at when one must be closed.
    open: Mutex<VecDeque<Weak<Shared>>>,
}

/// A file that somebody has.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// It was used since it was last looked at.
    used: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// Where it is; nowhere, once it was removed or replaced.
    path: Option<PathBuf>,
    file: Option<Arc<fs::File>>,
    /// How many writes were done, and how many of these are synced.
    written: u64,
    synced: u64,
    /// What a sync said that nobody had asked for.
    error: Option<io::Error>,
}

impl Descriptors {
    /// With so many files open at most, if those in use at one moment allow it.
    pub fn new(open_max: usize) -> Self {
        Descriptors {
            open_max,
            turns: Semaphore::new((open_max / 2).max(1)),
            files: Mutex::default(),
            open: Mutex::default(),
        }
    }

    /// Does something with files, in a thread that may wait for the disk.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let _turn = self.turns.acquire().await.map_err(io::Error::other)?;
        // In simulation madsim runs it inline, and calls that deprecated.
        #[allow(deprecated)]
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(io::Error::other)?
    }

    /// The file at `path`, which is created if it is not there.
    pub fn file(&self, path: PathBuf) -> io::Result<Arc<Shared>> {
        let mut files = lock(&self.files);
        if let Some(known) = files.get(&path).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let file = self.with_room(|| create(&path))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                path: Some(path.clone()),
                file: Some(Arc::new(file)),
                written: 0,
                synced: 0,
                error: None,
            }),
            used: AtomicBool::new(true),
        });
        // Where many files come and go, their paths do not stay.
        if files.len() >= 2 * self.open_max {
            files.retain(|_, shared| shared.strong_count() > 0);
        }
        files.insert(path, Arc::downgrade(&shared));
        self.opened(&shared);
        Ok(shared)
    }

    /// Renames a file; who has it, or the one that was there, keeps it.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = lock(&self.files);
        let replaced = files.get(to).and_then(Weak::upgrade);
        let mut replaced = match &replaced {
            Some(shared) => Some(self.hold(shared)?),
            None => None,
        };
        let moved = files.get(from).and_then(Weak::upgrade);
        let mut moving = moved.as_ref().map(|shared| lock(&shared.state));
        fs::rename(from, to)?;
        if let Some(state) = &mut replaced {
            state.path = None;
        }
        files.remove(to);
        files.remove(from);
        if let (Some(state), Some(shared)) = (&mut moving, &moved) {
            state.path = Some(to.to_owned());
            files.insert(to.to_owned(), Arc::downgrade(shared));
        }
        Ok(())
    }

    /// Removes a file; who has it keeps it.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let mut files = lock(&self.files);
        let shared = files.get(path).and_then(Weak::upgrade);
        let mut held = match &shared {
            Some(shared) => Some(self.hold(shared)?),
            None => None,
        };
        fs::remove_file(path)?;
        files.remove(path);
        if let Some(state) = &mut held {
            state.path = None;
        }
        Ok(())
    }

    /// Does what opens a file of its own. Where there are too many in the process, some of these are closed for it.
    pub fn with_room<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        loop {
            match open() {
                Err(error) if is_too_many(&error) && self.close_one() => {}
                done => return done,
            }
        }
    }

    /// A file, open, which is not closed while its state is held.
    fn hold<'a>(&self, shared: &'a Arc<Shared>) -> io::Result<MutexGuard<'a, State>> {
        let mut state = lock(&shared.state);
        if state.file.is_none() {
            let path = state.path.clone().ok_or(io::ErrorKind::NotFound)?;
            // Not created: what was there and is gone is not to be begun anew in silence.
            let file =
                self.with_room(|| fs::OpenOptions::new().read(true).write(true).open(&path))?;
            state.file = Some(Arc::new(file));
            self.opened(shared);
        }
        Ok(state)
    }

    /// Takes note of a file that is open now, and closes others that are too many.
    fn opened(&self, shared: &Arc<Shared>) {
        let mut open = lock(&self.open);
        open.push_back(Arc::downgrade(shared));
        let too_many = open.len() > self.open_max;
        drop(open);
        if too_many {
            self.close_one();
        }
    }

    /// Closes a file that nobody uses at this moment. Returns `false` if there is none.
    fn close_one(&self) -> bool {
        let mut open = lock(&self.open);
        // Each is passed over once for having been used.
        for _ in 0..2 * open.len() {
            let Some(next) = open.pop_front() else { break };
            let Some(shared) = next.upgrade() else {
                // Whoever had it has closed it.
                return true;
            };
            let was_used = shared.used.swap(false, Ordering::Relaxed);
            if !was_used && shared.close() {
                return true;
            }
            open.push_back(next);
        }
        false
    }
}

impl Shared {
    /// Closes it, unless somebody is using it, or it could not be opened again.
    fn close(&self) -> bool {
        let Ok(mut state) = self.state.try_lock() else {
            return false;
        };
        let Some(file) = &state.file else {
            return true;
        };
        if state.path.is_none() || Arc::strong_count(file) > 1 || state.error.is_some() {
            return false;
        }
        if state.synced < state.written {
            if let Err(error) = file.sync_all() {
                state.error = Some(error);
                return false;
            }
            state.synced = state.written;
        }
        state.file = None;
        true
    }
}

/// A file of a disk, and the others that may have to be closed for it.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    pub all: Arc<Descriptors>,
    pub shared: Arc<Shared>,
}

impl Descriptor {
    /// The file, which is not closed while this is held.
    pub fn read(&self) -> io::Result<Arc<fs::File>> {
        let state = self.all.hold(&self.shared)?;
        self.shared.used.store(true, Ordering::Relaxed);
        Ok(state.file.clone().expect("it is held open"))
    }

    /// Writes to the file. It counts as written when it is done: a sync that runs meanwhile may not cover it.
    pub fn write(&self, work: impl FnOnce(&fs::File) -> io::Result<()>) -> io::Result<()> {
        let file = self.read()?;
        let done = work(&file);
        lock(&self.shared.state).written += 1;
        done
    }

    /// Makes durable what was written.
    pub fn sync(&self) -> io::Result<()> {
        let (file, written) = {
            let mut state = lock(&self.shared.state);
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            match &state.file {
                Some(file) => (file.clone(), state.written),
                // It was synced before it was closed.
                None => return Ok(()),
            }
        };
        file.sync_all()?;
        let mut state = lock(&self.shared.state);
        state.synced = state.synced.max(written);
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            options.open(path)
        }
        opened => opened,
    }
}

/// Too many open files in the process (EMFILE 24) or the system (ENFILE 23).
fn is_too_many(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

/// A panic while a lock is held leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
