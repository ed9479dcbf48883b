//! Explorations in a test: as somebody runs it, and steered from outside.

use super::{explore, text};
use crate::{planted::is_hit, running::output};
use std::process::Command;

/// Is run by the tests below, in a process of its own: a test that somebody has set aside, and that fails.
#[test]
#[ignore = "it fails on purpose"]
fn a_test_that_was_set_aside() {
    explore("planted-exit").jobs(1).seeds(0..10).check();
}

/// Its output, with these variables set.
fn set_aside(variables: &[(&str, &str)]) -> (bool, String) {
    let test = "campaigns::steered::a_test_that_was_set_aside";
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args([test, "--exact", "--include-ignored", "--nocapture"])
        .envs(variables.iter().copied());
    let output = output(command);
    (
        output.status.success(),
        text(&output.stdout) + &text(&output.stderr),
    )
}

#[test]
fn a_test_that_was_set_aside_fails_as_any_other() {
    let (passed, said) = set_aside(&[]);
    assert!(!passed && said.contains("FAIL  exited"), "{said}");
    assert!(
        !said.contains("LEAK") && !said.contains("could not be confirmed"),
        "{said}"
    );
    assert!(
        said.contains("SEEDBED_SEED=0x3 cargo test campaigns::steered::a_test_that_was_set_aside"),
        "{said}"
    );
}

#[test]
fn a_test_is_steered_by_one_variable() {
    assert!(set_aside(&[("SEEDBED_SEED", "4")]).0, "seed 4 passes");
    assert!(!set_aside(&[("SEEDBED_SEED", "8")]).0, "seed 8 does not");
    let last = ("SEEDBED_SEED", "0xffffffffffffffff");
    assert!(
        !is_hit(u64::MAX) && set_aside(&[last]).0,
        "the last seed is run"
    );
    assert!(set_aside(&[("SEEDBED_SEEDS", "4..8")]).0);
    for other in [("SEEDBED_SEEDS", "0..3"), ("SEEDBED_FOR", "1s")] {
        let (passed, said) = set_aside(&[("SEEDBED_SEED", "4"), other]);
        assert!(!passed, "{said}");
        assert!(
            said.contains(&format!("SEEDBED_SEED and {}", other.0)),
            "{said}"
        );
        assert!(said.contains("set one of them"), "{said}");
    }
}

#[test]
fn a_time_explores_fresh_seeds_and_says_which() {
    let first = || {
        let (_, said) = set_aside(&[("SEEDBED_FOR", "1s")]);
        let line = said
            .lines()
            .find(|line| line.contains("SEEDBED_FOR=1s: seeds from 0x"));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    assert_ne!(first(), first());
}
