//! Seedbed's tests. The list of modules is the table of contents.

/// The plan of the house: who may import whom, and what must not be there.
mod house;

/// A seed is a run: the same trace in any process, build, order and number of threads.
#[cfg(madsim)]
mod determinism;

/// Processes that a test starts.
#[cfg(any(madsim, feature = "kafka-clients"))]
mod running;

/// Programs with something planted in them.
#[cfg(madsim)]
mod planted;

/// Campaigns: nothing that a program does ends one, and each failure is put under its own cause.
#[cfg(madsim)]
mod campaigns;

/// A world for a test that only needs some nodes.
#[cfg(madsim)]
mod stage;

/// The world does to a program what its fault model says.
#[cfg(madsim)]
mod faults;

/// One test body for the simulated and the real disk, network and object store.
mod contracts;

/// What a log promises its clients: the simulated brokers, a real one of ours, Apache Kafka.
mod log_contract;

/// The real broker, as a process: what stops it, what it survives, whom it refuses.
#[cfg(not(madsim))]
mod real_broker;

/// A pipeline for real, as a process that is killed and begun again.
#[cfg(not(madsim))]
mod real_run;

/// How such a run ends: with a whole table, or with what is missing.
#[cfg(not(madsim))]
mod run_ends;

/// What the log's broker makes of peers that do not speak as they should.
#[cfg(madsim)]
mod log;

/// Topics that come and go.
#[cfg(madsim)]
mod deletion;

/// A broker that is stopped, or killed, and started again over the same files.
#[cfg(madsim)]
mod restarts;

/// Damage at rest: refused by name, repaired, or harmless.
#[cfg(madsim)]
mod damage;

/// What our brokers alone promise of topics.
#[cfg(madsim)]
mod topics;

/// Each version of each request is answered.
#[cfg(madsim)]
mod versions;

/// Seeds × guarantees × sinks: each cell keeps its promise, each weaker one shows its anomaly.
#[cfg(madsim)]
mod guarantees;

/// What attempts, checkpoints and sinks may do has happened, and nothing else.
#[cfg(madsim)]
mod moves;

/// Money moves in transactions, and the sum never changes.
#[cfg(madsim)]
mod transfer;

/// A small job, for a test in a stage.
#[cfg(madsim)]
mod small_job;

/// What ends a job with what to do, and what is tried again.
#[cfg(madsim)]
mod job_errors;

/// Whatever is damaged of a job's objects is refused by name, repaired, or harmless.
#[cfg(madsim)]
mod job_damages;

/// Plans that once failed.
#[cfg(madsim)]
mod regressions;

/// What is refused, and how it is said.
#[cfg(madsim)]
mod refused;

/// Stock clients, and what they need.
#[cfg(feature = "kafka-clients")]
mod stock;

/// Stock clients against our broker, and our client against Apache Kafka. Installs what it needs.
#[cfg(feature = "kafka-clients")]
mod kafka_clients;
