//! Memory of a virtual machine costs its host time at the first touch: it is paid before the first trial, not in it.

use crate::contestant::Invocation;
use crate::executor::Failure;
use crate::launch::Launcher;
use crate::program::ourselves;
use std::hint::black_box;

/// The hidden command under which the program does it: a process of its own, so that ours stays small.
pub(crate) const COMMAND: &str = "warm-up";

/// Touched once in each of these, it is there.
const PAGE_BYTES: usize = 4096;

/// Touches and frees so much memory, at most half of what is available.
///
/// # Errors
/// As starting a process.
pub(crate) fn warm_up(launcher: &Launcher<'_>, bytes: u64) -> Result<(), Failure> {
    let bytes = bytes.min(available_bytes() / 2);
    if bytes == 0 {
        return Ok(());
    }
    launcher.call(&Invocation::new([ourselves(), COMMAND.to_owned(), bytes.to_string()])).map(drop)
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
