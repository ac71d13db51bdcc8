//! Tests the remaining rules: kinds, existence, rights, read-only, size, content, space.

use super::*;

#[test]
fn a_new_destination_is_created_locked_and_sized() {
    let (_directory, source, destination) = pair();
    let prepared = start(&spec(&source, &destination)).unwrap();
    assert!(prepared.created && prepared.earlier.is_none() && prepared.durable.is_empty() && prepared.tail.is_empty());
    assert_eq!(prepared.known_zero, KnownZero::Everything);
    assert_eq!(fs::metadata(&destination).unwrap().len(), MIB);
    assert_eq!(prepared.destination.size_bytes(), MIB);
    let other = File::open(&destination).unwrap();
    let (other, _) = Flock::lock(other, FlockArg::LockExclusiveNonblock).expect_err("it is locked");
    drop(prepared);
    Flock::lock(other, FlockArg::LockExclusive).expect("the lock ends with the volume");
}

#[test]
fn a_file_that_is_no_volume_is_refused() {
    let (directory, source, destination) = pair();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, code, words) in [
        (directory.path(), Code::BadRequest, "is a directory"),
        (fifo.as_path(), Code::Unsupported, "is a fifo"),
        (Path::new("/dev/null"), Code::Unsupported, "is a character device"),
    ] {
        refused(&spec(path, &destination), code, &[words, "block device"]);
        assert!(!destination.exists());
        refused(&spec(&source, path), code, &[words, "block device"]);
        refused(&spec(&directory.path().join("missing"), path), code, &[words]);
    }
}

#[test]
fn a_missing_volume_is_not_found() {
    let (directory, source, destination) = pair();
    let missing = directory.path().join("missing");
    let error = refused(&spec(&missing, &destination), Code::NotFound, &["missing", "does not exist"]);
    assert_eq!((error.side, destination.exists()), (Side::Source, false));
    let error = refused(&spec(&source, &missing.join("x")), Code::NotFound, &["directory does not exist"]);
    assert_eq!(error.side, Side::Destination);
    let link = directory.path().join("link");
    symlink(&missing, &link).unwrap();
    refused(&spec(&source, &link), Code::NotFound, &["symbolic link to nothing"]);
}

#[test]
fn a_read_only_destination_is_refused() {
    let mounted = need!("a_read_only_destination_is_refused", Mounted::fresh("ext4", 16));
    let (_directory, source, _) = pair();
    let (existing, immutable) = (mounted.path().join("existing"), mounted.path().join("immutable"));
    make_file(&existing, 0, &[]);
    make_file(&immutable, 0, &[]);
    run(&["chattr", "+i", immutable.to_str().unwrap()]).unwrap();
    refused(&spec(&source, &immutable), Code::ReadOnly, &["immutable", "chattr -i"]);
    run(&["chattr", "-i", immutable.to_str().unwrap()]).unwrap();
    mounted.remount("ro").unwrap();
    refused(&spec(&source, &existing), Code::ReadOnly, &["read-only", "remount"]);
    refused(&spec(&source, &mounted.path().join("new")), Code::ReadOnly, &["read-only", "remount"]);
    // An earlier rule wins.
    refused(&spec(&existing, &existing), Code::SameVolume, &[]);
    let (device, _image) = LoopDevice::blank(2 * MIB, &["--read-only"]).unwrap();
    refused(&spec(&source, &device.path), Code::ReadOnly, &["read-only device", "--setrw"]);
}

#[test]
fn a_device_must_hold_the_source_and_keeps_its_rest() {
    let (small, _image) = need!("a_device_must_hold_the_source_and_keeps_its_rest", LoopDevice::blank(MIB / 2, &[]));
    let (_directory, source, _) = pair();
    refused(&spec(&source, &small.path), Code::SizeMismatch, &["524288 bytes, 524288 less", "at least as large"]);
}

#[test]
fn a_destination_that_holds_data_needs_consent() {
    let (_directory, source, destination) = pair();
    let kept = make_file(&destination, 10, &[(0, 10)]);
    refused(&spec(&source, &destination), Code::Exists, &["holds 10 bytes", "--overwrite"]);
    let prepared = start(&CopySpec { overwrite: Overwrite::Yes, ..spec(&source, &destination) }).unwrap();
    assert_eq!((prepared.known_zero, prepared.created), (KnownZero::Everything, false));
    let mut bytes = [1; 10];
    kept.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 10], "it was truncated first");
}

#[test]
fn a_device_with_data_anywhere_needs_consent() {
    let test = "a_device_with_data_anywhere_needs_consent";
    let (device, _image) = need!(test, LoopDevice::blank(256 * MIB, &[]));
    let (_directory, source, _) = pair();
    assert_eq!(start(&spec(&source, &device.path)).unwrap().known_zero, KnownZero::Nothing);
    let block = File::options().write(true).open(&device.path).unwrap();
    // On an unallocated device a single byte is found, even before it is flushed.
    block.write_all_at(&[1; 512], 50 * MIB + 4096).unwrap();
    refused(&spec(&source, &device.path), Code::Exists, &["data at byte 52432896 (50.0 MiB)", "--overwrite"]);
    block.write_all_at(&[0; 512], 50 * MIB + 4096).unwrap();
    start(&spec(&source, &device.path)).expect("what is allocated may be zeros");
    // Where everything is, samples tell.
    let zeros = vec![0; 1 << 20];
    (0..256).for_each(|part| block.write_all_at(&zeros, part * MIB).unwrap());
    start(&spec(&source, &device.path)).expect("zeros are nothing");
    block.write_all_at(&vec![1; 1 << 20], 77 * MIB + 5000).unwrap();
    refused(&spec(&source, &device.path), Code::Exists, &["holds data at byte", "--overwrite"]);
    start(&CopySpec { overwrite: Overwrite::Yes, ..spec(&source, &device.path) }).unwrap();
}

#[test]
fn the_content_of_a_device_is_named() {
    let test = "the_content_of_a_device_is_named";
    for (make, word) in [
        (&["mkfs.ext4", "-q", "-F"][..], "ext4 file system"),
        (&["mkfs.xfs", "-q", "-f"], "xfs file system"),
        (&["mkfs.btrfs", "-q", "-f"], "btrfs file system"),
        (&["mkswap", "-q"], "swap space"),
    ] {
        let (device, _image) = need!(test, LoopDevice::blank(384 * MIB, &[]));
        let (_directory, source, _) = pair();
        need!(test, run(&[make, &[device.path.to_str().unwrap()]].concat()));
        refused(&spec(&source, &device.path), Code::Exists, &[word, "--overwrite"]);
    }
}

#[test]
fn an_unaligned_end_on_a_device_keeps_what_follows() {
    let test = "an_unaligned_end_on_a_device_keeps_what_follows";
    let (device, _image) = need!(test, LoopDevice::blank(4 * MIB, &["--sector-size", "4096"]));
    let (_directory, source, _) = pair();
    make_file(&source, MIB + 5000, &[(0, 4096)]);
    let rest: Vec<u8> = (0..8192_u32).map(|at| at as u8).collect();
    File::options().write(true).open(&device.path).unwrap().write_all_at(&rest, MIB).unwrap();
    let overwrite = Overwrite::Yes;
    let direct = CopySpec { direct: Direct::Yes, overwrite, ..spec(&source, &device.path) };
    let prepared = start(&direct).unwrap();
    assert_eq!(prepared.destination.align_bytes(), 4096);
    assert_eq!(prepared.tail, rest[5000..8192]);
    drop(prepared);
    assert_eq!(start(&CopySpec { direct: Direct::No, ..direct }).unwrap().tail, Vec::<u8>::new());
}

#[test]
fn a_full_file_system_is_refused_and_a_sparse_source_fits() {
    let mounted = need!("a_full_file_system_is_refused_and_a_sparse_source_fits", Mounted::fresh("tmpfs", 4));
    let (_directory, source, _) = pair();
    let destination = mounted.path().join("destination");
    make_file(&source, 64 * MIB, &[(0, 8 << 20)]);
    refused(&spec(&source, &destination), Code::NoSpace, &["room for", "free space"]);
    assert!(!destination.exists());
    make_file(&source, 64 * MIB, &[(32 << 20, 1 << 20)]);
    refused(&CopySpec { sparse: Sparse::Never, ..spec(&source, &destination) }, Code::NoSpace, &["room for"]);
    start(&spec(&source, &destination)).unwrap();
    // What the destination holds already is room for what replaces it.
    make_file(&destination, 3 * MIB, &[(0, 3 << 20)]);
    make_file(&source, 3 * MIB, &[(0, 3 << 20)]);
    start(&CopySpec { overwrite: Overwrite::Yes, ..spec(&source, &destination) }).unwrap();
}

#[test]
fn permissions_are_checked_as_the_user_of_the_process() {
    let test = "permissions_are_checked_as_the_user_of_the_process";
    need!(test, &[Need::Root]);
    let (directory, source, destination) = pair();
    make_file(&destination, 0, &[]);
    let secret = directory.path().join("secret");
    make_file(&secret, MIB, &[]);
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let chmod = |path: &Path, mode: u32| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    chmod(directory.path(), 0o777);
    chmod(&source, 0o644);
    chmod(&secret, 0o600);
    chmod(&closed, 0o755);
    chmod(&destination, 0o644);
    let checkpoint = CheckpointLocation::File(closed.join("state/journal"));
    let new = directory.path().join("new");
    let results = as_nobody(move || {
        let code = |spec: &CopySpec| start(spec).map(drop).map_err(|error| (error.code, error.message));
        [
            code(&spec(&source, &destination)),
            code(&spec(&source, &closed.join("new"))),
            code(&spec(&secret, &new)),
            code(&CopySpec { checkpoint, ..spec(&source, &new) }),
            code(&spec(&source, &new)),
        ]
    });
    let advice = ["may read and write it", "may read and write it", "may read it", "--state-dir"];
    for (result, words) in results.iter().zip(advice) {
        let (code, message) = result.as_ref().unwrap_err();
        assert_eq!(*code, Code::Permission, "{message}");
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(results[4], Ok(()));
}

/// Runs `body` with the file system identity of the user `nobody`, on a thread of its own.
fn as_nobody<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(move || {
        nix::unistd::setfsgid(65534.into());
        nix::unistd::setfsuid(65534.into());
        body()
    })
    .join()
    .unwrap()
}

#[test]
fn an_earlier_rule_wins_over_a_later_one() {
    let test = "an_earlier_rule_wins_over_a_later_one";
    let mounted = need!(test, Mounted::fresh("ext4", 16));
    let (directory, source, destination) = pair();
    let (mount, missing) = (mounted.path(), directory.path().join("missing"));
    let held = mount.join("held");
    make_file(&held, 10, &[(0, 10)]);
    refused(&spec(&missing, directory.path()), Code::BadRequest, &["is a directory"]);
    refused(&spec(&missing, &held), Code::NotFound, &[]);
    refused(&spec(&held, &one_of(&mounted)), Code::SameVolume, &[]);
    // Mounted, and too small besides.
    make_file(&source, 64 * MIB, &[(0, 4096)]);
    refused(&spec(&source, &one_of(&mounted)), Code::Busy, &["is mounted"]);
    let attached = LoopDevice::attach(&held, &[]).unwrap();
    mounted.remount("ro").expect_err("the loop device writes to it");
    refused(&spec(&source, &held), Code::Busy, &["loop device"]);
    drop(attached);
    // Read-only, and not empty besides.
    let until_detached = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        mounted.remount("ro").is_ok()
    });
    assert!(until_detached, "the loop device is gone");
    refused(&spec(&source, &held), Code::ReadOnly, &[]);
    // Too small, and holding data besides; then holding data, and with a journal besides.
    let (small, _image) = LoopDevice::blank(MIB, &[]).unwrap();
    File::options().write(true).open(&small.path).unwrap().write_all_at(&[1; 512], 0).unwrap();
    refused(&spec(&source, &small.path), Code::SizeMismatch, &[]);
    let checkpoint = CheckpointLocation::File(directory.path().join("journal"));
    let journalled = CopySpec { checkpoint, ..spec(&source, &destination) };
    drop(start(&journalled).unwrap());
    refused(&journalled, Code::Exists, &["not empty"]);
}
