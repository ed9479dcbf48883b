//! engine
pub mod ids;
pub mod record;
pub mod host;
pub mod wire;
pub mod log;
pub mod guarantee;
pub mod barrier;
pub mod exchange;
pub mod operator;
