//! Lists the stages of a stop and bounds each of them; all bounds are in one place so that they add up.
//!
//! | stage | for | bound |
//! | --- | --- | --- |
//! | leadership | the service address to be removed and leadership to be resigned | [`LEADERSHIP_MAX`] |
//! | successor | the next leader to be known, if there is something to tell it | [`SUCCESSOR_MAX`] |
//! | mark | the registration to say that the runner stops | [`MARK_MAX`] |
//! | drain | copies to drain and to be returned in the store | [`DRAIN_MAX`] |
//! | notify | the leader to learn what was returned | [`NOTIFY_MAX`] |
//! | leave | the registration to be removed | [`LEAVE_MAX`] |
//! | close | the session to be closed | [`CLOSE_MAX`] |
//! | goodbye | open calls and streams to end | [`GOODBYE_MAX`] |
//!
//! What always holds: one stage follows the other and each has its own bound, whatever peers, servers and devices do,
//! so that a stop takes at most [`TOTAL_MAX`]. The owner of the process waits a little longer than that, and then no
//! more. A node that is asked to stop while it is still initialised has no roles to stop: [`INITIALISE_MAX`] takes the
//! place of the stages before the goodbye.

use std::time::Duration;

/// Leadership: after it the lease ends what could not be resigned. Removing a service address may take two seconds of
/// it.
pub(crate) const LEADERSHIP_MAX: Duration = Duration::from_secs(3);
/// Successor: an election takes less where a node stands for it.
pub(crate) const SUCCESSOR_MAX: Duration = Duration::from_secs(1);
/// Mark: one write; after it assignments are refused all the same.
pub(crate) const MARK_MAX: Duration = Duration::from_millis(500);
/// Drain: as long as the engine waits for what is in flight; then the copy is left behind, with its registration.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Notify: only a hint; a leader that does not get it sees the registration disappear.
pub(crate) const NOTIFY_MAX: Duration = Duration::from_millis(500);
/// Leave: one write; closing the session has the same effect.
pub(crate) const LEAVE_MAX: Duration = Duration::from_secs(1);
/// Close: fails when no server answers; the service then expires the session after its timeout.
pub(crate) const CLOSE_MAX: Duration = Duration::from_secs(1);
/// Goodbye: calls take milliseconds, and streams are told.
pub(crate) const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Initialisation: steps that have begun when a stop is asked for may end, as threads cannot be cancelled.
pub(crate) const INITIALISE_MAX: Duration = Duration::from_secs(3);

const STAGES: [Duration; 8] =
    [LEADERSHIP_MAX, SUCCESSOR_MAX, MARK_MAX, DRAIN_MAX, NOTIFY_MAX, LEAVE_MAX, CLOSE_MAX, GOODBYE_MAX];

/// Longest time of all stages of a stop together.
pub const TOTAL_MAX: Duration = Duration::from_secs(18);

const _: () = {
    let (mut sum_ms, mut stage) = (0, 0);
    while stage < STAGES.len() {
        sum_ms += STAGES[stage].as_millis();
        stage += 1;
    }
    assert!(sum_ms <= TOTAL_MAX.as_millis(), "the stages of a stop take too long together");
    assert!(INITIALISE_MAX.as_millis() <= (LEADERSHIP_MAX.as_millis() + DRAIN_MAX.as_millis()));
};
