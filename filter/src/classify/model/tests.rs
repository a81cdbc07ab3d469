//! The scanner, rule by rule, and each document in every way of cutting it.

use super::*;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// What a scan found, however the body was cut.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Scan {
    models: Vec<String>,
    end: Result<u32, Unreadable>,
}

fn scan_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Scan {
    let mut scanner = Scanner::new();
    let mut models = Vec::new();
    for piece in pieces {
        scanner.feed(piece, &mut |model| models.push(model.to_owned()));
    }
    Scan { models, end: scanner.finish().map(|found| found.models) }
}

/// Scans a document whole, in two pieces cut at each byte, and byte by byte; all must agree.
fn scan(body: &[u8]) -> Scan {
    let whole = scan_pieces([body]);
    for cut in 0..=body.len() {
        assert_eq!(scan_pieces([&body[..cut], &body[cut..]]), whole, "cut at {cut}");
    }
    assert_eq!(scan_pieces(body.chunks(1)), whole, "byte by byte");
    whole
}

fn found(body: &[u8]) -> Vec<String> {
    let scan = scan(body);
    assert!(scan.end.is_ok(), "{:?} {}", scan.end, String::from_utf8_lossy(body));
    scan.models
}

fn refused(body: &[u8]) -> Unreadable {
    scan(body).end.expect_err(&String::from_utf8_lossy(body))
}

#[test]
fn finds_the_model_wherever_it_stands() {
    assert_eq!(found(br#"{"model":"nvidia/x"}"#), ["nvidia/x"]);
    assert_eq!(found(br#" { "a" : [1, {"b": "c"}] , "model" : "m" , "z" : null } "#), ["m"]);
    assert_eq!(found(br#"{"a":"}\"{,","model":"m"}"#), ["m"]);
    assert!(found(b"{}").is_empty());
    assert!(found(br#"{"modelx":"a","mode":"b","":"c","models":"d"}"#).is_empty());
}

#[test]
fn nested_models_never_count() {
    assert!(found(br#"{"a":{"model":"x"},"b":[{"model":"y"}],"nvext":{"model":"z"}}"#).is_empty());
}

#[test]
fn duplicates_and_every_spelling_of_the_key_count() {
    assert_eq!(found(br#"{"model":"a","model":"b"}"#), ["a", "b"]);
    assert_eq!(found(br#"{"Model":"a","MODEL":"b","moDel":"c"}"#), ["a", "b", "c"]);
    assert_eq!(found(br#"{"mod\u0065l":"a","\u004dodel":"b","\u006D\u006f\u0064\u0065\u006c":"c"}"#), ["a", "b", "c"]);
    assert!(found(br#"{"mod\u0165l":"a","mode\\l":"b","mode\nl":"c","model\u0000":"d"}"#).is_empty());
}

#[test]
fn values_are_unescaped() {
    assert_eq!(found(br#"{"model":"nvidia\/\u006c\"\\\t"}"#), ["nvidia/l\"\\\t"]);
    assert_eq!(found(br#"{"model":"\ud83d\ude00\u00e9"}"#), ["\u{1f600}\u{e9}"]);
    assert_eq!(found("{\"model\":\"modèle\"}".as_bytes()), ["modèle"]);
    assert_eq!(found(b"{\"model\":\"a\x01b\"}"), ["a\u{1}b"], "bare control characters are tolerated");
}

#[test]
fn a_model_that_is_no_readable_string_is_said_and_others_still_count() {
    for (value, expected) in [
        ("null", Unreadable::ModelNotString),
        ("7", Unreadable::ModelNotString),
        ("[\"nvidia/x\"]", Unreadable::ModelNotString),
        ("{\"model\":\"nvidia/x\"}", Unreadable::ModelNotString),
        (r#""\ud800""#, Unreadable::ModelUnreadable),
        (r#""\ude00\ud83d""#, Unreadable::ModelUnreadable),
        (r#""\ud800\u0041""#, Unreadable::ModelUnreadable),
        (r#""\ud800x""#, Unreadable::ModelUnreadable),
        (r#""\q""#, Unreadable::ModelUnreadable),
    ] {
        let body = format!(r#"{{"model":{value},"model":"b"}}"#);
        let scan = scan(body.as_bytes());
        assert_eq!((scan.models, scan.end), (vec!["b".to_owned()], Err(expected)), "{body}");
    }
    assert_eq!(refused(b"{\"model\":\"\xff\"}"), Unreadable::ModelUnreadable);
    let long = format!(r#"{{"model":"{}"}}"#, "a".repeat(MODEL_BYTES_MAX + 1));
    assert_eq!(scan_pieces([long.as_bytes()]).end, Err(Unreadable::ModelTooLong));
    let fits = format!(r#"{{"model":"{}"}}"#, "a".repeat(MODEL_BYTES_MAX));
    assert_eq!(scan_pieces([fits.as_bytes()]).models.len(), 1);
}

#[test]
fn other_fields_may_hold_what_upstreams_tolerate() {
    for field in [
        &b"NaN"[..],
        b"-Infinity",
        b"1e999",
        b"\"\xff\xfe\"",
        b"\"\\ud800\"",
        b"\"tab\there\"",
        b"[NaN, \"\xc3\"]",
        b"\"\\q\"",
    ] {
        let body = [&b"{\"x\":"[..], field, b",\"model\":\"m\"}"].concat();
        assert_eq!(found(&body), ["m"]);
    }
}

#[test]
fn broken_escapes_in_other_keys_do_not_depend_on_the_cut() {
    assert!(found(br#"{"x\u00zz":1,"y\uq":2}"#).is_empty());
    assert!(found(br#"{"x\u":1,"\\\"":2}"#).is_empty());
}

#[test]
fn a_byte_order_mark_is_skipped() {
    assert_eq!(found(b"\xef\xbb\xbf {\"model\":\"m\"}"), ["m"]);
    assert_eq!(refused(b"\xef\xbb{}"), Unreadable::NotJson);
}

#[test]
fn other_encodings_are_told() {
    let text = r#"{"model":"m"}"#;
    let le16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let be16: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let le32: Vec<u8> = text.chars().flat_map(|c| (c as u32).to_le_bytes()).collect();
    let be32: Vec<u8> = text.chars().flat_map(|c| (c as u32).to_be_bytes()).collect();
    for body in [le16, be16, le32, be32] {
        for mark in [&b""[..], b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b"\0\0\xfe\xff"] {
            let body = [mark, &body].concat();
            assert_eq!(refused(&body), Unreadable::Encoding, "{body:02x?}");
            let mut scanner = Scanner::new();
            scanner.feed(&body, &mut |_| {});
            assert_eq!(scanner.looks_like_json(), Looks::Json);
        }
    }
}

#[test]
fn what_is_no_object_is_told() {
    for (body, expected) in [
        (&b"[1]"[..], Unreadable::NotAnObject),
        (b"\"x\"", Unreadable::NotAnObject),
        (b"-1", Unreadable::NotAnObject),
        (b"null", Unreadable::NotAnObject),
        (b"a=b", Unreadable::NotJson),
        (b"<x>", Unreadable::NotJson),
        (b"", Unreadable::Empty),
        (b" \n", Unreadable::Empty),
        (b"{} {}", Unreadable::TrailingData),
        (b"{}\0", Unreadable::Encoding),
        (b"{\"a\":1}x", Unreadable::TrailingData),
    ] {
        assert_eq!(refused(body), expected, "{}", String::from_utf8_lossy(body));
    }
}

#[test]
fn broken_structure_is_told() {
    for body in [
        &b"{,}"[..],
        b"{\"a\":1,}",
        b"{\"a\" 1}",
        b"{\"a\"::1}",
        b"{\"a\":}",
        b"{\"a\":1 2}",
        b"{\"a\":\"b\" \"c\"}",
        b"{a:1}",
        b"{'a':1}",
        b"{\"a\":1]",
        b"{\"a\":]}",
        b"{\"mod\\u00zz\":1}",
        b"{\"a\":1\"b\":2}",
        b"{/**/}",
    ] {
        assert_eq!(refused(body), Unreadable::Syntax, "{}", String::from_utf8_lossy(body));
    }
    for body in [&b"{"[..], b"{\"a", b"{\"a\":", b"{\"a\":[", b"{\"a\":\"\\", b"{\"a\":1", b"{\"model\":\"x"] {
        assert_eq!(refused(body), Unreadable::Truncated, "{}", String::from_utf8_lossy(body));
    }
}

#[test]
fn a_model_before_a_fault_was_reported() {
    let scan = scan(br#"{"model":"nvidia/x", oops"#);
    assert_eq!((scan.models, scan.end), (vec!["nvidia/x".to_owned()], Err(Unreadable::Syntax)));
}

#[test]
fn size_and_depth_do_no_harm() {
    let deep = [&b"{\"a\":"[..], &b"[".repeat(1_000_000), &b"]".repeat(1_000_000), b",\"model\":\"m\"}"].concat();
    assert_eq!(scan_pieces([&*deep]).models, ["m"]);
    assert_eq!(scan_pieces([&b"{\"a\":".repeat(1_000_000)[..]]).end, Err(Unreadable::Truncated));
    let long = [&b"{\"a\":\""[..], &b"x".repeat(10_000_000), b"\",\"model\":\"m\"}"].concat();
    assert_eq!(scan_pieces(long.chunks(16_384)).models, ["m"]);
    let digits = [&b"{\"a\":"[..], &b"9".repeat(5_000), b",\"model\":\"m\"}"].concat();
    assert_eq!(scan_pieces([&*digits]).models, ["m"]);
    let keys: String = (0..100_000).map(|n| format!("\"k{n}\":{n},")).collect();
    let many = format!("{{{keys}\"model\":\"m\"}}");
    assert_eq!(scan_pieces([many.as_bytes()]).models, ["m"]);
    let long_key = format!("{{\"model{}\":1,\"model\":\"m\"}}", "l".repeat(1_000_000));
    assert_eq!(scan_pieces([long_key.as_bytes()]).models, ["m"]);
}

#[test]
fn the_first_bytes_tell_what_it_looks_like() {
    for (bytes, expected) in [
        (&b""[..], Looks::Undecided),
        (b" \r\n", Looks::Undecided),
        (b"\xef\xbb\xbf", Looks::Undecided),
        (b" {", Looks::Json),
        (b"{oops", Looks::Json),
        (b"name=value", Looks::NotJson),
        (b"[", Looks::NotJson),
        (b"RIFF", Looks::NotJson),
    ] {
        let mut scanner = Scanner::new();
        scanner.feed(bytes, &mut |_| {});
        assert_eq!(scanner.looks_like_json(), expected, "{}", String::from_utf8_lossy(bytes));
    }
}
