//! Encodes and decodes records, which are appended to a journal once per interval, and the runs inside.
//!
//! A record is a fixed head, a payload and the payload's checksum. Head, run and payload carry a checksum each: the
//! head's makes its length trustworthy before anything is read by it, the run's lets a single run be read again later
//! without its record, the payload's covers all of it. Pure: no I/O here.

use super::format::{FieldReader, Geometry, SECTOR_BYTES};
use super::{Content, FinishRecord, LeafDigest, Run};
use crate::extent::ByteRange;
use crate::spec::DigestKind;

/// First bytes of a record.
pub(crate) const RECORD_MAGIC: [u8; 4] = *b"BHRC";
/// Head of a record.
pub(crate) const RECORD_HEAD_BYTES: usize = 32;
/// Offset of the checksum within the head.
pub(crate) const RECORD_HEAD_CRC_OFFSET: usize = RECORD_HEAD_BYTES - 4;
/// The payload's checksum, after the payload.
pub(crate) const RECORD_TAIL_BYTES: usize = 4;
/// The longest payload: bounds what a reader holds. 65,534 leaves.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// A run without its digests.
pub(crate) const RUN_HEAD_BYTES: usize = 24;
/// One leaf digest.
pub(crate) const LEAF_DIGEST_BYTES: usize = 16;
/// Payload of the finish record.
pub(crate) const FINISH_BYTES: usize = 48;
/// Most leaves in one encoded run; longer runs are cut.
pub(crate) const LEAVES_PER_RUN_MAX: usize = (PAYLOAD_BYTES_MAX - RUN_HEAD_BYTES) / LEAF_DIGEST_BYTES;

/// The longest record.
pub(crate) const RECORD_BYTES_MAX: usize = RECORD_HEAD_BYTES + PAYLOAD_BYTES_MAX + RECORD_TAIL_BYTES;

/// Kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// Runs that became durable.
    Runs,
    /// The end of a receipt.
    Finish,
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub kind: RecordKind,
    /// 0 for the first record, then one more each.
    pub sequence: u64,
    pub payload_bytes: u32,
    /// Runs in the payload; 0 in the finish record.
    pub runs: u32,
}

impl RecordHead {
    pub(crate) fn encode(&self) -> [u8; RECORD_HEAD_BYTES] {
        let mut head = [0; RECORD_HEAD_BYTES];
        head[..4].copy_from_slice(&RECORD_MAGIC);
        head[4..8].copy_from_slice(&(self.kind as u32 + 1).to_le_bytes());
        head[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        head[16..20].copy_from_slice(&self.payload_bytes.to_le_bytes());
        head[20..24].copy_from_slice(&self.runs.to_le_bytes());
        let crc = crc32c::crc32c(&head[..RECORD_HEAD_CRC_OFFSET]);
        head[RECORD_HEAD_CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// `None` if magic or checksum are wrong: the head is not what was written.
    ///
    /// # Errors
    /// With a right checksum, what cannot be in a head.
    pub(crate) fn decode(head: &[u8; RECORD_HEAD_BYTES]) -> Result<Option<Self>, &'static str> {
        let mut fields = FieldReader::new(head);
        let crc = crc32c::crc32c(&head[..RECORD_HEAD_CRC_OFFSET]).to_le_bytes();
        if fields.array() != Some(RECORD_MAGIC) || head[RECORD_HEAD_CRC_OFFSET..] != crc {
            return Ok(None);
        }
        Self::parse(&mut fields).map(Some).ok_or("a field of the record's head is out of its range")
    }

    fn parse(fields: &mut FieldReader<'_>) -> Option<Self> {
        let kind = match fields.u32()? {
            1 => RecordKind::Runs,
            2 => RecordKind::Finish,
            _ => return None,
        };
        let head = Self { kind, sequence: fields.u64()?, payload_bytes: fields.u32()?, runs: fields.u32()? };
        let is_length_possible = match kind {
            RecordKind::Runs => (1..=PAYLOAD_BYTES_MAX).contains(&(head.payload_bytes as usize)),
            RecordKind::Finish => head.payload_bytes as usize == FINISH_BYTES && head.runs == 0,
        };
        (is_length_possible && fields.u32()? == 0).then_some(head)
    }

    /// Bytes of the whole record.
    pub(crate) fn record_bytes(&self) -> u64 {
        (RECORD_HEAD_BYTES + RECORD_TAIL_BYTES) as u64 + u64::from(self.payload_bytes)
    }
}

/// A whole record: head, payload, checksum of the payload.
pub(crate) fn encode_record(kind: RecordKind, sequence: u64, runs: u32, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() <= PAYLOAD_BYTES_MAX, "the caller keeps a payload within its bound");
    let payload_bytes = u32::try_from(payload.len()).expect("payloads are bounded");
    let head = RecordHead { kind, sequence, payload_bytes, runs }.encode();
    [&head[..], payload, &crc32c::crc32c(payload).to_le_bytes()].concat()
}

/// Kind of a run's content, as its head encodes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContentKind {
    Zeros,
    Leaves,
    Undigested,
}

/// The fixed part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunHead {
    /// Admitted by the geometry.
    pub range: ByteRange,
    kind: ContentKind,
    /// Bytes of leaf digests that follow; at most [`PAYLOAD_BYTES_MAX`].
    pub digest_bytes: usize,
    crc: u32,
}

impl RunHead {
    /// Checks everything but the checksum, which needs the digests: see [`RunHead::checksum_matches`].
    pub(crate) fn decode(head: &[u8], geometry: &Geometry) -> Result<Self, &'static str> {
        let mut fields = FieldReader::new(head);
        let parse = || Some((fields.u64()?, fields.u64()?, fields.u32()?, fields.u32()?));
        let (offset, length, kind, crc) = { parse }().ok_or("a run ends too early")?;
        let end = offset.checked_add(length).ok_or("a run ends past the last offset")?;
        let range = ByteRange::new(offset, end);
        if !geometry.admits(range) {
            return Err("a run is empty, outside of the copy, or not made of whole leaves");
        }
        let kind = match kind {
            0 => ContentKind::Zeros,
            1 if geometry.digest == DigestKind::Xxh3 => ContentKind::Leaves,
            2 => ContentKind::Undigested,
            _ => return Err("a run has a content that this journal cannot have"),
        };
        let leaves = if kind == ContentKind::Leaves { geometry.leaves(range) } else { 0 };
        let digest_bytes = usize::try_from(leaves)
            .ok()
            .filter(|&leaves| leaves <= LEAVES_PER_RUN_MAX)
            .ok_or("a run has more leaves than fit a record")?
            * LEAF_DIGEST_BYTES;
        Ok(Self { range, kind, digest_bytes, crc })
    }

    /// Returns whether the run's checksum is right. `run` is its head and digests.
    pub(crate) fn checksum_matches(&self, run: &[u8]) -> bool {
        run_crc(&run[..RUN_HEAD_BYTES - 4], &run[RUN_HEAD_BYTES..]) == self.crc
    }

    /// The run, given its digests.
    pub(crate) fn with_digests(&self, digests: &[u8]) -> Run {
        let leaf = |bytes: &[u8]| LeafDigest::from_le_bytes(bytes.try_into().expect("chunks have this size"));
        let content = match self.kind {
            ContentKind::Zeros => Content::Zeros,
            ContentKind::Leaves => Content::Leaves(digests.chunks_exact(LEAF_DIGEST_BYTES).map(leaf).collect()),
            ContentKind::Undigested => Content::Undigested,
        };
        Run { range: self.range, content }
    }

    /// Returns whether it is one of zeros.
    pub(crate) fn is_zeros(&self) -> bool {
        self.kind == ContentKind::Zeros
    }

    /// Bytes of the whole run.
    pub(crate) fn run_bytes(&self) -> usize {
        RUN_HEAD_BYTES + self.digest_bytes
    }
}

fn run_crc(head: &[u8], digests: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), digests)
}

/// Bytes that [`encode_run`] adds.
pub(crate) fn encoded_run_bytes(run: &Run) -> usize {
    RUN_HEAD_BYTES
        + match &run.content {
            Content::Leaves(leaves) => leaves.len() * LEAF_DIGEST_BYTES,
            Content::Zeros | Content::Undigested => 0,
        }
}

/// Adds a run to a payload.
pub(crate) fn encode_run(run: &Run, payload: &mut Vec<u8>) {
    let (kind, leaves) = match &run.content {
        Content::Zeros => (0_u32, &[][..]),
        Content::Leaves(leaves) => (1, &leaves[..]),
        Content::Undigested => (2, &[][..]),
    };
    let start = payload.len();
    payload.extend(run.range.start().to_le_bytes());
    payload.extend(run.range.len().to_le_bytes());
    payload.extend(kind.to_le_bytes());
    payload.extend([0; 4]);
    payload.extend(leaves.iter().flat_map(|leaf| leaf.to_le_bytes()));
    let (head, digests) = payload[start..].split_at_mut(RUN_HEAD_BYTES);
    let (fields, crc) = head.split_at_mut(RUN_HEAD_BYTES - 4);
    crc.copy_from_slice(&run_crc(fields, digests).to_le_bytes());
}

/// Walks the runs of a payload: ascending, disjoint, as many as the head says, nothing left over. Calls `each` with
/// every run's head and its position in the payload.
///
/// # Errors
/// The damage. Runs before that one were already handed out.
pub(crate) fn walk_runs(
    payload: &[u8],
    runs: u32,
    geometry: &Geometry,
    mut each: impl FnMut(RunHead, usize),
) -> Result<(), &'static str> {
    let (mut at, mut end) = (0, 0);
    for _ in 0..runs {
        let head = RunHead::decode(payload.get(at..).unwrap_or_default(), geometry)?;
        let run = payload.get(at..at + head.run_bytes()).ok_or("a run ends past its record")?;
        if !head.checksum_matches(run) {
            return Err("the checksum of a run is wrong");
        }
        if head.range.start() < end {
            return Err("the runs of a record are not in order");
        }
        each(head, at);
        (at, end) = (at + head.run_bytes(), head.range.end());
    }
    if at == payload.len() { Ok(()) } else { Err("a record holds more than its runs") }
}

/// The payload of the finish record.
pub(crate) fn encode_finish(finish: &FinishRecord) -> Vec<u8> {
    let mut payload = Vec::with_capacity(FINISH_BYTES);
    payload.extend(finish.finished_ns.to_le_bytes());
    payload.extend(u32::from(finish.root.is_some()).to_le_bytes());
    payload.extend([0; 4]);
    payload.extend(finish.root.unwrap_or_default());
    payload
}

/// The finish record, from a payload of [`FINISH_BYTES`].
pub(crate) fn decode_finish(payload: &[u8]) -> Option<FinishRecord> {
    let mut fields = FieldReader::new(payload);
    let (finished_ns, has_root, reserved, root) = (fields.i64()?, fields.u32()?, fields.u32()?, fields.array()?);
    let root = match has_root {
        0 => None,
        1 => Some(root),
        _ => return None,
    };
    (reserved == 0 && fields.is_empty()).then_some(FinishRecord { root, finished_ns })
}

/// Returns whether the bytes of an append that lie from `at` on in the file look as after a power cut: some sector of
/// it, or its part of one, never reached the disk and reads as zeros.
pub(crate) fn is_torn(append: &[u8], at: u64) -> bool {
    let first = (SECTOR_BYTES as u64 - at % SECTOR_BYTES as u64) as usize;
    let (head, rest) = append.split_at(first.min(append.len()));
    std::iter::once(head).chain(rest.chunks(SECTOR_BYTES)).any(|sector| sector.iter().all(|&byte| byte == 0))
}
