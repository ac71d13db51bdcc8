//! Recognises the format of a file or device by its first bytes.

use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Bytes that are looked at.
const HEAD_BYTES: u64 = 512;

/// Format of a volume that is not raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImageFormat {
    Qcow2,
    Vmdk,
    Vhdx,
    Vdi,
    Gzip,
    Xz,
    Zstd,
}

/// Formats with the place and the bytes that tell them.
const MAGICS: [(ImageFormat, usize, &[u8]); 9] = [
    (ImageFormat::Qcow2, 0, b"QFI\xfb"),
    (ImageFormat::Vmdk, 0, b"KDMV"),
    (ImageFormat::Vmdk, 0, b"COWD"),
    (ImageFormat::Vmdk, 0, b"# Disk DescriptorFile"),
    (ImageFormat::Vhdx, 0, b"vhdxfile"),
    (ImageFormat::Vdi, 64, b"\x7f\x10\xda\xbe"),
    (ImageFormat::Gzip, 0, b"\x1f\x8b\x08"),
    (ImageFormat::Xz, 0, b"\xfd7zXZ\0"),
    (ImageFormat::Zstd, 0, b"\x28\xb5\x2f\xfd"),
];

impl ImageFormat {
    /// Returns the format of a file or device; `None` if it is raw, or is no file.
    ///
    /// # Errors
    /// The file cannot be opened or read.
    pub(crate) fn of(path: &Path) -> Result<Option<Self>> {
        let read = || -> std::io::Result<Vec<u8>> {
            // What is neither file nor device is refused later, by its kind: opening a FIFO would wait.
            let kind = std::fs::metadata(path)?.file_type();
            if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
                return Ok(Vec::new());
            }
            let mut head = Vec::new();
            File::open(path)?.take(HEAD_BYTES).read_to_end(&mut head)?;
            Ok(head)
        };
        match read() {
            Ok(head) => Ok(Self::of_head(&head)),
            // The copy says it better: whether the directory is missing, and what would help.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Ok(None),
            Err(error) => {
                let what = format!("look at the format of {}", path.shown());
                Err(Error::io(Side::Source, Operation::Read, &error, what))
            }
        }
    }

    fn of_head(head: &[u8]) -> Option<Self> {
        let found = MAGICS.iter().find(|(_, at, magic)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
        found.map(|&(format, ..)| format)
    }

    /// Returns the name that qemu has for it; `None` if it is no disk image.
    pub(super) fn qemu_name(self) -> Option<&'static str> {
        match self {
            Self::Qcow2 => Some("qcow2"),
            Self::Vmdk => Some("vmdk"),
            Self::Vhdx => Some("vhdx"),
            Self::Vdi => Some("vdi"),
            Self::Gzip | Self::Xz | Self::Zstd => None,
        }
    }

    /// Returns what it is called in a sentence.
    fn what(self) -> &'static str {
        match self {
            Self::Qcow2 => "a qcow2 image",
            Self::Vmdk => "a vmdk image",
            Self::Vhdx => "a vhdx image",
            Self::Vdi => "a vdi image",
            Self::Gzip => "a file compressed by gzip",
            Self::Xz => "a file compressed by xz",
            Self::Zstd => "a file compressed by zstd",
        }
    }

    /// Returns the refusal of a copy of it whose user did not say what is meant.
    pub(crate) fn refusal(self, path: &Path) -> Error {
        let what = self.what();
        let error = Error::bad_request(format!("the source {} is {what}", path.shown()));
        let error = Error { side: Side::Source, operation: Operation::Open, ..error };
        match self.qemu_name() {
            Some(_) => error
                .advise("use --format raw to copy the file as it is, or --format auto to copy the disk inside of it"),
            None => error.advise("use --format raw to copy the file as it is, or decompress it first"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_is_known_by_its_magic_and_a_raw_disk_is_none() {
        for (format, at, magic) in MAGICS {
            let mut head = vec![0; HEAD_BYTES as usize];
            head[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(ImageFormat::of_head(&head), Some(format));
            head[at] ^= 1;
            assert_eq!(ImageFormat::of_head(&head), None, "{format:?}");
        }
        assert_eq!(ImageFormat::of_head(b""), None);
        assert_eq!(ImageFormat::of_head(b"QFI"), None);
    }

    #[test]
    fn a_missing_file_and_a_directory_are_left_to_the_copy() {
        assert_eq!(ImageFormat::of(Path::new("/nowhere/at/all")).unwrap(), None);
        assert_eq!(ImageFormat::of(Path::new("/")).unwrap(), None);
    }

    #[test]
    fn a_refusal_names_the_ways_on() {
        let image = ImageFormat::Qcow2.refusal(Path::new("a.qcow2")).to_string();
        assert!(
            image.contains("a qcow2 image") && image.contains("--format raw") && image.contains("--format auto"),
            "{image}"
        );
        let packed = ImageFormat::Gzip.refusal(Path::new("a.gz")).to_string();
        assert!(
            packed.contains("gzip") && packed.contains("--format raw") && !packed.contains("--format auto"),
            "{packed}"
        );
    }
}
