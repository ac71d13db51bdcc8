//! Serves bytes as an export of every kind of server.

use super::contents::{content, fill};
use super::server::Server;
use super::test_dirs::TestDirs;
use crate::content::write_sparse;
use crate::scratch::noise;
use crate::test_dir::{run, text};
use std::path::PathBuf;

/// Accept only multiples of 4 KiB up to 64 KiB.
const STRICT_BLOCKS: [&str; 4] =
    ["blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=65536", "blocksize-error-policy=error"];

/// Kinds of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NbdkitFile,
    /// nbdkit without consistency between connections.
    NbdkitFileOneConnection,
    NbdkitMemory,
    /// nbdkit that accepts only requests of multiples of 4 KiB up to 64 KiB.
    NbdkitBlocks,
    QemuRaw,
    QemuQcow2,
    NbdServer,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::NbdkitFile,
        Self::NbdkitFileOneConnection,
        Self::NbdkitMemory,
        Self::NbdkitBlocks,
        Self::QemuRaw,
        Self::QemuQcow2,
        Self::NbdServer,
    ];

    /// Returns the unit of export sizes in bytes.
    pub fn granule(self) -> usize {
        match self {
            Self::NbdkitBlocks => 4096,
            Self::QemuRaw | Self::QemuQcow2 => 512,
            _ => 1,
        }
    }
}

/// A server with one export.
#[derive(Debug)]
pub struct Export {
    pub server: Server,
    /// Backing file, if it holds the same bytes as the export.
    pub backing: Option<PathBuf>,
}

impl Export {
    /// Serves `bytes`; every other run of zeros is a hole.
    pub fn with(dirs: &TestDirs, name: &str, kind: Kind, bytes: &[u8]) -> Self {
        let image = dirs.path(&format!("{name}.img"));
        write_sparse(&image, bytes);
        let export = Self::over(dirs, name, kind, image.clone(), bytes.len());
        if kind == Kind::NbdkitMemory {
            fill(text(&image), &export.uri());
        }
        export
    }

    /// Serves `size` bytes of other data.
    pub fn full_of_old_data(dirs: &TestDirs, name: &str, kind: Kind, size: usize) -> Self {
        Self::with(dirs, name, kind, &noise(size, 99))
    }

    /// Serves a hole of `size` bytes.
    pub fn empty(dirs: &TestDirs, name: &str, kind: Kind, size: usize) -> Self {
        let image = dirs.sparse(&format!("{name}.img"), size as u64);
        Self::over(dirs, name, kind, image, size)
    }

    /// Serves the file `image`, or memory of its size.
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

    pub fn uri(&self) -> String {
        self.server.uri()
    }

    /// Returns the content, read through the server.
    pub fn content(&self) -> Vec<u8> {
        content(&self.uri())
    }
}
