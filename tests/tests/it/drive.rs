//! tests/drive: what it makes of test programs that fail, crash and hang.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, iter};

const ONE_PASSES: &str = "echo; echo 'test result: ok. 1 passed; 0 failed; 0 ignored'";

/// A program of these tests that all fail; those named in `again` pass when they run alone.
fn failing(tests: &[&str], again: &[&str]) -> String {
    let names: String = tests.iter().map(|test| format!("    {test}\\n")).collect();
    let alone = again.iter().map(|test| format!("'--exact {test} '*) {ONE_PASSES}; exit ;;\n"));
    let alone: String = alone.collect();
    let count = tests.len();
    format!(
        "case \"$*\" in {alone} esac\n\
         printf '\\nfailures:\\n\\nfailures:\\n{names}\\ntest result: FAILED. 2 passed; {count} failed\\n'\n\
         exit 101"
    )
}

/// Drives these programs; whether they pass, and the lines that stand after the last program.
fn drive(programs: &[(&str, &str)], args: &[&str]) -> (bool, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let mut list = String::new();
    for (name, script) in programs {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        list += &format!("{name}\t{}\t{}\n", dir.path().display(), path.display());
    }
    let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("drive");
    let mut child = Command::new(driver)
        .args(args)
        .env("WEIR_TEST_LIMIT", "15")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let summary = text.rsplit("\n\n").next().unwrap();
    (output.status.success(), summary.lines().map(str::to_owned).collect())
}

#[test]
fn a_run_is_counted_over_all_programs() {
    let skips = format!("echo 'SKIPPED: no disk'\n{ONE_PASSES}");
    let takes_arguments = format!("[ \"$*\" = '--nocapture some' ] || exit 1\n{ONE_PASSES}");
    let programs = [("one", ONE_PASSES), ("two", &skips), ("three", &takes_arguments)];
    let (success, summary) = drive(&programs, &["some"]);
    assert_eq!(summary, ["SKIPPED: no disk", "2 passed, 0 failed, 1 skipped"]);
    assert!(success);
}

#[test]
fn a_test_that_passes_alone_is_flaky_and_a_third_one_fails_the_run() {
    let two = failing(&["a::b", "c"], &["a::b", "c"]);
    let (success, summary) = drive(&[("two", &two)], &[]);
    assert_eq!(summary, ["FLAKY two: a::b", "FLAKY two: c", "4 passed, 0 failed, 0 skipped"]);
    assert!(success);
    let one = failing(&["d"], &["d"]);
    let (success, summary) = drive(&[("two", &two), ("one", &one)], &[]);
    assert_eq!(summary.last().unwrap(), "7 passed, 0 failed, 0 skipped");
    assert!(!success);
}

#[test]
fn a_test_that_fails_again_has_failed() {
    let program = failing(&["a::b", "c"], &["c"]);
    let (success, summary) = drive(&[("it", &program)], &[]);
    assert_eq!(summary, ["FLAKY it: c", "FAILED it: a::b", "3 passed, 1 failed, 0 skipped"]);
    assert!(!success);
    // So many do not fail by chance.
    let names: Vec<_> = iter::repeat_n("x", 11).collect();
    let (success, summary) = drive(&[("it", &failing(&names, &["x"]))], &[]);
    assert_eq!(summary.last().unwrap(), "2 passed, 11 failed, 0 skipped");
    assert!(!success);
}

#[test]
fn a_program_that_does_not_come_to_its_end_has_failed_and_the_others_go_on() {
    let programs = [
        ("crashes", "kill -SEGV $$"),
        ("quits", "exit 0"),
        ("hangs", "exec sleep 1000"),
        ("passes-and-crashes", &format!("{ONE_PASSES}\nkill -ABRT $$")),
        ("passes", ONE_PASSES),
    ];
    let (success, summary) = drive(&programs, &[]);
    let failed: Vec<_> = summary.iter().filter_map(|line| line.strip_prefix("FAILED ")).collect();
    assert_eq!(
        failed,
        [
            "crashes: crashed, exit status 139",
            "quits: crashed, exit status 0",
            "hangs: not through after 15 s, or killed",
            "passes-and-crashes: crashed, exit status 134",
        ]
    );
    assert_eq!(summary.last().unwrap(), "2 passed, 4 failed, 0 skipped");
    assert!(!success);
}
