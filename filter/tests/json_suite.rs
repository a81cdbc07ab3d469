//! The scanner on JSONTestSuite: 318 documents on which parsers disagree.
//!
//! Each is read as it is and wrapped as `{"x": <document>, "model": "nvidia/m"}`, whole and cut at every
//! byte. What must
//! be accepted (`y_`) must be, wrapped documents must give up their model, and every result is compared with the frozen
//! table in `json_suite.expected`, so that a change of behaviour is seen. `UPDATE_EXPECTED=1` writes the table anew.

use nimgate::classify::model::{Scanner, Unreadable};
use std::fmt::Write;
use std::path::Path;

fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Result<u32, Unreadable>) {
    let mut scanner = Scanner::new();
    let mut models = Vec::new();
    for piece in pieces {
        scanner.feed(piece, &mut |model| models.push(model.to_owned()));
    }
    (models, scanner.finish().map(|found| found.models))
}

/// Scans whole and cut at every byte; all must agree. Documents of many kilobytes are cut at a hundred places.
fn scan_every_way(document: &[u8]) -> (Vec<String>, Result<u32, Unreadable>) {
    let whole = scan([document]);
    let step = if document.len() > 10_000 { document.len() / 100 } else { 1 };
    for cut in (0..=document.len()).step_by(step) {
        let (head, tail) = document.split_at(cut);
        assert_eq!(scan([head, tail]), whole, "cut at {cut}");
    }
    assert_eq!(scan(document.chunks(1)), whole, "byte by byte");
    whole
}

fn shown(result: &(Vec<String>, Result<u32, Unreadable>)) -> String {
    let end = result.1.map_or_else(|why| why.label().to_owned(), |models| format!("ok({models})"));
    format!("{:?} {end}", result.0)
}

#[test]
fn every_document_gives_what_it_gave_before() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = std::fs::read_dir(here.join("../tests/data/JSONTestSuite/test_parsing"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 318);
    let mut table = String::new();
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let document = std::fs::read(&file).unwrap();
        let bare = scan_every_way(&document);
        let wrapped = scan_every_way(&[b"{\"x\": ", &*document, b", \"model\": \"nvidia/m\"}"].concat());
        if name.starts_with("y_") {
            let is_fine = matches!(bare.1, Ok(_) | Err(Unreadable::NotAnObject));
            assert!(is_fine, "{name} must be accepted, or be known as no object: {bare:?}");
            assert_eq!(wrapped, (vec!["nvidia/m".to_owned()], Ok(1)), "{name}");
        }
        writeln!(table, "{name}\n    bare    {}\n    wrapped {}", shown(&bare), shown(&wrapped)).unwrap();
    }
    let expected = here.join("tests/json_suite.expected");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&expected, &table).unwrap();
    }
    let frozen = std::fs::read_to_string(&expected).unwrap();
    for (now, before) in table.lines().zip(frozen.lines()) {
        assert_eq!(now, before);
    }
    assert_eq!(table.lines().count(), frozen.lines().count());
}
