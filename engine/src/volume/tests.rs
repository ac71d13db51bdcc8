//! Goal: a volume reports what it holds, on every file system, and no more than it may.
//! Method: random layouts against a byte map; real devices with 512-byte and 4 KiB sectors.

use super::support::{LoopDevice, Mounted, Server, make_file, need, scratch};
use super::*;
use crate::error::{Code, Side};
use crate::extent::{ExtentKind, RangeSet};
use crate::spec::Direct;
use proptest::test_runner::{Config, TestRunner};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

fn open(path: &Path) -> Arc<dyn Volume> {
    open_source(&path.into(), &ReadOptions::new(Direct::No)).unwrap()
}

/// All extents of `within`, asked for `max` at a time; checks that they are in order, without gaps and maximal.
fn scan(volume: &dyn Volume, within: ByteRange, max: usize) -> Vec<Extent> {
    let (mut all, mut at) = (Vec::new(), within.start());
    while at < within.end() {
        let part = volume.extents(ByteRange::new(at, within.end()), max).unwrap().expect("local volumes know at once");
        assert!(!part.is_empty() && part.len() <= max);
        for (index, extent) in part.iter().enumerate() {
            assert_eq!(extent.range.start(), at, "gapless");
            assert!(!extent.range.is_empty() && extent.range.end() <= within.end());
            assert!(index == 0 || part[index - 1].kind != extent.kind, "merged");
            at = extent.range.end();
        }
        all.extend(part);
    }
    all
}

/// Holes must read as zeros, and bytes that were written must be in data.
fn check_layout(path: &Path, size: u64, data: &[(u64, usize)], from: u64, max: usize) {
    let file = make_file(path, size, data);
    let volume = open(path);
    let mut content = vec![0; usize::try_from(size).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    for extent in scan(&*volume, ByteRange::new(from.min(size), size), max) {
        let bytes = &content[extent.range.start() as usize..extent.range.end() as usize];
        assert!(extent.kind == ExtentKind::Data || bytes.iter().all(|&byte| byte == 0), "{extent:?} hides data");
    }
}

#[test]
fn extents_agree_with_the_bytes_on_every_file_system() {
    let test = "extents_agree_with_the_bytes_on_every_file_system";
    for (kind, mib) in [("ext4", 32), ("xfs", 320), ("btrfs", 320), ("tmpfs", 32)] {
        let mounted = need!(test, Mounted::fresh(kind, mib));
        let path = mounted.path().join("file");
        let layout =
            (0..4 * MIB, proptest::collection::vec((0..4 * MIB, 1..100_000_usize), 0..6), 0..4 * MIB, 1..5_usize);
        let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
        runner
            .run(&layout, |(size, data, from, max)| {
                let data: Vec<_> = data.into_iter().filter(|&(at, len)| at + len as u64 <= size).collect();
                check_layout(&path, size, &data, from, max);
                Ok(())
            })
            .unwrap();
        // The point of it all: a large hole is not reported as data.
        make_file(&path, 1 << 40, &[(1 << 39, 4096)]);
        let extents = scan(&*open(&path), ByteRange::new(0, 1 << 40), 256);
        let data: u64 = extents.iter().filter(|it| it.kind == ExtentKind::Data).map(|it| it.range.len()).sum();
        assert!(data <= MIB, "{kind}: {data} bytes of data in an empty file");
    }
}

#[test]
fn an_empty_file_has_no_extents() {
    let directory = scratch();
    let path = directory.path().join("empty");
    make_file(&path, 0, &[]);
    assert_eq!(open(&path).extents(ByteRange::new(0, 0), 10).unwrap(), Some(vec![]));
}

#[test]
fn a_source_that_shrinks_or_is_written_has_changed() {
    let directory = scratch();
    let path = directory.path().join("file");
    for size in [0, MIB / 2] {
        let file = make_file(&path, MIB, &[(0, 1 << 20)]);
        let volume = open(&path);
        volume.check_unchanged().unwrap();
        file.set_len(size).unwrap();
        let scanned = volume.extents(ByteRange::new(0, MIB), 256).unwrap_err();
        assert_eq!((scanned.code, scanned.side), (Code::SourceChanged, Side::Source));
        assert!(volume.check_unchanged().unwrap_err().message.contains("its size in bytes was 1048576"));
    }
    let file = make_file(&path, MIB, &[]);
    let volume = open(&path);
    file.write_all_at(&[1], 5).unwrap();
    let error = volume.check_unchanged().unwrap_err();
    assert_eq!(error.code, Code::SourceChanged);
    assert!(error.message.contains("modification time"), "{error}");
}

#[test]
fn a_device_is_one_run_of_data_and_aligns_to_its_sectors() {
    let test = "a_device_is_one_run_of_data_and_aligns_to_its_sectors";
    for sector in ["512", "4096"] {
        let (device, image) = need!(test, LoopDevice::blank(2 * MIB, &["--sector-size", sector]));
        let volume = open_source(&device.path.as_path().into(), &ReadOptions::new(Direct::Yes)).unwrap();
        assert_eq!((volume.kind(), volume.size_bytes()), (VolumeKind::Device, 2 * MIB));
        assert_eq!(volume.align_bytes().to_string(), sector);
        let within = ByteRange::new(4096, 2 * MIB);
        assert_eq!(scan(&*volume, within, 1), [Extent { range: within, kind: ExtentKind::Data }]);
        assert_eq!(volume.evict().unwrap(), ReadBack::Device);
        assert_eq!(volume.allocate(within).unwrap(), Allocation::Unsupported);
        volume.check_unchanged().unwrap();
        File::options().write(true).open(image.path().join("image")).unwrap().set_len(MIB).unwrap();
        support::run(&["losetup", "--set-capacity", device.path.to_str().unwrap()]).unwrap();
        assert_eq!(volume.check_unchanged().unwrap_err().code, Code::SourceChanged);
        assert_eq!(volume.extents(within, 1).unwrap_err().code, Code::SourceChanged);
    }
}

#[test]
fn read_back_reports_the_source_of_its_bytes() {
    let directory = scratch();
    let path = directory.path().join("file");
    make_file(&path, MIB, &[(0, 4096)]);
    assert_eq!(
        open_verified_by(
            &path.as_path().into(),
            Side::Destination,
            &ReadOptions::new(Direct::No),
            &GivenVolumes::default()
        )
        .unwrap()
        .evict(),
        Ok(ReadBack::Evicted)
    );
    let memory = need!("read_back_reports_the_source_of_its_bytes", Mounted::fresh("tmpfs", 4));
    let path = memory.path().join("file");
    make_file(&path, MIB, &[(0, 4096)]);
    let volume = open_verified_by(
        &path.as_path().into(),
        Side::Destination,
        &ReadOptions::new(Direct::Auto),
        &GivenVolumes::default(),
    )
    .unwrap();
    assert_eq!((volume.evict(), volume.align_bytes()), (Ok(ReadBack::Memory), 1));
    let refused = open_verified_by(
        &path.as_path().into(),
        Side::Destination,
        &ReadOptions::new(Direct::Yes),
        &GivenVolumes::default(),
    )
    .unwrap_err();
    assert_eq!(refused.code, Code::Unsupported);
}

#[test]
fn reserving_space_keeps_the_content_and_reports_a_full_file_system() {
    let mounted = need!("reserving_space_keeps_the_content_and_reports_a_full_file_system", Mounted::fresh("tmpfs", 4));
    let path = mounted.path().join("file");
    let file = make_file(&path, 64 * MIB, &[(0, 4096)]);
    let volume = file::FileVolume::new(file, (&*path).into(), Side::Destination).unwrap();
    assert_eq!(volume.allocate(ByteRange::new(0, MIB)).unwrap(), Allocation::Reserved);
    let mut byte = [0];
    File::open(&path).unwrap().read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [0xa5]);
    let full = volume.allocate(ByteRange::new(MIB, 32 * MIB)).unwrap_err();
    assert_eq!((full.code, full.offset, full.length), (Code::NoSpace, Some(MIB), Some(31 * MIB)));
}

#[test]
fn files_share_extents_where_the_file_system_can() {
    let test = "files_share_extents_where_the_file_system_can";
    for (kind, mib, shares) in [("xfs", 320, true), ("btrfs", 320, true), ("ext4", 16, false), ("tmpfs", 4, false)] {
        let mounted = need!(test, Mounted::fresh(kind, mib));
        let (from, to) = (mounted.path().join("from"), mounted.path().join("to"));
        make_file(&from, MIB + 100, &[(0, (1 << 20) + 100)]);
        let file = make_file(&to, 0, &[]);
        let destination = file::FileVolume::new(file, (&*to).into(), Side::Destination).unwrap();
        destination.resize(MIB + 100).unwrap();
        match destination.clone_range(&*open(&from), ByteRange::new(0, MIB + 100)) {
            Ok(()) => {
                assert_eq!((shares, std::fs::read(&to).unwrap()), (true, std::fs::read(&from).unwrap()), "{kind}")
            }
            Err(error) => assert_eq!((shares, error.code), (false, Code::Unsupported), "{kind}: {error}"),
        }
    }
}

#[test]
fn an_export_reports_the_map_of_its_server() {
    let test = "an_export_reports_the_map_of_its_server";
    let directory = scratch();
    let path = directory.path().join("image");
    make_file(&path, 4 * MIB, &[(MIB, 65536), (3 * MIB, 1 << 20)]);
    let server = need!(test, Server::nbdkit(&["file", path.to_str().unwrap()]));
    let volume = open_source(&server.export(""), &ReadOptions::new(Direct::Yes)).unwrap();
    assert_eq!((volume.kind(), volume.size_bytes(), volume.file()), (VolumeKind::Export, 4 * MIB, FileId(-1)));
    let here = open(&path);
    let all = ByteRange::new(0, 4 * MIB);
    let data = |extents: Vec<Extent>| {
        let data = extents.into_iter().filter(|extent| extent.kind == ExtentKind::Data);
        RangeSet::from_iter(data.map(|extent| extent.range))
    };
    for max in [1, 2, 100] {
        assert_eq!(data(scan(&*volume, all, max)), data(scan(&*here, all, 100)), "{max} at a time");
    }
    let identity = volume.identity();
    assert_eq!((&identity.name, identity.device, identity.inode), (volume.name(), 0, 0));
    let refused = volume.clone_range(&*here, all).unwrap_err();
    assert_eq!(refused.code, Code::Unsupported);
    assert_eq!(volume.allocate(all), Ok(Allocation::Unsupported));
    assert_eq!((volume.resize(1), volume.evict()), (Ok(()), Ok(ReadBack::Server)));
    assert_eq!(volume.size_bytes(), 4 * MIB);
    assert!(volume.stop(Duration::from_secs(10)), "it hangs up when it is said goodbye to");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 * MIB);
}

#[test]
fn a_loop_device_is_a_part_of_its_backing_file() {
    let test = "a_loop_device_is_a_part_of_its_backing_file";
    let directory = scratch();
    let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
    for path in [&one, &two] {
        make_file(path, 2 * MIB, &[]);
    }
    let seen = |file: &Path, options: &[&str]| {
        let device = LoopDevice::attach(file, options)?;
        let identity = open(&device.path).identity().clone();
        Ok::<_, String>((device, identity))
    };
    let (held, then) = need!(test, seen(&one, &[]));
    let (_second, elsewhere) = need!(test, seen(&one, &[]));
    assert_ne!(then.device, elsewhere.device);
    assert_eq!(then.compare_identity(&elsewhere), identity::IdentityMatch::Same, "{}", then.ids.lasting());
    let (_shifted, shifted) = need!(test, seen(&one, &["--offset", "4096"]));
    assert!(matches!(then.compare_identity(&shifted), identity::IdentityMatch::Other(_)));
    // The same number shows another file now.
    let path = held.path.to_str().unwrap().to_owned();
    support::run(&["losetup", "--detach", &path]).unwrap();
    // Another test may use it for a while.
    let attached = (0..1200).any(|_| {
        let attached = support::run(&["losetup", &path, two.to_str().unwrap()]).is_ok();
        if !attached {
            std::thread::sleep(Duration::from_millis(100));
        }
        attached
    });
    assert!(attached, "{path} stays busy");
    let other = open(&held.path).identity().clone();
    assert_eq!(then.device, other.device);
    assert!(matches!(then.compare_identity(&other), identity::IdentityMatch::Other(_)), "{}", other.ids.lasting());
}

#[test]
fn a_file_system_mounted_from_another_device_is_the_same() {
    let test = "a_file_system_mounted_from_another_device_is_the_same";
    for (kind, mib) in [("ext4", 32), ("xfs", 320), ("btrfs", 320)] {
        let directory = scratch();
        let image = directory.path().join("image");
        make_file(&image, mib << 20, &[]);
        let quiet = if kind == "ext4" { "-F" } else { "-f" };
        need!(test, support::run(&[&format!("mkfs.{kind}"), "-q", quiet, image.to_str().unwrap()]));
        let mut then: Option<(Identity, Identity)> = None;
        // Something else has the number that the first mount used.
        let mut taken = Vec::new();
        for _ in 0..2 {
            let mounted = need!(test, LoopDevice::attach(&image, &[]).and_then(|device| Mounted::over(device, kind)));
            let [path, other] = ["file", "other"].map(|name| mounted.path().join(name));
            for path in [&path, &other] {
                if !path.exists() {
                    make_file(path, MIB, &[]).sync_all().unwrap();
                }
            }
            let (now, beside) = (open(&path).identity().clone(), open(&other).identity().clone());
            if let Some((then, _)) = &then {
                assert_eq!(
                    then.compare_identity(&now),
                    identity::IdentityMatch::Same,
                    "{kind}: {}",
                    then.ids.lasting()
                );
                assert!(matches!(then.compare_identity(&beside), identity::IdentityMatch::Other(_)), "{kind}");
            }
            then = Some((now, beside));
            drop(mounted);
            taken.push(need!(test, LoopDevice::blank(MIB, &[])));
        }
    }
}
