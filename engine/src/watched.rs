//! A value that tasks wait for. Like `tokio::sync::watch`, which wakes its waiters in an order drawn from
//! a generator of the process, so that no two runs are alike; here the first to wait is the first to wake.

use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// A value that tasks wait for.
#[derive(Debug, Default)]
pub struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Clone> Watched<T> {
    /// With a first value.
    pub fn new(value: T) -> Self {
        Watched {
            value: Mutex::new(value),
            changed: Notify::new(),
        }
    }

    /// The value now.
    pub fn get(&self) -> T {
        self.lock().clone()
    }

    /// Changes the value, and wakes all who wait.
    pub fn update(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    /// Waits until `is_there` holds, and gives the value for which it does.
    pub async fn wait_for(&self, is_there: impl Fn(&T) -> bool) -> T {
        loop {
            // Registered before the value is looked at, so that no change is missed.
            let changed = self.changed.notified();
            let value = self.get();
            if is_there(&value) {
                return value;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().expect("no change panics")
    }
}
