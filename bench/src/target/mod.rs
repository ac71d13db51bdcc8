//! Who is measured: the engine twice, what people would use instead, and the limits of device and harness.
//!
//! A target turns a task into the command line that does it best. Flags follow what each program's authors recommend
//! and what was measured; a destination always ends on stable storage, and preallocated where the program can.

pub(crate) mod blockhaul;
pub(crate) mod cp;
pub(crate) mod dd;
pub(crate) mod ddrescue;
pub(crate) mod floor;
pub(crate) mod nbdcopy;
pub(crate) mod qemu_img;

use crate::contestant::{Compared, Contestant, Invocation, Told, Work};
use crate::doubt::Reason;
use crate::program::Programs;
use crate::results::Kind;
use crate::volume::Pair;

/// Whether the page cache is used, where a program lets us choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    Direct,
    Buffered,
}

/// A task for targets: copy these, at the same time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task<'a> {
    pub programs: &'a Programs,
    pub pairs: &'a [Pair],
    pub caching: Caching,
    /// Bytes of a request; `None` for the best that is known.
    pub block: Option<u64>,
}

impl Task<'_> {
    /// One invocation per pair of a program, or its absence.
    fn contestant(
        &self,
        name: &str,
        kind: Kind,
        program: &str,
        line: impl Fn(&str, &Pair) -> Invocation,
    ) -> Contestant {
        let work = match self.programs.path(program) {
            Ok(path) => {
                let commands = self.pairs.iter().map(|pair| line(&path, pair)).collect();
                Work::Commands { commands, told: Told::Nothing }
            }
            Err(why) => Work::Missing(why),
        };
        Contestant {
            name: name.to_owned(),
            kind,
            step: None,
            work,
            pairs: self.pairs.to_vec(),
            compared: Compared::Yes,
            doubts: Vec::new(),
        }
    }

    /// The same for a rival that goes through the page cache whatever we ask, against ours that does not.
    fn cached_rival(&self, contestant: Contestant) -> Contestant {
        match self.caching {
            Caching::Direct => contestant.doubted(Reason::OtherFlags("it has no direct I/O".to_owned()).doubt()),
            Caching::Buffered => contestant,
        }
    }

    /// The block in bytes, or this.
    fn block_or(&self, best: u64) -> u64 {
        self.block.unwrap_or(best)
    }
}
