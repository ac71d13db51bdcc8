//! Touches memory before each trial, so that no trial pays for the first touch.
//!
//! A virtual machine pays host time when it touches memory for the first time, and gives the memory back some time
//! after it was freed.

use crate::interrupt::Interrupt;
use crate::launch::Launcher;
use crate::program::own_path;
use crate::target::{Invocation, Target};
use crate::trial_executor::{Failure, Measurement, TrialExecutor};
use std::hint::black_box;
use std::path::PathBuf;

/// Name of the hidden command that touches memory, in a process of its own so that the harness stays small.
pub(crate) const COMMAND: &str = "warm-up";

/// Touching one byte of a page allocates the page.
const PAGE_BYTES: usize = 4096;

/// An executor that touches memory before each trial.
pub(crate) struct PretouchExecutor<'a> {
    pub executor: &'a mut dyn TrialExecutor,
    /// Directory for the output of the process.
    pub folder: PathBuf,
    pub interrupt: &'a Interrupt,
    /// Bytes to touch and free before each trial; limited to half of the available memory.
    pub bytes: u64,
    /// Reason why touching memory failed, if it did.
    pub failed: Option<String>,
}

impl TrialExecutor for PretouchExecutor<'_> {
    fn reset(&mut self, target: &Target) -> Result<(), Failure> {
        self.executor.reset(target)?;
        let launcher = Launcher { folder: &self.folder, interrupt: self.interrupt };
        match pretouch(&launcher, self.bytes) {
            Err(Failure::Stopped) => Err(Failure::Stopped),
            Err(failure) => {
                self.failed = Some(failure.to_string());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn run(&mut self, target: &Target) -> Result<Measurement, Failure> {
        self.executor.run(target)
    }

    fn verify(&mut self, target: &Target) -> Result<(), Failure> {
        self.executor.verify(target)
    }

    fn count_calls(&mut self, target: &Target) -> Result<Option<u64>, Failure> {
        self.executor.count_calls(target)
    }
}

fn pretouch(launcher: &Launcher<'_>, bytes: u64) -> Result<(), Failure> {
    let bytes = bytes.min(available_bytes() / 2);
    if bytes == 0 {
        return Ok(());
    }
    launcher.run_one(&Invocation::new([own_path(), COMMAND.to_owned(), bytes.to_string()])).map(drop)
}

/// Touches memory; runs in the process of the hidden command.
pub(crate) fn touch(bytes: usize) {
    let mut memory = vec![0_u8; bytes];
    memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    black_box(memory);
}

/// Returns the memory available without swapping, by the kernel's estimate; 0 if unknown.
fn available_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse().ok());
    kib.map_or(0, |kib: u64| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_memory_to_touch() {
        assert!(available_bytes() > 0);
        touch(1 << 20);
    }
}
