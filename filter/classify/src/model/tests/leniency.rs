//! What is tolerated because an upstream tolerates it, what an upstream would read from broken text, and the encodings.

use super::*;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

#[test]
fn other_fields_may_hold_what_upstreams_tolerate() {
    for field in [
        &b"NaN"[..],
        b"-Infinity",
        b"1e999",
        b"-0.0E-0",
        b"0123",
        b"\"\xff\xfe\"",
        b"\"\xe2\"",
        b"\"\xed\xa0\x80\"",
        b"\"tab\there\nand\0there\"",
        b"[NaN, \"\xc3\"]",
        br#""\ud800""#,
        br#""\udc00\ud800""#,
        br#""\q""#,
        br#""\u""#,
        br#""\u00""#,
        br#""\uzzzz""#,
        br#""\u\"\u0\"\u00\\""#,
        br#""\",\"model\":\"n""#,
    ] {
        assert_eq!(found(&[&b"{\"x\":"[..], field, b",\"model\":\"m\"}"].concat()), ["m"]);
        assert_eq!(found(&[&b"{\"x\":[{\"y\":"[..], field, b"}],\"model\":\"m\"}"].concat()), ["m"]);
    }
}

#[test]
fn other_keys_may_hold_what_upstreams_tolerate() {
    for key in [
        &b"\xff"[..],
        b"mo\xffdel",
        b"a\tb",
        br"\ud800",
        br"\q",
        br"\u",
        br"x\uzzzz",
        br"mod\u00",
        br"mod\uzzzz",
        br"mod\u00\u0065l",
        br"model\ud800",
        br"mod\qel",
        b"mod\nel",
        br#"mod\u\""#,
    ] {
        let body = [&b"{\""[..], key, b"\":\"x\",\"model\":\"m\"}"].concat();
        assert_eq!(found(&body), ["m"], "{}", body.escape_ascii());
    }
}

/// gjson cuts names and values off at an unknown escape, a broken one or a bare control character, and reads on.
#[test]
fn a_key_that_is_model_up_to_a_fault_counts() {
    for key in [
        &br"model\q"[..],
        br"model\qrest",
        br"model\u",
        br"model\u00",
        br"model\uzzzz",
        br"MODEL\x00",
        b"\\u006dodel\trest",
        b"model\0",
        br#"model\u\""#,
    ] {
        let body = [&b"{\""[..], key, b"\":\"m\"}"].concat();
        assert_eq!(found(&body), ["m"], "{}", body.escape_ascii());
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    assert_eq!(found(b"\xef\xbb\xbf {\"model\":\"m\"}"), ["m"]);
    for body in [&b"\xef"[..], b"\xef\xbb", b"\xef\xbb{}", b"\xef{}", b"\xef\xbb\xbf\xef\xbb\xbf{}", b" \xef\xbb\xbf{}"]
    {
        assert_eq!(refused(body), Unreadable::NotJson, "{}", body.escape_ascii());
    }
}

/// The text in UTF-16 and UTF-32 in both byte orders, with and without the byte order mark.
fn wide(text: &str) -> Vec<Vec<u8>> {
    let le16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let be16: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let le32: Vec<u8> = text.chars().flat_map(|character| u32::from(character).to_le_bytes()).collect();
    let be32: Vec<u8> = text.chars().flat_map(|character| u32::from(character).to_be_bytes()).collect();
    let marks = [&b"\xff\xfe"[..], b"\xfe\xff", b"\xff\xfe\0\0", b"\0\0\xfe\xff"];
    let texts = [le16, be16, le32, be32];
    let marked = marks.iter().zip(&texts).map(|(mark, text)| [mark, &text[..]].concat()).collect::<Vec<_>>();
    [Vec::from(texts), marked].concat()
}

#[test]
fn an_object_in_another_encoding_is_reported() {
    for text in ["{\"model\":\"m\"}", " \r\n\t{\"model\":\"m\"}", " { }", "\n{}"] {
        for body in wide(text) {
            let scan = scan(&body);
            assert_eq!((scan.end, scan.looks), (Err(Unreadable::Encoding), Looks::Json), "{}", body.escape_ascii());
        }
    }
}

#[test]
fn other_text_in_another_encoding_is_other_text() {
    for body in wide("[\"x\"]").into_iter().chain(wide(" 12345")) {
        let scan = scan(&body);
        assert!(matches!(scan.end, Err(Unreadable::NotJson | Unreadable::Syntax)), "{}", body.escape_ascii());
        assert!(matches!(scan.looks, Looks::NotJson | Looks::OtherJson), "{}", body.escape_ascii());
    }
    for body in wide("Hello").into_iter().chain(wide(" \u{17b}")).chain(wide(" \u{7b7b}\u{7b7b}")) {
        assert_eq!(refused(&body), Unreadable::NotJson, "{}", body.escape_ascii());
    }
}

#[test]
fn images_sound_and_messages_are_no_json() {
    for body in [
        &b"\xff\xd8\xff\xe0\0\x10JFIF"[..],
        b"\xff\xfb\x90\x64\0\0\0\0",
        b"\0\0\0\x20ftypisom\0\0\x02\0",
        b"\0\0\0\x18ftypmp42",
        b"\0\0\0\0\x7b\x0a\x05model",
        b"\0\0\0\0\x02{}",
        b"\0asm\x01\0\0\0",
        b"\0\x01\0\0\0\x0e",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF....WAVE",
        b"OggS\0\x02",
        b"\x1f\x8b\x08\0",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"\xfe",
        b"\0\0",
        b"\n\0\0",
    ] {
        let Scan { models, end, looks } = scan(body);
        assert_eq!((models.len(), end), (0, Err(Unreadable::NotJson)), "{}", body.escape_ascii());
        let expected = if body.len() < 4 { Looks::Undecided } else { Looks::NotJson };
        assert_eq!(looks, expected, "{}", body.escape_ascii());
    }
    // A hyphen might begin a number and an `n` a word; that is no object either.
    for body in [&b"--boundary\r\n"[..], b"name=value&model=nvidia"] {
        let scan = scan(body);
        assert_eq!((scan.end, scan.looks), (Err(Unreadable::Syntax), Looks::OtherJson));
    }
}

#[test]
fn the_first_bytes_tell_what_it_looks_like() {
    for (bytes, expected) in [
        (&b""[..], Looks::Undecided),
        (b" \r\n", Looks::Undecided),
        (b"\xef\xbb\xbf", Looks::Undecided),
        (b"\xff\xfe{", Looks::Undecided),
        (b"\0\0\0", Looks::Undecided),
        (b" {", Looks::Json),
        (b"{oops", Looks::Json),
        (b"{\0", Looks::Json),
        (b"\xff\xfe{\0", Looks::Json),
        (b"name=value", Looks::OtherJson),
        (b"[", Looks::OtherJson),
        (b"12,34", Looks::OtherJson),
        (b"RIFF", Looks::NotJson),
    ] {
        assert_eq!(scan(bytes).looks, expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_zero_byte_tells_the_encoding_only_after_the_first_bracket() {
    assert_eq!(refused(b"{\0\"\0"), Unreadable::Encoding);
    assert_eq!(refused(b"{\"a\":{\0}}"), Unreadable::Syntax);
}
