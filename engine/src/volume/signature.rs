//! Lists where file systems, partition tables and volume managers leave their signatures.
//!
//! A signature only names what was found. [`super::occupancy`] decides whether a volume holds data, and reads every one
//! of these places. Offsets and magics are those of the formats' own documentation.

/// Offset of a signature on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignatureOffset {
    /// Bytes from the start.
    Start(u64),
    /// Bytes before the end.
    End(u64),
    /// Bytes before the last multiple of `align` within the volume.
    AlignedEnd { back: u64, align: u64 },
}

impl SignatureOffset {
    /// The byte; `None` if a volume of that size has no such place.
    pub(super) fn byte(self, size_bytes: u64) -> Option<u64> {
        let at = match self {
            Self::Start(at) => at,
            Self::End(back) => size_bytes.checked_sub(back)?,
            Self::AlignedEnd { back, align } => (size_bytes / align * align).checked_sub(back)?,
        };
        (at < size_bytes).then_some(at)
    }
}

/// A signature.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signature {
    pub(super) what: &'static str,
    pub(super) at: SignatureOffset,
    pub(super) magic: &'static [u8],
}

const fn start(what: &'static str, at: u64, magic: &'static [u8]) -> Signature {
    Signature { what, at: SignatureOffset::Start(at), magic }
}

const EXT: &str = "an ext2, ext3 or ext4 file system";
const BTRFS: &str = "a btrfs file system";
const LUKS: &str = "a LUKS volume";
const LVM: &str = "an LVM physical volume";
const SWAP: &str = "swap space";
const RAID: &str = "a member of a Linux RAID";
const GPT: &str = "a GPT partition table";
const ZFS: &str = "a member of a ZFS pool";

const LUKS_SECOND: &[u8] = b"SKUL\xba\xbe";
const RAID_MAGIC: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The first one that is there names the content: what covers a whole disk comes before what may be left inside of it,
/// and marks of two bytes come last.
pub(super) const SIGNATURES: &[Signature] = &[
    start(LUKS, 0, b"LUKS\xba\xbe"),
    start(RAID, 0, RAID_MAGIC),
    start(RAID, 4 * KIB, RAID_MAGIC),
    Signature { what: RAID, at: SignatureOffset::AlignedEnd { back: 8 * KIB, align: 4 * KIB }, magic: RAID_MAGIC },
    Signature { what: RAID, at: SignatureOffset::AlignedEnd { back: 64 * KIB, align: 64 * KIB }, magic: RAID_MAGIC },
    Signature { what: "a member of an Intel RAID", at: SignatureOffset::End(1024), magic: b"Intel Raid ISM Cfg Sig. " },
    Signature { what: "a member of a DDF RAID", at: SignatureOffset::End(512), magic: &[0xde, 0x11, 0xde, 0x11] },
    start(LVM, 24, b"LVM2 001"),
    start(LVM, 512 + 24, b"LVM2 001"),
    start(LVM, 2 * 512 + 24, b"LVM2 001"),
    start(LVM, 3 * 512 + 24, b"LVM2 001"),
    start("a bcache device", 4 * KIB + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    start("an xfs file system", 0, b"XFSB"),
    start(EXT, KIB + 56, b"\x53\xef"),
    start(BTRFS, 64 * KIB + 64, b"_BHRfS_M"),
    start("an f2fs file system", KIB, b"\x10\x20\xf5\xf2"),
    start("a squashfs file system", 0, b"hsqs"),
    start("an NTFS file system", 3, b"NTFS    "),
    start("an exFAT file system", 3, b"EXFAT   "),
    start("a FAT file system", 54, b"FAT"),
    start("a FAT file system", 82, b"FAT32"),
    start("an ISO 9660 file system", 32 * KIB + 1, b"CD001"),
    start(SWAP, 4 * KIB - 10, b"SWAPSPACE2"),
    start(SWAP, 8 * KIB - 10, b"SWAPSPACE2"),
    start(SWAP, 16 * KIB - 10, b"SWAPSPACE2"),
    start(SWAP, 64 * KIB - 10, b"SWAPSPACE2"),
    start("a qcow2 image", 0, b"QFI\xfb"),
    start(GPT, 512, b"EFI PART"),
    start(GPT, 4 * KIB, b"EFI PART"),
    Signature { what: GPT, at: SignatureOffset::End(512), magic: b"EFI PART" },
    Signature { what: GPT, at: SignatureOffset::End(4 * KIB), magic: b"EFI PART" },
    // The second headers of LUKS lie behind metadata of any of these sizes.
    start(LUKS, 16 * KIB, LUKS_SECOND),
    start(LUKS, 32 * KIB, LUKS_SECOND),
    start(LUKS, 64 * KIB, LUKS_SECOND),
    start(LUKS, 128 * KIB, LUKS_SECOND),
    start(LUKS, 256 * KIB, LUKS_SECOND),
    start(LUKS, 512 * KIB, LUKS_SECOND),
    start(LUKS, MIB, LUKS_SECOND),
    start(LUKS, 2 * MIB, LUKS_SECOND),
    start(LUKS, 4 * MIB, LUKS_SECOND),
    // Copies of the superblock.
    start(BTRFS, 64 * MIB + 64, b"_BHRfS_M"),
    start(BTRFS, (256 << 30) + 64, b"_BHRfS_M"),
    start("a partition table or boot sector", 510, b"\x55\xaa"),
];

/// The four labels of a ZFS pool: two at the start, two at the end.
pub(super) const ZFS_LABELS: [SignatureOffset; 4] = [
    SignatureOffset::Start(0),
    SignatureOffset::Start(256 * KIB),
    SignatureOffset::AlignedEnd { back: 512 * KIB, align: 256 * KIB },
    SignatureOffset::AlignedEnd { back: 256 * KIB, align: 256 * KIB },
];
/// Bytes of a label.
pub(super) const ZFS_LABEL_BYTES: u64 = 256 * KIB;

/// Returns whether a label holds an uberblock in any slot of its ring.
pub(super) fn zfs(label: &[u8]) -> Option<&'static str> {
    const MAGIC: u64 = 0x00ba_b10c;
    let ring = label.get(128 << 10..)?;
    let is_one = |slot: &[u8]| {
        let word = slot.first_chunk::<8>().copied().unwrap_or_default();
        u64::from_le_bytes(word) == MAGIC || u64::from_be_bytes(word) == MAGIC
    };
    ring.chunks(1 << 10).any(is_one).then_some(ZFS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_at_the_end_are_counted_from_there() {
        assert_eq!(SignatureOffset::End(512).byte(1 << 20), Some((1 << 20) - 512));
        assert_eq!(SignatureOffset::End(512).byte(100), None);
        let superblock = SignatureOffset::AlignedEnd { back: 64 * KIB, align: 64 * KIB };
        assert_eq!(superblock.byte(10 * 64 * KIB + 5000), Some(9 * 64 * KIB));
        assert_eq!(superblock.byte(1000), None);
        assert_eq!(SignatureOffset::Start(64 * MIB).byte(MIB), None);
    }

    #[test]
    fn an_uberblock_is_found_in_any_slot_and_byte_order() {
        for (at, word) in [(128 << 10, 0x00ba_b10c_u64.to_le_bytes()), (200 << 10, 0x00ba_b10c_u64.to_be_bytes())] {
            let mut label = vec![0; 256 << 10];
            assert_eq!(zfs(&label), None);
            label[at..at + 8].copy_from_slice(&word);
            assert_eq!(zfs(&label), Some(ZFS));
        }
    }
}
