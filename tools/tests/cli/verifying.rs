//! Tests `verify`: equal volumes, different volumes, receipts.

use blockhaul_testkit::scratch::{MIB, Scratch, noise};

#[test]
fn equal_volumes_end_with_0() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(3 * MIB + 7, 1));
    scratch.file("b", &noise(3 * MIB + 7, 1));
    let before = scratch.snapshot();
    let outcome = scratch.json(&["verify", "a", "b"]);
    outcome.assert_done();
    assert_eq!(outcome.report()["bytes"]["verified"], 3 * MIB + 7);
    let human = scratch.blockhaul(&["verify", "a", "b"]).output().unwrap();
    assert_eq!(human.status.code(), Some(0));
    assert!(human.stdout.starts_with(b"same: "), "{human:?}");
    assert_eq!(scratch.snapshot(), before, "a comparison only reads");
}

#[test]
fn different_volumes_end_with_3_and_name_the_ranges() {
    let scratch = Scratch::new();
    let mut data = noise(4 * MIB, 1);
    scratch.file("a", &data);
    data[MIB + 17] ^= 1;
    data[3 * MIB] ^= 1;
    scratch.file("b", &data);
    let outcome = scratch.json(&["verify", "a", "b"]);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert_eq!(outcome.report()["status"], "differs");
    let covers = |byte: usize| {
        let ranges = outcome.report()["differences"].as_array().unwrap();
        let byte = byte as u64;
        ranges.iter().any(|range| {
            let (offset, length) = (range["offset"].as_u64().unwrap(), range["length"].as_u64().unwrap());
            (offset..offset + length).contains(&byte)
        })
    };
    assert!(covers(MIB + 17) && covers(3 * MIB) && !covers(0), "{outcome:?}");
    let human = scratch.blockhaul(&["verify", "a", "b"]).output().unwrap();
    assert_eq!(human.status.code(), Some(3));
    let text = String::from_utf8(human.stdout).unwrap();
    assert!(text.starts_with("differs at byte "), "{text}");
}

#[test]
fn at_most_100_ranges_are_listed() {
    let scratch = Scratch::new();
    let data = noise(2 * MIB, 1);
    let mut other = data.clone();
    other.chunks_mut(8192).for_each(|chunk| chunk[0] ^= 1);
    scratch.file("a", &data);
    scratch.file("b", &other);
    let outcome = scratch.json(&["verify", "a", "b", "--block-size", "4KiB"]);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    let listed = outcome.report()["differences"].as_array().unwrap().len();
    assert!((1..=100).contains(&listed), "{listed}");
}

#[test]
fn a_volume_is_verified_against_a_receipt() {
    let scratch = Scratch::new();
    let data = noise(3 * MIB + 9, 4);
    let source = scratch.file("a", &data);
    scratch.json(&["copy", "a", "b", "--reflink", "never", "--receipt", "r"]).assert_done();
    std::fs::remove_file(source).unwrap();
    scratch.json(&["verify", "--receipt", "r", "b"]).assert_done();

    let mut damaged = data;
    damaged[2 * MIB + 1] ^= 1;
    scratch.file("b", &damaged);
    let outcome = scratch.json(&["verify", "--receipt", "r", "b"]);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert_eq!(outcome.report()["status"], "differs");
}

#[test]
fn a_receipt_replaces_an_older_one_and_nothing_else() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(MIB, 1));
    scratch.file("thesis", b"my thesis");
    std::fs::create_dir(scratch.path("directory")).unwrap();
    let before = scratch.snapshot();
    for (receipt, exit, code) in
        [("thesis", 1, "EExists"), ("directory", 2, "EBadRequest"), ("/dev/null", 2, "EBadRequest")]
    {
        let args = ["copy", "a", "b", "--receipt", receipt, "--reflink", "never"];
        let planned = scratch.blockhaul(&[&args[..], &["--dry-run"]].concat()).output().unwrap();
        let stderr = String::from_utf8(planned.stderr).unwrap();
        assert!(planned.status.code() == Some(exit) && stderr.contains(code), "{receipt}: {stderr}");
        assert_eq!(scratch.snapshot(), before, "{receipt}");
        scratch.json(&args).assert_failed(exit, code);
        std::fs::remove_dir_all(scratch.path("state")).unwrap();
        assert_eq!(scratch.snapshot(), before, "{receipt}");
    }
    for seed in [1, 2] {
        scratch.file("a", &noise(MIB, seed));
        scratch.json(&["copy", "a", "b", "--receipt", "r", "--overwrite"]).assert_done();
        scratch.json(&["verify", "--receipt", "r", "b"]).assert_done();
    }
}

#[test]
fn a_missing_volume_or_an_invalid_receipt_fails_with_1() {
    let scratch = Scratch::new();
    scratch.file("a", b"data");
    scratch.json(&["verify", "a", "missing"]).assert_failed(1, "ENotFound");
    scratch.json(&["verify", "missing", "a"]).assert_failed(1, "ENotFound");
    scratch.json(&["verify", "--receipt", "missing", "a"]).assert_failed(1, "ENotFound");
    scratch.file("r", &noise(5000, 1));
    scratch.json(&["verify", "--receipt", "r", "a"]).assert_failed(1, "ECheckpointCorrupt");
}
