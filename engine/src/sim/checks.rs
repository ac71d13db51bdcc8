//! Checks the outcome of a job against a model that knows nothing of the engine: bytes, digests, and permitted errors.

use super::image::Image;
use super::world::{TaskWorld, World};
use crate::extent::ByteRange;
use crate::journal::{Content, JournalReader, Run};
use crate::pass::control::JobControl;
use crate::progress::Progress;
use crate::spec::{CopySpec, DigestKind, Sparse};
use crate::volume::VolumeKind;
use std::sync::atomic::Ordering::Relaxed;
use twox_hash::XxHash3_128;

/// Checks runs that are about to be recorded: their bytes are stable and correct, and match their digests.
pub(crate) fn record(site: &TaskWorld, runs: &[Run], world: &World) {
    let destination = &site.disks[1];
    let is_stable = site.checkpoints || (site.flushes && destination.server.is_some());
    if !is_stable && destination.server.is_some() && site.audit.restarts > 0 {
        // The copy is not flushed, so a restarted server may have lost any of its bytes.
        return;
    }
    let image = if is_stable { &destination.stable } else { &destination.cached };
    for run in runs {
        world.note(format_args!("  {:?}", run.range));
        content(run, image, site.audit.leaf);
        expected(site, image, run.range);
    }
}

/// Checks that every range that a journal has as durable is stable and correct.
pub(crate) fn durable(site: &TaskWorld, reader: &JournalReader) {
    let leaf = u64::from(reader.header().leaf_bytes);
    for run in reader.runs(ByteRange::new(0, reader.header().size_bytes)) {
        let run = run.expect("a journal that could be opened can be read");
        assert!(run.range.end() <= site.disks[1].stable_size, "{:?} is behind the end of the file", run.range);
        content(&run, &site.disks[1].stable, leaf);
        expected(site, &site.disks[1].stable, run.range);
    }
}

fn content(run: &Run, image: &Image, leaf: u64) {
    for (index, piece) in run.range.split(leaf).enumerate() {
        let bytes = image.copy(piece.start(), piece.end());
        match &run.content {
            Content::Undigested => return,
            Content::Zeros => assert!(bytes.iter().all(|&byte| byte == 0), "leaf {piece:?} is not stable zeros"),
            Content::Leaves(leaves) => {
                assert_eq!(leaves[index], XxHash3_128::oneshot(&bytes), "leaf {piece:?} does not match its digest");
            }
        }
    }
}

fn expected(site: &TaskWorld, image: &Image, range: ByteRange) {
    if site.is_source_unchanged() {
        let wrong = image.difference(&site.expected, range.start(), range.end());
        assert_eq!(wrong, None, "recorded, but not what the source holds (first wrong byte)");
    }
}

/// Checks that the bytes behind the end of the copy are unchanged.
pub(crate) fn beyond(site: &TaskWorld, size: u64) {
    let destination = &site.disks[1];
    if destination.kind == VolumeKind::Device {
        for image in [&destination.cached, &destination.stable] {
            assert_eq!(
                image.difference(&site.beyond, size, destination.size),
                None,
                "written behind the end of the copy"
            );
        }
    }
}

/// Checks a copy that has succeeded.
pub(crate) fn success(site: &TaskWorld, spec: &CopySpec, control: &JobControl, size: u64, root: Option<[u8; 32]>) {
    let destination = &site.disks[1];
    assert!(site.is_source_unchanged(), "success, though the source was changed before its last check");
    assert_eq!(destination.cached.difference(&site.expected, 0, size), None, "success with a wrong byte");
    let is_file = destination.kind == VolumeKind::File;
    assert!(!is_file || destination.size == size, "a file of {} bytes instead of {size}", destination.size);
    if site.flushes {
        assert_eq!(
            destination.stable.difference(&site.expected, 0, size),
            None,
            "success with a wrong byte after a power cut"
        );
        assert!(!is_file || destination.stable_size == size, "the size is not stable");
    }
    beyond(site, size);
    if spec.sparse == Sparse::Never && spec.changed_since.is_none() {
        assert_eq!(destination.first_hole(size), None, "--sparse never left a hole");
    }
    let bytes = control.bytes();
    assert_eq!(bytes.durable, if site.flushes { size } else { 0 }, "durable bytes of a success");
    let counted = [&control.counters.issued, &control.counters.acknowledged].map(|counter| counter.load(Relaxed));
    assert_eq!(counted, [size, size], "counters of a success");
    let progress = control.progress();
    assert_eq!((progress.planned, progress.issued, progress.written), (size, size, size), "progress of a success");
    if spec.digest == DigestKind::Xxh3
        && !destination.abilities.clones
        && spec.changed_since.is_none()
        && !site.has_claims
    {
        assert!(root.is_some(), "everything was digested");
    }
    if let Some(found) = root {
        assert_eq!(found, self::root(&site.expected, size, site.audit.leaf), "the root digest");
    }
}

/// Computes the root digest of `docs/format.md` independently of the engine.
pub(crate) fn root(image: &Image, size: u64, leaf: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"blockhaul root 1").update(&size.to_le_bytes()).update(&(leaf as u32).to_le_bytes());
    let mut zeros = 0_u64;
    let close = |hasher: &mut blake3::Hasher, zeros: u64| {
        if zeros > 0 {
            hasher.update(&[0]).update(&zeros.to_le_bytes());
        }
    };
    for piece in ByteRange::new(0, size).split(leaf) {
        let bytes = image.copy(piece.start(), piece.end());
        if bytes.iter().all(|&byte| byte == 0) {
            zeros += 1;
        } else {
            close(&mut hasher, zeros);
            zeros = 0;
            hasher.update(&[1]).update(&XxHash3_128::oneshot(&bytes).to_le_bytes());
        }
    }
    close(&mut hasher, zeros);
    *hasher.finalize().as_bytes()
}

/// Checks `issued >= written >= durable`, and that none of them falls.
pub(crate) fn progress(before: &Progress, now: &Progress) {
    assert!(now.planned >= now.issued && now.issued >= now.written && now.written >= now.durable, "{now:?}");
    let grows = now.issued >= before.issued && now.written >= before.written && now.durable >= before.durable;
    assert!(grows && now.verified >= before.verified, "{before:?}, then {now:?}");
}

/// Checks after a crash that the bytes that were read and are not durable, which must be copied again, are within the
/// bound. Bytes that a server has lost are not counted.
pub(crate) fn redo(site: &TaskWorld, spec: &CopySpec, reader: &JournalReader, window: u64) {
    let leaf = site.audit.leaf;
    let again = site.audit.touched.iter().filter(|&&index| {
        let end = ((index + 1) * leaf).min(reader.header().size_bytes);
        index * leaf < end && !reader.durable().contains(ByteRange::new(index * leaf, end))
    });
    let bytes = again.count() as u64 * leaf;
    let promised = spec.checkpoint_every.bytes.saturating_add(window).max(leaf);
    let promised = promised.saturating_mul(1 + site.audit.restarts);
    assert!(bytes <= promised, "{bytes} bytes have to be copied again, {promised} are promised");
}
