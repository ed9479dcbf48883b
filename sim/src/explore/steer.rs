//! What says from outside which seeds a `#[test]` explores, and the texts of seeds and times.

use super::Explore;
use crate::Seed;
use std::{
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

const SEED: &str = "SEEDBED_SEED";
const SEEDS: &str = "SEEDBED_SEEDS";
const FOR: &str = "SEEDBED_FOR";

/// The exploration, as the environment wants it. The error says which variable is wrong, and what would be
/// right.
pub(super) fn steered(
    explore: Explore,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Explore, String> {
    let set: Vec<&str> = [SEED, SEEDS, FOR]
        .into_iter()
        .filter(|name| env(name).is_some())
        .collect();
    let [name] = set[..] else {
        return match set.is_empty() {
            true => Ok(explore),
            false => Err(format!(
                "{} are set, and each says which seeds to run: set one of them",
                set.join(" and ")
            )),
        };
    };
    let text = env(name).expect("it is set");
    let wrong = |error: &dyn std::fmt::Display| format!("{name}: {error}");
    match name {
        SEED => {
            let Seed(seed) = text.parse().map_err(|error| wrong(&error))?;
            Ok(explore.seeds(seed..=seed).aloud())
        }
        SEEDS => Ok(explore.seeds(parse_range(&text).map_err(|error| wrong(&error))?)),
        _ => {
            let lasts = parse_duration(&text).map_err(|error| wrong(&error))?;
            let first = fresh_seed();
            eprintln!("{name}={text}: seeds from {} on", Seed(first));
            Ok(explore.seeds(first..).lasts(lasts))
        }
    }
}

/// A first seed that no exploration has begun with that did not begin in the same microsecond: of the time at which it
/// is asked for. It only picks which seeds are run, and whoever takes it prints it.
#[allow(clippy::disallowed_methods)]
pub fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}

/// Reads `A..B`, or a single seed.
pub fn parse_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    let seed = |text: &str| {
        text.parse()
            .map(|Seed(seed)| seed)
            .map_err(|e| e.to_string())
    };
    let Some((from, to)) = text.split_once("..") else {
        let seed = seed(text)?;
        return Ok(seed..=seed);
    };
    let (from, to) = (seed(from)?, seed(to)?);
    if from >= to {
        return Err(format!("`{text}` holds no seed: write A..B with A below B"));
    }
    Ok(from..=to - 1)
}

/// Reads `30s`, `10m`, `8h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration: write 30s, 10m or 8h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let number = &text[..text.len() - unit.len_utf8()];
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(factor).filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_durations_are_read_or_refused() {
        assert_eq!(parse_range("3..7"), Ok(3..=6));
        assert_eq!(parse_range("0x10"), Ok(16..=16));
        assert_eq!(
            parse_range("0xffffffffffffffff"),
            Ok(u64::MAX..=u64::MAX),
            "the last seed is a seed"
        );
        for text in ["", "7..3", "5..5", "a..b", "1..", "-1..3"] {
            assert!(parse_range(text).unwrap_err().contains('`'), "{text}");
        }
        assert_eq!(parse_duration("8h"), Ok(Duration::from_secs(8 * 3600)));
        for text in ["", "8", "h", "0s", "5d", "99999999999999999999h", "1é"] {
            assert!(parse_duration(text).unwrap_err().contains("30s"), "{text}");
        }
    }
}
