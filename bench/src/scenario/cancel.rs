//! How long it takes to stop: from the request to a drained, recorded end.

use super::{Scenario, Setting, Stage};
use crate::contestant::{Contestant, Invocation, Told};
use crate::copying::{Copying, commands, outside, take_answer};
use crate::engine_process::{Answer, Order};
use crate::executor::{Executor, Failure, Measured};
use crate::histogram;
use crate::launch::{Glimpse, Watch};
use crate::meter::written_bytes;
use crate::results::Metric;
use crate::scale::{GIB, MIB, Scale};
use crate::target::{Caching, blockhaul, ddrescue};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

pub(super) const CANCEL: Scenario = Scenario {
    name: "cancel",
    about: "A copy at full speed is told to stop at a random moment: the time until it has drained, recorded and ended.",
    metric: Metric::Microseconds,
    stage,
};

/// Between two looks while the moment is awaited.
const CLOSE_LOOK: Duration = Duration::from_millis(1);
/// A copy may be over before the signal arrives; then it is tried again.
const TRIES: u32 = 5;
/// How `blockhaul` ends when it can be resumed.
const INTERRUPTED: i32 = 75;

fn stage(setting: &Setting<'_>) -> Result<Stage, Failure> {
    let bytes = setting.scale.of(2 * GIB, 256 * MIB, 16 * MIB);
    let room = setting.room(3 * bytes)?;
    let pairs = [setting.dense_pair(&room, bytes)?];
    let task = setting.task(&pairs, Caching::Direct);
    let limit = limit(setting.scale);
    let (flags, rescue_flags) = limit_flags(limit);
    let contestants = vec![
        blockhaul::engine(&task, |order| order.limit_bytes_per_second = limit).uncompared(),
        blockhaul::command(&task, &words(&flags)).uncompared(),
        ddrescue::resumable(&task, &words(&rescue_flags)).uncompared(),
    ];
    let executor =
        Cancelling { copying: setting.copying(&room), random: fastrand::Rng::with_seed(setting.seed()), bytes };
    let trials = setting.scale.of(50, 5, 2);
    Ok(setting.stage_with(room, Box::new(executor), bytes, contestants).trials(trials))
}

/// A few MiB would be over before they could be stopped: in tests they are slowed down.
pub(super) fn limit(scale: Scale) -> Option<u64> {
    scale.of(None, None, Some(16 * MIB))
}

/// The same for `blockhaul`, and for `ddrescue`.
pub(super) fn limit_flags(limit: Option<u64>) -> (Vec<String>, Vec<String>) {
    match limit {
        None => (Vec::new(), Vec::new()),
        Some(limit) => {
            (vec!["--limit".to_owned(), format!("{}MiB/s", limit / MIB)], vec![format!("--max-read-rate={limit}")])
        }
    }
}

pub(super) fn words(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

struct Cancelling {
    copying: Copying,
    random: fastrand::Rng,
    bytes: u64,
}

impl Executor for Cancelling {
    fn reset(&mut self, contestant: &Contestant) -> Result<(), Failure> {
        self.copying.reset(contestant)
    }

    fn perform(&mut self, contestant: &Contestant) -> Result<Measured, Failure> {
        let (commands, told) = commands(contestant)?;
        for _ in 0..TRIES {
            // Neither before it runs at full speed, nor shortly before its end.
            let moment = self.bytes / 10 + self.random.u64(..self.bytes / 2);
            let stopped = match told {
                Told::Engine => self.cancel_engine(commands, moment)?,
                _ => self.cancel_program(commands, moment, told)?,
            };
            if let Some(measured) = stopped {
                return Ok(measured);
            }
            self.copying.reset(contestant)?;
        }
        Err(Failure::Failed(format!("it was over before it could be stopped, {TRIES} times")))
    }

    fn judge(&mut self, _contestant: &Contestant) -> Result<(), Failure> {
        Ok(())
    }
}

impl Cancelling {
    /// The engine stops itself at the moment; `None` if it was over before.
    fn cancel_engine(&self, commands: &[Invocation], moment: u64) -> Result<Option<Measured>, Failure> {
        let commands = commands.iter().map(|command| with_cancel(command, moment)).collect::<Result<Vec<_>, _>>()?;
        let ran = self.copying.launcher().run(&commands, None)?;
        let answer = Answer::parse(ran.outputs.first().map_or("", String::as_str)).map_err(Failure::Failed)?;
        if let Some(error) = answer.error {
            return Err(Failure::Failed(error));
        }
        if answer.cancel_us.is_some() && !answer.quiesced {
            return Err(Failure::Failed("it ended with operations in flight".to_owned()));
        }
        // Completion beats interruption, by rule.
        let Some(us) = answer.cancel_us.filter(|_| answer.status == "interrupted") else { return Ok(None) };
        let mut measured = outside(&ran);
        take_answer(&answer, &mut measured);
        Ok(Some(timed(measured, us)))
    }

    /// A program is sent SIGTERM at the moment; `None` if it was over before.
    fn cancel_program(&self, commands: &[Invocation], moment: u64, told: Told) -> Result<Option<Measured>, Failure> {
        let mut sent = None;
        let mut look = |glimpse: &Glimpse| {
            let written = glimpse.running.iter().filter_map(|id| written_bytes(*id)).sum::<u64>();
            if sent.is_none() && written >= moment {
                sent = Some(Instant::now());
                glimpse.signal(Signal::SIGTERM);
            }
        };
        let ran = self.copying.launcher().run(commands, Some(Watch { every: CLOSE_LOOK, look: &mut look }))?;
        let ended = ran.ended.first().copied().flatten();
        let status = ran.statuses.first().copied().unwrap_or_default();
        match (sent, ended) {
            (Some(sent), Some(ended)) if told == Told::Blockhaul && status.code() == Some(INTERRUPTED) => {
                Ok(Some(timed(outside(&ran), micros(ended - sent))))
            }
            // It was told to stop, and had succeeded before it could.
            _ if status.success() && told == Told::Blockhaul => Ok(None),
            (Some(sent), Some(ended)) if told != Told::Blockhaul => {
                Ok(Some(timed(outside(&ran), micros(ended - sent))))
            }
            (None, _) if status.success() => Ok(None),
            _ => Err(Failure::Failed(ran.complaint(0))),
        }
    }
}

/// The same order, to be stopped at the moment.
fn with_cancel(command: &Invocation, moment: u64) -> Result<Invocation, Failure> {
    let unclear = |error: serde_json::Error| Failure::Failed(format!("the order cannot be changed: {error}"));
    let mut command = command.clone();
    if let Some(order) = command.steps.first_mut().and_then(|step| step.last_mut()) {
        let changed = Order { cancel_at_bytes: Some(moment), ..serde_json::from_str(order).map_err(unclear)? };
        *order = serde_json::to_string(&changed).map_err(unclear)?;
    }
    Ok(command)
}

fn timed(measured: Measured, us: u64) -> Measured {
    let mut cancel = histogram::empty();
    cancel.saturating_record(us);
    let mut latency = measured.latency;
    latency.insert("cancel".to_owned(), cancel);
    #[allow(clippy::cast_precision_loss, reason = "microseconds of a latency")]
    let value = Some(us as f64);
    Measured { value, latency, ..measured }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_changed_in_one_place() {
        let order = serde_json::to_string(&Order { cores: Some(3), ..Order::default() }).unwrap();
        let changed = with_cancel(&Invocation::new(["copy-bench", "engine-process", &order]), 77).unwrap();
        let order: Order = serde_json::from_str(&changed.steps[0][2]).unwrap();
        assert_eq!((order.cores, order.cancel_at_bytes), (Some(3), Some(77)));
    }
}
