//! Holds the bytes of a simulated volume: pages that are shared until they are written, and nothing for pages of zeros.
//!
//! Copies of an image cost a pointer per page, so that a disk can hold its cached and its stable content and the
//! snapshot of a flush.

use std::sync::Arc;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Bytes of a sector, which a power cut keeps or loses as a whole.
pub(crate) const SECTOR: usize = 512;

/// `None` is a page of zeros.
pub(crate) type Page = Option<Arc<[u8; PAGE as usize]>>;

const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// The content of a volume; bytes that were not written are zeros.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pages: Vec<Page>,
}

impl Image {
    /// Creates an image of `bytes` zeros.
    pub(crate) fn new(bytes: u64) -> Self {
        Self { pages: vec![None; pages(bytes)] }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    pub(crate) fn page(&self, index: usize) -> &Page {
        &self.pages[index]
    }

    pub(crate) fn bytes(&self, index: usize) -> &[u8; PAGE as usize] {
        self.pages[index].as_deref().unwrap_or(&ZEROS)
    }

    pub(crate) fn set(&mut self, index: usize, page: Page) {
        self.pages[index] = page;
    }

    /// Reads from `offset` on into `into`.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let (index, within) = place(offset + done as u64);
            let count = (into.len() - done).min(PAGE as usize - within);
            into[done..done + count].copy_from_slice(&self.bytes(index)[within..within + count]);
            done += count;
        }
    }

    /// Returns a range of bytes.
    pub(crate) fn copy(&self, start: u64, end: u64) -> Vec<u8> {
        let mut bytes = vec![0; (end - start) as usize];
        self.read(start, &mut bytes);
        bytes
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (index, within) = place(offset + done as u64);
            let count = (bytes.len() - done).min(PAGE as usize - within);
            let page = self.pages[index].get_or_insert_with(|| Arc::new(ZEROS));
            Arc::make_mut(page)[within..within + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
    }

    pub(crate) fn zero(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let (index, within) = place(at);
            let count = (end - at).min(PAGE - within as u64);
            if count == PAGE {
                self.pages[index] = None;
            } else if let Some(page) = &mut self.pages[index] {
                Arc::make_mut(page)[within..within + count as usize].fill(0);
            }
            at += count;
        }
    }

    /// Returns the first byte of `start..end` in which two images differ.
    pub(crate) fn difference(&self, other: &Self, start: u64, end: u64) -> Option<u64> {
        let mut at = start;
        while at < end {
            let (index, within) = place(at);
            let count = (end - at).min(PAGE - within as u64) as usize;
            let (mine, theirs) = (&self.pages[index], &other.pages[index]);
            let shared = match (mine, theirs) {
                (None, None) => true,
                (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
                _ => false,
            };
            let (mine, theirs) =
                (&self.bytes(index)[within..within + count], &other.bytes(index)[within..within + count]);
            if !shared && mine != theirs {
                let first = mine.iter().zip(theirs).position(|(mine, theirs)| mine != theirs);
                return first.map(|first| at + first as u64);
            }
            at += count as u64;
        }
        None
    }
}

/// Returns the number of pages for `bytes`.
pub(crate) fn pages(bytes: u64) -> usize {
    bytes.div_ceil(PAGE) as usize
}

fn place(offset: u64) -> (usize, usize) {
    ((offset / PAGE) as usize, (offset % PAGE) as usize)
}
