//! `trace`: reads a trace; of two, the first event that differs, and what led to it.

use super::{BadInput, TraceArguments};
use std::{collections::BTreeMap, path::Path};

pub(super) fn trace(arguments: &TraceArguments) -> Result<u8, BadInput> {
    let left = read(&arguments.file)?;
    if let Some(file2) = &arguments.file2 {
        return differ(&left, &read(file2)?);
    }
    if let Some(only) = &arguments.only {
        for line in left.lines().filter(|line| line.contains(only)) {
            anstream::println!("{line}");
        }
        return Ok(0);
    }
    let mut names: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in left.lines() {
        let mut words = line.split(' ').skip(1);
        let key = (words.next().unwrap_or("?"), words.next().unwrap_or("?"));
        *names.entry(key).or_default() += 1;
    }
    for ((node, name), count) in &names {
        anstream::println!("{count:>8}  {node:<10} {name}");
    }
    let last = left
        .lines()
        .last()
        .and_then(|line| line.split(' ').next())
        .unwrap_or("0");
    anstream::println!(
        "{:>8}  in all, until {last} s; --only TEXT shows them",
        left.lines().count()
    );
    Ok(0)
}

fn differ(left: &str, right: &str) -> Result<u8, BadInput> {
    let Some(parting) = sim::trace::parting(left, right) else {
        anstream::println!("the traces are equal: {} events", left.lines().count());
        return Ok(0);
    };
    anstream::println!("the traces part at event {}", parting.line);
    for line in &parting.before {
        anstream::println!("  {line}");
    }
    let end = || "(the trace has ended)".to_owned();
    anstream::println!("< {}", parting.left.unwrap_or_else(end));
    anstream::println!("> {}", parting.right.unwrap_or_else(end));
    Ok(4)
}

/// Reads a file, and makes sure that it is a trace.
fn read(path: &Path) -> Result<String, BadInput> {
    let wrong = |what: String| BadInput::new(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let is_event = |line: &str| {
        let mut words = line.split(' ');
        let time = words.next().is_some_and(|time| time.parse::<f64>().is_ok());
        time && words.next().is_some() && words.next().is_some()
    };
    match text.lines().position(|line| !is_event(line)) {
        None if text.is_empty() => Err(wrong("it is empty".into())),
        None => Ok(text),
        Some(at) => Err(wrong(format!(
            "line {} is no event; `replay --trace FILE` writes a trace",
            at + 1
        ))),
    }
}
