//! The limits of a run: how much time and memory it may take before it has failed.

use super::{parse_seed_timeout, LimitArguments, MEMORY, SEED_TIMEOUT};
use sim::Explore;

impl LimitArguments {
    /// Explores under these limits.
    pub(super) fn bound(&self, explore: Explore) -> Explore {
        explore
            .wall_max(self.seed_timeout)
            .memory_max(self.memory << 20)
    }

    /// The arguments under which a run is bound by the same limits: none for those that hold anyway.
    pub(super) fn to_arguments(&self) -> String {
        let mut text = String::new();
        if Ok(self.seed_timeout) != parse_seed_timeout(SEED_TIMEOUT) {
            // Without blanks: it is one word on a command line.
            let time = humantime::format_duration(self.seed_timeout).to_string();
            text += &format!(" --seed-timeout {}", time.replace(' ', ""));
        }
        if self.memory != MEMORY {
            text += &format!(" --memory {}", self.memory);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn limits_are_read_as_they_are_written() {
        for (seconds, memory, written) in [
            (60, 4096, ""),
            (90, 4096, " --seed-timeout 1m30s"),
            (2, 64, " --seed-timeout 2s --memory 64"),
        ] {
            let seed_timeout = Duration::from_secs(seconds);
            let limits = LimitArguments {
                seed_timeout,
                memory,
            };
            let text = limits.to_arguments();
            assert_eq!(text, written);
            if let Some(time) = text.split(' ').nth(2) {
                assert_eq!(parse_seed_timeout(time), Ok(seed_timeout));
            }
        }
    }
}
