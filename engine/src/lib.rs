//! engine
pub mod ids;
pub mod record;
pub mod watched;
pub mod host;
pub mod wire;
pub mod log;
pub mod guarantee;
pub mod barrier;
pub mod exchange;
pub mod operator;
pub mod checkpoint;
pub mod sink;
pub mod graph;
pub mod source;
pub mod task;
pub mod job;
