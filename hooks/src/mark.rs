//! Recognises the processes of one hook by their environment.
//!
//! What a hook starts inherits the hook's environment, and with it the variables that name task, node, attempt and
//! epoch. A process whose parents are gone is still recognised by them.

use crate::limits::ENVIRONMENT_BYTES_MAX;
use crate::order;
use std::fs::File;
use std::io::Read;

/// The variables that every process of one hook carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HookMark {
    /// `NAME=VALUE` each.
    variables: Vec<Vec<u8>>,
}

/// What the environment of a process says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marking {
    /// It is of this hook.
    Ours,
    /// It is of another hook or of none, or the environment cannot be read: it was made anew, or the process has ended or
    /// belongs to another user.
    Unknown,
}

impl HookMark {
    /// Returns the mark of one run.
    pub(crate) fn new(task: &str, node: &str, attempt: u64, epoch: u64) -> Self {
        let variables = order::mark(task, node, attempt, epoch);
        Self { variables: variables.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect() }
    }

    /// Looks for the mark in the environment of a process.
    pub(crate) fn on_process(&self, pid: i32) -> Marking {
        let mut environment = Vec::new();
        let read = File::open(format!("/proc/{pid}/environ"))
            .and_then(|file| file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment));
        if read.is_ok() { self.within(&environment) } else { Marking::Unknown }
    }

    fn within(&self, environment: &[u8]) -> Marking {
        let variables: Vec<&[u8]> = environment.split(|byte| *byte == 0).collect();
        let is_ours = self.variables.iter().all(|own| variables.contains(&own.as_slice()));
        if is_ours { Marking::Ours } else { Marking::Unknown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_mark_counts() {
        let mark = HookMark::new("t1", "n1", 1, 7);
        let own = b"A=1\0BLOCKHAUL_EPOCH=7\0BLOCKHAUL_TASK=t1\0BLOCKHAUL_NODE=n1\0BLOCKHAUL_ATTEMPT=1\0";
        assert_eq!(mark.within(own), Marking::Ours);
        for other in [HookMark::new("t1", "n1", 2, 7), HookMark::new("t1", "n1", 1, 8), HookMark::new("t", "n1", 1, 7)]
        {
            assert_eq!(other.within(own), Marking::Unknown);
        }
        assert_eq!(mark.within(b""), Marking::Unknown);
        assert_eq!(mark.within(b"A=BLOCKHAUL_TASK=t1\0"), Marking::Unknown);
    }
}
