//! Serves bytes as an export of every kind of server.

use super::judge::{content, fill};
use super::real::{noise, run, text, write_sparse};
use super::server::Server;
use super::site::TestDirs;
use std::path::PathBuf;

/// Multiples of 4 KiB up to 64 KiB, and nothing else.
const STRICT_BLOCKS: [&str; 4] =
    ["blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=65536", "blocksize-error-policy=error"];

/// The servers of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NbdkitFile,
    /// One that does not promise consistency between connections.
    NbdkitFileOneConnection,
    NbdkitMemory,
    /// Takes multiples of 4 KiB up to 64 KiB and refuses everything else.
    NbdkitBlocks,
    QemuRaw,
    QemuQcow2,
    NbdServer,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::NbdkitFile,
        Self::NbdkitFileOneConnection,
        Self::NbdkitMemory,
        Self::NbdkitBlocks,
        Self::QemuRaw,
        Self::QemuQcow2,
        Self::NbdServer,
    ];

    /// Sizes are multiples of this many bytes.
    pub(crate) fn granule(self) -> usize {
        match self {
            Self::NbdkitBlocks => 4096,
            Self::QemuRaw | Self::QemuQcow2 => 512,
            _ => 1,
        }
    }
}

/// A server with one export.
#[derive(Debug)]
pub(crate) struct Export {
    pub(crate) server: Server,
    /// What it keeps its bytes in, where that is a file with the same bytes.
    pub(crate) backing: Option<PathBuf>,
}

impl Export {
    /// An export that holds `bytes`; every other run of zeros is a hole.
    pub(crate) fn with(dirs: &TestDirs, name: &str, kind: Kind, bytes: &[u8]) -> Self {
        let image = dirs.path(&format!("{name}.img"));
        write_sparse(&image, bytes);
        let export = Self::over(dirs, name, kind, image.clone(), bytes.len());
        if kind == Kind::NbdkitMemory {
            fill(text(&image), &export.uri());
        }
        export
    }

    /// An export of `size` bytes that hold something else already.
    pub(crate) fn full_of_old_data(dirs: &TestDirs, name: &str, kind: Kind, size: usize) -> Self {
        Self::with(dirs, name, kind, &noise(size, 99))
    }

    /// An export of `size` bytes, all of them hole.
    pub(crate) fn empty(dirs: &TestDirs, name: &str, kind: Kind, size: usize) -> Self {
        let image = dirs.sparse(&format!("{name}.img"), size as u64);
        Self::over(dirs, name, kind, image, size)
    }

    /// Serves the file `image`; or only its size, from memory.
    fn over(dirs: &TestDirs, name: &str, kind: Kind, image: PathBuf, size: usize) -> Self {
        let file = format!("file={}", text(&image));
        let server = match kind {
            Kind::NbdkitFile => Server::nbdkit(dirs, name, &["file", &file]),
            Kind::NbdkitFileOneConnection => {
                Server::nbdkit(dirs, name, &["--filter=multi-conn", "file", &file, "multi-conn-mode=disable"])
            }
            Kind::NbdkitMemory => Server::nbdkit(dirs, name, &["memory", &format!("size={size}")]),
            Kind::NbdkitBlocks => {
                let args = [&["--filter=blocksize-policy", "file", &file], &STRICT_BLOCKS[..]].concat();
                Server::nbdkit(dirs, name, &args)
            }
            Kind::QemuRaw => Server::qemu_nbd(dirs, name, &["--format=raw", "--discard=unmap", text(&image)]),
            Kind::QemuQcow2 => {
                let converted = dirs.path(&format!("{name}.qcow2"));
                run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&image), text(&converted)]);
                Server::qemu_nbd(dirs, name, &["--format=qcow2", "--discard=unmap", text(&converted)])
            }
            Kind::NbdServer => Server::nbd_server(dirs, name, &image),
        };
        let is_kept_in_it = !matches!(kind, Kind::NbdkitMemory | Kind::QemuQcow2);
        Self { server, backing: is_kept_in_it.then_some(image) }
    }

    pub(crate) fn uri(&self) -> String {
        self.server.uri()
    }

    /// All its bytes, through its server.
    pub(crate) fn content(&self) -> Vec<u8> {
        content(&self.uri())
    }
}
