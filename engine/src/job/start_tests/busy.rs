//! Tests volumes in use by other processes, and waits for locks.

use super::*;

#[test]
fn a_mounted_destination_is_busy_at_once() {
    let mounted = need!("a_mounted_destination_is_busy_at_once", Mounted::fresh("ext4", 16));
    let (_directory, source, _) = pair();
    let device = one_of(&mounted);
    let spec = CopySpec { lock_wait: Duration::from_secs(3600), ..spec(&source, &device) };
    let error = refused(&spec, Code::Busy, &["is mounted at", mounted.path().to_str().unwrap(), "unmount"]);
    assert!(!error.retryable, "waiting does not help");
}

#[test]
fn a_device_used_as_swap_or_under_another_is_busy_at_once() {
    let test = "a_device_used_as_swap_or_under_another_is_busy_at_once";
    let (device, _image) = need!(test, LoopDevice::blank(16 * MIB, &[]));
    let (_directory, source, _) = pair();
    let patient = CopySpec { lock_wait: Duration::from_secs(3600), ..spec(&source, &device.path) };
    let above = LoopDevice::attach(&device.path, &[]).unwrap();
    refused(&patient, Code::Busy, &["loop device", above.path.to_str().unwrap()]);
    drop(above);
    let name = device.path.to_str().unwrap();
    need!(test, run(&["mkswap", name]));
    need!(test, run(&["swapon", name]));
    let error = start(&patient).map(drop);
    run(&["swapoff", name]).unwrap();
    assert!(error.unwrap_err().message.contains("used as swap"));
}

#[test]
fn a_file_under_a_loop_device_is_busy() {
    let (_directory, source, destination) = pair();
    make_file(&destination, MIB, &[]);
    let over = need!("a_file_under_a_loop_device_is_busy", LoopDevice::attach(&destination, &[]));
    refused(&spec(&source, &destination), Code::Busy, &["loop device", over.path.to_str().unwrap(), "detach"]);
}

#[test]
fn a_locked_destination_is_busy_after_the_wait() {
    let (_directory, source, destination) = pair();
    let held = Flock::lock(make_file(&destination, 0, &[]), FlockArg::LockExclusive).unwrap();
    let patient = CopySpec { lock_wait: Duration::from_millis(50), ..spec(&source, &destination) };
    let error = refused(&patient, Code::Busy, &["another copy", "--lock-wait"]);
    assert!(error.retryable);
    let cancelled =
        prepare(&patient, &ResolvedSupervision::default(), &JournalService::start().unwrap(), &|| true).unwrap_err();
    assert_eq!(cancelled.code, Code::Cancelled);
    let long = CopySpec { lock_wait: Duration::from_secs(3600), ..patient };
    let waiter = std::thread::spawn(move || start(&long).map(drop));
    drop(held);
    waiter.join().unwrap().expect("granted once it is free");
}

#[test]
fn a_device_that_is_open_elsewhere_is_waited_for() {
    let test = "a_device_that_is_open_elsewhere_is_waited_for";
    let (device, _image) = need!(test, LoopDevice::blank(2 * MIB, &[]));
    let (_directory, source, _) = pair();
    let first = start(&spec(&source, &device.path)).unwrap();
    let hasty = CopySpec { lock_wait: Duration::ZERO, ..spec(&source, &device.path) };
    refused(&hasty, Code::Busy, &["exclusively", "--lock-wait"]);
    let patient = CopySpec { lock_wait: Duration::from_secs(3600), ..spec(&source, &device.path) };
    let waiter = std::thread::spawn(move || start(&patient).map(drop));
    drop(first);
    waiter.join().unwrap().expect("granted once it is free");
}

#[test]
fn a_destination_replaced_while_its_lock_is_waited_for_is_opened_again() {
    let (directory, source, destination) = pair();
    let old = make_file(&destination, 0, &[]);
    let inode = old.metadata().unwrap().ino();
    let held = Flock::lock(old, FlockArg::LockExclusive).unwrap();
    let spec = CopySpec { lock_wait: Duration::from_secs(3600), ..spec(&source, &destination) };
    let (waits, waiting) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let tell = || {
            _ = waits.send(());
            false
        };
        prepare(&spec, &ResolvedSupervision::default(), &JournalService::start().unwrap(), &tell)
    });
    waiting.recv().expect("it tries the lock of the old file");
    let fresh = directory.path().join("fresh");
    make_file(&fresh, 0, &[]);
    fs::rename(&fresh, &destination).unwrap();
    drop(held);
    let prepared = waiter.join().unwrap().unwrap();
    assert_ne!(prepared.destination.identity().inode, inode);
    assert_eq!(prepared.destination.identity().inode, fs::metadata(&destination).unwrap().ino());
    assert_eq!(fs::metadata(&destination).unwrap().len(), MIB);
}

#[test]
fn a_source_mounted_read_write_needs_consent() {
    let mounted = need!("a_source_mounted_read_write_needs_consent", Mounted::fresh("ext4", 16));
    let directory = scratch();
    let destination = directory.path().join("destination");
    let device = one_of(&mounted);
    let error = refused(&spec(&device, &destination), Code::Busy, &["mounted read-write", "--allow-live-source"]);
    assert_eq!((error.side, destination.exists()), (Side::Source, false));
    start(&CopySpec { live_source: LiveSource::Allow, ..spec(&device, &destination) }).unwrap();
    mounted.remount("ro").unwrap();
    start(&CopySpec { overwrite: Overwrite::Yes, ..spec(&device, &destination) }).unwrap();
}

#[test]
fn every_device_of_a_btrfs_is_busy() {
    let test = "every_device_of_a_btrfs_is_busy";
    let (first, _one) = need!(test, LoopDevice::blank(160 * MIB, &[]));
    let (second, _two) = LoopDevice::blank(160 * MIB, &[]).unwrap();
    let (_directory, source, destination) = pair();
    let (one, two) = (first.path.to_str().unwrap(), second.path.to_str().unwrap());
    need!(test, run(&["mkfs.btrfs", "-q", "-f", "-d", "raid0", "-m", "raid1", one, two]));
    let mounted = Mounted::over(first, "btrfs").unwrap();
    for device in [one_of(&mounted), second.path.clone()] {
        let patient = CopySpec { lock_wait: Duration::from_secs(3600), ..spec(&source, &device) };
        refused(&patient, Code::Busy, &["is mounted at", mounted.path().to_str().unwrap()]);
        refused(&spec(&device, &destination), Code::Busy, &["mounted read-write"]);
        let within = mounted.path().join("file");
        make_file(&within, MIB, &[]);
        refused(&spec(&within, &device), Code::SameVolume, &["same volume"]);
    }
}

#[test]
fn a_component_of_a_mapped_device_is_busy_at_once() {
    let test = "a_component_of_a_mapped_device_is_busy_at_once";
    if !fs::read_to_string("/proc/misc").unwrap().contains("device-mapper") {
        return skipped(test, "the kernel has no device mapper");
    }
    need!(test, run(&["dmsetup", "version"]));
    let (device, _image) = need!(test, LoopDevice::blank(4 * MIB, &[]));
    let (_directory, source, destination) = pair();
    let (name, path) = (format!("blockhaul-{}", std::process::id()), device.path.to_str().unwrap());
    let table = format!("0 4096 linear {path} 0");
    need!(test, run(&["dmsetup", "create", &name, "--table", &table]));
    let patient = CopySpec { lock_wait: Duration::from_secs(3600), ..spec(&source, &device.path) };
    let mapped = PathBuf::from(format!("/dev/mapper/{name}"));
    let busy = start(&patient).map(drop);
    let same = start(&spec(&mapped, &device.path)).map(drop);
    let read = start(&spec(&device.path, &destination)).map(drop);
    run(&["dmsetup", "remove", &name]).unwrap();
    assert!(busy.unwrap_err().message.contains(&format!("part of the device {name}")));
    assert_eq!(same.unwrap_err().code, Code::SameVolume);
    read.expect("it is not mounted");
}

#[test]
fn a_job_cancelled_before_its_start_changes_nothing() {
    let (directory, source, destination) = pair();
    let cancelled = |spec: &CopySpec| {
        prepare(spec, &ResolvedSupervision::default(), &JournalService::start().unwrap(), &|| true).unwrap_err().code
    };
    let journal = directory.path().join("journal");
    let spec = CopySpec { checkpoint: CheckpointLocation::File(journal.clone()), ..spec(&source, &destination) };
    assert_eq!(cancelled(&spec), Code::Cancelled);
    assert!(!destination.exists() && !journal.exists());
    make_file(&destination, 10, &[(0, 10)]);
    let before = snapshot(&destination);
    assert_eq!(cancelled(&CopySpec { overwrite: Overwrite::Yes, ..spec }), Code::Cancelled);
    assert_eq!(snapshot(&destination), before);
}
