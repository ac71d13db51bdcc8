//! Tests mount points and files whose names are no text: they hide no volume, and are shown escaped.

use super::*;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

#[test]
fn a_mount_point_that_is_not_utf8_is_still_refused() {
    let test = "a_mount_point_that_is_not_utf8_is_still_refused";
    let _beside = need!(test, Mounted::named(OsStr::from_bytes(b"beside\xff"), "tmpfs", 1));
    let mounted = need!(test, Mounted::named(OsStr::from_bytes(b"point\xfe\n\\"), "ext4", 16));
    let (_directory, source, destination) = pair();
    let device = one_of(&mounted);
    refused(&spec(&source, &device), Code::Busy, &["is mounted at", r"/point\xfe\n\\ (ext4)", "unmount"]);
    refused(&spec(&device, &destination), Code::Busy, &["mounted read-write at", r"/point\xfe\n\\;"]);
}

#[test]
fn a_loop_device_over_a_file_with_a_non_utf8_name_is_that_file() {
    let test = "a_loop_device_over_a_file_with_a_non_utf8_name_is_that_file";
    let directory = scratch();
    // The kernel ends the name with a line's end of its own.
    let image = directory.path().join(OsStr::from_bytes(b"image\xff\n"));
    make_file(&image, MIB, &[(0, 4096)]);
    let device = need!(test, LoopDevice::attach(&image, &[]));
    refused(&spec(&image, &device.path), Code::SameVolume, &["same volume", r"/image\xff\n and"]);
    refused(&spec(&device.path, &image), Code::SameVolume, &["same volume"]);
    let (_other, source, _) = pair();
    let over = device.path.to_str().unwrap();
    refused(&spec(&source, &image), Code::Busy, &[r"/image\xff\n is in use", "loop device", over, "detach"]);
}
