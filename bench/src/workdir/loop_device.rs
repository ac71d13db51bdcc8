//! Attaches a file as a loop device for as long as this process lives.
//!
//! The device is detached right after it was attached, while this process holds it open. The kernel then releases it at
//! the last close, even if this process is killed.

use super::{ScenarioDir, is_root};
use crate::trial_executor::Failure;
use std::fs::File;
use std::path::{Path, PathBuf};

/// An attached device.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    path: PathBuf,
    _held: File,
}

impl LoopDevice {
    /// Attaches `file`, with direct I/O where the file system below supports it.
    ///
    /// # Errors
    /// Without rights, or as `losetup`.
    pub(crate) fn attach(dir: &ScenarioDir, file: &Path) -> Result<Self, Failure> {
        if !is_root() {
            return Err(Failure::Failed("loop devices need root".to_owned()));
        }
        let file = file.display().to_string();
        let said = dir.run_one(&["losetup", "--find", "--show", "--direct-io=on", &file])?;
        let path = PathBuf::from(said.trim());
        let held = File::open(&path).map_err(|error| Failure::io(format!("open {}", path.display()), &error));
        let detached = dir.run_one(&["losetup", "--detach", said.trim()]);
        let held = held?;
        detached?;
        Ok(Self { path, _held: held })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use crate::interrupt::Interrupt;
    use crate::workdir::RunDir;
    use blockhaul_testkit::{Need, need};
    use std::fs;

    #[test]
    fn a_device_is_released_with_its_holder() {
        need!("a_device_is_released_with_its_holder", &[Need::Root]);
        let run_dir = RunDir::open("/var/tmp".as_ref(), &Interrupt::default()).unwrap();
        let mut dir = run_dir.scenario_dir("dir").unwrap();
        let file = dir.reserved("file", 4 << 20).unwrap();
        let device = dir.loop_device(&file).unwrap();
        let name = device.file_name().unwrap().to_owned();
        let backing = std::path::Path::new("/sys/block").join(name).join("loop/backing_file");
        assert!(fs::read_to_string(&backing).unwrap().contains(&*file.display().to_string()));
        drop(dir);
        assert!(!fs::read_to_string(&backing).is_ok_and(|text| text.contains(&*file.display().to_string())));
    }
}
