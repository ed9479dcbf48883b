//! `Fault`: *when* × *what*. What the world does to a system, and what a system must survive.
//!
//! | kind | what it is | who can tell |
//! |---|---|---|
//! | `crash` | the process dies; page cache and bytes already sent stay | peers get FIN or RST |
//! | `power-loss` | the machine dies; unsynced pages are kept, lost or torn | peers hear nothing |
//! | `pause` | tasks stop, kernel and timers go on: the zombie | peers wait |
//! | `cut` | nothing passes between two nodes, one way or both, until healed | both wait |
//! | `hold` | bytes stop on the wire and survive their sender; released later | late requests |
//! | `lost-ack` | a request is delivered, its response never; then a reset | outcome unknown |
//! | `reset` | the connections between two nodes get RST | both |
//! | `connect-hang` | new connections between two nodes hang | whoever connects |
//! | `disk-error` | the next operations of one kind on a node's disk fail | that node |
//! | `no-space` | writes that need room fail | that node |
//! | `slow-disk` | every disk operation takes longer | that node |
//!
//! Damage at rest ([`What::DAMAGE`]) is outside of what a system of one copy can survive. What it must do is say so: a
//! run in which it struck ends as `detected` if the program under test has named the file, as `clean` if nothing is
//! amiss (it was never read, it was repaired, or it did no harm), and is a failure if something is lost, or stuck, in
//! silence, or if what was named does not explain it.
//!
//! | kind | what it is |
//! |---|---|
//! | `bit-rot` | a bit of a file is another one |
//! | `lost-file` | a file is no longer in its directory |
//! | `misdirected` | a page of a file holds what was meant for another page, of this file or another |
//! | `stale-file` | a file is what it was before one of its last syncs; or a removed file is there again |
//!
//! It strikes what is durable and clean, in the page cache as on the platter: a clean page may be read again from the
//! platter at any moment, so the two are never told apart for long. A program that has the file open goes on with
//! its open file where a directory has lost it. Which file and which place is drawn from the plan's `pick`, among
//! those that there are when it strikes; none, if nothing fits.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One thing that goes wrong, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When it strikes.
    pub at: Trigger,
    /// What it does.
    pub what: What,
}

/// When a fault strikes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Trigger {
    /// At a virtual time, in milliseconds since the start of the run.
    Time(u64),
    /// Just before the n-th network or disk operation of a node, counted from 1.
    Step {
        /// The node whose operations are counted.
        node: String,
        /// Which of them.
        n: u64,
    },
    /// At the n-th occurrence of a named `tracing` event on a node, counted from 1.
    Event {
        /// The node on which it happens.
        node: String,
        /// The event's name, for example `sink.prepared`.
        name: String,
        /// Which of them.
        n: u64,
    },
}

/// Which operations of a disk fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskOp {
    /// Reading a file.
    Read,
    /// Writing to a file or changing its length.
    Write,
    /// Syncing a file or a directory. Afterwards the dirty pages are in doubt.
    Sync,
}

/// What a fault does. Durations are in milliseconds of virtual time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum What {
    /// The process dies, and is started again later.
    Crash {
        /// Whose.
        node: String,
        /// How long it stays down.
        down: u64,
    },
    /// The machine loses power, and is started again later.
    PowerLoss {
        /// Which.
        node: String,
        /// How long it stays off.
        down: u64,
    },
    /// The process stands still, and wakes up later without knowing.
    Pause {
        /// Whose.
        node: String,
        /// How long.
        lasts: u64,
    },
    /// Nothing passes from one node to another.
    Cut {
        /// Whose bytes do not leave.
        from: String,
        /// Who does not get them.
        to: String,
        /// Whether the other direction is cut as well.
        both: bool,
        /// Until it is healed.
        lasts: u64,
    },
    /// Bytes stop on the wire, survive their sender, and arrive when they are released.
    Hold {
        /// Whose bytes.
        from: String,
        /// For whom.
        to: String,
        /// Until they are released.
        lasts: u64,
    },
    /// The next response is lost after its request was delivered; both ends then see a reset.
    LostAck {
        /// Who asked.
        client: String,
        /// Whose answer is lost.
        server: String,
    },
    /// All connections between two nodes are reset.
    Reset {
        /// One of them.
        a: String,
        /// The other.
        b: String,
    },
    /// New connections hang.
    ConnectHang {
        /// Who connects.
        from: String,
        /// To whom.
        to: String,
        /// Until they go through again.
        lasts: u64,
    },
    /// The next operations of one kind fail with an I/O error.
    DiskError {
        /// Whose disk.
        node: String,
        /// Which operations.
        op: DiskOp,
        /// How many of them.
        times: u64,
    },
    /// The disk is full.
    NoSpace {
        /// Whose disk.
        node: String,
        /// Until there is room again.
        lasts: u64,
    },
    /// Disk operations take longer.
    SlowDisk {
        /// Whose disk.
        node: String,
        /// How many times as long.
        factor: u64,
        /// Until it is healthy again.
        lasts: u64,
    },
    /// A bit of durable data flips.
    BitRot(Spot),
    /// The entry of a durable file vanishes.
    LostFile(Spot),
    /// A durable page is overwritten with another durable page.
    Misdirected(Spot),
    /// A durable file becomes what it was before, or comes back.
    StaleFile(Spot),
}

/// Where durable data is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Spot {
    /// Whose disk.
    pub node: String,
    /// Only files whose path holds this text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Picks the file, the place, and what happens there.
    pub pick: u64,
}

impl What {
    /// The names of all kinds that a system may have to survive, in the order of the first table above.
    pub const KINDS: [&'static str; 11] = [
        "crash",
        "power-loss",
        "pause",
        "cut",
        "hold",
        "lost-ack",
        "reset",
        "connect-hang",
        "disk-error",
        "no-space",
        "slow-disk",
    ];

    /// The names of the kinds of damage at rest, in the order of the second table above.
    pub const DAMAGE: [&'static str; 4] = ["bit-rot", "lost-file", "misdirected", "stale-file"];

    /// The names of all kinds.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        Self::KINDS.into_iter().chain(Self::DAMAGE)
    }

    /// What a campaign counts that no fault asks for: deliveries that take very long.
    pub(crate) const UNASKED: [&'static str; 1] = ["heavy-tail"];

    /// The names under which a campaign counts a kind, and what comes of it.
    pub(crate) fn counted_as(kind: &'static str) -> Vec<&'static str> {
        match kind {
            "crash" => vec![kind, "restart"],
            "power-loss" => vec![
                kind,
                "restart",
                "half-open",
                "page-kept",
                "page-lost",
                "page-torn",
                "length-lost",
                "entry-lost",
            ],
            "cut" => vec![kind, "cut-one-way"],
            // By the operation that failed.
            "disk-error" => vec!["read-error", "write-error", "sync-error"],
            _ => vec![kind],
        }
    }

    /// Where it damages what is at rest, if it does.
    pub fn damage(&self) -> Option<&Spot> {
        match self {
            What::BitRot(spot)
            | What::LostFile(spot)
            | What::Misdirected(spot)
            | What::StaleFile(spot) => Some(spot),
            _ => None,
        }
    }

    /// The name of this kind.
    pub fn kind(&self) -> &'static str {
        let index = match self {
            What::Crash { .. } => 0,
            What::PowerLoss { .. } => 1,
            What::Pause { .. } => 2,
            What::Cut { .. } => 3,
            What::Hold { .. } => 4,
            What::LostAck { .. } => 5,
            What::Reset { .. } => 6,
            What::ConnectHang { .. } => 7,
            What::DiskError { .. } => 8,
            What::NoSpace { .. } => 9,
            What::SlowDisk { .. } => 10,
            What::BitRot(_) => return Self::DAMAGE[0],
            What::LostFile(_) => return Self::DAMAGE[1],
            What::Misdirected(_) => return Self::DAMAGE[2],
            What::StaleFile(_) => return Self::DAMAGE[3],
        };
        Self::KINDS[index]
    }

    /// The nodes that it names.
    pub fn nodes(&self) -> Vec<&str> {
        match self {
            What::Crash { node, .. }
            | What::PowerLoss { node, .. }
            | What::Pause { node, .. }
            | What::DiskError { node, .. }
            | What::NoSpace { node, .. }
            | What::SlowDisk { node, .. } => vec![node],
            What::Cut { from, to, .. }
            | What::Hold { from, to, .. }
            | What::ConnectHang { from, to, .. } => vec![from, to],
            What::LostAck { client, server } => vec![client, server],
            What::Reset { a, b } => vec![a, b],
            What::BitRot(spot)
            | What::LostFile(spot)
            | What::Misdirected(spot)
            | What::StaleFile(spot) => vec![&spot.node],
        }
    }

    /// How long it lasts, in milliseconds; zero for what happens at one moment.
    pub fn lasts(&self) -> u64 {
        match *self {
            What::Crash { down, .. } | What::PowerLoss { down, .. } => down,
            What::Pause { lasts, .. }
            | What::Cut { lasts, .. }
            | What::Hold { lasts, .. }
            | What::ConnectHang { lasts, .. }
            | What::NoSpace { lasts, .. }
            | What::SlowDisk { lasts, .. } => lasts,
            What::LostAck { .. }
            | What::Reset { .. }
            | What::DiskError { .. }
            | What::BitRot(_)
            | What::LostFile(_)
            | What::Misdirected(_)
            | What::StaleFile(_) => 0,
        }
    }
}

impl Trigger {
    /// The node whose step or event it is.
    pub fn node(&self) -> Option<&str> {
        match self {
            Trigger::Time(_) => None,
            Trigger::Step { node, .. } | Trigger::Event { node, .. } => Some(node),
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trigger::Time(ms) => write!(f, "at {}", Seconds(*ms)),
            Trigger::Step { node, n } => write!(f, "at step {n} of {node}"),
            Trigger::Event { node, name, n } => write!(f, "at {name} #{n} on {node}"),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            What::Crash { node, down } | What::PowerLoss { node, down } => {
                write!(f, "{kind} {node}, back after {}", Seconds(*down))
            }
            What::Pause { node, lasts } => write!(f, "pause {node} for {}", Seconds(*lasts)),
            What::Cut {
                from,
                to,
                both,
                lasts,
            } => {
                let arrow = if *both { "<->" } else { "->" };
                write!(f, "cut {from} {arrow} {to} for {}", Seconds(*lasts))
            }
            What::Hold { from, to, lasts } => {
                write!(f, "hold {from} -> {to} for {}", Seconds(*lasts))
            }
            What::LostAck { client, server } => write!(f, "lost-ack {server} -> {client}"),
            What::Reset { a, b } => write!(f, "reset {a} <-> {b}"),
            What::ConnectHang { from, to, lasts } => {
                write!(f, "connect-hang {from} -> {to} for {}", Seconds(*lasts))
            }
            What::DiskError { node, op, times } => {
                write!(f, "disk-error on {node}: next {times} of {op:?}")
            }
            What::NoSpace { node, lasts } => {
                write!(f, "no-space on {node} for {}", Seconds(*lasts))
            }
            What::SlowDisk {
                node,
                factor,
                lasts,
            } => write!(f, "slow-disk on {node}: {factor} x for {}", Seconds(*lasts)),
            What::BitRot(Spot { node, file, pick })
            | What::LostFile(Spot { node, file, pick })
            | What::Misdirected(Spot { node, file, pick })
            | What::StaleFile(Spot { node, file, pick }) => match file.as_str() {
                "" => write!(f, "{kind} on {node}, pick {pick}"),
                file => write!(f, "{kind} on {node} in {file}, pick {pick}"),
            },
        }
    }
}

struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0 / 1000, self.0 % 1000)
    }
}
