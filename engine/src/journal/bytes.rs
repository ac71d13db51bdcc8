//! Reads bytes of a journal, and makes the errors for bytes that are damaged.

use super::format::Damage;
use crate::error::{Code, Error, Operation, Result, Side};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Source of a journal's bytes: a file, or memory in a simulation.
pub(crate) trait ReadAt: Send + Sync {
    /// Bytes there are.
    fn size_bytes(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset` on, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let bytes = start.checked_add(buffer.len()).and_then(|end| self.get(start..end));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The bytes of a journal, and how messages call them.
pub(super) struct JournalBytes {
    bytes: Box<dyn ReadAt>,
    /// Name of the file in messages.
    pub(super) name: String,
}

impl JournalBytes {
    pub(super) fn new(bytes: Box<dyn ReadAt>, name: String) -> Self {
        Self { bytes, name }
    }

    /// # Errors
    /// `ECheckpointCorrupt` if the file ends before, and whatever the system says.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let length = buffer.len() as u64;
        self.bytes.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.corrupt(offset, length, "the file ends too early"),
            _ => Error::io(Side::Engine, Operation::Journal, &error, format_args!("read the journal {}", self.name))
                .at(offset, length),
        })
    }

    pub(super) fn size_bytes(&self) -> Result<u64> {
        self.bytes.size_bytes().map_err(|error| {
            Error::io(Side::Engine, Operation::Journal, &error, format_args!("ask for the size of {}", self.name))
        })
    }

    pub(super) fn read_array<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes, offset).map(|()| bytes)
    }

    pub(super) fn corrupt(&self, offset: u64, length: u64, what: &str) -> Error {
        Error::new(
            Code::CheckpointCorrupt,
            Side::Engine,
            Operation::Journal,
            format!("the journal {} is damaged at byte {offset}: {what}", self.name),
        )
        .at(offset, length)
        .advise("start over with --restart or remove the file")
    }

    pub(super) fn damaged(&self, damage: Damage) -> Error {
        match damage {
            Damage::Corrupt { at, length, what } => self.corrupt(at, length, what),
            Damage::OtherVersion(version) => Error::new(
                Code::CheckpointMismatch,
                Side::Engine,
                Operation::Journal,
                format!(
                    "the journal {} has format version {version}, this program knows version {}",
                    self.name,
                    super::format::FORMAT_VERSION
                ),
            )
            .advise("continue with the program that wrote it, or start over with --restart"),
        }
    }
}
