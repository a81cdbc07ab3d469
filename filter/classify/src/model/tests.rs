//! The scanner, rule by rule, and each document in every way of cutting it.

mod bounds;
mod leniency;

use super::*;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// What a scan found, however the body was cut.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Scan {
    models: Vec<String>,
    end: Result<u32, Unreadable>,
    looks: Looks,
}

fn scan_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Scan {
    let mut scanner = Scanner::new();
    let mut models = Vec::new();
    for piece in pieces {
        scanner.feed(piece, &mut |model| models.push(model.to_owned()));
    }
    Scan { models, looks: scanner.looks_like_json(), end: scanner.finish().map(|found| found.models) }
}

/// Scans a document whole, in three pieces cut at each pair of bytes, and byte by byte; all must agree.
fn scan(body: &[u8]) -> Scan {
    let whole = scan_pieces([body]);
    for (second, third) in (0..=body.len()).flat_map(|cut| (cut..=body.len()).map(move |later| (cut, later))) {
        let pieces = [&body[..second], &body[second..third], &body[third..]];
        assert_eq!(scan_pieces(pieces), whole, "cut at {second} and {third}: {}", body.escape_ascii());
    }
    assert_eq!(scan_pieces(body.chunks(1)), whole, "byte by byte: {}", body.escape_ascii());
    whole
}

fn found(body: &[u8]) -> Vec<String> {
    let scan = scan(body);
    let models = u32::try_from(scan.models.len()).unwrap();
    assert_eq!((scan.end, scan.looks), (Ok(models), Looks::Json), "{}", body.escape_ascii());
    scan.models
}

fn refused(body: &[u8]) -> Unreadable {
    scan(body).end.expect_err(&body.escape_ascii().to_string())
}

#[test]
fn finds_the_model_wherever_it_stands() {
    assert_eq!(found(br#"{"model":"nvidia/x"}"#), ["nvidia/x"]);
    assert_eq!(found(b"\r\n\t {\r\n\t \"model\"\r\n\t :\r\n\t \"m\"\r\n\t }\r\n\t "), ["m"]);
    assert_eq!(found(br#" { "a" : [1, {"b": "c"}] , "model" : "m" , "z" : null } "#), ["m"]);
    assert_eq!(found(br#"{"a":[],"b":{},"c":[[],{}],"d":{"e":[1,2],"f":true},"model":"m"}"#), ["m"]);
    assert_eq!(found(br#"{"a":"}\"{,","model":"m"}"#), ["m"]);
    assert_eq!(found(br#"{"a":"\\","model":"m","b":"\\\\\""}"#), ["m"]);
    assert_eq!(found(br#"{"model":""}"#), [""]);
    assert!(found(b"{}").is_empty());
}

#[test]
fn other_keys_never_count() {
    for key in ["", "m", "mode", "modelx", "models", " model", "model ", "mo del", "xmodel", "mоdel", "mode1"] {
        assert!(found(format!(r#"{{"{key}":"x"}}"#).as_bytes()).is_empty(), "{key}");
    }
    for key in [r"mod\u0165l", r"mode\\l", r"mode\nl", r"model\u0000", r"model\n", r"\\u006dodel", r"mod\u00e9l"] {
        assert!(found(format!(r#"{{"{key}":"x"}}"#).as_bytes()).is_empty(), "{key}");
    }
}

#[test]
fn nested_models_never_count() {
    assert!(found(br#"{"a":{"model":"x"},"b":[{"model":"y"}],"c":["model"],"nvext":{"model":"z"}}"#).is_empty());
    assert_eq!(found(br#"{"a":{"b":{"model":"x"},"model":"y"},"model":"m","c":{"model":"z"}}"#), ["m"]);
    assert!(found(br#"{"a":"model","b":["model",{"x":"model"}]}"#).is_empty());
}

#[test]
fn duplicates_and_every_spelling_of_the_key_count() {
    assert_eq!(found(br#"{"model":"a","model":"b"}"#), ["a", "b"]);
    assert_eq!(found(br#"{"Model":"a","MODEL":"b","moDel":"c"}"#), ["a", "b", "c"]);
    assert_eq!(found(br#"{"mod\u0065l":"a","\u004dodel":"b"}"#), ["a", "b"]);
    assert_eq!(found(br#"{"\u006D\u006f\u0064\u0065\u006c":"c"}"#), ["c"]);
}

#[test]
fn values_are_unescaped() {
    assert_eq!(found(br#"{"model":"nvidia\/\u006c\"\\\t\b\f\n\r"}"#), ["nvidia/l\"\\\t\u{8}\u{c}\n\r"]);
    assert_eq!(found(br#"{"model":"\ud83d\ude00\u00e9\uD83D\uDE00"}"#), ["\u{1f600}\u{e9}\u{1f600}"]);
    assert_eq!(found(br#"{"model":"\u0000\uffff\ud7ff\ue000"}"#), ["\0\u{ffff}\u{d7ff}\u{e000}"]);
    assert_eq!(found("{\"model\":\"modèle😀\"}".as_bytes()), ["modèle😀"]);
}

#[test]
fn a_model_that_is_no_readable_string_is_said_and_others_still_count() {
    for (value, expected) in [
        (&b"null"[..], Unreadable::ModelNotString),
        (b"7", Unreadable::ModelNotString),
        (b"NaN", Unreadable::ModelNotString),
        (br#"["nvidia/x"]"#, Unreadable::ModelNotString),
        (br#"{"model":"nvidia/x"}"#, Unreadable::ModelNotString),
        (br#""\ud800""#, Unreadable::ModelUnreadable),
        (br#""\udc00""#, Unreadable::ModelUnreadable),
        (br#""\ude00\ud83d""#, Unreadable::ModelUnreadable),
        (br#""\ud800\ud800\udc00""#, Unreadable::ModelUnreadable),
        (br#""\ud800\u0041""#, Unreadable::ModelUnreadable),
        (br#""\ud800\n""#, Unreadable::ModelUnreadable),
        (br#""\ud800x""#, Unreadable::ModelUnreadable),
        (br#""nvidia/x\q""#, Unreadable::ModelUnreadable),
        (br#""nvidia/x\u""#, Unreadable::ModelUnreadable),
        (br#""nvidia/x\u00""#, Unreadable::ModelUnreadable),
        (br#""nvidia/x\u00zz""#, Unreadable::ModelUnreadable),
        (br#""nvidia/x\u\"""#, Unreadable::ModelUnreadable),
        (b"\"nvidia/x\ty\"", Unreadable::ModelUnreadable),
        (b"\"nvidia/x\0\"", Unreadable::ModelUnreadable),
        (b"\"\xff\"", Unreadable::ModelUnreadable),
        (b"\"\xc3\"", Unreadable::ModelUnreadable),
        (b"\"\xed\xa0\x80\"", Unreadable::ModelUnreadable),
    ] {
        let before = [&b"{\"model\":"[..], value, b",\"model\":\"b\"}"].concat();
        let after = [&b"{\"Model\":\"b\",\"model\":"[..], value, b"}"].concat();
        for body in [before, after] {
            let scan = scan(&body);
            assert_eq!((scan.models, scan.end), (vec!["b".to_owned()], Err(expected)), "{}", body.escape_ascii());
        }
    }
}

#[test]
fn what_was_reported_before_a_fault_stays_true() {
    for (rest, expected) in [
        (&b", oops"[..], Unreadable::Syntax),
        (b"}}", Unreadable::TrailingData),
        (b"} {\"model\":\"y\"}", Unreadable::TrailingData),
        (b"}\0", Unreadable::TrailingData),
        (b"", Unreadable::Truncated),
    ] {
        let scan = scan(&[br#"{"model":"nvidia/x""#, rest].concat());
        assert_eq!((scan.models, scan.end), (vec!["nvidia/x".to_owned()], Err(expected)), "{}", rest.escape_ascii());
    }
}

#[test]
fn a_document_that_is_no_object_is_read_and_has_no_model() {
    for body in [
        &b"[1]"[..],
        b"[]",
        br#"[{"model":"nvidia/x"}]"#,
        br#"[[{"model":"nvidia/x"}], {"model": "nvidia/y"} ] "#,
        b"\"x\"",
        br#""a\"b""#,
        b"-1",
        b" \n null",
        b"\xef\xbb\xbfNaN",
    ] {
        let scan = scan(body);
        assert_eq!((scan.models.len(), scan.end, scan.looks), (0, Ok(0), Looks::OtherJson));
    }
    for (body, expected) in [
        (&b"["[..], Unreadable::Truncated),
        (b"[1", Unreadable::Truncated),
        (b"\"x", Unreadable::Truncated),
        (b"tru", Unreadable::Truncated),
        (b"[1}", Unreadable::Syntax),
        (b"[1,]", Unreadable::Syntax),
        (b"truth", Unreadable::Syntax),
        (b"[1]]", Unreadable::TrailingData),
        (b"1, 2", Unreadable::TrailingData),
        (b"null null", Unreadable::TrailingData),
        (br#"["x"]{"model":"nvidia/x"}"#, Unreadable::TrailingData),
        (br#""x":{"model":"nvidia/x"}"#, Unreadable::TrailingData),
    ] {
        assert_eq!(refused(body), expected, "{}", body.escape_ascii());
    }
}

#[test]
fn what_is_no_json_is_reported() {
    for (body, expected) in [
        (&b"a=b"[..], Unreadable::NotJson),
        (b"<x>", Unreadable::NotJson),
        (b"}", Unreadable::NotJson),
        (b"\x0c{}", Unreadable::NotJson),
        (b"", Unreadable::Empty),
        (b" \n", Unreadable::Empty),
        (b"\xef\xbb\xbf \r\n\t", Unreadable::Empty),
    ] {
        assert_eq!(refused(body), expected, "{}", body.escape_ascii());
    }
}

#[test]
fn broken_structure_is_reported_at_any_depth() {
    for object in [
        "{,}",
        "{1}",
        "{null:1}",
        "{a:1}",
        "{'a':1}",
        "{\"a\"}",
        "{\"a\" 1}",
        "{\"a\"::1}",
        "{\"a\":}",
        "{\"a\":,\"b\":1}",
        "{\"a\":1,}",
        "{\"a\":1,,\"b\":2}",
        "{\"a\":1 2}",
        "{\"a\":1\"b\":2}",
        "{\"a\":\"b\" \"c\"}",
        "{\"a\":1]",
        "{\"a\":]}",
        "{\"a\":1:2}",
        "{\"a\":[}",
        "{\"a\":[1}]}",
        "{\"a\":[{],\"model\":\"x\"}}",
        "{\"a\":{[}]}",
        "{\"a\":[1,]}",
        "{\"a\":[,1]}",
        "{\"a\":[1 2]}",
        "{\"a\":[1:2]}",
        "{\"a\":[\"b\":1]}",
        "{/**/}",
        "{\"a\":/**/1}",
        "{\"a\":1//\n}",
        "{\"a\":'b'}",
        "{\"a\":(1)}",
        "{\"a\":1;\"b\":2}",
        "{\"a\":\\\"b\"}",
        "{\"a\":_}",
        "{\"a\":x}",
        "{\"a\":True}",
        "{\"a\":tru}",
        "{\"a\":nul,\"b\":1}",
        "{\"a\":nulll}",
        "{\"a\":nullnull}",
        "{\"a\":truE}",
        "{\"a\":-}",
        "{\"a\":--1}",
        "{\"a\":+1}",
        "{\"a\":.5}",
        "{\"a\":-Infinit}",
        "{\"a\":-NaN}",
        "{\"a\":inf}",
        "{\"a\":0x10}",
        "{\"a\":1_000}",
        "{\"a\":1true}",
        "{\"a\":x,\"b\":\"model\",\"nvidia/x\":1}",
        "{\"a\":1\u{a0}}",
        "{\"a\":\0}",
        "{\"a\":1\0}",
        "{\"a\":1\x0c}",
        "{\"a\"\0:1}",
        "{\"a\":\u{feff}1}",
    ] {
        assert_eq!(refused(object.as_bytes()), Unreadable::Syntax, "{object}");
        assert_eq!(refused(format!("{{\"x\":[{object}]}}").as_bytes()), Unreadable::Syntax, "{object} nested");
    }
}

#[test]
fn every_beginning_of_a_document_is_truncated() {
    let body = br#"{"a":[1,{"b":"c\u0041"},null],"model":"m\/\ud83d\ude00","z":-1.5e+3}"#;
    for end in 1..body.len() {
        assert_eq!(refused(&body[..end]), Unreadable::Truncated, "{}", body[..end].escape_ascii());
    }
    assert_eq!(found(body), ["m/\u{1f600}"]);
}

#[test]
fn labels_are_distinguished() {
    let labels = [
        Unreadable::Empty,
        Unreadable::NotJson,
        Unreadable::Syntax,
        Unreadable::ModelNotString,
        Unreadable::ModelUnreadable,
        Unreadable::ModelTooLong,
        Unreadable::TooDeep,
        Unreadable::Encoding,
        Unreadable::TrailingData,
        Unreadable::Truncated,
    ]
    .map(Unreadable::label);
    for (at, label) in labels.iter().enumerate() {
        assert!(label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{label}");
        assert!(!labels[..at].contains(label), "{label}");
    }
}
