//! Starts the first process of a hook. This is the only file of the crate with `unsafe` code.
//!
//! The new process arranges, in this order, that
//!
//! 1. it dies when the thread that started it ends, and it gives up if that has happened already;
//! 2. it leads a session and a process group of its own, without a terminal;
//! 3. no signal is blocked, ignored or caught, and files that it creates are private (umask 077);
//! 4. no descriptor but its three standard ones and the hook itself stays open beyond `execve`. The hook stays open
//!    because the kernel tells an interpreter to read `/proc/self/fd/N`;
//! 5. its record names it. Then it executes the hook.
//!
//! It calls `execve` itself. The standard library would call `execvp`, which hands a file that the kernel cannot execute
//! to the shell: a program for another machine would be run as a script.
//!
//! # Why the code between fork and exec is sound
//!
//! Other threads of the caller do not exist in the new process, but what they had locked stays locked there: the
//! allocator, above all. So this code only makes system calls, and calls of the C library that POSIX lists as
//! async-signal-safe. It allocates nothing and frees nothing: paths are `CStr`s that exist already, the buffer is on the
//! stack, and errors carry a number only. It takes no lock and does not panic. What it uses, it owns: the closure holds
//! its own handles of the two descriptors and the texts for `execve`, which live in the `Command` until `spawn` has
//! returned in the parent. Their copies in the child are never dropped: it executes the hook or exits.

use crate::record::STAT_PREFIX;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{getpid, getppid, read, setsid, write};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::ptr;
use std::sync::Arc;

/// Bytes of `/proc/self/stat` at most, with what stands before it: 52 numbers of up to 20 digits.
const STAT_BYTES_MAX: usize = 1_500;

/// Number of the highest signal.
const SIGNALS: libc::c_int = 64;
/// Words of the kernel's `struct sigaction`: handler, flags, mask and, on some machines, a restorer.
const KERNEL_ACTION_WORDS: usize = 4;

/// What a new process is made of.
pub(crate) struct Launch<'a> {
    /// The file to execute.
    pub(crate) hook: &'a Arc<OwnedFd>,
    /// The name that a program sees as its own; a script sees the path below `/proc/self/fd`.
    pub(crate) name: &'a str,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) working_folder: &'a Path,
    pub(crate) input: Stdio,
    pub(crate) output: OwnedFd,
    /// What the new process appends itself to.
    pub(crate) record: &'a Arc<File>,
}

impl Launch<'_> {
    /// Starts the process. The thread that calls this must live as long as the hook shall.
    ///
    /// # Errors
    /// Those of `fork`, of one of the steps above, and of `execve`. `EINVAL` for a text with NUL.
    pub(crate) fn start(self) -> io::Result<Child> {
        let Self { hook, name, environment, working_folder, input, output, record } = self;
        let path = format!("/proc/self/fd/{}", hook.as_raw_fd());
        // The program is never looked at: the closure does not return if it succeeds.
        let mut command = Command::new(&path);
        command.current_dir(working_folder).stdin(input).stdout(output.try_clone()?).stderr(output);
        let texts = environment.iter().map(|(name, value)| format!("{name}={value}"));
        let program = Program::new(path, name, texts)?;
        let (hook, record, parent) = (Arc::clone(hook), Arc::clone(record), getpid());
        let run = move || {
            set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(Errno::ESRCH.into());
            }
            setsid()?;
            reset_signals()?;
            umask(Mode::from_bits_truncate(0o077));
            close_on_exec_from(3)?;
            fcntl(&hook, FcntlArg::F_SETFD(FdFlag::empty()))?;
            record_self(&record)?;
            Err(program.execute().into())
        };
        // SAFETY: `run` makes only calls that are allowed between fork and exec, as argued above: `prctl`, `getppid`,
        // `setsid`, `rt_sigaction`, `sigprocmask`, `umask`, `close_range`, `fcntl`, `open`, `read`, `write`, `close` and
        // `execve`. It allocates nothing: `Errno` converts to `io::Error` as a plain number. It owns what it uses.
        unsafe { command.pre_exec(run) };
        command.spawn()
    }
}

/// A program with arguments and environment, in the form that `execve` takes.
struct Program {
    path: CString,
    /// Pointers into `texts`, each list with a null pointer at its end.
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// Never changed, so that the pointers stay valid: the bytes of a `CString` do not move with it.
    _texts: Vec<CString>,
}

// SAFETY: the pointers lead to bytes that the value owns itself, and that nothing writes after `new`.
unsafe impl Send for Program {}
// SAFETY: as above; shared references only read them.
unsafe impl Sync for Program {}

impl Program {
    fn new(path: String, name: &str, environment: impl Iterator<Item = String>) -> io::Result<Self> {
        let path = CString::new(path)?;
        let texts: Vec<CString> =
            std::iter::once(name.to_owned()).chain(environment).map(CString::new).collect::<Result<_, _>>()?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        let (name, environment) = texts.split_at(1);
        Ok(Self { path, arguments: pointers(name), environment: pointers(environment), _texts: texts })
    }

    /// Executes the program; returns only if that fails.
    fn execute(&self) -> Errno {
        // SAFETY: the path and both lists are as the call wants them: texts with NUL and lists with a null pointer at
        // their end, owned by `self`. If it succeeds, none of this process is left that could use them.
        unsafe { libc::execve(self.path.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr()) };
        Errno::last()
    }
}

/// Resets all signals to what they do by default, and blocks none.
///
/// The kernel is asked without the C library, which refuses to touch the two signals that it uses itself: whoever
/// started this program may have ignored them, and that would last.
fn reset_signals() -> nix::Result<()> {
    let default_action = [0u64; KERNEL_ACTION_WORDS];
    for number in 1..=SIGNALS {
        // SAFETY: the kernel reads one action from `default_action`, which lives on this stack during the call, and
        // stores no old one. Zeros are the default action, no flags and an empty mask; it runs no code of ours. SIGKILL
        // and SIGSTOP refuse the call, and are at their default.
        unsafe {
            let none = ptr::null_mut::<libc::c_void>();
            libc::syscall(libc::SYS_rt_sigaction, number, default_action.as_ptr(), none, SIGNALS as usize / 8)
        };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Has `execve` close every descriptor from `first` on.
fn close_on_exec_from(first: libc::c_uint) -> nix::Result<()> {
    // SAFETY: the call takes three numbers and no memory. It closes nothing now, so that the standard library's own
    // descriptor, over which it reports a failure, stays usable.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Appends what the kernel says about this process to its record, by one write.
fn record_self(record: &File) -> nix::Result<()> {
    let mut line = [0; STAT_BYTES_MAX];
    line[..STAT_PREFIX.len()].copy_from_slice(STAT_PREFIX);
    let stat = open(c"/proc/self/stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let length = STAT_PREFIX.len() + read(&stat, &mut line[STAT_PREFIX.len()..])?;
    // A disk that is full takes a part of it.
    if write(record, &line[..length])? == length { Ok(()) } else { Err(Errno::ENOSPC) }
}
