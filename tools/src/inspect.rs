//! Runs `blockhaul inspect`: shows a checkpoint or receipt as text or as one JSON object.

use crate::args::RawInspect;
use crate::exit::Exit;
use crate::output::{json_event, print_stdout, refuse_volume_streams};
use crate::start_logging;
use blockhaul_engine::error::Result;
use blockhaul_engine::journal::JournalReader;
use blockhaul_engine::journal::JournalState;
use blockhaul_engine::progress::format_digest;
use blockhaul_engine::spec::DigestKind;
use blockhaul_engine::units::format_size;
use blockhaul_engine::volume::{Identity, VolumeKind};
use serde::Serialize;

/// Maximum number of ranges listed as text; JSON has all of them.
const RANGES_SHOWN_MAX: usize = 100;

/// A journal as it is printed.
#[derive(Serialize)]
struct JournalView<'a> {
    state: JournalState,
    source: VolumeView<'a>,
    destination: VolumeView<'a>,
    size_bytes: u64,
    leaf_bytes: u32,
    digest_kind: DigestKind,
    /// Nanoseconds since the epoch.
    started_ns: i64,
    durable_bytes: u64,
    durable: Vec<Range>,
    /// Digest of the whole volume; only in a finished journal.
    digest: Option<String>,
    /// Nanoseconds since the epoch; only in a finished journal.
    finished_ns: Option<i64>,
}

/// One volume of the copy.
#[derive(Serialize)]
struct VolumeView<'a> {
    name: String,
    kind: &'static str,
    device: u64,
    inode: u64,
    born_ns: Option<i64>,
    size_bytes: u64,
    modified_ns: i64,
    changed_ns: i64,
    /// Identifiers that survive renumbering, as `tag=value`.
    ids: Vec<&'a str>,
}

#[derive(Serialize)]
struct Range {
    offset: u64,
    length: u64,
}

/// Decodes and prints a journal.
///
/// # Errors
/// The file cannot be read, or is not a journal of this version (`ECheckpointCorrupt`, `ECheckpointMismatch`).
pub(crate) fn run(raw: RawInspect) -> Result<Exit> {
    let RawInspect { file, json, log } = raw;
    refuse_volume_streams([file.as_path()])?;
    start_logging(log)?;
    let journal = JournalReader::open(&file)?;
    let view = journal_view(&journal);
    if json {
        json_event("journal", &view);
    } else {
        describe(&view).iter().for_each(print_stdout);
    }
    Ok(Exit::Done)
}

fn journal_view(journal: &JournalReader) -> JournalView<'_> {
    let header = journal.header();
    let durable = journal.durable();
    let finish = journal.finish();
    JournalView {
        state: journal.state(),
        source: volume_view(&header.source),
        destination: volume_view(&header.destination),
        size_bytes: header.size_bytes,
        leaf_bytes: header.leaf_bytes,
        digest_kind: header.digest,
        started_ns: header.started_ns,
        durable_bytes: durable.bytes(),
        durable: durable.iter().map(|range| Range { offset: range.start(), length: range.len() }).collect(),
        digest: finish.and_then(|finish| finish.root).map(|root| format_digest(&root)),
        finished_ns: finish.map(|finish| finish.finished_ns),
    }
}

fn volume_view(identity: &Identity) -> VolumeView<'_> {
    let Identity { name, kind, device, inode, born_ns, size_bytes, modified_ns, changed_ns, ids } = identity;
    VolumeView {
        name: name.to_string(),
        kind: match kind {
            VolumeKind::File => "file",
            VolumeKind::Device => "device",
            VolumeKind::Export => "export",
        },
        device: *device,
        inode: *inode,
        born_ns: *born_ns,
        size_bytes: *size_bytes,
        modified_ns: *modified_ns,
        changed_ns: *changed_ns,
        ids: ids.lasting().lines().collect(),
    }
}

fn describe(view: &JournalView<'_>) -> Vec<String> {
    let role = match view.state {
        JournalState::Unfinished => "checkpoint of an unfinished copy",
        JournalState::Finished => "receipt of a finished copy",
    };
    let mut lines = vec![
        role.to_owned(),
        volume_line("source", &view.source),
        volume_line("destination", &view.destination),
        format!("size         {} ({} bytes)", format_size(view.size_bytes), view.size_bytes),
        format!("leaf         {}, digest {}", format_size(u64::from(view.leaf_bytes)), view.digest_kind),
        format!("started      {}", format_epoch(view.started_ns)),
    ];
    lines.extend(view.finished_ns.map(|finished| format!("finished     {}", format_epoch(finished))));
    lines.extend(view.digest.as_ref().map(|digest| format!("digest       {digest}")));
    let runs = view.durable.len();
    lines.push(format!("durable      {} in {runs} ranges", format_size(view.durable_bytes)));
    lines.extend(
        view.durable.iter().take(RANGES_SHOWN_MAX).map(|range| format!("  {:>20} {:>20}", range.offset, range.length)),
    );
    if runs > RANGES_SHOWN_MAX {
        lines.push(format!("  and {} more; --json lists all", runs - RANGES_SHOWN_MAX));
    }
    lines
}

fn volume_line(role: &str, volume: &VolumeView<'_>) -> String {
    let VolumeView { name, kind, device, inode, size_bytes, .. } = volume;
    // Exports have neither device nor inode.
    let place = if *kind == "export" { String::new() } else { format!(" device {device:#x}, inode {inode},") };
    format!("{role:<12} {name} ({kind},{place} {})", format_size(*size_bytes))
}

/// Formats seconds since the epoch with their fraction, as `date --date=@...` reads them.
fn format_epoch(ns: i64) -> String {
    format!("@{}.{:09}", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(durable: Vec<Range>) -> JournalView<'static> {
        let volume = || VolumeView {
            name: "/srv/a".to_owned(),
            kind: "file",
            device: 0x801,
            inode: 12,
            born_ns: None,
            size_bytes: 1 << 30,
            modified_ns: 0,
            changed_ns: 0,
            ids: Vec::new(),
        };
        JournalView {
            state: JournalState::Unfinished,
            source: volume(),
            destination: volume(),
            size_bytes: 1 << 30,
            leaf_bytes: 1 << 20,
            digest_kind: DigestKind::Xxh3,
            started_ns: 1_500_000_000,
            durable_bytes: 8,
            durable,
            digest: None,
            finished_ns: None,
        }
    }

    #[test]
    fn a_checkpoint_is_described_with_both_volumes_and_its_ranges() {
        let text = describe(&example(vec![Range { offset: 4096, length: 8 }])).join("\n");
        for part in
            ["unfinished", "source       /srv/a (file, device 0x801, inode 12, 1.0 GiB)", "@1.500000000", "4096"]
        {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn an_export_has_neither_device_nor_inode() {
        let export = VolumeView { name: "nbd://host/a".to_owned(), kind: "export", ..example(Vec::new()).source };
        assert_eq!(volume_line("source", &export), "source       nbd://host/a (export, 1.0 GiB)");
    }

    #[test]
    fn a_long_list_is_cut_for_people() {
        let many = (0..150).map(|index| Range { offset: index, length: 1 }).collect();
        assert!(describe(&example(many)).last().unwrap().contains("and 50 more"));
    }
}
