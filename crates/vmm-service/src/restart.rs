//! Whether, and when, a virtual machine that ended starts again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When a virtual machine whose workload ended starts again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Whatever the exit.
    #[default]
    Always,
    /// Unless it exited with 0.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    pub(crate) fn restarts(self, success: bool) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !success,
            Self::Never => false,
        }
    }
}

/// A run of this length is taken as healthy: the next failure is the first again.
pub(crate) const HEALTHY: Duration = Duration::from_secs(600);
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// How long to wait before the restart after `failures` runs in a row that were not [`HEALTHY`].
pub(crate) fn delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1);
    1u32.checked_shl(doublings).and_then(|factor| FIRST.checked_mul(factor)).map_or(LONGEST, |delay| delay.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_five_minutes() {
        let seconds: Vec<u64> = [1, 2, 3, 8, 9, 10, 33, u32::MAX].map(|n| delay(n).as_secs()).into();
        assert_eq!(seconds, [1, 2, 4, 128, 256, 300, 300, 300]);
    }

    #[test]
    fn a_policy_looks_at_success_only_where_it_says_so() {
        assert!(RestartPolicy::Always.restarts(true) && RestartPolicy::Always.restarts(false));
        assert!(!RestartPolicy::OnFailure.restarts(true) && RestartPolicy::OnFailure.restarts(false));
        assert!(!RestartPolicy::Never.restarts(true) && !RestartPolicy::Never.restarts(false));
    }
}
