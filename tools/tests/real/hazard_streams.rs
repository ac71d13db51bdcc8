//! Tests a standard output that is a volume, or is one behind a loop device.

use crate::support::{MIB, Need, TestDir, need, noise, program, text};
use std::fs::File;
use std::path::Path;

/// `blockhaul ARGS` with its standard output at the start of `file`; returns the exit code.
fn printing_to(dir: &TestDir, args: &[&str], file: &Path) -> Option<i32> {
    let held = File::options().read(true).write(true).open(file).expect("it is there");
    let status = dir.command(&program(), args).stdout(held).status();
    status.expect("the program was built").code()
}

#[test]
fn output_into_a_volume_behind_a_loop_device_is_refused() {
    let test = "output_into_a_volume_behind_a_loop_device_is_refused";
    need!(test, &[Need::Root, Need::LoopDevices]);
    let dir = TestDir::new();
    let bytes = noise(MIB, 11);
    let shown = dir.file("shown", &bytes);
    let other = dir.file("other", &noise(MIB, 12));
    let device = dir.loop_device(&shown, 512);
    let requests: [(&[&str], &Path); 4] = [
        (&["copy", text(&device), "new"], &shown),
        (&["copy", "other", text(&device), "--overwrite"], &shown),
        (&["copy", "shown", "new"], &device),
        (&["verify", text(&device), "shown"], &device),
    ];
    for (args, stream) in requests {
        assert_eq!(printing_to(&dir, args, stream), Some(2), "{args:?} > {}", stream.display());
        assert!(dir.read("shown") == bytes && !dir.path("new").exists(), "{args:?} > {}", stream.display());
    }
    // The device below the file system of the output is not the output itself.
    assert_eq!(printing_to(&dir, &["copy", text(&device), "new"], &other), Some(0));
    assert!(dir.read("new") == bytes);
}
