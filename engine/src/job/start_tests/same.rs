//! Tests sources and destinations that share bytes, by whatever names.

use super::*;

#[test]
fn one_volume_under_two_names_is_refused() {
    let (directory, source, _) = pair();
    let (hard, soft) = (directory.path().join("hard"), directory.path().join("soft"));
    fs::hard_link(&source, &hard).unwrap();
    symlink(&source, &soft).unwrap();
    for name in [&source, &hard, &soft] {
        let spec = CopySpec { overwrite: Overwrite::Yes, ..spec(&source, name) };
        refused(&spec, Code::SameVolume, &["same volume", "another destination"]);
    }
}

#[test]
fn a_loop_device_and_its_backing_file_are_one_volume() {
    let (directory, source, _) = pair();
    let over = need!("a_loop_device_and_its_backing_file_are_one_volume", LoopDevice::attach(&source, &[]));
    let nested = LoopDevice::attach(&over.path, &[]).unwrap();
    let node = directory.path().join("node");
    let rdev = fs::metadata(&over.path).unwrap().rdev();
    nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRWXU, rdev).unwrap();
    let names = [&source, &over.path, &nested.path, &node];
    for (from, to) in names.iter().flat_map(|from| names.map(|to| (*from, to))) {
        let spec = CopySpec { overwrite: Overwrite::Yes, ..spec(from, to) };
        refused(&spec, Code::SameVolume, &["same volume"]);
    }
}

#[test]
fn loop_devices_over_separate_parts_of_a_file_are_separate() {
    let directory = scratch();
    let image = directory.path().join("image");
    make_file(&image, 4 * MIB, &[]);
    let part = |offset: &str| LoopDevice::attach(&image, &["--offset", offset, "--sizelimit", "1048576"]);
    let first = need!("loop_devices_over_separate_parts_of_a_file_are_separate", part("0"));
    let second = part("1048576").unwrap();
    start(&spec(&first.path, &second.path)).unwrap();
    let crossing = part("524288").unwrap();
    refused(&spec(&first.path, &crossing.path), Code::SameVolume, &["same volume"]);
}

#[test]
fn a_file_and_the_device_under_it_are_one_volume() {
    let mounted = need!("a_file_and_the_device_under_it_are_one_volume", Mounted::fresh("ext4", 16));
    let device = one_of(&mounted);
    let file = mounted.path().join("file");
    make_file(&file, MIB, &[(0, 4096)]);
    refused(&spec(&file, &device), Code::SameVolume, &["same volume"]);
    let live = CopySpec { live_source: LiveSource::Allow, ..spec(&device, &mounted.path().join("new")) };
    refused(&live, Code::SameVolume, &["its own source"]);
    assert!(!mounted.path().join("new").exists());
}

#[test]
fn partitions_overlap_with_their_disk_only() {
    let test = "partitions_overlap_with_their_disk_only";
    need!(test, run(&["partx", "--version"]));
    let directory = scratch();
    let image = directory.path().join("image");
    make_file(&image, 8 * MIB, &[]);
    let disk = need!(test, LoopDevice::attach(&image, &[]));
    let name = disk.path.to_str().unwrap();
    need!(test, run(&["addpart", name, "1", "2048", "2048"]));
    need!(test, run(&["addpart", name, "2", "4096", "2048"]));
    let part = |n: u32| PathBuf::from(format!("{name}p{n}"));
    let made = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        part(1).exists() && part(2).exists()
    });
    let outcome = made.then(|| {
        refused(&spec(&part(1), &disk.path), Code::SameVolume, &["same volume"]);
        refused(&spec(&disk.path, &part(2)), Code::SameVolume, &["same volume"]);
        refused(&spec(&image, &part(2)), Code::SameVolume, &["same volume"]);
        start(&spec(&part(1), &part(2))).map(drop)
    });
    for number in ["1", "2"] {
        // A command that another test starts holds every descriptor of this process for a moment: busy until then.
        let removed = (0..500).any(|_| {
            let removed = run(&["delpart", name, number]).is_ok();
            if !removed {
                std::thread::sleep(Duration::from_millis(10));
            }
            removed
        });
        assert!(removed, "partition {number} of {name} stays busy");
    }
    match outcome {
        Some(result) => result.unwrap(),
        None => unmet(test, "the partitions' device nodes do not appear"),
    }
}
