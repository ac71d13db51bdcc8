//! Checks which files and folders are accepted as hooks.

use crate::site::{failure, site};
use blockhaul_engine::error::Code;
use blockhaul_hooks::{HookFolder, HookName, HookStateFolder};
use blockhaul_testkit::{Need, need};
use nix::unistd::{Uid, chown};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_hook_with_wrong_rights_is_refused_with_what_to_do() {
    let site = site!("a_hook_with_wrong_rights_is_refused_with_what_to_do");
    let path = site.script("h", "true");
    let refusal = |remedy: &str| {
        let error = site.open("h").unwrap_err();
        assert_eq!(error.code, Code::Permission, "{error}");
        assert!(error.message.contains(remedy), "{error}");
        assert!(!error.retryable, "{error}");
    };
    for (mode, remedy) in [
        (0o775, "chmod go-w"),
        (0o757, "chmod go-w"),
        (0o4755, "chmod ug-s"),
        (0o2755, "chmod ug-s"),
        (0o644, "chmod u+x"),
    ] {
        chmod(&path, mode);
        refusal(remedy);
    }
    chmod(&path, 0o755);
    fs::hard_link(&path, site.dir.path("other-name")).unwrap();
    refusal("2 links");
    fs::remove_file(site.dir.path("other-name")).unwrap();
    site.open("h").unwrap();

    fs::rename(&path, site.dir.path("target")).unwrap();
    symlink(site.dir.path("target"), &path).unwrap();
    refusal("link");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refusal("no regular file");
    fs::remove_dir(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o755)).unwrap();
    refusal("no regular file");
    fs::remove_file(&path).unwrap();
    assert_eq!(site.open("h").unwrap_err().code, Code::NotFound);
}

#[test]
fn a_hook_of_another_user_is_refused() {
    need!("a_hook_of_another_user_is_refused", &[Need::Root]);
    let site = site!("a_hook_of_another_user_is_refused");
    let path = site.script("h", "true");
    chown(&path, Some(Uid::from_raw(1)), None).unwrap();
    assert!(site.open("h").unwrap_err().message.contains("chown"));
    chown(&path, Some(Uid::from_raw(0)), None).unwrap();
    let folder = site.folder();
    chown(&site.dir.path("hooks"), Some(Uid::from_raw(1)), None).unwrap();
    assert!(folder.hook(&HookName::parse("h").unwrap()).unwrap_err().message.contains("chown"));
}

#[test]
fn folder_and_parents_are_judged_at_every_opening() {
    let site = site!("folder_and_parents_are_judged_at_every_opening");
    site.dir.executable("above/hooks/h", "#!/bin/sh\n");
    let (above, path) = (site.dir.path("above"), site.dir.path("above/hooks"));
    let folder = HookFolder::open(&path).unwrap();
    let name = HookName::parse("h").unwrap();
    folder.hook(&name).unwrap();
    for changed in [&above, &path] {
        for mode in [0o775, 0o757, 0o1777] {
            chmod(changed, mode);
            for error in [folder.hook(&name).unwrap_err(), HookFolder::open(&path).unwrap_err()] {
                assert_eq!(error.code, Code::Permission, "{error}");
                assert!(error.message.contains("chmod go-w"), "{error}");
            }
        }
        chmod(changed, 0o755);
        folder.hook(&name).unwrap();
    }
    // Another folder of the same name is none that was judged at the start.
    fs::rename(&path, site.dir.path("old")).unwrap();
    site.dir.executable("above/hooks/h", "#!/bin/sh\n");
    let error = folder.hook(&name).unwrap_err();
    assert!(error.message.contains("restart"), "{error}");
}

#[test]
fn links_and_detours_on_the_way_to_the_folder_are_refused() {
    let site = site!("links_and_detours_on_the_way_to_the_folder_are_refused");
    site.dir.executable("real/hooks/h", "#!/bin/sh\n");
    symlink(site.dir.path("real"), site.dir.path("link")).unwrap();
    symlink(site.dir.path("real/hooks"), site.dir.path("hooks-link")).unwrap();
    for path in ["link/hooks", "hooks-link"] {
        let error = HookFolder::open(site.dir.path(path)).unwrap_err();
        assert!(error.code == Code::Permission && error.message.contains("without links"), "{error}");
    }
    assert_eq!(HookFolder::open(site.dir.path("real/../real/hooks")).unwrap_err().code, Code::BadRequest);
    assert_eq!(HookFolder::open(site.dir.path("none")).unwrap_err().code, Code::NotFound);
    let error = HookFolder::open(site.dir.path("real/hooks/h")).unwrap_err();
    assert!(error.message.contains("no folder"), "{error}");
    let path = site.dir.path("real/hooks");
    assert_eq!(HookFolder::open(&path).unwrap().path(), path);
}

#[test]
fn a_folder_below_a_sticky_one_is_refused() {
    let site = site!("a_folder_below_a_sticky_one_is_refused");
    let sticky = site.dir.path("tmp");
    site.dir.executable("tmp/hooks/h", "#!/bin/sh\n");
    chmod(&sticky, 0o1777);
    let error = HookFolder::open(site.dir.path("tmp/hooks")).unwrap_err();
    assert!(error.message.contains("mode 1777"), "{error}");
}

#[test]
fn the_file_that_was_judged_is_the_one_that_runs() {
    let site = site!("the_file_that_was_judged_is_the_one_that_runs");
    let script = format!("echo first; while [ ! -e {} ]; do sleep 0.01; done; echo done", site.quoted("end"));
    site.script("h", &script);
    let hook = site.open("h").unwrap();
    site.script("h", "echo second");
    let (send, events) = std::sync::mpsc::channel();
    let order = blockhaul_hooks::HookOrder::try_from(site.request()).unwrap();
    let subreaper = blockhaul_hooks::become_subreaper().unwrap();
    let state = site.state();
    let on_event = move |event| drop(send.send(event));
    let handle = blockhaul_hooks::HookHandle::start(subreaper, hook, order, &state, on_event).unwrap();
    let started = crate::site::Started { handle: Some(handle), events };
    site.script("h", "echo second");
    fs::remove_file(site.dir.path("hooks/h")).unwrap();
    fs::write(site.dir.path("end"), "").unwrap();
    assert_eq!(started.finish().output.first(), b"first\ndone\n");
    site.script("h", "echo second");
    assert_eq!(site.start(&state, "h").finish().output.first(), b"second\n");
}

#[test]
fn a_state_folder_belongs_to_one_process_and_nobody_else_writes_it() {
    let site = site!("a_state_folder_belongs_to_one_process_and_nobody_else_writes_it");
    let path = site.dir.path("state");
    let state = HookStateFolder::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(HookStateFolder::open(&path).unwrap_err().code, Code::Busy);
    drop(state);
    chmod(&path, 0o775);
    assert_eq!(HookStateFolder::open(&path).unwrap_err().code, Code::Permission);
    chmod(&path, 0o750);
    HookStateFolder::open(&path).unwrap();
    assert_eq!(HookStateFolder::open(site.dir.path("a/b")).unwrap_err().code, Code::NotFound);
}

#[test]
fn a_state_folder_that_is_full_of_leftovers_is_no_obstacle() {
    let site = site!("a_state_folder_that_is_full_of_leftovers_is_no_obstacle");
    site.script("h", "pwd");
    let state = site.state();
    fs::create_dir(site.dir.path("state/run-1")).unwrap();
    fs::write(site.dir.path("state/run-2.record"), "").unwrap();
    let report = site.start(&state, "h").finish();
    assert!(report.output.first().ends_with(b"/state/run-3\n"), "{:?}", report.output.shown_tail());
    assert_eq!(state.kill_leftovers(crate::site::PATIENCE).unwrap(), []);
    site.assert_no_state();

    // Without a record nothing is executed.
    fs::remove_dir(site.dir.path("state")).unwrap();
    let report = site.start(&state, "h").finish();
    assert_eq!(failure(&report.outcome).code, Code::NotFound, "{report:?}");
}
