//! Tests the handshake against scripted peers, which send what no real server would, and against real servers.

use super::negotiate::*;
use super::support::{nbdkit, qemu};
use super::{MetaContexts, ReplyStyle};
use crate::volume::support::need;
use std::io::{self, Cursor, Read, Write};
use std::os::unix::net::UnixStream;

const ALLOCATION: WantedExport<'static> = WantedExport { export: "", dirty_bitmap: None, allocation: true };

#[test]
fn nbdkit_gives_structured_replies_and_allocation() {
    let server = need!("nbdkit", nbdkit(&["memory", "64M"]));
    let negotiated = go(&mut server.greeted(), &ALLOCATION).unwrap();
    assert_eq!(negotiated.style, ReplyStyle::Structured);
    assert_eq!(negotiated.facts.size_bytes, 64 << 20);
    assert!(negotiated.facts.flags.can_zero() && negotiated.facts.flags.can_multi_conn());
    assert!(negotiated.contexts.allocation.is_some() && negotiated.contexts.dirty.is_none());
}

#[test]
fn nbdkit_states_its_block_sizes() {
    let policy = ["--filter=blocksize-policy", "memory", "64M", "blocksize-minimum=4096"];
    let sizes = ["blocksize-preferred=64K", "blocksize-maximum=8M"];
    let server = need!("nbdkit", nbdkit(&[policy.as_slice(), &sizes].concat()));
    let facts = go(&mut server.greeted(), &ALLOCATION).unwrap().facts;
    assert_eq!(
        (facts.min_block_bytes, facts.preferred_block_bytes, facts.max_payload_bytes),
        (4096, 64 << 10, 8 << 20)
    );
}

#[test]
fn a_server_without_structured_replies_is_accepted() {
    let server = need!("nbdkit", nbdkit(&["--mask-handshake=1", "--no-sr", "memory", "1M"]));
    let negotiated = go(&mut server.greeted(), &ALLOCATION).unwrap();
    assert_eq!((negotiated.style, negotiated.contexts), (ReplyStyle::Simple, MetaContexts::default()));
    assert_eq!((negotiated.facts.size_bytes, negotiated.facts.max_payload_bytes), (1 << 20, 32 << 20));
}

#[test]
fn an_oldstyle_server_is_refused_with_a_message() {
    let server = need!("nbdkit", nbdkit(&["-o", "memory", "1M"]));
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let refusal = greet(&mut stream).unwrap_err();
    assert!(matches!(&refusal, NegotiationError::Refused { code: ERR_UNSUP, message } if message.contains("oldstyle")));
}

#[test]
fn qemu_offers_a_dirty_bitmap_and_a_missing_one_is_an_error() {
    let server = need!("qemu", qemu(&["-B", "sunday"]));
    let wanted = WantedExport { dirty_bitmap: Some("sunday"), ..ALLOCATION };
    let negotiated = go(&mut server.greeted(), &wanted).unwrap();
    assert_ne!(negotiated.style, ReplyStyle::Simple);
    let MetaContexts { allocation: Some(allocation), dirty: Some(dirty) } = negotiated.contexts else {
        panic!("{:?}", negotiated.contexts)
    };
    assert_ne!(allocation, dirty);
    let refusal = go(&mut server.greeted(), &WantedExport { dirty_bitmap: Some("monday"), ..wanted }).unwrap_err();
    assert!(matches!(&refusal, NegotiationError::NoBitmap(name) if name == "monday"), "{refusal:?}");
}

#[test]
fn an_unknown_export_is_refused_as_such() {
    let server = need!("qemu", qemu(&["-x", "golden", "-B", "sunday"]));
    for dirty_bitmap in [None, Some("sunday")] {
        let refusal =
            go(&mut server.greeted(), &WantedExport { export: "silver", dirty_bitmap, ..ALLOCATION }).unwrap_err();
        assert!(matches!(refusal, NegotiationError::Refused { code: ERR_UNKNOWN, .. }), "{refusal:?}");
    }
}

#[test]
fn exports_are_listed_with_size_and_description() {
    let server = need!("qemu", qemu(&["-x", "golden", "-D", "kept for good", "-r"]));
    let exports = list(&mut server.greeted()).unwrap();
    let golden = ListedExport {
        name: "golden".to_owned(),
        description: Some("kept for good".to_owned()),
        size_bytes: Some(64 << 20),
        read_only: Some(true),
    };
    assert_eq!(exports, [golden]);
}

#[test]
fn a_server_without_tls_refuses_it() {
    let server = need!("nbdkit", nbdkit(&["--tls=off", "memory", "1M"]));
    let refusal = start_tls(&mut server.greeted()).unwrap_err();
    assert!(matches!(refusal, NegotiationError::Refused { .. }), "{refusal:?}");
}

/// Options by their numbers.
const EXPORT_NAME: u32 = 1;
const LIST: u32 = 3;
const START_TLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

const ACK: u32 = 1;
const EXPORT_SIZE: &[u8] = b"\0\0\0\0\0\0\x04\0\0\0\0\x01";

/// A peer that has its answers ready, and keeps what it is asked.
struct Scripted {
    says: Cursor<Vec<u8>>,
    hears: Vec<u8>,
}

impl Scripted {
    fn new(says: &[&[u8]]) -> Self {
        Self { says: Cursor::new(says.concat()), hears: Vec::new() }
    }

    /// Returns its output that was not read.
    fn unread(&self) -> &[u8] {
        &self.says.get_ref()[self.says.position() as usize..]
    }

    /// Returns the options that it has received: numbers and data.
    fn heard(&self) -> Vec<(u32, Vec<u8>)> {
        let (mut rest, mut options) = (&self.hears[..], Vec::new());
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        while !rest.is_empty() {
            assert_eq!(rest[..8], *b"IHAVEOPT");
            let end = 16 + number(&rest[12..16]) as usize;
            options.push((number(&rest[8..12]), rest[16..end].to_vec()));
            rest = &rest[end..];
        }
        options
    }
}

impl Read for Scripted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.says.read(into)
    }
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hears.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let numbers = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
    [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &numbers, data].concat()
}

fn ack(option: u32) -> Vec<u8> {
    reply(option, ACK, b"")
}

fn no(option: u32) -> Vec<u8> {
    reply(option, ERR_UNSUP, b"")
}

fn sizes(min: u32, preferred: u32, max: u32) -> Vec<u8> {
    reply(GO, 3, &[&[0, 3][..], &[min, preferred, max].map(u32::to_be_bytes).concat()].concat())
}

/// Returns the violation of a server that negotiates extended headers and contexts, and then sends these bytes.
fn violation(says: &[&[u8]]) -> String {
    let wanted = WantedExport { dirty_bitmap: Some("sunday"), ..ALLOCATION };
    match go(&mut Scripted::new(&[&[&ack(EXTENDED_HEADERS)[..]], says].concat()), &wanted) {
        Err(NegotiationError::Violation(what)) => what,
        other => panic!("{other:?}"),
    }
}

/// As [`violation`], for a reply to GO.
fn violation_of_go(says: &[&[u8]]) -> String {
    let allocation = reply(SET_META_CONTEXT, 4, b"\0\0\0\x01base:allocation");
    let dirty = reply(SET_META_CONTEXT, 4, b"\0\0\0\x02qemu:dirty-bitmap:sunday");
    violation(&[&[&allocation[..], &dirty, &ack(SET_META_CONTEXT)], says].concat())
}

#[test]
fn only_fixed_newstyle_is_accepted() {
    let mut sound = Scripted::new(&[b"NBDMAGICIHAVEOPT\0\x03next"]);
    assert_eq!(greet(&mut sound).unwrap(), Greeting { flags: 3 });
    assert_eq!((&sound.hears[..], sound.unread()), (&[0, 0, 0, 1][..], &b"next"[..]));
    for other in [b"SSH-2.0-OpenSSH_".as_slice(), b"NBDMAGICNBDMAGIC"] {
        assert!(matches!(greet(&mut Scripted::new(&[other])), Err(NegotiationError::Violation(_))));
    }
    let newstyle = greet(&mut Scripted::new(&[b"NBDMAGICIHAVEOPT\0\x02"]));
    assert!(matches!(newstyle, Err(NegotiationError::Refused { code: ERR_UNSUP, .. })));
    let closed = greet(&mut Scripted::new(&[b"NBDMAGICIHAVE"]));
    assert!(matches!(closed, Err(NegotiationError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof));
}

#[test]
fn a_server_without_go_is_entered_with_export_name() {
    let refusals = [no(EXTENDED_HEADERS), no(STRUCTURED_REPLY), no(GO)].concat();
    let wanted = WantedExport { export: "golden", ..ALLOCATION };
    let mut peer = Scripted::new(&[&refusals, &EXPORT_SIZE[2..], &[0; 124], b"next"]);
    let negotiated = go(&mut peer, &wanted).unwrap();
    assert_eq!((negotiated.facts.size_bytes, negotiated.style), (0x0400_0000, ReplyStyle::Simple));
    assert_eq!((peer.heard().pop(), peer.unread()), (Some((EXPORT_NAME, b"golden".to_vec())), &b"next"[..]));
    // It has no other way to say that there is no such export.
    match go(&mut Scripted::new(&[&refusals]), &wanted) {
        Err(NegotiationError::Io(error)) => assert!(error.to_string().contains("asked for the export"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn go_requests_block_sizes_and_reads_no_byte_too_many() {
    let name = reply(GO, 3, b"\0\x01golden");
    let unknown = reply(GO, 3, b"\x12\x34whatever");
    let said = [name, unknown, sizes(512, 4096, u32::MAX), reply(GO, 3, EXPORT_SIZE), ack(GO)].concat();
    let mut peer = Scripted::new(&[&no(EXTENDED_HEADERS), &ack(STRUCTURED_REPLY), &said, b"next"]);
    let negotiated = go(&mut peer, &WantedExport { export: "golden", dirty_bitmap: None, allocation: false }).unwrap();
    assert_eq!(peer.unread(), b"next");
    assert_eq!(peer.heard().pop(), Some((GO, b"\0\0\0\x06golden\0\x01\0\x03".to_vec())));
    assert!(peer.heard().iter().all(|(option, _)| *option != SET_META_CONTEXT), "nothing was wished for");
    let facts = negotiated.facts;
    assert_eq!((facts.min_block_bytes, facts.preferred_block_bytes), (512, 4096));
    assert_eq!(facts.max_payload_bytes, u32::MAX - 511, "a multiple of what requests are multiples of");
}

#[test]
fn contexts_are_requested_by_name() {
    let said = [ack(SET_META_CONTEXT), reply(GO, 3, EXPORT_SIZE), ack(GO)].concat();
    let mut peer = Scripted::new(&[&ack(EXTENDED_HEADERS), &said]);
    let negotiated = go(&mut peer, &WantedExport { export: "gold", ..ALLOCATION }).unwrap();
    assert_eq!((negotiated.style, negotiated.contexts), (ReplyStyle::Extended, MetaContexts::default()));
    assert_eq!(peer.heard()[1], (SET_META_CONTEXT, b"\0\0\0\x04gold\0\0\0\x01\0\0\0\x0fbase:allocation".to_vec()));
}

#[test]
fn contexts_of_a_failed_selection_do_not_count() {
    let selected = reply(SET_META_CONTEXT, 4, b"\0\0\0\x01base:allocation");
    let said = [selected, no(SET_META_CONTEXT), reply(GO, 3, EXPORT_SIZE), ack(GO)].concat();
    let mut peer = Scripted::new(&[&ack(EXTENDED_HEADERS), &said]);
    assert_eq!(go(&mut peer, &ALLOCATION).unwrap().contexts, MetaContexts::default());
}

#[test]
fn a_refusal_is_answered_with_abort() {
    let refused = reply(GO, ERR_POLICY, b"not\nyou\x1b[2J");
    let mut peer = Scripted::new(&[&no(EXTENDED_HEADERS), &no(STRUCTURED_REPLY), &refused]);
    match go(&mut peer, &ALLOCATION) {
        Err(NegotiationError::Refused { code: ERR_POLICY, message }) => assert_eq!(message, "not you [2J"),
        other => panic!("{other:?}"),
    }
    assert_eq!(peer.heard().pop(), Some((2, Vec::new())));
}

#[test]
fn tls_may_be_required_and_a_shutdown_announced_at_any_option() {
    let tls_required = 1 << 31 | 5;
    let before: [&[u8]; 3] = [b"", &ack(EXTENDED_HEADERS), &[ack(EXTENDED_HEADERS), ack(SET_META_CONTEXT)].concat()];
    for (before, option) in before.into_iter().zip([EXTENDED_HEADERS, SET_META_CONTEXT, GO]) {
        let outcome = go(&mut Scripted::new(&[before, &reply(option, tls_required, b"")]), &ALLOCATION);
        assert!(matches!(outcome, Err(NegotiationError::TlsRequired)), "{outcome:?}");
        let outcome = go(&mut Scripted::new(&[before, &reply(option, ERR_SHUTDOWN, b"")]), &ALLOCATION);
        assert!(matches!(outcome, Err(NegotiationError::Refused { code: ERR_SHUTDOWN, .. })), "{outcome:?}");
    }
}

#[test]
fn tls_starts_right_after_its_acknowledgement() {
    let mut peer = Scripted::new(&[&ack(START_TLS), b"\x16\x03"]);
    start_tls(&mut peer).unwrap();
    assert_eq!((peer.heard(), peer.unread()), (vec![(START_TLS, Vec::new())], &b"\x16\x03"[..]));
}

#[test]
fn unexpected_replies_are_violations() {
    let mut wrong_magic = ack(SET_META_CONTEXT);
    wrong_magic[0] ^= 1;
    assert!(violation(&[&wrong_magic]).contains("magic"));
    assert!(violation(&[&ack(GO)]).contains("a reply to option 7"));
    assert!(violation(&[&reply(SET_META_CONTEXT, ACK, b"!")]).contains("carries data"));
    let mut long = ack(SET_META_CONTEXT);
    long[16..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(violation(&[&long]).contains("4294967295 bytes"));
    assert!(violation_of_go(&[&vec![reply(GO, 3, b"\0\x01"); 2000].concat()]).contains("more than"));
    assert!(violation_of_go(&[&reply(GO, 2, EXPORT_SIZE)]).contains("malformed"));
    let outcome = go(&mut Scripted::new(&[&reply(EXTENDED_HEADERS, 3, b"")]), &ALLOCATION);
    assert!(matches!(outcome, Err(NegotiationError::Violation(_))), "{outcome:?}");
}

#[test]
fn contexts_that_were_not_requested_are_violations() {
    let selected = |data: &[u8]| reply(SET_META_CONTEXT, 4, data);
    let allocation = selected(b"\0\0\0\x01base:allocation");
    let dirty = selected(b"\0\0\0\x01qemu:dirty-bitmap:sunday");
    assert!(violation(&[&selected(b"\0\0\0\x01qemu:dirty-bitmap:monday")]).contains("not asked for"));
    assert!(violation(&[&selected(b"\0\0\0")]).contains("malformed"));
    assert!(violation(&[&allocation, &allocation]).contains("twice"));
    assert!(violation(&[&allocation, &dirty, &ack(SET_META_CONTEXT)]).contains("one number"));
}

#[test]
fn impossible_export_facts_are_violations() {
    let export =
        |size: u64, flags: u16| reply(GO, 3, &[&[0, 0], &size.to_be_bytes()[..], &flags.to_be_bytes()].concat());
    assert!(violation_of_go(&[&ack(GO)]).contains("without saying its size"));
    assert!(violation_of_go(&[&export(1 << 63, 1), &ack(GO)]).contains("9223372036854775808 bytes"));
    assert!(violation_of_go(&[&export(4096, 0x20), &ack(GO)]).contains("flags"));
    assert!(violation_of_go(&[&reply(GO, 3, b"\0\0\0"), &ack(GO)]).contains("length"));
    for (min, preferred, max) in [(0, 512, 512), (3, 512, 512), (1 << 17, 1 << 17, 1 << 20)] {
        let said = [export(4096, 1), sizes(min, preferred, max), ack(GO)].concat();
        assert!(violation_of_go(&[&said]).contains("minimum block size"));
    }
    for (min, preferred) in [(1, 256), (1, 1000), (4096, 512), (1, 0)] {
        let said = [export(4096, 1), sizes(min, preferred, 1 << 20), ack(GO)].concat();
        assert!(violation_of_go(&[&said]).contains("preferred block size"));
    }
    let said = [export(4096, 1), sizes(4096, 4096, 4095), ack(GO)].concat();
    assert!(violation_of_go(&[&said]).contains("maximum payload"));
}

#[test]
fn names_too_long_to_send_are_refused_before_they_are_sent() {
    let long = "n".repeat(4097);
    for wanted in
        [WantedExport { export: &long, ..ALLOCATION }, WantedExport { dirty_bitmap: Some(&long), ..ALLOCATION }]
    {
        let outcome = go(&mut Scripted::new(&[]), &wanted);
        assert!(matches!(outcome, Err(NegotiationError::Refused { code: ERR_TOO_BIG, .. })), "{outcome:?}");
    }
}

#[test]
fn a_listing_accepts_all_that_servers_send() {
    let names = [reply(LIST, 2, b"\0\0\0\x04gold\x07words"), reply(LIST, 2, b"\0\0\0\0"), ack(LIST)].concat();
    let described = [reply(INFO, 3, EXPORT_SIZE), ack(INFO), reply(INFO, ERR_POLICY, b"")].concat();
    let exports = list(&mut Scripted::new(&[&names, &described])).unwrap();
    let gold = ListedExport {
        name: "gold".to_owned(),
        description: Some(" words".to_owned()),
        size_bytes: Some(0x0400_0000),
        read_only: Some(false),
    };
    let secret = ListedExport { name: String::new(), description: None, size_bytes: None, read_only: None };
    assert_eq!(exports, [gold, secret]);
}

#[test]
fn impossible_listings_are_violations() {
    let long = [&4097_u32.to_be_bytes()[..], &[b'n'; 4097]].concat();
    let malformed: [&[u8]; 4] = [b"\0\0\0", b"\0\0\0\x05gold", b"\0\0\0\x02\xff\xfe", &long];
    for data in malformed {
        let outcome = list(&mut Scripted::new(&[&reply(LIST, 2, data)]));
        assert!(matches!(outcome, Err(NegotiationError::Violation(_))), "{outcome:?}");
    }
    let endless = reply(LIST, 2, b"\0\0\0\x04gold").repeat(65_537);
    assert!(matches!(list(&mut Scripted::new(&[&endless])), Err(NegotiationError::Violation(_))));
    let heavy = reply(LIST, 2, &[&[0; 4][..], &[b'w'; 60 << 10]].concat()).repeat(600);
    assert!(matches!(list(&mut Scripted::new(&[&heavy])), Err(NegotiationError::Violation(_))));
}
