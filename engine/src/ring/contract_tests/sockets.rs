//! Tests the contract of [`Ring`] for sends and receives, on every backend.
//!
//! Method: both ends of a local connection, a unix one and a TCP one in every test. The ring has one end and the test
//! the other, or the ring has both.

use super::*;
use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

on_every_face! {
    head_and_body_arrive_whole_and_in_order
    one_part_alone_leaves_the_rest_of_its_block_alone
    a_receive_without_all_takes_the_available_bytes
    a_receive_with_all_waits_for_the_last_byte
    a_receive_after_the_peers_end_returns_0
    bytes_that_arrived_before_the_end_are_received
    shutdown_ends_a_pending_receive_and_returns_its_memory
    shutdown_ends_a_pending_send_with_the_bytes_sent
    a_send_that_does_not_wait_sends_what_fits_and_nothing_later
    a_send_to_a_closed_peer_is_an_error
    a_send_to_a_file_is_an_error_of_that_operation
    a_zero_copy_send_reports_that_a_copy_was_made
    slots_of_socket_operations_are_reused
    many_sockets_and_files_at_once
}

/// More bytes than the buffers of a connection hold.
const LARGE_BYTES: usize = 16 << 20;

/// Two ends of a connection, both kinds. A unix socket is read, written and shut down like any other.
fn connections() -> [(TcpStream, TcpStream); 2] {
    let unix = UnixStream::pair().unwrap();
    let [near, far] = [unix.0, unix.1].map(|end| TcpStream::from(OwnedFd::from(end)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    [(near, far), (client, listener.accept().unwrap().0)]
}

fn end(socket: &TcpStream) -> FileId {
    FileId(socket.as_raw_fd())
}

fn send(socket: &TcpStream, head: Transfer, body: Option<Transfer>) -> Op {
    Op::Send { file: end(socket), head, body, zero_copy: false, waits: true }
}

fn receive(socket: &TcpStream, head: Option<Transfer>, body: Option<Transfer>, all: bool) -> Op {
    Op::Receive { file: end(socket), head, body, all }
}

/// Bytes that differ by position and seed.
fn pattern(len: usize, seed: usize) -> impl Iterator<Item = u8> {
    (0..len).map(move |index| ((index + seed) % 251) as u8)
}

fn patterned(len: usize, seed: usize) -> Transfer {
    let mut block = Block::alone(len).unwrap();
    block.iter_mut().zip(pattern(len, seed)).for_each(|(byte, expected)| *byte = expected);
    Transfer { block, start: 0, len: len as u32 }
}

fn empty(len: usize) -> Transfer {
    Transfer { block: Block::alone(len).unwrap(), start: 0, len: len as u32 }
}

/// Returns all completions, sorted by token.
fn sorted(ring: &mut dyn Ring) -> Vec<Completion> {
    let mut completions = drain(ring);
    completions.sort_by_key(|completion| completion.token.0);
    completions
}

fn head_and_body_arrive_whole_and_in_order(ring: &mut dyn Ring) {
    for (near, far) in connections() {
        for body_bytes in [1, 4096, 256 << 10, LARGE_BYTES] {
            ring.push(Token(0), receive(&far, Some(empty(28)), Some(empty(body_bytes)), true));
            ring.push(Token(1), send(&near, patterned(28, 0), Some(patterned(body_bytes, 28))));
            let [received, sent] = sorted(ring).try_into().unwrap();
            let whole = 28 + body_bytes as u32;
            assert_eq!((received.result, sent.result), (Ok(whole), Ok(whole)));
            assert!(received.head.unwrap().iter().copied().eq(pattern(28, 0)));
            assert!(received.block.unwrap().iter().copied().eq(pattern(body_bytes, 28)));
            assert!(sent.head.unwrap().iter().copied().eq(pattern(28, 0)), "a send returns its blocks unchanged");
            assert_eq!(sent.block.unwrap().len(), body_bytes);
            assert!(!sent.copied, "zero copy was not requested");
        }
    }
}

fn one_part_alone_leaves_the_rest_of_its_block_alone(ring: &mut dyn Ring) {
    for (near, far) in connections() {
        for is_head in [true, false] {
            let into = Transfer { block: block_of(1), start: 100, len: 50 };
            let (head, body) = if is_head { (Some(into), None) } else { (None, Some(into)) };
            ring.push(Token(0), receive(&far, head, body, true));
            ring.push(Token(1), send(&near, Transfer { block: block_of(7), start: 4000, len: 50 }, None));
            let [received, sent] = sorted(ring).try_into().unwrap();
            assert_eq!((received.result, sent.result), (Ok(50), Ok(50)));
            assert_eq!((received.head.is_some(), received.block.is_some()), (is_head, !is_head));
            assert!(sent.head.is_some() && sent.block.is_none());
            let block = received.head.or(received.block).unwrap();
            assert!(block[100..150].iter().all(|&byte| byte == 7));
            assert!(block[..100].iter().chain(&block[150..]).all(|&byte| byte == 1));
        }
    }
}

fn a_receive_without_all_takes_the_available_bytes(ring: &mut dyn Ring) {
    for (mut near, far) in connections() {
        near.write_all(&[7; 30]).unwrap();
        let completion = complete(ring, receive(&far, Some(empty(28)), Some(empty(100)), false));
        assert_eq!(completion.result, Ok(30));
        assert!(completion.head.unwrap().iter().all(|&byte| byte == 7));
        assert_eq!(completion.block.unwrap()[..3], [7, 7, 0]);
        near.write_all(&[8; 30]).unwrap();
        let completion = complete(ring, receive(&far, None, Some(empty(100)), false));
        assert_eq!(completion.result, Ok(30));
    }
}

fn a_receive_with_all_waits_for_the_last_byte(ring: &mut dyn Ring) {
    for (mut near, far) in connections() {
        ring.push(Token(1), receive(&far, Some(empty(28)), Some(empty(100)), true));
        for part in [1, 27, 1, 98] {
            near.write_all(&vec![7; part]).unwrap();
            ring.submit_and_wait(1, Duration::from_millis(1)).unwrap();
            assert!(ring.reap().is_none(), "bytes are missing");
        }
        near.write_all(&[8]).unwrap();
        let completion = drain(ring).pop().unwrap();
        assert_eq!(completion.result, Ok(128));
        assert_eq!(completion.block.unwrap()[98..], [7, 8]);
    }
}

fn a_receive_after_the_peers_end_returns_0(ring: &mut dyn Ring) {
    for all in [false, true] {
        for (near, far) in connections() {
            ring.push(Token(1), receive(&far, Some(empty(28)), None, all));
            ring.submit_and_wait(0, Duration::ZERO).unwrap();
            drop(near);
            let completion = drain(ring).pop().unwrap();
            assert_eq!(completion.result, Ok(0));
            assert!(completion.head.is_some());
            assert_eq!(
                complete(ring, receive(&far, None, Some(empty(28)), all)).result,
                Ok(0),
                "each further receive gets 0 as well"
            );
        }
    }
}

fn bytes_that_arrived_before_the_end_are_received(ring: &mut dyn Ring) {
    for (mut near, far) in connections() {
        ring.push(Token(1), receive(&far, Some(empty(28)), Some(empty(100)), true));
        ring.submit_and_wait(0, Duration::ZERO).unwrap();
        near.write_all(&[7; 40]).unwrap();
        drop(near);
        assert_eq!(drain(ring).pop().unwrap().result, Ok(40));
    }
}

fn shutdown_ends_a_pending_receive_and_returns_its_memory(ring: &mut dyn Ring) {
    for (near, far) in connections() {
        ring.push(Token(1), receive(&far, Some(empty(28)), Some(empty(100)), true));
        ring.submit_and_wait(1, Duration::from_millis(1)).unwrap();
        assert!(ring.reap().is_none());
        far.shutdown(Shutdown::Both).unwrap();
        let completion = drain(ring).pop().unwrap();
        assert_eq!(completion.result, Ok(0));
        assert!(completion.head.is_some() && completion.block.is_some());
        drop(near);
    }
}

fn a_send_that_does_not_wait_sends_what_fits_and_nothing_later(ring: &mut dyn Ring) {
    for (near, mut far) in connections() {
        let (mut sent, whole) = (0, LARGE_BYTES);
        let at_once = |ring: &mut dyn Ring, sent: usize| {
            let head = patterned(whole - sent, sent);
            ring.push(Token(1), Op::Send { file: end(&near), head, body: None, zero_copy: false, waits: false });
            drain(ring).pop().unwrap().result
        };
        // The kernel may move queued bytes and make room again: repeat until the socket stays full.
        let mut refused = 0;
        while refused < 5 {
            match at_once(ring, sent) {
                Ok(count) => (sent, refused) = (sent + count as usize, 0),
                Err(errno) => {
                    assert_eq!(errno, Errno::EAGAIN);
                    refused += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        assert!(sent > 0 && sent < whole, "{sent} of {whole} bytes fit");
        ring.push(Token(2), Op::Writable { file: end(&near) });
        ring.submit_and_wait(1, Duration::from_millis(20)).unwrap();
        assert!(ring.reap().is_none(), "the socket has no room");
        let mut arrived = vec![0; sent];
        far.read_exact(&mut arrived).unwrap();
        assert_eq!(drain(ring).len(), 1, "the socket has room again");
        near.shutdown(Shutdown::Both).unwrap();
        far.read_to_end(&mut arrived).unwrap();
        assert!(arrived.len() == sent && arrived.into_iter().eq(pattern(sent, 0)));
        ring.push(Token(3), Op::Writable { file: end(&near) });
        assert!(drain(ring).pop().unwrap().result.is_ok(), "a wait for room ends when the connection does");
    }
}

fn shutdown_ends_a_pending_send_with_the_bytes_sent(ring: &mut dyn Ring) {
    for zero_copy in [false, true] {
        for (near, mut far) in connections() {
            let (head, body) = (patterned(28, 0), Some(patterned(LARGE_BYTES, 28)));
            ring.push(Token(1), Op::Send { file: end(&near), head, body, zero_copy, waits: true });
            // The send is larger than the buffers of the kernel: a part is sent, and the rest waits.
            far.set_nonblocking(true).unwrap();
            while far.peek(&mut [0]).is_err() {
                ring.submit_and_wait(1, Duration::from_millis(1)).unwrap();
                assert!(ring.reap().is_none());
            }
            far.set_nonblocking(false).unwrap();
            near.shutdown(Shutdown::Both).unwrap();
            // Memory of a zero-copy send is released when the peer has received the bytes.
            let reader = std::thread::spawn(move || {
                let mut arrived = Vec::new();
                far.read_to_end(&mut arrived).unwrap();
                arrived
            });
            let completion = drain(ring).pop().unwrap();
            let sent = completion.result.expect("the bytes that were sent") as usize;
            assert!(completion.head.is_some() && completion.block.is_some());
            let arrived = reader.join().unwrap();
            assert!(sent > 0 && sent < 28 + LARGE_BYTES, "{sent}");
            assert_eq!(arrived.len(), sent);
            assert!(arrived.into_iter().eq(pattern(28, 0).chain(pattern(sent - 28, 28))));
        }
    }
}

fn a_send_to_a_closed_peer_is_an_error(ring: &mut dyn Ring) {
    for (near, far) in connections() {
        drop(far);
        near.shutdown(Shutdown::Write).unwrap();
        for zero_copy in [false, true] {
            let op = Op::Send { file: end(&near), head: empty(28), body: Some(empty(100)), zero_copy, waits: true };
            let completion = complete(ring, op);
            assert_eq!(completion.result, Err(Errno::EPIPE));
            assert!(completion.head.is_some() && completion.block.is_some());
        }
    }
}

fn a_send_to_a_file_is_an_error_of_that_operation(ring: &mut dyn Ring) {
    let file = file_of(&[7; 4096]);
    for (file, errno) in [(id(&file), Errno::ENOTSOCK), (FileId(-1), Errno::EBADF), (FileId(1 << 20), Errno::EBADF)] {
        for body in [false, true] {
            let body = || body.then(|| empty(100));
            let receive = Op::Receive { file, head: Some(empty(28)), body: body(), all: true };
            assert_eq!(complete(ring, receive).result, Err(errno));
            for zero_copy in [false, true] {
                let completion =
                    complete(ring, Op::Send { file, head: empty(28), body: body(), zero_copy, waits: true });
                assert_eq!(completion.result, Err(errno));
                assert_eq!((completion.head.is_some(), completion.block.is_some()), (true, body().is_some()));
            }
        }
    }
}

fn a_zero_copy_send_reports_that_a_copy_was_made(ring: &mut dyn Ring) {
    for (near, far) in connections() {
        for body_bytes in [0, 100, LARGE_BYTES] {
            let some = |transfer| (body_bytes > 0).then_some(transfer);
            ring.push(Token(0), receive(&far, Some(empty(28)), some(empty(body_bytes.max(1))), true));
            let (head, body) = (patterned(28, 0), some(patterned(body_bytes.max(1), 28)));
            ring.push(Token(1), Op::Send { file: end(&near), head, body, zero_copy: true, waits: true });
            // If there are two answers, the first one only says that the network has the bytes.
            let mut answers = sorted(ring);
            answers.retain(|answer| !answer.more || answer.head.is_some() || answer.block.is_some());
            let [received, sent] = answers.try_into().unwrap();
            let whole = 28 + body_bytes as u32;
            assert_eq!((received.result, sent.result), (Ok(whole), Ok(whole)));
            assert!(received.head.unwrap().iter().copied().eq(pattern(28, 0)));
            assert!(received.block.is_none_or(|block| block.iter().copied().eq(pattern(body_bytes, 28))));
            assert!(sent.copied, "within one host there is always a copy");
            assert_eq!((sent.head.is_some(), sent.block.is_some()), (true, body_bytes > 0));
        }
    }
}

fn slots_of_socket_operations_are_reused(ring: &mut dyn Ring) {
    for (near, far) in connections() {
        let (mut to, mut from) = ((patterned(28, 0), empty(500)), (empty(28), empty(500)));
        for round in 0..200_u32 {
            to.1.block[..4].copy_from_slice(&round.to_le_bytes());
            ring.push(Token(0), receive(&far, Some(from.0), Some(from.1), true));
            ring.push(Token(1), send(&near, to.0, Some(to.1)));
            let [received, sent] = sorted(ring).try_into().unwrap();
            assert_eq!((received.result, sent.result), (Ok(528), Ok(528)));
            to = (whole(sent.head.unwrap()), whole(sent.block.unwrap()));
            from = (whole(received.head.unwrap()), whole(received.block.unwrap()));
            assert_eq!(from.1.block[..4], round.to_le_bytes());
        }
    }
}

fn many_sockets_and_files_at_once(ring: &mut dyn Ring) {
    const ROUNDS: usize = 20;
    let file = file_of(&[7; 4096]);
    let pairs: Vec<_> = (0..8).flat_map(|_| connections()).collect();
    for round in 0..ROUNDS {
        for (index, (near, far)) in pairs.iter().enumerate() {
            let seed = index + round;
            ring.push(Token(index as u64), receive(far, Some(empty(28)), Some(empty(300_000)), true));
            ring.push(Token(99), read(id(&file), 0, block_of(1)));
            ring.push(Token(99), send(near, patterned(28, seed), Some(patterned(300_000, seed + 28))));
        }
        let completions = sorted(ring);
        assert_eq!(completions.len(), 3 * pairs.len());
        for (index, completion) in completions.into_iter().enumerate() {
            if index >= pairs.len() {
                assert!(matches!(completion.result, Ok(4096 | 300_028)), "{:?}", completion.result);
                continue;
            }
            assert_eq!((completion.token, completion.result), (Token(index as u64), Ok(300_028)));
            assert!(completion.head.unwrap().iter().copied().eq(pattern(28, index + round)));
            assert!(completion.block.unwrap().iter().copied().eq(pattern(300_000, index + round + 28)));
        }
    }
}
