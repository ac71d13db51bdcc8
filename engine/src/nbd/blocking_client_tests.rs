//! Tests requests and answers with real servers.

use super::codec::{Command, CommandFlags, REQUEST_BYTES_MAX, RequestHeader};
use super::negotiate::{Negotiated, WantedExport, go, list};
use super::replies::test_receiver::TestReceiver;
use super::replies::{ExpectedReply, NextReceive};
use super::support::{NbdServer, nbd_server, nbdkit, qemu};
use super::{MetaContexts, ReplyStyle};
use crate::volume::support::need;
use nix::errno::Errno;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// A connection, and what was asked on it.
struct Connection {
    stream: UnixStream,
    negotiated: Negotiated,
    owner: TestReceiver,
    asked: usize,
}

impl Connection {
    fn open(server: &NbdServer, wanted: &WantedExport<'_>) -> Self {
        let mut stream = server.greeted();
        let negotiated = go(&mut stream, wanted).unwrap();
        let owner = TestReceiver::new(negotiated.style, negotiated.contexts, 64);
        Self { stream, negotiated, owner, asked: 0 }
    }

    fn ask(&mut self, command: Command, flags: CommandFlags, offset: u64, len: u64, payload: &[u8]) {
        let expected = match command {
            Command::Read => ExpectedReply::Read { offset, len: len as u32 },
            Command::BlockStatus => ExpectedReply::Status { offset, len },
            _ => ExpectedReply::Nothing,
        };
        let cookie = self.owner.ask(self.asked, expected);
        self.asked += 1;
        let mut head = [0; REQUEST_BYTES_MAX];
        let bytes = RequestHeader { command, flags, cookie, offset, len }.encode(self.negotiated.style, &mut head);
        self.stream.write_all(&[&head[..bytes], payload].concat()).unwrap();
    }

    /// Receives until everything is answered; at most `most` bytes at a time.
    fn answers(&mut self, most: usize) {
        let mut buffer = vec![0; most];
        while self.owner.replies.outstanding() > 0 {
            let wanted = self.owner.replies.wants();
            let len = match wanted {
                NextReceive::Head { most: len } => len,
                NextReceive::Body { len, .. } => len as usize,
            };
            let received = self.stream.read(&mut buffer[..len.min(most)]).unwrap();
            assert!(received > 0, "the server closed the connection");
            assert_eq!(self.owner.receive(wanted, &buffer[..received], most), Ok(received));
        }
        assert_eq!(self.owner.ended.len(), self.asked);
    }
}

const WANTED: WantedExport<'static> = WantedExport { export: "", dirty_bitmap: None, allocation: true };

/// Returns what nbdkit's pattern holds: every eight bytes their offset.
fn pattern(offset: u64, len: u64) -> Vec<u8> {
    (offset / 8..(offset + len) / 8).flat_map(|index| (index * 8).to_be_bytes()).collect()
}

/// Sixteen reads at a time, of all lengths, received in pieces of `most` bytes.
fn read_pattern(server: &NbdServer, style: ReplyStyle, most: usize) {
    let mut connection = Connection::open(server, &WANTED);
    assert_eq!(connection.negotiated.style, style);
    for round in 0..4_u64 {
        for read in 0..16 {
            let (offset, len) = ((round * 16 + read) * (256 << 10), 8 << ((read + round) % 15));
            connection.ask(Command::Read, CommandFlags::NONE, offset, len, &[]);
        }
        connection.answers(most);
    }
    for (request, result) in &connection.owner.ended {
        let ExpectedReply::Read { offset, len } = request.expected else { panic!("{:?}", request.expected) };
        assert!(result.is_ok() && request.buffer == pattern(offset, len.into()), "read at {offset}");
    }
}

#[test]
fn nbdkit_answers_reads_in_chunks() {
    let server = need!("nbdkit", nbdkit(&["pattern", "64M"]));
    for most in [7, 4096, 1 << 20] {
        read_pattern(&server, ReplyStyle::Structured, most);
    }
}

#[test]
fn nbdkit_answers_reads_simply() {
    let server = need!("nbdkit", nbdkit(&["--no-sr", "pattern", "64M"]));
    for most in [7, 4096, 1 << 20] {
        read_pattern(&server, ReplyStyle::Simple, most);
    }
}

#[test]
fn errors_of_a_server_are_returned() {
    for style in [[].as_slice(), &["--no-sr"]] {
        let errors = ["--filter=error", "memory", "1M", "error-pread=ENOSPC", "error-pread-rate=100%"];
        let server = need!("nbdkit", nbdkit(&[style, &errors].concat()));
        let mut connection = Connection::open(&server, &WANTED);
        connection.ask(Command::Read, CommandFlags::NONE, 0, 4096, &[]);
        connection.ask(Command::Write, CommandFlags::NONE, 0, 512, &[7; 512]);
        connection.ask(Command::Read, CommandFlags::NONE, 4096, 4096, &[]);
        connection.answers(1 << 20);
        for (request, result) in &connection.owner.ended {
            assert_eq!(*result, if request.number == 1 { Ok(()) } else { Err(Errno::ENOSPC) });
        }
    }
}

#[test]
fn written_bytes_are_read_back_and_mapped() {
    for server in [qemu(&["-B", "sunday"]), nbdkit(&["memory", "64M"]), nbdkit(&["--no-sr", "memory", "64M"])] {
        write_and_map(&need!("a server", server), "");
    }
}

#[test]
fn the_reference_server_is_understood() {
    let server = need!("nbd-server", nbd_server());
    let exports = list(&mut server.greeted()).unwrap();
    assert_eq!((exports.len(), exports[0].name.as_str()), (1, "golden"));
    write_and_map(&server, "golden");
}

/// Writes 1 MiB at 8 MiB, zeroes the upper half of it, and asks for everything again.
fn write_and_map(server: &NbdServer, export: &str) {
    let mut connection = Connection::open(server, &WantedExport { export, ..WANTED });
    let (at, mib) = (8 << 20, 1 << 20);
    connection.ask(Command::Write, CommandFlags::FUA, at, mib, &pattern(at, mib));
    connection.answers(1 << 16);
    let half = at + mib / 2;
    connection.ask(Command::WriteZeroes, CommandFlags::NONE, half, mib / 2, &[]);
    connection.answers(1 << 16);
    connection.ask(Command::Flush, CommandFlags::NONE, 0, 0, &[]);
    connection.ask(Command::Read, CommandFlags::NONE, at - 512, mib + 1024, &[]);
    if connection.negotiated.contexts != MetaContexts::default() {
        connection.ask(Command::BlockStatus, CommandFlags::NONE, 0, 64 << 20, &[]);
    }
    connection.answers(1 << 16);
    assert!(connection.owner.ended.iter().all(|(_, result)| result.is_ok()));
    let of = |number: usize| connection.owner.ended.iter().find(|(request, _)| request.number == number);
    let wanted = [vec![0; 512], pattern(at, mib / 2), vec![0; 512 + (mib / 2) as usize]].concat();
    assert!(of(3).unwrap().0.buffer == wanted);
    if let Some((request, _)) = of(4) {
        let mut data = Vec::new();
        let mut offset = 0;
        for &(len, flags) in &request.status[0].1 {
            if flags & 2 == 0 {
                data.push((offset, len));
            }
            offset += len;
        }
        assert_eq!(data, [(at, half - at)]);
    }
}

#[test]
fn qemu_reports_dirty_ranges() {
    let server = need!("qemu", qemu(&["-B", "sunday"]));
    let wanted = WantedExport { dirty_bitmap: Some("sunday"), ..WANTED };
    let mut connection = Connection::open(&server, &wanted);
    connection.ask(Command::Write, CommandFlags::NONE, 1 << 20, 65536, &[1; 65536]);
    connection.answers(1 << 16);
    connection.ask(Command::BlockStatus, CommandFlags::NONE, 0, 64 << 20, &[]);
    connection.answers(1 << 16);
    let (request, result) = connection.owner.ended.pop().unwrap();
    let dirty = connection.negotiated.contexts.dirty.unwrap();
    let extents = &request.status.iter().find(|(context, _)| *context == dirty).unwrap().1;
    assert_eq!((result, request.status.len()), (Ok(()), 2));
    assert_eq!(extents[..], [(1 << 20, 0), (65536, 1), ((63 << 20) - 65536, 0)]);
}
