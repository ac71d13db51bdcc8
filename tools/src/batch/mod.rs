//! Runs `blockhaul batch`: the copies, comparisons and hooks of a file, several at once, in the order that dependencies
//! allow.
//!
//! | file | what |
//! | --- | --- |
//! | `request` | the batch file and the flags, resolved |
//! | `state` | what has become of each member, in the state directory |
//! | `earlier` | what a run takes over from an earlier one |
//! | `run` | starts members and records their ends |
//! | `hooks` | runs the hooks of members |
//! | `display` | progress |
//! | `report` | the result |

mod display;
mod earlier;
mod hooks;
mod report;
mod request;
mod run;
mod state;

pub(crate) use request::read_batch_file;

use crate::args::RawBatch;
use crate::exit::Exit;
use crate::output;
use crate::signals::StopSignals;
use crate::{dry_run, start_logging, state_dir};
use blockhaul_engine::engine::Engine;
use blockhaul_engine::error::Result;
use display::Display;
use earlier::Start;
use hooks::HookRunner;
use request::{BatchRequest, MemberJob};
use run::BatchRun;
use state::{StateFolder, folder_of};
use std::time::Instant;

/// Runs the members of a batch file, or prints their plans.
///
/// # Errors
/// Refusals from before a member starts, and a state that cannot be recorded.
pub(crate) fn run(mut raw: RawBatch) -> Result<Exit> {
    let log = std::mem::take(&mut raw.log);
    output::refuse_volume_streams([raw.file.as_path()])?;
    let request = BatchRequest::resolve(raw, |name| std::env::var_os(name))?;
    output::refuse_volume_streams(request.paths())?;
    start_logging(log)?;
    if request.dry_run {
        return check(&request);
    }
    let signals = StopSignals::catch()?;
    state_dir::prepare(&request.state_dir)?;
    let folder = StateFolder::lock(folder_of(&request.state_dir, &request.file))?;
    let start = match earlier::start(&request, folder)? {
        Start::Run(start) => start,
        Start::HasEnded(end, members) => {
            report::already_ended(&request, end, &members);
            return Ok(Exit::Done);
        }
    };
    let hooks = HookRunner::new(&request, &start.state)?;
    let engine = Engine::start(request.config)?;
    let began = Instant::now();
    let run = BatchRun::new(&request, &engine, hooks, start, Display::choose(request.output));
    signals.stop(run.stop_target())?;
    let result = run.run()?;
    Ok(report::show(&request, &result, began.elapsed()))
}

/// Checks every member as a real start does, and changes nothing. Returns the exit code of the first refusal.
fn check(request: &BatchRequest) -> Result<Exit> {
    state_dir::examine(&request.state_dir)?;
    let engine = Engine::start(request.config)?;
    let json = request.output.json;
    let mut exit = Exit::Done;
    for (member, job) in request.batch.members.iter().zip(&request.jobs) {
        let id = member.id.as_str();
        let writer = member.after.iter().find(|dependency| dependency.reads_destination);
        let shown = match (writer, job) {
            (Some(writer), _) => {
                let why = format!("it reads what {} writes", request.batch.members[writer.on].id);
                dry_run::show_unchecked(id, job.kind(), &why, json)
            }
            (None, MemberJob::Copy(spec)) => dry_run::show(Some(id), spec, engine.check(spec), json),
            // The hook was found.
            (None, MemberJob::Run(_)) => dry_run::show_other(id, job.kind(), Ok(()), json),
            (None, MemberJob::Verify(spec)) => dry_run::show_other(id, job.kind(), request::open_volumes(spec), json),
        };
        if exit == Exit::Done {
            exit = shown;
        }
    }
    Ok(exit)
}
