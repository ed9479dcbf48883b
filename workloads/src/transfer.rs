//! Money moves between accounts: commands in, two entries each out, with the consumed positions in the same
//! transaction.
//!
//! | part | is |
//! |---|---|
//! | [`settings`] | sizes, choices and knobs, as they stand in a plan |
//! | [`command`] | a command, its two entries, and what numbers them |
//! | [`teller`] | writes commands, and is told about them |
//! | [`lives`] | topics that are created, written to, deleted, and created again |
//! | [`worker`] | consumes, transforms and produces in transactions, in a group with others |
//! | [`reader`] | reads committed entries all the time |
//! | [`ghost`] | watches what the brokers say, as they say it |
//! | [`fences`] | who is told that it is fenced has a successor |
//! | [`scan`] | the log itself: transactions and their markers, as they stand in it |
//! | [`judge`] | final reads, and one ledger for each claim |
//! | [`workload`] | three brokers, three workers, two tellers, two readers |

pub mod command;
pub mod fences;
pub mod ghost;
pub mod judge;
pub mod lives;
pub mod reader;
pub mod scan;
pub mod settings;
pub mod teller;
pub mod worker;
pub mod workload;

/// The topic of the commands.
pub const COMMANDS: &str = "transfers";
/// The topic of the entries.
pub const ENTRIES: &str = "entries";
/// A topic that keeps only its newest records.
pub const CHATTER: &str = "chatter";
/// The group that the workers share the commands in.
pub const GROUP: &str = "transfer";
