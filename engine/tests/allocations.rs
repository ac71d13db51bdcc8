//! Counts what the engine allocates: copying more blocks must not allocate more than a trifle.
//!
//! The counter needs a global allocator, hence `unsafe`, hence a test binary of its own.

use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::progress::Status;
use blockhaul_engine::spec::{BlockSize, CopySpec};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counter touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: `start` came from `alloc` above with this layout, so from the system's allocator.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of one copy of `blocks` blocks of data.
fn copy(engine: &Engine, folder: &Path, block: BlockSize, blocks: u32) -> u64 {
    let (source, destination) = (folder.join("source"), folder.join("destination"));
    let mut file = File::create(&source).unwrap();
    let bytes: Vec<u8> = (0..block.bytes()).map(|byte| (byte % 251) as u8 + 1).collect();
    (0..blocks).for_each(|_| file.write_all(&bytes).unwrap());
    file.sync_all().unwrap();
    let _ = std::fs::remove_file(&destination);
    let before = ALLOCATIONS.load(Relaxed);
    let spec = CopySpec { block_size: Some(block), ..CopySpec::new(source.into(), destination.into()) };
    let report = engine.submit(spec).wait();
    assert_eq!(report.status, Status::Succeeded, "{:?}", report.error);
    ALLOCATIONS.load(Relaxed) - before
}

#[test]
fn blocks_are_copied_without_allocating() {
    let folder = tempfile::tempdir().unwrap();
    let block = BlockSize::new(4096).unwrap();
    let engine = Engine::start(EngineConfig { block_size: Some(block), ..EngineConfig::default() }).unwrap();
    copy(&engine, folder.path(), block, 64);
    let few = copy(&engine, folder.path(), block, 64);
    let many = copy(&engine, folder.path(), block, 64 + 8192);
    let more = many.saturating_sub(few);
    assert!(more < 8192 / 16, "8192 more blocks took {more} more allocations ({few}, then {many})");
}
