//! Creates the directories of one test: one for bytes, and one with a short path for sockets, which the kernel limits
//! to 107 bytes.

use super::real::TestDir;
use std::ops::Deref;
use std::path::PathBuf;

/// A room next to the build, with a place for sockets in the usual temporary directory. Both go away with it.
#[derive(Debug)]
pub(crate) struct TestDirs {
    files: TestDir,
    sockets: TestDir,
}

impl TestDirs {
    pub(crate) fn new() -> Self {
        Self { files: TestDir::new(), sockets: TestDir::public() }
    }

    /// Where the socket of this name is, or will be.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path(name)
    }
}

impl Deref for TestDirs {
    type Target = TestDir;

    fn deref(&self) -> &TestDir {
        &self.files
    }
}
