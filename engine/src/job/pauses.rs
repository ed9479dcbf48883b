//! Pure: the pauses between attempts, which grow as long as one after the other is in vain.

use std::time::Duration;

/// After the first attempt that was in vain.
const SHORTEST: Duration = Duration::from_millis(300);
/// However many were. An attempt that lasted for so long was not in vain.
const LONGEST: Duration = Duration::from_secs(10);

/// How many attempts in a row were in vain.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    vain: u32,
}

impl Pauses {
    /// How long to wait after an attempt that has lasted for so long.
    pub fn after(&mut self, lasted: Duration) -> Duration {
        self.vain = match lasted >= LONGEST {
            true => 0,
            false => self.vain + 1,
        };
        let doublings = self.vain.saturating_sub(1).min(10);
        let pause = (SHORTEST * 2u32.pow(doublings)).min(LONGEST);
        assert!((SHORTEST..=LONGEST).contains(&pause));
        assert_eq!(
            self.vain <= 1,
            pause == SHORTEST,
            "it grows from the second on"
        );
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_are_short_again_after_an_attempt_that_lasted() {
        let mut pauses = Pauses::default();
        let short = Duration::from_millis(50);
        let grown: Vec<u128> = (0..8).map(|_| pauses.after(short).as_millis()).collect();
        assert_eq!(grown, [300, 600, 1200, 2400, 4800, 9600, 10_000, 10_000]);
        (0..100).for_each(|_| assert_eq!(pauses.after(short), LONGEST));
        assert_eq!(pauses.after(LONGEST), SHORTEST);
    }
}
