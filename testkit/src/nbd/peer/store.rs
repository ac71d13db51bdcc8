//! Stores the bytes of a peer behind a cache that a crash loses.
//!
//! Reads see `now`; a crash leaves `durable`. A flush makes acknowledged writes durable: those of every connection
//! under CAN_MULTI_CONN, otherwise only those of its own connection. The specification promises no more, so the store
//! does no more. Of unflushed data, a crash loses or keeps every range at random, because real caches write back at any
//! time.

use crate::content::SeededRandom;
use std::ops::Range;

#[derive(Debug)]
pub struct Store {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Unflushed writes with their connections, oldest first.
    unflushed: Vec<(u64, Range<usize>)>,
    multi_conn: bool,
    random: SeededRandom,
    lost: u64,
}

impl Store {
    pub fn new(bytes: Vec<u8>, multi_conn: bool, seed: u64) -> Self {
        let (durable, unflushed) = (bytes.clone(), Vec::new());
        Self { now: bytes, durable, unflushed, multi_conn, random: SeededRandom::new(seed), lost: 0 }
    }

    pub fn size(&self) -> usize {
        self.now.len()
    }

    pub fn read(&self, range: Range<usize>) -> &[u8] {
        &self.now[range]
    }

    /// Writes `bytes`, or zeros where there are none.
    pub fn write(&mut self, connection: u64, range: Range<usize>, bytes: Option<&[u8]>, through: bool) {
        match bytes {
            Some(bytes) => self.now[range.clone()].copy_from_slice(bytes),
            None => self.now[range.clone()].fill(0),
        }
        if through {
            self.durable[range.clone()].copy_from_slice(&self.now[range]);
        } else {
            self.unflushed.push((connection, range));
        }
    }

    pub fn flush(&mut self, connection: u64) {
        let counts = |from: u64| self.multi_conn || from == connection;
        for (_, range) in self.unflushed.iter().filter(|(from, _)| counts(*from)) {
            self.durable[range.clone()].copy_from_slice(&self.now[range.clone()]);
        }
        let multi_conn = self.multi_conn;
        self.unflushed.retain(|(from, _)| !multi_conn && *from != connection);
    }

    /// Loses unflushed writes at random, as a power cut does.
    pub fn crash(&mut self) {
        for (_, range) in std::mem::take(&mut self.unflushed) {
            if self.random.below(3) == 0 {
                self.durable[range.clone()].copy_from_slice(&self.now[range]);
            } else {
                self.lost += range.len() as u64;
            }
        }
        self.now.copy_from_slice(&self.durable);
    }

    /// Returns how many acknowledged bytes were lost.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns the flushed content.
    pub fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// Changes the size of the export.
    pub fn resize(&mut self, size: usize) {
        self.crash();
        self.now.resize(size, 0);
        self.durable.resize(size, 0);
    }

    /// Returns the runs of data and zeros in `range`, in units of 64 KiB: length and flags of `base:allocation`.
    pub fn status(&self, range: Range<usize>) -> Vec<(u32, u32)> {
        const UNIT: usize = 64 << 10;
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let mut at = range.start;
        while at < range.end && runs.len() < 64 {
            let end = (at / UNIT * UNIT + UNIT).min(range.end);
            let flags = if self.now[at..end].iter().all(|&byte| byte == 0) { 3 } else { 0 };
            let length = u32::try_from(end - at).expect("a unit is short");
            match runs.last_mut() {
                Some(last) if last.1 == flags => last.0 += length,
                _ => runs.push((length, flags)),
            }
            at = end;
        }
        runs
    }
}
