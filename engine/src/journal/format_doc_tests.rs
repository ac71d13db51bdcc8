//! Compares `docs/format.md` with the code: every constant, and every field of every table by its bytes.

use super::append::Appender;
use super::samples::{SampleJournal, header, leaves};
use super::*;
use super::{format, record, root};
use crate::limits::BLOCK_BYTES_MAX;
use crate::volume::VolumeKind;

const DOCUMENT: &str = include_str!("../../../docs/format.md");

/// Rows of tables, cells trimmed.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| -");
    DOCUMENT.lines().filter(is_row).map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

/// Offset, length and name of the fields of one structure; the length of the last one may be open.
fn fields(structure: &str) -> Vec<(usize, Option<usize>, &'static str)> {
    let title = format!("{structure} field");
    let table = rows().skip_while(|row| row.get(2) != Some(&title.as_str())).skip(1);
    let fields: Vec<_> = table.map_while(|row| Some((row[0].parse().ok()?, row[1].parse().ok(), row[2]))).collect();
    assert!(!fields.is_empty(), "docs/format.md has no table of the {structure}");
    fields
}

/// The table names the fields in `expected`, in order and without gaps, and `bytes` holds their values there.
fn check(structure: &str, bytes: &[u8], expected: &[(&str, &[u8])]) {
    let mut end = 0;
    let documented = fields(structure);
    assert_eq!(documented.len(), expected.len(), "{structure}");
    for ((offset, length, name), (expected_name, value)) in documented.into_iter().zip(expected) {
        let what = format!("docs/format.md: {structure} field {name}");
        assert_eq!((name, offset), (*expected_name, end), "{what}");
        end = offset + length.unwrap_or(value.len());
        assert_eq!(&bytes[offset..end], *value, "{what}");
    }
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).to_le_bytes()
}

#[test]
fn every_constant_is_documented() {
    let text = |bytes: &[u8]| format!("`{}`", String::from_utf8_lossy(bytes));
    let constants = [
        ("MAGIC", text(&format::MAGIC)),
        ("SLOT_MAGIC", text(&format::SLOT_MAGIC)),
        ("RECORD_MAGIC", text(&record::RECORD_MAGIC)),
        ("FORMAT_VERSION", format::FORMAT_VERSION.to_string()),
        ("SECTOR_BYTES", format::SECTOR_BYTES.to_string()),
        ("SLOT_0_OFFSET", format::SLOT_OFFSETS[0].to_string()),
        ("SLOT_1_OFFSET", format::SLOT_OFFSETS[1].to_string()),
        ("HEADER_OFFSET", format::HEADER_OFFSET.to_string()),
        ("NAME_BYTES_MAX", format::NAME_BYTES_MAX.to_string()),
        ("HEADER_BYTES_MAX", format::HEADER_BYTES_MAX.to_string()),
        ("LEAF_BYTES_MAX", BLOCK_BYTES_MAX.to_string()),
        ("PAYLOAD_BYTES_MAX", record::PAYLOAD_BYTES_MAX.to_string()),
        ("LEAVES_PER_RUN_MAX", record::LEAVES_PER_RUN_MAX.to_string()),
        ("RECORD_BYTES_MAX", record::RECORD_BYTES_MAX.to_string()),
    ];
    let table: Vec<_> = rows().skip_while(|row| row[0] != "constant").skip(1).take(constants.len()).collect();
    for (row, (name, value)) in table.iter().zip(constants) {
        assert_eq!(row[..2], [format!("`{name}`").as_str(), value.as_str()], "docs/format.md: constants");
    }
    assert!(DOCUMENT.contains(&format!("The 16 bytes {}", text(&root::ROOT_TAG))));
    assert!(DOCUMENT.contains(&format!("as the byte {} and their number", root::ROOT_ZEROS)));
    assert!(DOCUMENT.contains(&format!("as the byte {} and its XXH3-128", root::ROOT_LEAF)));
}

#[test]
fn lead_slots_and_header_are_as_documented() {
    let header = header(0x1234_5678_9abc, 4096);
    let (_, start) = Appender::create(&header).unwrap();
    let (sectors, body) = start.bytes.split_at(format::HEADER_OFFSET as usize);
    let (lead, slot) = (&sectors[..512], &sectors[512..1024]);
    let length = (body.len() as u32).to_le_bytes();
    check(
        "lead",
        lead,
        &[
            ("magic", b"BHJOURNL"),
            ("version", &[2, 0, 0, 0]),
            ("header length", &length),
            ("header checksum", &crc(body)),
            ("zeros", &[0; 488]),
            ("sector checksum", &crc(&lead[..508])),
        ],
    );
    check(
        "slot",
        slot,
        &[
            ("magic", b"BHCOMMIT"),
            ("slot sequence", &[0; 8]),
            ("committed length", &(start.bytes.len() as u64).to_le_bytes()),
            ("state", &[0; 4]),
            ("zeros", &[0; 480]),
            ("sector checksum", &crc(&slot[..508])),
        ],
    );
    assert!(sectors[1024..].iter().all(|&byte| byte == 0));
    check(
        "header",
        body,
        &[
            ("copy size", &header.size_bytes.to_le_bytes()),
            ("leaf size", &header.leaf_bytes.to_le_bytes()),
            ("digest", &[1, 0, 0, 0]),
            ("started", &header.started_ns.to_le_bytes()),
        ],
    );
    let (source, destination) =
        body[24..].split_at(88 + header.source.name.as_bytes().len() + header.source.ids.lasting.len());
    check_identity(source, &header.source, [0, 0], [0, 0]);
    check_identity(destination, &header.destination, [1, 0], [1, 0]);
}

#[test]
fn every_kind_of_volume_is_documented() {
    let prose = "Kind is 0 for a regular file, 1 for a block device, 2 for an NBD export.";
    assert!(DOCUMENT.contains(prose), "docs/format.md: {prose}");
    for (number, kind) in [(0, VolumeKind::File), (1, VolumeKind::Device), (2, VolumeKind::Export)] {
        let plain = header(4096, 4096);
        let header = Header { source: Identity { kind, ..plain.source.clone() }, ..plain };
        let (_, start) = Appender::create(&header).unwrap();
        check_identity(&start.bytes[format::HEADER_OFFSET as usize + 24..], &header.source, [number, 0], [0, 0]);
        let body = &start.bytes[format::HEADER_OFFSET as usize..];
        let lead = format::LeadSector { header_bytes: body.len() as u32, header_crc: crc32c::crc32c(body) };
        assert_eq!(format::decode_header(lead, body), Ok(header));
    }
}

fn check_identity(bytes: &[u8], identity: &Identity, kind: [u8; 2], known: [u8; 2]) {
    check(
        "identity",
        bytes,
        &[
            ("kind", &kind),
            ("birth time known", &known),
            ("name length", &(identity.name.as_bytes().len() as u32).to_le_bytes()),
            ("device", &identity.device.to_le_bytes()),
            ("inode", &identity.inode.to_le_bytes()),
            ("birth time", &identity.born_ns.unwrap_or(0).to_le_bytes()),
            ("size", &identity.size_bytes.to_le_bytes()),
            ("modified", &identity.modified_ns.to_le_bytes()),
            ("changed", &identity.changed_ns.to_le_bytes()),
            ("boot id", &identity.ids.boot_id.to_le_bytes()),
            ("disk sequence", &identity.ids.disk_sequence.to_le_bytes()),
            ("ids length", &(identity.ids.lasting.len() as u32).to_le_bytes()),
            ("zeros", &[0; 4]),
            ("name and ids", &[identity.name.as_bytes(), identity.ids.lasting.as_bytes()].concat()),
        ],
    );
}

#[test]
fn records_are_as_documented() {
    let (mut appender, _) = Appender::create(&header(1 << 20, 4096)).unwrap();
    appender.append(vec![leaves(1, 1, 4096)]).unwrap();
    let commit = appender.append(vec![leaves(3, 2, 4096)]).unwrap().remove(0);
    let bytes = commit.record.bytes;
    let (payload, tail) = bytes[32..].split_at(bytes.len() - 36);
    check_record(&bytes, 1, 1, 1, payload);
    assert_eq!(tail, crc(payload));
    let digests: Vec<u8> = [samples::leaf(3).to_le_bytes(), samples::leaf(4).to_le_bytes()].concat();
    check(
        "run",
        payload,
        &[
            ("offset", &(3 * 4096_u64).to_le_bytes()),
            ("length", &(2 * 4096_u64).to_le_bytes()),
            ("content", &[1, 0, 0, 0]),
            ("run checksum", &crc(&[&payload[..20], &digests].concat())),
            ("leaf digests", &digests),
        ],
    );
    let finish = FinishRecord { root: Some([6; 32]), finished_ns: -9 };
    let commit = appender.finish(&finish);
    let payload = &commit.record.bytes[32..80];
    check_record(&commit.record.bytes, 2, 2, 0, payload);
    check(
        "finish",
        payload,
        &[
            ("finished", &(-9_i64).to_le_bytes()),
            ("root known", &[1, 0, 0, 0]),
            ("zeros", &[0; 4]),
            ("root digest", &[6; 32]),
        ],
    );
    assert_eq!((commit.slot.offset, commit.slot.bytes[24]), (1024, 1));
}

fn check_record(bytes: &[u8], kind: u32, sequence: u64, runs: u32, payload: &[u8]) {
    check(
        "record",
        bytes,
        &[
            ("magic", b"BHRC"),
            ("kind", &kind.to_le_bytes()),
            ("record sequence", &sequence.to_le_bytes()),
            ("payload length", &(payload.len() as u32).to_le_bytes()),
            ("runs", &runs.to_le_bytes()),
            ("zeros", &[0; 4]),
            ("head checksum", &crc(&bytes[..28])),
            ("payload", payload),
        ],
    );
}

#[test]
fn the_bytes_of_version_2_do_not_change() {
    // If this fails, journals that exist can no longer be read: the format needs a new version.
    let mut hasher = blake3::Hasher::new();
    (0..16).for_each(|seed| _ = hasher.update(&SampleJournal::new(seed).file()));
    assert_eq!(hasher.finalize().to_hex()[..16], *"d13cd4e90cba85cf");
}
