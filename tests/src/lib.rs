//! Seedbed's tests. The list of modules is the table of contents.
#![cfg(test)]

/// A seed is a run: the same trace in any process, build, order and number of threads.
#[cfg(madsim)]
mod determinism;
