//! How long a guest that crashed waits.

use std::time::Duration;

/// The longest wait.
const MAX: Duration = Duration::from_secs(60);
/// A guest that ran for so long begins anew with the shortest wait.
pub(super) const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// The wait after the `crashes`th crash in a row: 1 s, then twice as long each time.
pub(super) fn back_off(crashes: u32) -> Duration {
    let doublings = crashes.saturating_sub(1).min(16);
    Duration::from_secs(1 << doublings).min(MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_doubles_up_to_a_minute() {
        let waits: Vec<u64> = (0..9).map(|crashes| back_off(crashes).as_secs()).collect();
        assert_eq!(waits, [1, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(back_off(u32::MAX), MAX);
    }
}
