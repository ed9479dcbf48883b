//! What Seedbed runs, and how it knows that it is right. The only place where `sim` meets `engine`.
//!
//! | module | is |
//! |---|---|
//! | [`revenue`] | ShopFlow: order events in, revenue per minute out; its oracle |
//! | `canary` | must fail |
//! | `cluster` | the engine's seams joined to a simulated world |
//! | [`cli`] | the `seedbed` command |

pub mod revenue;
#[cfg(madsim)]
pub mod canary;
#[cfg(madsim)]
pub mod cluster;
pub mod cli;
