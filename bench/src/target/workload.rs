//! The task of targets: what they copy, and how.

use super::{Invocation, OutputFormat, Target, Verification, Work};
use crate::program::Programs;
use crate::results::Kind;
use crate::volume::VolumePair;
use crate::warning::WarningKind;

/// Whether the page cache is used, where a program lets us choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    Direct,
    Buffered,
}

/// A workload for targets: copy these, at the same time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload<'a> {
    pub programs: &'a Programs,
    pub pairs: &'a [VolumePair],
    pub caching: Caching,
    /// Bytes of a request; `None` for the best that is known.
    pub block: Option<u64>,
}

impl Workload<'_> {
    /// One invocation per pair of a program, or its absence.
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
                Work::Commands { commands, format: OutputFormat::Ignored }
            }
            Err(why) => Work::Missing(why),
        };
        Target {
            name: name.to_owned(),
            kind,
            step: None,
            work,
            pairs: self.pairs.to_vec(),
            verification: Verification::ByteForByte,
            warnings: Vec::new(),
        }
    }

    /// The same for a rival that goes through the page cache whatever we ask, against ours that does not.
    pub(super) fn cached_rival(&self, target: Target) -> Target {
        match self.caching {
            Caching::Direct => {
                target.with_warning(WarningKind::OtherFlags("it has no direct I/O".to_owned()).warning())
            }
            Caching::Buffered => target,
        }
    }

    /// The block in bytes, or this.
    pub(super) fn block_or(&self, best: u64) -> u64 {
        self.block.unwrap_or(best)
    }
}
