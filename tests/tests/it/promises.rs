//! SEMANTICS.md, docs/security.md and the tests belong together.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.extension() {
            _ if path.is_dir() => sources(&path, out),
            Some(ext) if ext == "rs" => out.push(path),
            _ => {}
        }
    }
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for dir in ["csi/src", "fuse/src", "fuse/tests", "node-plugin/src", "tests/tests"] {
        sources(&root.join(dir), &mut files);
    }
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let (semantics, security) = (read("SEMANTICS.md"), read("docs/security.md"));
    let text = format!("{semantics}\n{security}");
    let quoted = text.split('`').skip(1).step_by(2);
    let named: Vec<(&str, &str)> = quoted.filter_map(|name| name.split_once("::")).collect();
    assert!(named.len() > 50, "only {} tests are named", named.len());
    for (module, test) in named {
        // Several folders may have a module of one name.
        let mut named = files.iter().filter(|path| path.file_stem().is_some_and(|s| s == module));
        let holds =
            |path: &PathBuf| fs::read_to_string(path).unwrap().contains(&format!("fn {test}("));
        assert!(named.any(holds), "no module {module} has a test {test}");
    }
    // And every line of a promise names one.
    let tables = text.lines().filter(|line| line.starts_with("| ") && line.contains(". |"));
    let rights =
        security.lines().filter(|line| line.starts_with("| ") && !line.contains("| cannot |"));
    for line in tables.chain(rights) {
        let last = line.trim_end_matches('|').rsplit(" | ").next().unwrap();
        assert!(last.contains("::"), "no test: {line}");
    }
}
