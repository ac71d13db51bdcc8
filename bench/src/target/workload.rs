//! Describes the copies that a target has to make, and builds targets from command lines.

use super::{Invocation, OutputFormat, Target, TrialWork};
use crate::program::Programs;
use crate::results::Kind;
use crate::volume::VolumePair;
use crate::warning::WarningKind;

/// Whether a program uses the page cache, where it leaves the choice to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// It bypasses the page cache.
    Direct,
    /// Ours chooses; a rival bypasses the page cache where it can.
    OwnChoice,
    /// It uses the page cache.
    Buffered,
}

/// Volume pairs to copy at the same time, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload<'a> {
    pub programs: &'a Programs,
    pub pairs: &'a [VolumePair],
    pub caching: Caching,
    /// Bytes of a request; `None` for the best value known for the program.
    pub block: Option<u64>,
}

impl Workload<'_> {
    /// Builds a target that runs `program` once for each pair; marks it as missing if the program is not installed.
    pub(super) fn target(
        &self,
        name: &str,
        kind: Kind,
        program: &str,
        line: impl Fn(&str, &VolumePair) -> Invocation,
    ) -> Target {
        let work = match self.programs.path(program) {
            Ok(path) => {
                let commands = self.pairs.iter().map(|pair| line(&path, pair)).collect();
                TrialWork::Commands { commands, format: OutputFormat::Ignored }
            }
            Err(why) => TrialWork::Missing(why),
        };
        Target::new(name, kind, work, self.pairs)
    }

    /// Builds a target that copies all pairs by one command; marks it as missing if one of `programs` is not installed.
    pub(super) fn one_command(
        &self,
        name: &str,
        kind: Kind,
        programs: &[&str],
        command: impl FnOnce(&[String]) -> Invocation,
    ) -> Target {
        let paths: Result<Vec<String>, String> = programs.iter().map(|program| self.programs.path(program)).collect();
        let work = match paths {
            Ok(paths) => TrialWork::Commands { commands: vec![command(&paths)], format: OutputFormat::Ignored },
            Err(why) => TrialWork::Missing(why),
        };
        Target::new(name, kind, work, self.pairs)
    }

    /// Adds a warning to a rival that always uses the page cache where ours does not.
    pub(super) fn cached_rival(&self, target: Target) -> Target {
        match self.caching {
            Caching::Direct | Caching::OwnChoice => {
                target.with_warning(WarningKind::OtherFlags("it has no direct I/O".to_owned()).warning())
            }
            Caching::Buffered => target,
        }
    }

    /// Returns the request size in bytes, `best` unless the workload fixes one.
    pub(super) fn block_or(&self, best: u64) -> u64 {
        self.block.unwrap_or(best)
    }
}
