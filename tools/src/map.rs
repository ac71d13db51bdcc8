//! Runs `blockhaul map`: lists the extents of a volume, or the exports of a server.
//!
//! Extents are scanned and printed in windows, so that memory does not depend on their number.

use crate::args::RawMap;
use crate::exit::Exit;
use crate::output::{json_line, refuse_volume_streams};
use crate::start_logging;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::extent::{ByteRange, Extent, ExtentKind};
use blockhaul_engine::shown::Shown;
use blockhaul_engine::spec::{Direct, LiveSource};
use blockhaul_engine::volume::{ListedExport, Locator, ReadOptions, Volume, list_exports, open_source};
use serde::Serialize;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

/// Number of extents per scan.
const EXTENTS_PER_WINDOW: usize = 1024;
/// Time between two requests for extents that a server has not returned yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// An extent as it is printed.
#[derive(Serialize)]
struct ExtentLine {
    offset: u64,
    length: u64,
    kind: ExtentKind,
}

/// Lists the extents of a volume with offset, length and kind. Lists the exports of a server that is named without an
/// export and has more than its default export.
///
/// # Errors
/// The volume cannot be opened or scanned, or stdout cannot be written. A closed pipe ends the list without an error.
pub(crate) fn run(raw: RawMap) -> Result<Exit> {
    let RawMap { volume, json, log } = raw;
    refuse_volume_streams([Path::new(&volume)])?;
    start_logging(log)?;
    let locator = Locator::parse(&volume)?;
    if let Some(listed) = exports(&locator)? {
        return list(&listed, json);
    }
    // ReadOptions the map of a mounted device is harmless.
    let volume =
        open_source(&locator, &ReadOptions { live_source: LiveSource::Allow, ..ReadOptions::new(Direct::No) })?;
    let mut out = BufWriter::new(io::stdout().lock());
    if !json && volume.size_bytes() > 0 {
        print(writeln!(out, "{:>20} {:>20} KIND", "OFFSET", "LENGTH"))?;
    }
    for extent in extents(&*volume) {
        if print(write_extent(&mut out, extent?, json))? == Reader::Closed {
            return Ok(Exit::Done);
        }
    }
    print(out.flush())?;
    Ok(Exit::Done)
}

/// Returns the exports of a server, if the locator asks for them.
fn exports(locator: &Locator) -> Result<Option<Vec<ListedExport>>> {
    let uri = match locator {
        Locator::Nbd(uri) if !uri.names_export() => uri,
        Locator::Nbd(_) | Locator::Path(_) => return Ok(None),
    };
    match list_exports(uri) {
        Ok(listed) if matches!(listed.as_slice(), [only] if only.name.is_empty()) => Ok(None),
        // A server that does not list its exports may still have a default one.
        Err(error) if matches!(error.code, Code::Permission | Code::Unsupported) => Ok(None),
        listed => listed.map(Some),
    }
}

/// An export as it is printed.
#[derive(Serialize)]
struct ExportLine<'a> {
    export: &'a str,
    size: Option<u64>,
    read_only: Option<bool>,
    description: Option<&'a str>,
}

fn list(exports: &[ListedExport], json: bool) -> Result<Exit> {
    let mut out = BufWriter::new(io::stdout().lock());
    if !json {
        print(writeln!(out, "{:>20} {:<10} EXPORT", "SIZE", "ACCESS"))?;
    }
    for export in exports {
        if print(write_export(&mut out, export, json))? == Reader::Closed {
            return Ok(Exit::Done);
        }
    }
    print(out.flush())?;
    Ok(Exit::Done)
}

fn write_export(out: &mut impl Write, export: &ListedExport, json: bool) -> io::Result<()> {
    let ListedExport { name, description, size_bytes, read_only } = export;
    if json {
        let description = description.as_deref();
        return json_line(
            out,
            "export",
            &ExportLine { export: name, size: *size_bytes, read_only: *read_only, description },
        );
    }
    let size = size_bytes.map_or_else(|| "?".to_owned(), |size| size.to_string());
    let access = match read_only {
        Some(true) => "read-only",
        Some(false) => "read-write",
        None => "?",
    };
    let shown = if name.is_empty() { "\"\"".to_owned() } else { name.shown().to_string() };
    let description = description.as_ref().map(|text| format!("  {}", text.shown())).unwrap_or_default();
    writeln!(out, "{size:>20} {access:<10} {shown}{description}")
}

/// State of the reader of stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Open,
    Closed,
}

fn print(written: io::Result<()>) -> Result<Reader> {
    match written {
        Ok(()) => Ok(Reader::Open),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Closed),
        Err(error) => Err(Error::io(Side::Caller, Operation::Write, &error, "write to stdout")),
    }
}

fn write_extent(out: &mut impl Write, extent: Extent, json: bool) -> io::Result<()> {
    let line = ExtentLine { offset: extent.range.start(), length: extent.range.len(), kind: extent.kind };
    if json {
        return json_line(out, "extent", &line);
    }
    let kind = match line.kind {
        ExtentKind::Data => "data",
        ExtentKind::Zero => "zero",
        ExtentKind::Hole => "hole",
        ExtentKind::Unchanged => "unchanged",
    };
    writeln!(out, "{:>20} {:>20} {kind}", line.offset, line.length)
}

/// Returns every extent of `volume` in order, with adjacent extents of one kind merged.
fn extents(volume: &dyn Volume) -> impl Iterator<Item = Result<Extent>> {
    let end = volume.size_bytes();
    let mut at = 0;
    let windows = std::iter::from_fn(move || {
        (at < end).then(|| {
            let window = next_window(volume, ByteRange::new(at, end));
            // An error or a window without progress ends the list.
            at = window.as_ref().ok().and_then(|window| window.last()).map_or(end, |last| last.range.end());
            window
        })
    });
    join(windows.flat_map(|window| match window {
        Ok(extents) => extents.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }))
}

/// Returns the extents at the start of a range; waits until the server returns them.
fn next_window(volume: &dyn Volume, within: ByteRange) -> Result<Vec<Extent>> {
    loop {
        if let Some(window) = volume.extents(within, EXTENTS_PER_WINDOW)? {
            return Ok(window);
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

/// Merges adjacent extents of one kind.
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
    fn an_export_is_one_line_whatever_it_is_called() {
        let export = ListedExport {
            name: "a\u{1b}[2J\nb".to_owned(),
            description: Some("of two\nlines".to_owned()),
            size_bytes: Some(4096),
            read_only: Some(true),
        };
        let line = |json| {
            let mut out = Vec::new();
            write_export(&mut out, &export, json).unwrap();
            String::from_utf8(out).unwrap()
        };
        let human = line(false);
        assert!(human.contains("4096 read-only") && !human.contains('\u{1b}'), "{human}");
        assert_eq!(human.matches('\n').count(), 1, "{human}");
        let object: serde_json::Value = serde_json::from_str(&line(true)).unwrap();
        let expected = serde_json::json!({
            "schema": 1, "event": "export", "export": export.name, "size": 4096, "read_only": true, "description": "of two\nlines"
        });
        assert_eq!(object, expected);
    }

    #[test]
    fn a_line_of_json_has_offset_length_and_kind() {
        let mut out = Vec::new();
        write_extent(&mut out, extent(4096, 8192, ExtentKind::Zero), true).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"schema\":1,\"event\":\"extent\",\"offset\":4096,\"length\":4096,\"kind\":\"zero\"}\n"
        );
    }
}
