#![cfg_attr(not(madsim), doc = "`seedbed-sim` exists only under `--cfg madsim`.")]
#![cfg(madsim)]
//! A deterministic world: seeded network, disks and faults on [madsim], for programs written against
//! tokio. A seed is a run: the same commit, workload and seed make the same trace, to the last byte.
//!
//! The map, in the order in which a run flows:
//!
//! | module | is |
//! |---|---|
//! | [`seed`] | 64 bits that name a run, split into keyed streams |
//! | [`plan`] | everything that will happen, as data with a text form |
//! | [`fault`] | when × what |
//! | [`world`] | nodes, network, disks and clocks of one run |
//! | [`node`] | a simulated machine, its incarnations and steps |
//! | [`net`], [`disk`], [`clock`], [`objects`] | what programs see of the outside |
//! | [`mod@run`] | build, faults, calm, final reads, check |
//! | [`trace`], [`history`] | what the world did; what clients were told |
//! | [`witness`] | what the program says, for checkers that watch as it happens |
//! | [`check`] | one claim a file, named after its anomaly |
//! | [`mod@shrink`], [`report`] | the smallest plan with the same anomaly, on one screen |
//! | [`mod@explore`] | seeds in, failures out |
//!
//! # A key-value server that forgets to sync
//!
//! The server below acknowledges a write before it is durable. A client writes through whatever the
//! seed does to them; at the end every acknowledged key must be there.
//!
//! ```
//! use sim::{Amount, Findings, History, Host, Kind, Plan, Promise, Scenario, Shape, Told};
//! use sim::{Workload, World};
//! use std::{io, time::Duration};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! // The program under test: `connect`, `listen` and a disk come from its host.
//! async fn serve(host: Host, sync: bool) -> io::Result<()> {
//!     let disk = host.disk();
//!     let file = disk.open("keys").await?;
//!     disk.sync_dir("").await?;
//!     let listener = host.listen(80)?;
//!     loop {
//!         let (mut stream, _) = listener.accept().await?;
//!         // A peer may go without a word: its FIN was lost with the link.
//!         let patience = Duration::from_secs(3);
//!         while let Ok(Ok(key)) = tokio::time::timeout(patience, stream.read_u8()).await {
//!             if key == 0 {
//!                 // Asked for all keys.
//!                 let mut keys = file.read_at(0, 256).await?.to_vec();
//!                 // A length may survive a power loss without its bytes.
//!                 keys.retain(|key| *key != 0);
//!                 stream.write_u8(keys.len() as u8).await?;
//!                 stream.write_all(&keys).await?;
//!             } else {
//!                 file.write_at(file.len().await?, &[key]).await?;
//!                 if sync {
//!                     file.sync().await?;
//!                 }
//!                 stream.write_u8(key).await?; // the acknowledgement
//!             }
//!         }
//!     }
//! }
//!
//! async fn put(host: &Host, key: u8) -> io::Result<()> {
//!     let mut stream = host.connect("server:80").await?;
//!     stream.write_u8(key).await?;
//!     stream.read_u8().await.map(drop)
//! }
//!
//! struct Kv { sync: bool }
//!
//! impl Workload for Kv {
//!     fn name(&self) -> &str { if self.sync { "kv" } else { "kv-without-sync" } }
//!
//!     fn shape(&self) -> Shape {
//!         Shape::new().durable("server", &[]).steady("client", &["server"])
//!     }
//!
//!     fn build(&self, world: &World, _: &Plan) -> Box<dyn Scenario> {
//!         let (sync, puts) = (self.sync, History::default());
//!         world.node("server", move |host| async move { let _ = serve(host, sync).await; });
//!         let told = puts.clone();
//!         world.node("client", move |host| {
//!             let told = told.clone();
//!             async move {
//!                 for key in 1..=20 {
//!                     let op = told.invoke(Duration::ZERO, key);
//!                     let put = tokio::time::timeout(Duration::from_secs(2), put(&host, key));
//!                     // An error or a timeout says nothing about what happened.
//!                     told.tell(op, if let Ok(Ok(())) = put.await { Told::Ok(()) } else { Told::Unknown });
//!                     tokio::time::sleep(Duration::from_millis(300)).await;
//!                 }
//!                 std::future::pending().await
//!             }
//!         });
//!         Box::new(Running { world: world.clone(), puts })
//!     }
//! }
//!
//! struct Running { world: World, puts: History<u8, ()> }
//!
//! #[async_trait::async_trait(?Send)]
//! impl Scenario for Running {
//!     fn is_fed(&self) -> bool {
//!         let ops = self.puts.ops();
//!         ops.len() == 20 && ops[19].told != Told::Invoked
//!     }
//!
//!     async fn waits_for(&mut self) -> Vec<String> { Vec::new() }
//!
//!     async fn judge(&mut self) -> Findings {
//!         let name = |key: &u8| format!("key {key}");
//!         let (mut ledger, commits) = self.puts.claim("keys", Promise::at_least_once(), name);
//!         let one = Amount { count: 1, sum: 0 };
//!         loop {
//!             let read = async {
//!                 let mut stream = self.world.observer().connect("server:80").await?;
//!                 stream.write_u8(0).await?;
//!                 let mut keys = vec![0; stream.read_u8().await?.into()];
//!                 stream.read_exact(&mut keys).await.map(|_| keys)
//!             };
//!             if let Ok(Ok(keys)) = tokio::time::timeout(Duration::from_secs(5), read).await {
//!                 keys.iter().for_each(|key| ledger.saw(name(key), one));
//!                 return Findings { ledgers: vec![ledger], commits, ..Findings::default() };
//!             }
//!             tokio::time::sleep(Duration::from_secs(1)).await;
//!         }
//!     }
//! }
//!
//! // With the sync it survives; without it, a power loss takes acknowledged keys away.
//! sim::explore(Kv { sync: true }).seeds(0..100).check();
//! let campaign = sim::explore(Kv { sync: false }).seeds(0..100).run();
//! let failure = &campaign.failures[0];
//! assert_eq!(failure.anomaly.kind, Kind::Lost);
//! assert!(failure.plan.faults.len() <= 2, "a power loss is enough");
//! assert!(failure.reproduced());
//! ```
//!
//! [madsim]: https://docs.rs/madsim

pub mod seed;
pub mod plan;
pub mod fault;
pub mod world;
pub mod node;
pub mod net;
pub mod disk;
pub mod clock;
pub mod objects;
pub mod run;
pub mod trace;
pub mod history;
pub mod witness;
pub mod check;
pub mod shrink;
pub mod report;
pub mod explore;

pub use check::{Amount, Anomaly, Kind, Ledger, Promise, Verdict};
pub use explore::{explore, Campaign, Explore, Failure};
pub use fault::{DiskOp, Fault, Spot, Trigger, What};
pub use history::{History, Op, OpId, Told};
pub use node::Host;
pub use plan::{Params, Plan, PlanError, Shape};
pub use run::{run, Findings, Limits, Report, Scenario, Workload};
pub use seed::Seed;
pub use shrink::{shrink, Shrunk};
pub use trace::Digest;
pub use witness::Said;
pub use world::{DamagedFile, Named, Then, World};
