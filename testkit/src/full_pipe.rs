//! Makes a full pipe: writers block until it is read.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::{PipeReader, PipeWriter};

/// Returns both ends of a pipe that is full of empty lines.
pub fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().expect("there are descriptors");
    let flags = OFlag::from_bits_retain(fcntl(&writer, FcntlArg::F_GETFL).expect("the pipe is ours"));
    fcntl(&writer, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).expect("the pipe is ours");
    for length in [4096, 1] {
        while nix::unistd::write(&writer, &vec![b'\n'; length]) != Err(Errno::EAGAIN) {}
    }
    fcntl(&writer, FcntlArg::F_SETFL(flags)).expect("the pipe is ours");
    (reader, writer)
}
