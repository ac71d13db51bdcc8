//! Holds what a job and the workers share while a pass over its volumes runs. Nothing here moves a block.
//!
//! A copy is one pass; its verification is a second one. The job owns one [`JobControl`](control::JobControl) for all
//! of its passes and one [`PassState`](state::PassState) for each. Workers and the job's thread reach each other only
//! through these two. The windows and the rate limit do no I/O and read no clock: their owners pass in all facts.

pub(crate) mod stop_reason;
pub(crate) mod latency;
pub(crate) mod rate_limiter;
pub(crate) mod protection_window;
pub(crate) mod server_window;
pub(crate) mod durable_sample;
pub(crate) mod control;
pub(crate) mod state;
pub(crate) mod written_batch;
