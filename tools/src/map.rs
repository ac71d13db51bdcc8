//! `blockhaul map`: the extents of a volume. Scanned and printed in windows, so that a volume with millions of
//! extents costs no more memory than one with two.

use crate::args::RawMap;
use crate::copy::locator;
use crate::exit::Exit;
use crate::output::json_line;
use crate::start_logging;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::extent::{ByteRange, Extent, ExtentKind};
use blockhaul_engine::spec::{Direct, LiveSource};
use blockhaul_engine::volume::Volume;
use blockhaul_engine::volume::open_source;
use serde::Serialize;
use std::io::{self, BufWriter, ErrorKind, Write};

/// Extents asked for at a time.
const EXTENTS_PER_WINDOW: usize = 1024;

/// One line of the list.
#[derive(Serialize)]
struct Line {
    offset: u64,
    length: u64,
    kind: ExtentKind,
}

/// Lists the extents of a volume: offset, length, kind.
///
/// # Errors
/// The volume cannot be opened or scanned, or stdout cannot be written. A closed pipe is the end, not an error.
pub(crate) fn run(raw: RawMap) -> Result<Exit> {
    let RawMap { volume, json, log } = raw;
    start_logging(log)?;
    // Looking at a mounted device harms nobody.
    let volume = open_source(&locator(&volume)?, Direct::No, LiveSource::Allow)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if !json && volume.size_bytes() > 0 {
        print(writeln!(out, "{:>20} {:>20} KIND", "OFFSET", "LENGTH"))?;
    }
    for extent in extents(&*volume) {
        if print(write_extent(&mut out, extent?, json))? == Reader::Gone {
            return Ok(Exit::Done);
        }
    }
    print(out.flush())?;
    Ok(Exit::Done)
}

/// Whether anybody still reads stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    There,
    Gone,
}

fn print(written: io::Result<()>) -> Result<Reader> {
    match written {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Error::io(Side::Caller, Operation::Write, &error, "write the list to stdout")),
    }
}

fn write_extent(out: &mut impl Write, extent: Extent, json: bool) -> io::Result<()> {
    let line = Line { offset: extent.range.start(), length: extent.range.len(), kind: extent.kind };
    if json {
        return json_line(out, &line);
    }
    let kind = match line.kind {
        ExtentKind::Data => "data",
        ExtentKind::Zero => "zero",
        ExtentKind::Hole => "hole",
    };
    writeln!(out, "{:>20} {:>20} {kind}", line.offset, line.length)
}

/// Every extent of `volume`, in order and maximal: runs of one kind that a window cuts are joined again.
pub(crate) fn extents(volume: &dyn Volume) -> impl Iterator<Item = Result<Extent>> {
    let end = volume.size_bytes();
    let mut at = 0;
    let windows = std::iter::from_fn(move || {
        (at < end).then(|| {
            let window = volume.extents(ByteRange::new(at, end), EXTENTS_PER_WINDOW);
            // After an error, or a volume that stands still, there is no further window.
            at = window.as_ref().ok().and_then(|window| window.last()).map_or(end, |last| last.range.end());
            window
        })
    });
    join(windows.flat_map(|window| match window {
        Ok(extents) => extents.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }))
}

/// Joins neighbours of one kind.
fn join(mut extents: impl Iterator<Item = Result<Extent>>) -> impl Iterator<Item = Result<Extent>> {
    let mut waiting = extents.next();
    std::iter::from_fn(move || {
        let mut run = match waiting.take()? {
            Ok(extent) => extent,
            error @ Err(_) => return Some(error),
        };
        for next in extents.by_ref() {
            match next {
                Ok(next) if next.kind == run.kind && next.range.start() == run.range.end() => {
                    run.range = ByteRange::new(run.range.start(), next.range.end());
                }
                other => {
                    waiting = Some(other);
                    break;
                }
            }
        }
        Some(Ok(run))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, end: u64, kind: ExtentKind) -> Extent {
        Extent { range: ByteRange::new(start, end), kind }
    }

    #[test]
    fn runs_that_a_window_cut_are_joined() {
        use ExtentKind::{Data, Hole};
        let cut = [extent(0, 4, Data), extent(4, 8, Data), extent(8, 9, Hole), extent(9, 10, Data)];
        let joined: Result<Vec<_>> = join(cut.into_iter().map(Ok)).collect();
        assert_eq!(joined.unwrap(), [extent(0, 8, Data), extent(8, 9, Hole), extent(9, 10, Data)]);
        assert_eq!(join(std::iter::empty()).count(), 0);
    }

    #[test]
    fn an_error_ends_the_list_after_what_came_before_it() {
        let scan = [Ok(extent(0, 4, ExtentKind::Data)), Err(Error::bad_request("x"))];
        let listed: Vec<_> = join(scan.into_iter()).collect();
        assert!(matches!(listed[..], [Ok(_), Err(_)]));
    }

    #[test]
    fn a_line_of_json_has_offset_length_and_kind() {
        let mut out = Vec::new();
        write_extent(&mut out, extent(4096, 8192, ExtentKind::Zero), true).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "{\"offset\":4096,\"length\":4096,\"kind\":\"zero\"}\n");
    }
}
