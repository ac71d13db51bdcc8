//! Encodes and decodes the bytes of a journal up to its first record: lead sector, commit slots, header.
//!
//! Pure and little-endian; nothing here touches a file. `docs/format.md` owns the layout and its reasons; a test
//! compares the two. Every length is bounded before anything is allocated or added, and every decoder answers foreign
//! bytes with [`Damage`], never with a panic.

use super::{Header, JournalState};
use crate::extent::ByteRange;
use crate::limits::BLOCK_BYTES_MAX;
use crate::spec::DigestKind;
use crate::volume::{IDS_BYTES_MAX, Identity, VolumeIds, VolumeKind, VolumeName};

/// First bytes of a journal.
pub(crate) const MAGIC: [u8; 8] = *b"BHJOURNL";
/// First bytes of a commit slot.
pub(crate) const SLOT_MAGIC: [u8; 8] = *b"BHCOMMIT";
/// The only version that this program reads and writes.
pub(crate) const FORMAT_VERSION: u32 = 2;
/// Bytes that storage writes as a whole or not at all: lead and slots are one sector each.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Offset of the checksum within a lead or slot sector.
pub(crate) const SEAL_OFFSET: usize = SECTOR_BYTES - 4;
/// Offsets of the two commit slots.
pub(crate) const SLOT_OFFSETS: [u64; 2] = [512, 1024];
/// Offset of the header. Records follow it.
pub(crate) const HEADER_OFFSET: u64 = 1536;
/// Longest name of a volume in bytes: the longest path that Linux takes.
pub(crate) const NAME_BYTES_MAX: usize = 4096;
/// Header without its two identities.
pub(crate) const HEADER_FIXED_BYTES: usize = 24;
/// Identity without its name and ids.
pub(crate) const IDENTITY_FIXED_BYTES: usize = 88;
/// The longest header.
pub(crate) const HEADER_BYTES_MAX: usize =
    HEADER_FIXED_BYTES + 2 * (IDENTITY_FIXED_BYTES + NAME_BYTES_MAX + IDS_BYTES_MAX);

/// Reason why bytes are not a valid journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// No program has written this; `what` is wrong with the bytes `at..at + length`.
    Corrupt { at: u64, length: u64, what: &'static str },
    /// Written by a program of another version.
    OtherVersion(u32),
}

impl Damage {
    pub(super) fn corrupt(at: u64, length: u64, what: &'static str) -> Self {
        Self::Corrupt { at, length, what }
    }
}

/// The sizes that every run of a journal is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Bytes of the copy.
    pub size_bytes: u64,
    /// Bytes of a leaf.
    pub leaf_bytes: u64,
    /// Whether runs may carry digests.
    pub digest: DigestKind,
}

impl Geometry {
    pub(crate) fn of(header: &Header) -> Self {
        Self { size_bytes: header.size_bytes, leaf_bytes: header.leaf_bytes.into(), digest: header.digest }
    }

    /// Returns whether a range is not empty, inside the copy, and made of whole leaves.
    pub(crate) fn admits(&self, range: ByteRange) -> bool {
        !range.is_empty()
            && range.end() <= self.size_bytes
            && range.start().is_multiple_of(self.leaf_bytes)
            && (range.end() == self.size_bytes || range.end().is_multiple_of(self.leaf_bytes))
    }

    /// Leaves in an admitted range.
    pub(crate) fn leaves(&self, range: ByteRange) -> u64 {
        range.len().div_ceil(self.leaf_bytes)
    }
}

/// Length and checksum of the header, from the lead sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeadSector {
    /// Bytes of the header.
    pub header_bytes: u32,
    /// Checksum of the header.
    pub header_crc: u32,
}

impl LeadSector {
    fn encode(self) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        sector[..8].copy_from_slice(&MAGIC);
        sector[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        sector[12..16].copy_from_slice(&self.header_bytes.to_le_bytes());
        sector[16..20].copy_from_slice(&self.header_crc.to_le_bytes());
        seal(sector)
    }

    /// The checksum is checked before the version, so that a flipped bit is not mistaken for another version.
    pub(crate) fn decode(sector: &[u8; SECTOR_BYTES]) -> Result<Self, Damage> {
        let bad = |what| Damage::corrupt(0, SECTOR_BYTES as u64, what);
        let mut fields = FieldReader::new(sector);
        if fields.array() != Some(MAGIC) {
            return Err(bad("this is not a journal of blockhaul"));
        }
        if !has_valid_checksum(sector) {
            return Err(bad("the checksum of the first sector is wrong"));
        }
        let short = || bad("the first sector is too short");
        let version = fields.u32().ok_or_else(short)?;
        if version != FORMAT_VERSION {
            return Err(Damage::OtherVersion(version));
        }
        let lead = Self { header_bytes: fields.u32().ok_or_else(short)?, header_crc: fields.u32().ok_or_else(short)? };
        if lead.header_bytes as usize > HEADER_BYTES_MAX {
            return Err(bad("the header is longer than any header can be"));
        }
        Ok(lead)
    }

    /// Offset of the first record.
    pub(crate) fn records_start(self) -> u64 {
        HEADER_OFFSET + u64::from(self.header_bytes)
    }
}

/// Committed length and state of a journal: the newest of two slots that are written in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommitSlot {
    /// Grows by one with every slot written; its parity chooses the slot.
    pub sequence: u64,
    /// Bytes of the file that were synced before this slot was written.
    pub committed_bytes: u64,
    /// Finished once the finish record is among them.
    pub state: JournalState,
}

impl CommitSlot {
    /// Returns its offset in the file.
    pub(crate) fn offset(&self) -> u64 {
        SLOT_OFFSETS[usize::from(self.sequence % 2 == 1)]
    }

    pub(crate) fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        sector[..8].copy_from_slice(&SLOT_MAGIC);
        sector[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        sector[16..24].copy_from_slice(&self.committed_bytes.to_le_bytes());
        sector[24..28].copy_from_slice(&u32::from(self.state == JournalState::Finished).to_le_bytes());
        seal(sector)
    }

    /// `None` if it was never written, was torn, or lies in the other slot's place.
    pub(crate) fn decode(sector: &[u8; SECTOR_BYTES], offset: u64) -> Option<Self> {
        let mut fields = FieldReader::new(sector);
        if fields.array() != Some(SLOT_MAGIC) || !has_valid_checksum(sector) {
            return None;
        }
        let (sequence, committed_bytes) = (fields.u64()?, fields.u64()?);
        let state = match fields.u32()? {
            0 => JournalState::Unfinished,
            1 => JournalState::Finished,
            _ => return None,
        };
        Some(Self { sequence, committed_bytes, state }).filter(|slot| slot.offset() == offset)
    }
}

/// Everything before the first record: lead, the first slot, an empty second one, header.
///
/// # Errors
/// A sentence: a volume's name is too long, or the leaf size is out of range.
pub(crate) fn encode_start(header: &Header) -> Result<Vec<u8>, String> {
    for name in [&header.source.name, &header.destination.name] {
        let length = name.as_bytes().len();
        if length > NAME_BYTES_MAX {
            return Err(format!("the name of a volume has {length} bytes; at most {NAME_BYTES_MAX} can be recorded"));
        }
    }
    if header.leaf_bytes == 0 || header.leaf_bytes > BLOCK_BYTES_MAX {
        return Err(format!("a leaf of {} bytes cannot be recorded", header.leaf_bytes));
    }
    let body = encode_header(header);
    let header_bytes = u32::try_from(body.len()).expect("names are bounded");
    let lead = LeadSector { header_bytes, header_crc: crc32c::crc32c(&body) };
    let slot = CommitSlot { sequence: 0, committed_bytes: lead.records_start(), state: JournalState::Unfinished };
    Ok([&lead.encode()[..], &slot.encode(), &[0; SECTOR_BYTES], &body].concat())
}

fn encode_header(header: &Header) -> Vec<u8> {
    let mut body = Vec::with_capacity(HEADER_BYTES_MAX);
    body.extend(header.size_bytes.to_le_bytes());
    body.extend(header.leaf_bytes.to_le_bytes());
    body.extend(u32::from(header.digest == DigestKind::Xxh3).to_le_bytes());
    body.extend(header.started_ns.to_le_bytes());
    encode_identity(&header.source, &mut body);
    encode_identity(&header.destination, &mut body);
    body
}

fn encode_identity(identity: &Identity, body: &mut Vec<u8>) {
    body.extend(kind_number(identity.kind).to_le_bytes());
    body.extend(u16::from(identity.born_ns.is_some()).to_le_bytes());
    body.extend(u32::try_from(identity.name.as_bytes().len()).expect("names are bounded").to_le_bytes());
    body.extend(identity.device.to_le_bytes());
    body.extend(identity.inode.to_le_bytes());
    body.extend(identity.born_ns.unwrap_or(0).to_le_bytes());
    body.extend(identity.size_bytes.to_le_bytes());
    body.extend(identity.modified_ns.to_le_bytes());
    body.extend(identity.changed_ns.to_le_bytes());
    let VolumeIds { lasting, boot_id, disk_sequence } = &identity.ids;
    body.extend(boot_id.to_le_bytes());
    body.extend(disk_sequence.to_le_bytes());
    body.extend(u32::try_from(lasting.len()).expect("ids are bounded").to_le_bytes());
    body.extend([0; 4]);
    body.extend(identity.name.as_bytes());
    body.extend(lasting.as_bytes());
}

fn kind_number(kind: VolumeKind) -> u16 {
    match kind {
        VolumeKind::File => 0,
        VolumeKind::Device => 1,
        VolumeKind::Export => 2,
    }
}

/// The header, from bytes of the length that the lead gives.
pub(crate) fn decode_header(lead: LeadSector, body: &[u8]) -> Result<Header, Damage> {
    let bad = |what| Damage::corrupt(HEADER_OFFSET, body.len() as u64, what);
    if crc32c::crc32c(body) != lead.header_crc {
        return Err(bad("the checksum of the header is wrong"));
    }
    let mut fields = FieldReader::new(body);
    parse_header(&mut fields)
        .filter(|header| (1..=BLOCK_BYTES_MAX).contains(&header.leaf_bytes) && fields.is_empty())
        .ok_or_else(|| bad("a field of the header is out of its range"))
}

fn parse_header(fields: &mut FieldReader<'_>) -> Option<Header> {
    let (size_bytes, leaf_bytes) = (fields.u64()?, fields.u32()?);
    let digest = match fields.u32()? {
        0 => DigestKind::None,
        1 => DigestKind::Xxh3,
        _ => return None,
    };
    let started_ns = fields.i64()?;
    let (source, destination) = (parse_identity(fields)?, parse_identity(fields)?);
    Some(Header { source, destination, size_bytes, leaf_bytes, digest, started_ns })
}

fn parse_identity(fields: &mut FieldReader<'_>) -> Option<Identity> {
    let kind = match fields.u16()? {
        0 => VolumeKind::File,
        1 => VolumeKind::Device,
        2 => VolumeKind::Export,
        _ => return None,
    };
    let is_born_known = match fields.u16()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let name_bytes = usize::try_from(fields.u32()?).ok().filter(|&length| length <= NAME_BYTES_MAX)?;
    let (device, inode, born_ns) = (fields.u64()?, fields.u64()?, fields.i64()?);
    let (size_bytes, modified_ns, changed_ns) = (fields.u64()?, fields.i64()?, fields.i64()?);
    let (boot_id, disk_sequence) = (u128::from_le_bytes(fields.array()?), fields.u64()?);
    let ids_bytes = usize::try_from(fields.u32()?).ok().filter(|&length| length <= IDS_BYTES_MAX)?;
    (fields.u32()? == 0).then_some(())?;
    let name = VolumeName::from(fields.slice(name_bytes)?.to_vec());
    let lasting = String::from_utf8(fields.slice(ids_bytes)?.to_vec()).ok()?;
    let ids = VolumeIds { lasting, boot_id, disk_sequence };
    let born_ns = is_born_known.then_some(born_ns);
    Some(Identity { name, kind, device, inode, born_ns, size_bytes, modified_ns, changed_ns, ids })
}

/// Puts the checksum of the sector at its end.
pub(super) fn seal(mut sector: [u8; SECTOR_BYTES]) -> [u8; SECTOR_BYTES] {
    let crc = crc32c::crc32c(&sector[..SEAL_OFFSET]);
    sector[SEAL_OFFSET..].copy_from_slice(&crc.to_le_bytes());
    sector
}

fn has_valid_checksum(sector: &[u8; SECTOR_BYTES]) -> bool {
    *sector == seal(*sector)
}

/// Little-endian fields, taken from the front of bytes. `None` where they end too early.
pub(super) struct FieldReader<'a>(&'a [u8]);

impl<'a> FieldReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.try_into().ok()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}
