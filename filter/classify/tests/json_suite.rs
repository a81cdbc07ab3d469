//! The scanner on JSONTestSuite: each file as it is, and as a field beside a `model`.
//!
//! What comes out is frozen in `json_suite.expected`, so that a change of behaviour shows as a change of that file.
//! `UPDATE_EXPECTED=1 cargo test --test json_suite` writes it again.

#![cfg(not(target_arch = "wasm32"))]

use nimgate_classify::model::Scanner;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The values of `model` in the order in which they were reported, and how the scan ended.
type Scan = (Vec<String>, Result<u32, &'static str>);

fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Scan {
    let mut scanner = Scanner::new();
    let mut models = Vec::new();
    for piece in pieces {
        scanner.feed(piece, &mut |model| models.push(model.to_owned()));
    }
    (models, scanner.finish().map(|found| found.models).map_err(|unreadable| unreadable.label()))
}

/// Scans a document whole and in pieces, which must agree.
fn scan_every_way(name: &str, body: &[u8]) -> Scan {
    let whole = scan([body]);
    assert_eq!(scan(body.chunks(1)), whole, "{name} byte by byte");
    // Two files are hundreds of kilobytes of one bracket; there only the edges are worth the time.
    let edge = if body.len() <= 4_096 { body.len() } else { 16 };
    let cuts = (0..=body.len()).filter(|cut| *cut <= edge || body.len() - cut <= edge);
    for (head, tail) in cuts.map(|cut| body.split_at(cut)) {
        assert_eq!(scan([head, tail]), whole, "{name} cut at {}", head.len());
    }
    whole
}

fn describe((models, end): &Scan) -> String {
    let end = end.map_or_else(str::to_owned, |_| "read".to_owned());
    models.iter().fold(end, |text, model| text + " " + model)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Name and content of each file, by name.
fn suite() -> Vec<(String, Vec<u8>)> {
    let folder = root().join("../../tests/data/JSONTestSuite/test_parsing");
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn wrapped(file: &[u8]) -> Vec<u8> {
    [br#"{"x": "#, file, br#", "model": "nvidia/m"}"#].concat()
}

#[test]
fn every_file_reads_as_expected() {
    let files = suite();
    assert_eq!(files.len(), 318);
    let mut table = String::from("# file: as it is | as a field beside a model\n");
    for (name, file) in &files {
        let [plain, beside] = [scan_every_way(name, file), scan_every_way(name, &wrapped(file))].map(|s| describe(&s));
        writeln!(table, "{name}: {plain} | {beside}").unwrap();
    }
    let path = root().join("tests/json_suite.expected");
    if std::env::var_os("UPDATE_EXPECTED").is_some_and(|value| value == "1") {
        fs::write(&path, &table).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    for (line, expected) in table.lines().zip(expected.lines()) {
        assert_eq!(line, expected);
    }
    assert_eq!(table, expected);
}

#[test]
fn the_model_beside_any_valid_field_is_found() {
    // Python's json.loads takes these three from the files that a parser should refuse.
    let tolerated = ["n_number_NaN.json", "n_number_infinity.json", "n_number_minus_infinity.json"];
    for (name, file) in suite() {
        if name.starts_with("y_") || tolerated.contains(&&*name) {
            assert_eq!(scan([&wrapped(&file)[..]]), (vec!["nvidia/m".to_owned()], Ok(1)), "{name}");
        }
    }
}
