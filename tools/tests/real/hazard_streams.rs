//! Tests a standard output that leads to a volume through a loop device, or is one.

use crate::support::{MIB, Need, Room, need, noise, program, text};
use std::fs::File;
use std::path::Path;

/// `blockhaul WORDS` with its standard output at the start of `file`; gives the exit code.
fn printing_to(room: &Room, words: &[&str], file: &Path) -> Option<i32> {
    let held = File::options().read(true).write(true).open(file).expect("it is there");
    let status = room.command(&program(), words).stdout(held).status();
    status.expect("the program was built").code()
}

#[test]
fn output_into_a_volume_behind_a_loop_device_is_refused() {
    let test = "output_into_a_volume_behind_a_loop_device_is_refused";
    need!(test, &[Need::Root, Need::LoopDevices]);
    let room = Room::new();
    let bytes = noise(MIB, 11);
    let shown = room.file("shown", &bytes);
    let other = room.file("other", &noise(MIB, 12));
    let device = room.loop_device(&shown, 512);
    let requests: [(&[&str], &Path); 4] = [
        (&["copy", text(&device), "new"], &shown),
        (&["copy", "other", text(&device), "--overwrite"], &shown),
        (&["copy", "shown", "new"], &device),
        (&["verify", text(&device), "shown"], &device),
    ];
    for (words, stream) in requests {
        assert_eq!(printing_to(&room, words, stream), Some(2), "{words:?} > {}", stream.display());
        assert!(room.read("shown") == bytes && !room.path("new").exists(), "{words:?} > {}", stream.display());
    }
    // The device below a file system that the summary lies on is something else than the summary.
    assert_eq!(printing_to(&room, &["copy", text(&device), "new"], &other), Some(0));
    assert!(room.read("new") == bytes);
}
