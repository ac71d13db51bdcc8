//! Memory of a virtual machine costs its host time at the first touch, and is given back to it a while after it was freed:
//! that time is paid before each trial, not in it.

use crate::executor::{Executor, Failure, Measurement};
use crate::interrupt::Interrupt;
use crate::launch::Launcher;
use crate::program::own_path;
use crate::target::{Invocation, Target};
use std::hint::black_box;
use std::path::PathBuf;

/// The hidden command under which the program touches memory: a process of its own, so that ours stays small.
pub(crate) const COMMAND: &str = "warm-up";

/// Touched once in each of these, it is there.
const PAGE_BYTES: usize = 4096;

/// An executor whose trials begin with memory that has been touched.
pub(crate) struct WarmUpExecutor<'a> {
    pub executor: &'a mut dyn Executor,
    /// For what the process says.
    pub folder: PathBuf,
    pub interrupt: &'a Interrupt,
    /// Touched and freed before each trial, at most half of what is available.
    pub bytes: u64,
    /// Why it could not be done, if so.
    pub failed: Option<String>,
}

impl Executor for WarmUpExecutor<'_> {
    fn reset(&mut self, target: &Target) -> Result<(), Failure> {
        self.executor.reset(target)?;
        let launcher = Launcher { folder: &self.folder, interrupt: self.interrupt };
        match warm_up(&launcher, self.bytes) {
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

fn warm_up(launcher: &Launcher<'_>, bytes: u64) -> Result<(), Failure> {
    let bytes = bytes.min(available_bytes() / 2);
    if bytes == 0 {
        return Ok(());
    }
    launcher.run_one(&Invocation::new([own_path(), COMMAND.to_owned(), bytes.to_string()])).map(drop)
}

/// The process that does it.
pub(crate) fn touch(bytes: usize) {
    let mut memory = vec![0_u8; bytes];
    memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    black_box(memory);
}

/// What the kernel thinks can be had without swapping; 0 where it does not say.
fn available_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse().ok());
    kib.map_or(0, |kib: u64| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_memory_to_touch() {
        assert!(available_bytes() > 0);
        touch(1 << 20);
    }
}
