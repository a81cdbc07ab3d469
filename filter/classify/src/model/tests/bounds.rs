//! Size and depth: what is bounded, and that huge documents do no harm.

use super::*;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// Scans a large document in pieces of several sizes, which must agree.
fn scan_large(body: &[u8]) -> Scan {
    let whole = scan_pieces([body]);
    for size in [1, 7, 16_384] {
        assert_eq!(scan_pieces(body.chunks(size)), whole, "in pieces of {size}");
    }
    whole
}

fn with_model(field: &[u8]) -> Vec<u8> {
    [&b"{\"x\":"[..], field, b",\"model\":\"m\"}"].concat()
}

fn nested(levels: usize) -> Vec<u8> {
    let (open, close) = (b"[{\"model\":".repeat(levels / 2), b"}]".repeat(levels / 2));
    with_model(&[&open[..], b"\"]}\"", &close].concat())
}

#[test]
fn a_model_may_be_so_long() {
    for (unit, bytes) in [("a", 1), ("\\u0061", 1), ("é", 2), ("\\u00e9", 2), ("😀", 4), ("\\ud83d\\ude00", 4)] {
        let fits = unit.repeat(MODEL_BYTES_MAX / bytes);
        let scan = scan_large(format!(r#"{{"model":"{fits}"}}"#).as_bytes());
        assert_eq!((scan.models.len(), scan.models[0].len(), scan.end), (1, MODEL_BYTES_MAX, Ok(1)), "{unit}");
        for rest in ["a", "\\u0061", "\\ud83d\\ude00 and \\q \\u \\\" more"] {
            let scan = scan_large(format!(r#"{{"model":"{fits}{rest}","Model":"m"}}"#).as_bytes());
            assert_eq!((scan.models, scan.end), (vec!["m".to_owned()], Err(Unreadable::ModelTooLong)), "{unit} {rest}");
        }
    }
}

#[test]
fn brackets_are_distinguished_so_deep() {
    let scan = scan_large(&nested(DEPTH_MAX));
    assert_eq!((scan.models, scan.end), (vec!["m".to_owned()], Ok(1)));
    for brackets in ["[}", "{]"] {
        let (open, close) = brackets.split_at(1);
        let inner = format!("{}\"a\"{}", open, close);
        let deepest = [b"[".repeat(DEPTH_MAX - 1), inner.into_bytes(), b"]".repeat(DEPTH_MAX - 1)].concat();
        assert_eq!(scan_large(&with_model(&deepest)).end, Err(Unreadable::Syntax), "{brackets}");
    }
}

#[test]
fn deeper_bodies_still_report_their_model() {
    for levels in [DEPTH_MAX + 2, 10_000, 1_000_000] {
        let scan = scan_large(&nested(levels));
        assert_eq!((scan.models, scan.end), (vec!["m".to_owned()], Err(Unreadable::TooDeep)), "{levels}");
    }
    for (deep, expected) in [
        (b"[".repeat(1_000_000), Unreadable::Truncated),
        (b"{\"a\":".repeat(1_000_000), Unreadable::Truncated),
        ([b"[".repeat(2_000), b"'".to_vec()].concat(), Unreadable::Syntax),
        ([b"[".repeat(2_000), b"]".repeat(2_001)].concat(), Unreadable::Syntax),
    ] {
        assert_eq!(scan_large(&[&b"{\"x\":"[..], &deep].concat()).end, Err(expected));
    }
    assert_eq!(scan_pieces([&b"[".repeat(1_000_000)[..]]).end, Err(Unreadable::Truncated));
}

#[test]
fn size_does_no_harm() {
    let string = [&b"\""[..], &b"x".repeat(10_000_000), b"\""].concat();
    assert_eq!(scan_pieces(with_model(&string).chunks(16_384)).models, ["m"]);
    let escapes = [&b"\""[..], &br"\\\u0041\".repeat(100_000), b"\"\""].concat();
    assert_eq!(scan_large(&with_model(&escapes)).models, ["m"]);
    assert_eq!(scan_large(&with_model(&b"9".repeat(5_000))).models, ["m"]);
    let numbers = (0..100_000).map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
    assert_eq!(scan_large(&with_model(format!("[{numbers}]").as_bytes())).models, ["m"]);
    let keys: String = (0..100_000).map(|number| format!("\"k{number}\":{number},")).collect();
    assert_eq!(scan_large(format!("{{{keys}\"model\":\"m\"}}").as_bytes()).models, ["m"]);
    let key = format!("{{\"model{}\":1,\"model\":\"m\"}}", "l".repeat(1_000_000));
    assert_eq!(scan_large(key.as_bytes()).models, ["m"]);
    let models = format!("{{{}\"model\":\"n\"}}", "\"model\":\"m\",".repeat(100_000));
    assert_eq!(scan_large(models.as_bytes()).end, Ok(100_001));
    let blank = [b" ".repeat(1_000_000), b"{\"model\":\"m\"}".to_vec(), b"\n".repeat(1_000_000)].concat();
    assert_eq!(scan_large(&blank).models, ["m"]);
}

#[test]
fn a_scanner_takes_little_room() {
    assert!(size_of::<Scanner>() <= 512, "{}", size_of::<Scanner>());
}
