//! Checks what a hook gets: environment, input, descriptors, folder, signals; and what becomes of its output.

use crate::site::{failure, site};
use blockhaul_engine::error::Code;
use blockhaul_hooks::{HookArgument, HookOutcome, HookRequest};
use std::fs;

#[test]
fn a_hook_gets_its_order_and_nothing_else() {
    let site = site!("a_hook_gets_its_order_and_nothing_else");
    site.script("h", "tr '\\0' '\\n' < /proc/$$/environ; cat");
    let request = HookRequest {
        group: Some(String::from("g1")),
        arguments: vec![HookArgument::parse("VM=a b").unwrap()],
        input: b"from the order\n".to_vec(),
        ..site.request()
    };
    let report = site.start_with(&site.state(), "h", request).finish();
    assert_eq!(report.outcome, HookOutcome::Succeeded);
    let output = String::from_utf8(report.output.first().to_vec()).unwrap();
    let mut lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.pop(), Some("from the order"));
    lines.sort_unstable();
    let task = format!("BLOCKHAUL_TASK={}", site.request().task);
    let expected = [
        "BLOCKHAUL_ARG_VM=a b",
        "BLOCKHAUL_ATTEMPT=1",
        "BLOCKHAUL_EPOCH=7",
        "BLOCKHAUL_GROUP=g1",
        "BLOCKHAUL_NODE=n1",
        task.as_str(),
        "LANG=C.UTF-8",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn the_largest_input_arrives_whole() {
    let site = site!("the_largest_input_arrives_whole");
    site.script("h", "wc -c");
    let request = HookRequest { input: vec![b'x'; 4 << 10], ..site.request() };
    let report = site.start_with(&site.state(), "h", request).finish();
    assert_eq!(report.output.first().trim_ascii(), b"4096");
}

#[test]
fn a_hook_begins_with_a_clean_process() {
    let site = site!("a_hook_begins_with_a_clean_process");
    // Inherited by what is started next, unless it is reset: an ignored and a blocked signal, and a descriptor.
    let inherited = fs::File::open("/dev/null").unwrap();
    nix::fcntl::fcntl(&inherited, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let mut blocked = nix::sys::signal::SigSet::empty();
    blocked.add(nix::sys::signal::Signal::SIGUSR1);
    blocked.thread_block().unwrap();
    let script = "echo session $(cut -d' ' -f6 /proc/$$/stat) $$; grep -E '^Sig(Blk|Ign)' /proc/self/status; umask; \
        cat; stat -c '%a %h' .; ls -A; ls -l /proc/self/fd";
    let report = site.run("h", script);
    let output = String::from_utf8(report.output.first().to_vec()).unwrap();
    let (opened, told): (Vec<&str>, Vec<&str>) = output.lines().partition(|line| line.contains(" -> "));
    let words: Vec<&str> = told.iter().flat_map(|line| line.split_whitespace()).collect();
    assert_eq!(words[0], "session", "{output}");
    assert_eq!(words[1], words[2], "it leads its session: {output}");
    assert_eq!(words[3..8], ["SigBlk:", "0000000000000000", "SigIgn:", "0000000000000000", "0077"], "{output}");
    assert_eq!(words[8..10], ["700", "2"], "the folder is private and empty: {output}");
    // Standard input, output and error, the hook itself, and what `ls` opens to list them.
    let leads_to = |target: &str| opened.iter().filter(|line| line.ends_with(target)).count();
    assert_eq!((opened.len(), leads_to("-> /dev/null"), leads_to("/hooks/h")), (5, 1, 1), "{output}");
    site.assert_no_state();
}

#[test]
fn programs_run_as_well_as_scripts() {
    let site = site!("programs_run_as_well_as_scripts");
    let state = site.state();
    let program = ["/bin/true", "/usr/bin/true"].iter().find(|path| fs::metadata(path).is_ok()).unwrap();
    site.script("h", "");
    let copy = std::process::Command::new("cp").arg(program).arg(site.dir.path("hooks/h")).status().unwrap();
    assert!(copy.success());
    assert_eq!(site.start(&state, "h").finish().outcome, HookOutcome::Succeeded);
}

#[test]
fn exit_codes_and_signals_make_the_outcome() {
    let site = site!("exit_codes_and_signals_make_the_outcome");
    assert_eq!(site.run("a", "exit 0").outcome, HookOutcome::Succeeded);
    assert_eq!(site.run("b", "exit 75").outcome, HookOutcome::Retry);
    for (name, script, message) in [
        ("c", "printf 'bad\\033[2J\\n' >&2; exit 3", r"hook c ended with exit code 3; it wrote last: bad\x1b[2J"),
        ("d", "kill -SEGV $$", "hook d was ended by SIGSEGV; it wrote nothing"),
        ("e", "kill -KILL $$", "hook e was ended by SIGKILL; it wrote nothing"),
        ("f", "kill -40 $$", "hook f was ended by signal 40; it wrote nothing"),
    ] {
        let report = site.run(name, script);
        let error = failure(&report.outcome);
        assert_eq!((error.code, error.retryable), (Code::Hook, false));
        assert!(error.message.starts_with(message), "{}", error.message);
    }
    site.assert_no_state();
}

#[test]
fn a_flood_of_output_costs_bounded_memory() {
    let site = site!("a_flood_of_output_costs_bounded_memory");
    let report = site.run("h", "echo begin; head -c 100000000 /dev/zero | tr '\\0' x; echo; echo end >&2");
    assert_eq!(report.outcome, HookOutcome::Succeeded);
    let output = &report.output;
    assert_eq!(output.dropped_bytes(), 100_000_000 + 11 - 12_000);
    assert!(output.first().starts_with(b"begin\nxxx") && output.first().len() == 6_000);
    assert!(output.last().ends_with(b"xxx\nend\n") && output.last().len() == 6_000);
    assert_eq!(output.tail().len(), 400);
}

#[test]
fn a_hook_without_descriptors_ends_properly() {
    let site = site!("a_hook_without_descriptors_ends_properly");
    let report = site.run("h", "echo before; exec 0<&- 1>&- 2>&-; sleep 0.2; exit 4");
    assert_eq!(report.output.first(), b"before\n");
    assert!(failure(&report.outcome).message.contains("exit code 4"));
}

#[test]
fn a_working_folder_is_removed_whatever_is_in_it() {
    let site = site!("a_working_folder_is_removed_whatever_is_in_it");
    let kept = site.dir.path("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), "kept").unwrap();
    let script = format!(
        "ln -s {kept} link; mkdir -p locked/sub; ln -s {kept} locked/sub/link; head -c 10000000 /dev/zero > locked/sub/big; \
         levels=$(printf 'd/%.0s' $(seq 1000)); \
         for i in 1 2 3; do mkdir -p new/$levels && if [ -e deep ]; then mv deep new/$levels; fi; mv new deep || exit 1; done; \
         chmod 0 {state}/run-1/locked/sub {state}/run-1/locked",
        kept = site.quoted("kept"),
        state = site.quoted("state"),
    );
    assert_eq!(site.run("h", &script).outcome, HookOutcome::Succeeded);
    site.assert_no_state();
    assert_eq!(fs::read(kept.join("file")).unwrap(), b"kept");
}
