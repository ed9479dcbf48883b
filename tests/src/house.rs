//! The plan of the house: who may import whom, and what must not be there.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace is above")
}

/// Every Rust file below `folder`, with its text up to its own tests.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).expect("readable");
                let code = text.split("#[cfg(test)]").next().unwrap_or("").to_owned();
                found.push((path.strip_prefix(root()).expect("below").to_owned(), code));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} holds no code");
    found
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

fn assert_absent(files: &[(PathBuf, String)], words: &[&str], except: &[&str]) {
    for (path, text) in files {
        let name = path.to_string_lossy();
        if except.iter().any(|part| name.contains(part)) {
            continue;
        }
        for line in code_lines(text) {
            for word in words {
                assert!(
                    !line.contains(word),
                    "{name}: `{word}` has no place here: {line}"
                );
            }
        }
    }
}

#[test]
fn the_engine_does_not_know_the_simulator_nor_the_simulator_the_engine() {
    let manifest = |name: &str| fs::read_to_string(root().join(name)).expect("readable");
    let engine = manifest("engine/Cargo.toml");
    assert!(!engine.contains("sim.workspace") && !engine.contains("madsim"));
    assert!(!manifest("sim/Cargo.toml").contains("engine"));
    assert_absent(&sources("engine/src"), &["madsim", "sim::"], &[]);
    assert_absent(&sources("sim/src"), &["engine::"], &[]);
}

#[test]
fn the_engine_touches_the_outside_only_through_its_seams() {
    let words = [
        "std::fs",
        "std::net",
        "std::thread",
        "tokio::net",
        "tokio::fs",
        "TcpStream",
    ];
    assert_absent(&sources("engine/src"), &words, &["host/"]);
}

#[test]
fn deciders_are_pure() {
    let pure = [
        "ids.rs",
        "record.rs",
        "guarantee.rs",
        "graph.rs",
        "barrier.rs",
        "producers.rs",
        "segment.rs",
        "coordinator.rs",
        "recovery.rs",
        "shape.rs",
        "known.rs",
        "stored.rs",
        "state.rs",
        "batch.rs",
        "compression.rs",
        "operator.rs",
        "decode.rs",
        "filter.rs",
        "dedup.rs",
        "window.rs",
        "sealed.rs",
        "failure.rs",
        "pauses.rs",
    ];
    let words = [
        "async ",
        ".await",
        "tokio",
        "Instant",
        "SystemTime",
        "rand::",
    ];
    let mut checked = 0;
    for file in sources("engine/src") {
        let name = file
            .0
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if pure.contains(&name.as_str()) {
            checked += 1;
            assert_absent(&[file], &words, &[]);
        }
    }
    assert_eq!(checked, pure.len(), "a pure file was renamed");
}

#[test]
fn only_the_world_starts_a_runtime_and_only_the_cluster_joins_a_seam_to_it() {
    assert_absent(&sources("sim/src"), &["Runtime::"], &["world.rs"]);
    assert_absent(
        &sources("workloads/src"),
        &["for SimDisk", "for SimNet"],
        &["cluster.rs"],
    );
}

#[test]
fn only_the_store_makes_the_right_to_commit() {
    assert_absent(
        &sources("engine/src"),
        &["Complete {\n", "Ok(Complete {"],
        &["store.rs"],
    );
}
