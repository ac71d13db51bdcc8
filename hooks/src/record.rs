//! Defines the record of a running hook: a small file by which a later process finds what an earlier one left running.
//!
//! ```text
//! blockhaul-hook 1
//! boot 6f1c1a8e-...            the kernel's boot id
//! hook freeze-vm
//! task vm42
//! node n1
//! attempt 1
//! epoch 712
//! stat 4711 (hook) S ...       written by the process itself before it executes the hook: its /proc/self/stat
//! ```
//!
//! A record without a whole `stat` line belongs to a process that executed nothing: it dies with the process that
//! started it, before it can. A record of another boot belongs to a process that is gone. So a record need not reach
//! the disk, and is not synced: it has to outlive processes, not the kernel.

use crate::limits::RECORD_BYTES_MAX;
use crate::mark::HookMark;
use crate::name::HookName;
use crate::order::HookRequest;
use crate::process::{ProcessKey, ProcessStat};
use std::fs;
use std::io;

const HEADING: &str = "blockhaul-hook 1";

/// What the process adds to the head before it copies its `/proc/self/stat`.
pub(crate) const STAT_PREFIX: &[u8] = b"stat ";

/// A record of a hook that was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HookRecord {
    pub(crate) boot_id: String,
    pub(crate) hook: HookName,
    pub(crate) task: String,
    pub(crate) node: String,
    pub(crate) attempt: u64,
    pub(crate) epoch: u64,
    pub(crate) process: ProcessKey,
}

/// What the bytes of a record mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The process executes the hook, or did.
    Executed(HookRecord),
    /// The process did not get as far as executing anything.
    NotExecuted,
    /// Not written by this version.
    Unknown,
}

impl HookRecord {
    /// Returns all lines but the last one.
    pub(crate) fn head(boot_id: &str, hook: &HookName, request: &HookRequest) -> String {
        let HookRequest { task, node, attempt, epoch, .. } = request;
        format!("{HEADING}\nboot {boot_id}\nhook {hook}\ntask {task}\nnode {node}\nattempt {attempt}\nepoch {epoch}\n")
    }

    /// Returns what the record means.
    pub(crate) fn parse(bytes: &[u8]) -> Parsed {
        // Cut short in the first line, it was not written to its end.
        let heading = HEADING.as_bytes();
        if bytes.len() <= heading.len() && heading.starts_with(bytes) {
            return Parsed::NotExecuted;
        }
        let Some(rest) = bytes.strip_prefix(heading).and_then(|rest| rest.strip_prefix(b"\n")) else {
            return Parsed::Unknown;
        };
        if bytes.len() as u64 > RECORD_BYTES_MAX {
            return Parsed::Unknown;
        }
        let mut lines = rest.split(|byte| *byte == b'\n');
        let mut field = |name: &str| {
            let line = std::str::from_utf8(lines.next()?).ok()?;
            line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned)
        };
        let fields = ["boot", "hook", "task", "node", "attempt", "epoch"].map(&mut field);
        let process = lines.next().filter(|_| bytes.ends_with(b"\n")).and_then(|line| line.strip_prefix(STAT_PREFIX));
        let Some(process) = process else { return Parsed::NotExecuted };
        Self::from_fields(fields, process).map_or(Parsed::Unknown, Parsed::Executed)
    }

    fn from_fields(fields: [Option<String>; 6], process: &[u8]) -> Option<Self> {
        let [boot_id, hook, task, node, attempt, epoch] = fields;
        Some(Self {
            boot_id: boot_id?,
            hook: HookName::parse(&hook?).ok()?,
            task: task?,
            node: node?,
            attempt: attempt?.parse().ok()?,
            epoch: epoch?.parse().ok()?,
            process: ProcessStat::parse(process)?.key,
        })
    }

    /// Returns the mark of the processes of this hook.
    pub(crate) fn mark(&self) -> HookMark {
        HookMark::new(&self.task, &self.node, self.attempt, self.epoch)
    }
}

/// Returns the id of the present boot of this host.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> String {
        let request = HookRequest::new("vm42", "n1", 3, 712);
        HookRecord::head("6f1c", &HookName::parse("freeze-vm").unwrap(), &request)
    }

    fn whole() -> String {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        format!("{}stat {stat}", head())
    }

    #[test]
    fn a_whole_record_names_the_hook_and_its_process() {
        let Parsed::Executed(record) = HookRecord::parse(whole().as_bytes()) else { panic!("{}", whole()) };
        assert_eq!(
            (record.boot_id.as_str(), record.hook.as_str(), record.task.as_str()),
            ("6f1c", "freeze-vm", "vm42")
        );
        assert_eq!((record.node.as_str(), record.attempt, record.epoch), ("n1", 3, 712));
        let own = ProcessStat::read(std::process::id().cast_signed()).unwrap();
        assert_eq!(record.process, own.key);
        assert_eq!(record.mark(), HookMark::new("vm42", "n1", 3, 712));
    }

    #[test]
    fn a_record_that_was_cut_short_executed_nothing() {
        let whole = whole();
        for length in 0..whole.len() {
            assert_eq!(HookRecord::parse(&whole.as_bytes()[..length]), Parsed::NotExecuted, "{length}");
        }
    }

    #[test]
    fn other_bytes_are_unknown() {
        for bytes in ["blockhaul-hook 2\nboot x\n", "something", "blockhaul-hook 10"] {
            assert_eq!(HookRecord::parse(bytes.as_bytes()), Parsed::Unknown, "{bytes}");
        }
        let damaged = whole().replace("attempt 3", "attempt x");
        assert_eq!(HookRecord::parse(damaged.as_bytes()), Parsed::Unknown);
        let long = format!("{}{}\n", whole(), "x".repeat(RECORD_BYTES_MAX as usize));
        assert_eq!(HookRecord::parse(long.as_bytes()), Parsed::Unknown);
    }

    #[test]
    fn the_boot_has_an_id() {
        assert_eq!(boot_id().unwrap().len(), 36);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = HookRecord::parse(&bytes);
            let _ = HookRecord::parse(&[HEADING.as_bytes(), b"\n", &bytes].concat());
        }
    }
}
