//! The `seedbed` command, built where the tests can find it: with programs that it must survive.

#[cfg(madsim)]
mod planted;

use workloads::cli::{main_of, Known};

#[cfg_attr(not(madsim), allow(unused_mut))]
fn main() -> std::process::ExitCode {
    let mut known = Known::default();
    #[cfg(madsim)]
    known
        .0
        .extend(planted::PLANTS.map(|(name, _)| planted::planted(name)));
    main_of(known)
}
