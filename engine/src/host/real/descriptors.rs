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
    turns: Arc<Semaphore>,
    /// The files that somebody has, by the paths under which they are.
    files: Mutex<BTreeMap<PathBuf, Weak<Shared>>>,
    /// Those that are open, in the order in which they are looked at when one must be closed.
    open: Mutex<VecDeque<Weak<Shared>>>,
}

/// A file that somebody has.
#[derive(Debug)]
pub(super) struct Shared {
    /// Held while it is synced, before its state: of two syncs at once only one would be told of an error.
    syncing: Mutex<()>,
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
            turns: Arc::new(Semaphore::new((open_max / 2).max(1))),
            files: Mutex::default(),
            open: Mutex::default(),
        }
    }

    /// Does something with files, in a thread that may wait for the disk.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(io::Error::other)?;
        // Whoever asks may go away; the turn ends with the work.
        let work = move || {
            let done = work();
            drop(turn);
            done
        };
        // In simulation madsim runs it inline, and calls that deprecated.
        #[allow(deprecated)]
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(io::Error::other)?
    }

    /// The file at `path`, which is created if it is not there.
    pub fn file(&self, path: PathBuf) -> io::Result<Arc<Shared>> {
        let (shared, is_new) = self.with_room(|| self.find_or_open(&path))?;
        if is_new {
            self.opened(&shared);
        }
        Ok(shared)
    }

    /// The file, and whether it was opened.
    fn find_or_open(&self, path: &Path) -> io::Result<(Arc<Shared>, bool)> {
        let mut files = lock(&self.files);
        if let Some(known) = files.get(path).and_then(Weak::upgrade) {
            return Ok((known, false));
        }
        let file = create(path)?;
        let shared = Arc::new(Shared {
            syncing: Mutex::default(),
            state: Mutex::new(State {
                path: Some(path.to_owned()),
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
        files.insert(path.to_owned(), Arc::downgrade(&shared));
        Ok((shared, true))
    }

    /// Renames a file; who has it, or the one that was there, keeps it.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let opened = self.with_room(|| self.rename_now(from, to))?;
        opened.iter().for_each(|shared| self.opened(shared));
        Ok(())
    }

    /// Returns the file that was there, if it was opened to be kept.
    fn rename_now(&self, from: &Path, to: &Path) -> io::Result<Option<Arc<Shared>>> {
        let mut files = lock(&self.files);
        let replaced = files.get(to).and_then(Weak::upgrade);
        let mut replacing = match &replaced {
            Some(shared) => Some(shared.hold()?),
            None => None,
        };
        let moved = files.get(from).and_then(Weak::upgrade);
        let mut moving = moved.as_ref().map(|shared| lock(&shared.state));
        fs::rename(from, to)?;
        if let Some((state, _)) = &mut replacing {
            state.path = None;
        }
        files.remove(to);
        files.remove(from);
        if let (Some(state), Some(shared)) = (&mut moving, &moved) {
            state.path = Some(to.to_owned());
            files.insert(to.to_owned(), Arc::downgrade(shared));
        }
        let was_opened = replacing.is_some_and(|(_, was_opened)| was_opened);
        Ok(replaced.filter(|_| was_opened))
    }

    /// Removes a file; who has it keeps it.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let opened = self.with_room(|| self.remove_now(path))?;
        opened.iter().for_each(|shared| self.opened(shared));
        Ok(())
    }

    /// Returns the file, if it was opened to be kept.
    fn remove_now(&self, path: &Path) -> io::Result<Option<Arc<Shared>>> {
        let mut files = lock(&self.files);
        let shared = files.get(path).and_then(Weak::upgrade);
        let mut held = match &shared {
            Some(shared) => Some(shared.hold()?),
            None => None,
        };
        fs::remove_file(path)?;
        files.remove(path);
        if let Some((state, _)) = &mut held {
            state.path = None;
        }
        let was_opened = held.is_some_and(|(_, was_opened)| was_opened);
        Ok(shared.filter(|_| was_opened))
    }

    /// Does what opens a file. Where there are too many in the process, some of these are closed for it, between two tries:
    /// that may take as long as a sync, and no lock is held meanwhile.
    pub fn with_room<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        loop {
            match open() {
                Err(error) if is_too_many(&error) && self.close_one() => {}
                done => return done,
            }
        }
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
        // Each is passed over once for having been used.
        let tries = 2 * lock(&self.open).len();
        for _ in 0..tries {
            let Some(next) = lock(&self.open).pop_front() else {
                break;
            };
            let Some(shared) = next.upgrade() else {
                // Whoever had it has closed it.
                return true;
            };
            let was_used = shared.used.swap(false, Ordering::Relaxed);
            if !was_used && shared.close() {
                return true;
            }
            lock(&self.open).push_back(next);
        }
        false
    }
}

impl Shared {
    /// Its state, open, and whether it was opened for this. It is not closed while the state is held.
    fn hold(&self) -> io::Result<(MutexGuard<'_, State>, bool)> {
        let mut state = lock(&self.state);
        let was_closed = state.file.is_none();
        if was_closed {
            let path = state.path.as_ref().ok_or(io::ErrorKind::NotFound)?;
            // Not created: what was there and is gone is not to be begun anew in silence.
            let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
            state.file = Some(Arc::new(file));
        }
        Ok((state, was_closed))
    }

    /// Closes it, unless somebody is using it, or it could not be opened again.
    fn close(&self) -> bool {
        let Ok(_syncing) = self.syncing.try_lock() else {
            return false;
        };
        let (file, written) = {
            let Ok(mut state) = self.state.try_lock() else {
                return false;
            };
            if state.is_closed_now() {
                return true;
            }
            match &state.file {
                Some(file) if state.is_unused() => (file.clone(), state.written),
                _ => return false,
            }
        };
        let synced = file.sync_all();
        drop(file);
        let mut state = lock(&self.state);
        match synced {
            Ok(()) => state.synced = state.synced.max(written),
            Err(error) => state.error = Some(error),
        }
        state.is_closed_now()
    }
}

impl State {
    /// Whether nobody uses it, and it can be opened again.
    fn is_unused(&self) -> bool {
        let is_held = self
            .file
            .as_ref()
            .is_some_and(|file| Arc::strong_count(file) > 1);
        self.path.is_some() && !is_held && self.error.is_none()
    }

    /// Whether it is closed; it is from now on, if nobody uses it, and all of it is synced.
    fn is_closed_now(&mut self) -> bool {
        if self.is_unused() && self.synced >= self.written {
            self.file = None;
        }
        self.file.is_none()
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
        let (file, was_opened) = self.all.with_room(|| {
            let (state, was_opened) = self.shared.hold()?;
            Ok((state.file.clone().expect("it is held open"), was_opened))
        })?;
        self.shared.used.store(true, Ordering::Relaxed);
        if was_opened {
            self.all.opened(&self.shared);
        }
        Ok(file)
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
        let _syncing = lock(&self.shared.syncing);
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
