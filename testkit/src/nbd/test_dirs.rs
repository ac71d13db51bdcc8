//! Creates the directories of one test: one for bytes, and one with a short path for sockets, which the kernel limits
//! to 107 bytes.

use crate::test_dir::TestDir;
use std::ops::Deref;
use std::path::PathBuf;

/// A directory in the build directory, and one for sockets in the system's temporary directory. Both are removed on
/// drop.
#[derive(Debug)]
pub struct TestDirs {
    files: TestDir,
    sockets: TestDir,
}

impl TestDirs {
    pub fn new() -> Self {
        Self { files: TestDir::new(), sockets: TestDir::public() }
    }

    /// Returns the path for a socket of this name.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path(name)
    }
}

impl Deref for TestDirs {
    type Target = TestDir;

    fn deref(&self) -> &TestDir {
        &self.files
    }
}
