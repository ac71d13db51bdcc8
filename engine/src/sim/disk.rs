//! Simulates a volume: its cached content, the content that survives a power cut, and its capabilities.
//!
//! A write changes the _cached_ content; a flush makes the content that was cached when it was pushed _stable_. A
//! failed flush drops dirty pages, as kernels do: the pages that it did not write stay readable until they are evicted,
//! but no later flush writes them. A power cut keeps, for each sector, either the cached or the stable bytes.

use super::image::{Image, PAGE, Page, SECTOR, pages};
use super::server::SimServer;
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::volume::VolumeKind;
use fastrand::Rng;
use std::collections::BTreeMap;

/// Dirty pages at the time when a flush was pushed.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pages: Vec<(usize, u64, Page)>,
    size: u64,
}

/// Capabilities of the volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// Alignment of requests in bytes.
    pub align: u32,
    pub zero_hole: bool,
    pub zero_allocated: bool,
    pub allocates: bool,
    pub clones: bool,
}

/// A simulated volume.
#[derive(Debug)]
pub(crate) struct Disk {
    pub kind: VolumeKind,
    pub abilities: Abilities,
    pub cached: Image,
    pub stable: Image,
    pub size: u64,
    pub stable_size: u64,
    /// Map of a source, finer than pages.
    pub extents: Option<Vec<Extent>>,
    /// Server in front of it.
    pub server: Option<SimServer>,
    /// Number of changes of its content from outside.
    pub changes: i64,
    /// Dirty pages, with the time of the last change.
    dirty: BTreeMap<usize, u64>,
    /// Allocation of each page.
    kinds: Vec<ExtentKind>,
    clock: u64,
}

impl Disk {
    /// Creates an empty volume with a capacity of `capacity` bytes.
    pub(crate) fn new(kind: VolumeKind, capacity: u64, size: u64, abilities: Abilities) -> Self {
        let image = Image::new(capacity);
        Self {
            kind,
            abilities,
            kinds: vec![ExtentKind::Hole; pages(capacity)],
            cached: image.clone(),
            stable: image,
            size,
            stable_size: size,
            extents: None,
            server: None,
            changes: 0,
            dirty: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Sets content that is cached and stable.
    pub(crate) fn preload(&mut self, offset: u64, bytes: &[u8]) {
        self.cached.write(offset, bytes);
        self.stable.write(offset, bytes);
        self.mark(offset, offset + bytes.len() as u64, ExtentKind::Data);
        self.dirty.clear();
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        self.cached.write(offset, bytes);
        self.mark(offset, end, ExtentKind::Data);
        self.size = self.size.max(end);
    }

    /// Zeros a range without changing the size.
    pub(crate) fn zero(&mut self, start: u64, end: u64, kind: ExtentKind) {
        let end = end.min(self.size);
        if start < end {
            self.cached.zero(start, end);
            // Pages that are zeroed in part keep their allocation.
            let (first, last) = (start.next_multiple_of(PAGE), if end == self.size { end } else { end / PAGE * PAGE });
            self.mark(start, end, ExtentKind::Data);
            self.mark(first, last.max(first), kind);
        }
    }

    pub(crate) fn resize(&mut self, size: u64) {
        if size < self.size {
            self.cached.zero(size, self.size);
            self.mark(size, self.size, ExtentKind::Data);
            let first = size.next_multiple_of(PAGE);
            self.mark(first, self.size.max(first), ExtentKind::Hole);
        }
        self.size = size;
    }

    /// Allocates a range without changing its content.
    pub(crate) fn allocate(&mut self, range: ByteRange) {
        let kinds = &mut self.kinds[(range.start() / PAGE) as usize..pages(range.end())];
        kinds.iter_mut().filter(|kind| **kind == ExtentKind::Hole).for_each(|kind| *kind = ExtentKind::Zero);
        self.size = self.size.max(range.end());
    }

    /// Returns the first byte before `end` that is not allocated.
    pub(crate) fn first_hole(&self, end: u64) -> Option<u64> {
        self.kinds[..pages(end)].iter().position(|&kind| kind == ExtentKind::Hole).map(|page| page as u64 * PAGE)
    }

    /// Returns the extents of a range, with the resolution of a page.
    pub(crate) fn map(&self, within: ByteRange) -> Vec<Extent> {
        match &self.extents {
            Some(extents) => {
                let first = extents.partition_point(|extent| extent.range.end() <= within.start());
                let inside = extents[first..].iter().map_while(|extent| {
                    extent.range.intersect(within).map(|range| Extent { range, kind: extent.kind })
                });
                inside.collect()
            }
            None => {
                let mut runs: Vec<Extent> = Vec::new();
                for range in within.split(PAGE) {
                    let kind = self.kinds[(range.start() / PAGE) as usize];
                    match runs.last_mut() {
                        Some(last) if last.kind == kind => last.range = ByteRange::new(last.range.start(), range.end()),
                        _ => runs.push(Extent { range, kind }),
                    }
                }
                runs
            }
        }
    }

    /// Returns the content that a flush pushed now must make stable.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let pages = self.dirty.iter().map(|(&page, &time)| (page, time, self.cached.page(page).clone())).collect();
        Snapshot { pages, size: self.size }
    }

    pub(crate) fn flushed(&mut self, snapshot: Snapshot) {
        for (page, time, content) in snapshot.pages {
            self.stable.set(page, content);
            if self.dirty.get(&page) == Some(&time) {
                self.dirty.remove(&page);
            }
        }
        self.stable_size = snapshot.size;
    }

    /// Fails a flush: some pages become stable, the rest is lost and no longer dirty.
    pub(crate) fn flush_failed(&mut self, snapshot: Snapshot, rng: &mut Rng) {
        for (page, time, content) in snapshot.pages {
            if self.dirty.get(&page) == Some(&time) {
                self.dirty.remove(&page);
            }
            if rng.bool() {
                self.stable.set(page, content);
            } else if self.server.is_some() {
                // The map of a server is that of its storage, which has lost the page.
                self.kinds[page] = ExtentKind::Data;
            }
        }
    }

    /// Drops the cache: later reads return stable content, except for dirty pages.
    pub(crate) fn evict(&mut self) {
        for page in (0..self.kinds.len()).filter(|page| !self.dirty.contains_key(page)) {
            self.cached.set(page, self.stable.page(page).clone());
        }
    }

    /// Corrupts a byte, cached and stable, without a trace.
    pub(crate) fn corrupt(&mut self, offset: u64) {
        let flipped = [self.cached.copy(offset, offset + 1)[0] ^ 0x5a];
        let page = (offset / PAGE) as usize;
        self.cached.write(offset, &flipped);
        self.stable.write(offset, &flipped);
        self.kinds[page] = ExtentKind::Data;
    }

    /// Changes a byte as another program does, with a trace.
    pub(crate) fn change(&mut self, offset: u64, size: u64) {
        let flipped = [self.cached.copy(offset, offset + 1)[0] ^ 0xa5];
        self.preload(offset, &flipped);
        self.extents = Some(vec![Extent { range: ByteRange::new(0, size), kind: ExtentKind::Data }]);
        self.changes += 1;
    }

    /// Returns whether the map has data at this byte.
    pub(crate) fn is_data(&self, offset: u64) -> bool {
        self.kinds[(offset / PAGE) as usize] == ExtentKind::Data
    }

    /// Loses power: the cached bytes of each dirty sector survive with probability `survives`.
    pub(crate) fn power_cut(&mut self, survives: f64, rng: &mut Rng) {
        for page in std::mem::take(&mut self.dirty).into_keys() {
            let mut torn = *self.stable.bytes(page);
            for sector in (0..PAGE as usize).step_by(SECTOR) {
                if rng.f64() < survives {
                    torn[sector..sector + SECTOR].copy_from_slice(&self.cached.bytes(page)[sector..sector + SECTOR]);
                }
            }
            self.stable.write(page as u64 * PAGE, &torn);
            self.kinds[page] = ExtentKind::Data;
        }
        if rng.f64() < survives {
            self.stable_size = self.size;
        }
        self.stable.zero(self.stable_size, self.stable.capacity());
        self.cached = self.stable.clone();
        self.size = self.stable_size;
    }

    fn mark(&mut self, start: u64, end: u64, kind: ExtentKind) {
        if start < end {
            self.clock += 1;
            for page in (start / PAGE) as usize..pages(end) {
                self.dirty.insert(page, self.clock);
                self.kinds[page] = kind;
            }
        }
    }
}
