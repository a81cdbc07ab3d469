//! From headers and body to a decision, rule by rule.

use super::*;
use nimgate_config::Config;
use std::io::Write;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn config(json: &str) -> Config {
    Config::parse(json.as_bytes()).unwrap()
}

fn json_head() -> RequestHead<'static> {
    RequestHead {
        path: b"/v1/chat/completions",
        authority: b"localhost:10000",
        content_type: Some(b"application/json"),
        ..RequestHead::default()
    }
}

/// The decision on a whole request; early says that the body was let go before its end.
fn classify(config: &Config, head: &RequestHead<'_>, body: &[u8]) -> (Classified, bool) {
    match at_head(config, head) {
        AtHead::Decided(classified) => (classified, true),
        AtHead::Read(mut reader) => {
            if reader.feed(config, body) {
                (Classified::certain(Decision::Pass), true)
            } else {
                (reader.finish(config), false)
            }
        }
    }
}

fn decision(config: &Config, head: &RequestHead<'_>, body: &str) -> Decision {
    classify(config, head, body.as_bytes()).0.decision
}

#[test]
fn by_model() {
    let config = config("");
    for (body, expected) in [
        (r#"{"model": "nvidia/llama", "messages": []}"#, Decision::Meter(0)),
        (r#"{"model": "NVIDIA_NIM/meta/x"}"#, Decision::Meter(0)),
        (r#"{"model": "gpt-4"}"#, Decision::Pass),
        (r#"{"messages": [{"model": "nvidia/x"}]}"#, Decision::Pass),
        (r#"{"model": "gpt-4", "Model": "nvidia/x"}"#, Decision::Meter(0)),
        (r#"{"model": "nvidia/x", "model": null}"#, Decision::Meter(0)),
    ] {
        assert_eq!(decision(&config, &json_head(), body), expected, "{body}");
    }
}

#[test]
fn what_can_not_be_read_follows_the_policy() {
    for (policy, expected) in [("meter", Decision::MeterUnrecognised(0)), ("pass", Decision::Pass)] {
        let config = config(&format!(r#"{{"on_unclassifiable": "{policy}"}}"#));
        for body in [
            r#"{"model": "#,
            "[1",
            r#"["x"] {"model": "nvidia/x"}"#,
            r#"{"model": 7, "model": "\ud800"}"#,
            r#"{"a": 1} x"#,
            "nonsense",
            "-",
            "\"x",
        ] {
            let (classified, _) = classify(&config, &json_head(), body.as_bytes());
            assert_eq!(classified.decision, expected, "{policy} {body}");
            assert!(classified.unclassifiable.is_some(), "{policy} {body}");
        }
    }
    let reject = config(r#"{"on_unclassifiable": "reject"}"#);
    assert!(matches!(decision(&reject, &json_head(), "[1"), Decision::Reject(Unclassifiable::Body(_))));
}

#[test]
fn json_that_was_read_and_names_no_model_is_somebody_elses() {
    for policy in ["meter", "reject", "pass"] {
        let config = config(&format!(r#"{{"on_unclassifiable": "{policy}"}}"#));
        for body in [
            "[1]",
            r#"[{"model": "nvidia/x"}, {"model": ["nvidia/x"]}]"#,
            r#"[{"jsonrpc": "2.0", "id": 1, "method": "model"}] "#,
            "[]",
            "7",
            "-1.5e3 ",
            "\"nvidia/x\"",
            " null",
            "{}",
            r#"{"model": 7}"#,
            r#"{"model": null, "messages": []}"#,
            r#"{"model": {"model": "nvidia/x"}}"#,
        ] {
            let (classified, _) = classify(&config, &json_head(), body.as_bytes());
            assert_eq!((classified.decision, classified.unclassifiable.is_some()), (Decision::Pass, false), "{body}");
        }
    }
}

#[test]
fn a_broken_body_with_a_metered_model_is_never_passed() {
    for (policy, body, rejected) in [
        ("meter", r#"{"model": "nvidia/x"} x"#, false),
        ("pass", r#"{"model": "nvidia/x"} x"#, false),
        ("reject", r#"{"model": "nvidia/x"} x"#, true),
        ("reject", r#"{"model": "nvidia/x""#, true),
        ("reject", r#"{"model": "nvidia/x", "model": null}"#, false),
    ] {
        let config = config(&format!(r#"{{"on_unclassifiable": "{policy}"}}"#));
        let decision = decision(&config, &json_head(), body);
        assert_eq!(matches!(decision, Decision::Reject(_)), rejected, "{policy} {body}");
        assert!(rejected || decision == Decision::Meter(0), "{policy} {body}");
    }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn deflate(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn gzip_and_deflate_are_decoded() {
    let config = config("");
    let nvidia = format!(r#"{{"prompt": "{}", "model": "nvidia/x"}}"#, "words ".repeat(20_000));
    let others = nvidia.replace("nvidia/x", "gpt-4o");
    for (coding, pack) in [
        (&b"gzip"[..], gzip as fn(&[u8]) -> Vec<u8>),
        (b"x-gzip", gzip),
        (b"GZIP", gzip),
        (b"identity, gzip", gzip),
        (b"deflate", deflate),
    ] {
        for content_type in [None, Some(&b"application/json"[..])] {
            let head = RequestHead { content_encoding: Some(coding), content_type, ..json_head() };
            for (body, expected) in
                [(nvidia.as_bytes(), Decision::Meter(0)), (others.as_bytes(), Decision::Pass), (b"[1]", Decision::Pass)]
            {
                let packed = pack(body);
                let (classified, _) = classify(&config, &head, &packed);
                assert_eq!((classified.decision, classified.unclassifiable), (expected, None));
                let AtHead::Read(mut reader) = at_head(&config, &head) else { panic!("it is read") };
                packed.chunks(7).for_each(|piece| {
                    reader.feed(&config, piece);
                });
                assert_eq!(reader.finish(&config).decision, expected, "in pieces");
            }
        }
    }
    let two = [gzip(br#"{"model": "#), gzip(br#""nvidia/x"}"#)].concat();
    let head = RequestHead { content_encoding: Some(b"gzip"), ..json_head() };
    assert_eq!(classify(&config, &head, &two).0.decision, Decision::Meter(0), "in two members");
}

#[test]
fn what_can_not_be_decoded_is_unreadable() {
    let config = config("");
    let body = gzip(br#"{"model": "gpt-4o"}"#);
    let mut damaged = body.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let bomb = gzip(&[b"{\"a\": \"".as_slice(), &vec![b'x'; 17 << 20], b"\"}"].concat());
    for (coding, sent) in [
        (&b"gzip"[..], &body[..body.len() - 1]),
        (b"gzip", &damaged),
        (b"gzip", br#"{"model": "gpt-4o"}"#),
        (b"gzip", &[&body[..], b"{}"].concat()),
        (b"deflate", &body),
        (b"gzip, gzip", &body),
        (b"br", &body),
        (b"zstd", &body),
        (b"gzip", &bomb),
    ] {
        let head = RequestHead { content_encoding: Some(coding), ..json_head() };
        let (classified, _) = classify(&config, &head, sent);
        assert_eq!(
            (classified.decision, classified.unclassifiable),
            (Decision::MeterUnrecognised(0), Some(Unclassifiable::Compressed)),
            "{} {}",
            coding.escape_ascii(),
            sent.len()
        );
    }
}

/// What a client sends may be damaged anywhere and come in any pieces: it never ends the filter, and the pieces make no
/// difference.
#[test]
fn damaged_compressed_bodies_are_decided_alike_in_any_pieces() {
    let config = config("");
    let text = format!(r#"{{"prompt": "{}", "model": "nvidia/x"}}"#, "some words ".repeat(300));
    let mut random = 1u64;
    let mut draw = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    for round in 0..2_000 {
        let (coding, mut body) = if round % 2 == 0 {
            (&b"gzip"[..], gzip(text.as_bytes()))
        } else {
            (&b"deflate"[..], deflate(text.as_bytes()))
        };
        for _ in 0..draw(4) {
            let at = draw(body.len());
            body[at] = draw(256) as u8;
        }
        body.truncate(body.len() - draw(2) * draw(body.len()));
        let head = RequestHead { content_encoding: Some(coding), ..json_head() };
        let whole = classify(&config, &head, &body).0.decision;
        let AtHead::Read(mut reader) = at_head(&config, &head) else { panic!("it is read") };
        let size = 1 + draw(200);
        let passes = body.chunks(size).filter(|piece| reader.feed(&config, piece)).count();
        assert_eq!((passes, reader.finish(&config).decision), (0, whole), "round {round} in pieces of {size}");
    }
}

#[test]
fn compressed_bodies_that_are_not_decoded_follow_the_policy() {
    let head = RequestHead { content_encoding: Some(b"br"), ..json_head() };
    let meter = config("");
    let (classified, early) = classify(&meter, &head, b"\x1f\x8b");
    assert_eq!(
        (classified.decision, early),
        (Decision::MeterUnrecognised(0), false),
        "metered, and only when complete"
    );
    assert_eq!(classified.unclassifiable, Some(Unclassifiable::Compressed));
    let reject = config(r#"{"on_unclassifiable": "reject"}"#);
    assert_eq!(decision(&reject, &head, ""), Decision::Reject(Unclassifiable::Compressed));
    // Pictures are compressed by nature, and no upstream takes one for a chat.
    for media in [&b"image/svg+xml"[..], b"Audio/wav", b"video/mp4; a=b", b"font/woff2"] {
        let head = RequestHead { content_type: Some(media), ..head };
        assert_eq!(decision(&meter, &head, "\u{1f}\u{8b}"), Decision::Pass);
    }
    for harmless in [&b"identity"[..], b"", b" Identity , identity", b"UTF-8", b"none"] {
        let head = RequestHead { content_encoding: Some(harmless), ..json_head() };
        assert_eq!(decision(&meter, &head, r#"{"model": "gpt"}"#), Decision::Pass);
    }
}

#[test]
fn the_content_type_decides_only_what_it_can() {
    let config = config("");
    let with = |content_type: Option<&'static [u8]>| RequestHead { content_type, ..json_head() };
    let nvidia = r#" {"model": "nvidia/x"}"#;
    for content_type in
        [None, Some(&b"text/plain"[..]), Some(b"application/x-www-form-urlencoded"), Some(b"text/xjson")]
    {
        assert_eq!(decision(&config, &with(content_type), nvidia), Decision::Meter(0));
        assert_eq!(decision(&config, &with(content_type), "a=b"), Decision::Pass);
    }
    for json in
        [&b"application/problem+json"[..], b"text/json", b"Application/JSON; charset=utf-8", b"application/x-json"]
    {
        assert_eq!(decision(&config, &with(Some(json)), nvidia), Decision::Meter(0));
        assert_eq!(decision(&config, &with(Some(json)), "a=b"), Decision::MeterUnrecognised(0));
    }
    for content_type in [
        &b"multipart/form-data; boundary=x"[..],
        b"Application/Octet-Stream",
        b"application/grpc",
        b"application/grpc+proto",
        b"application/grpc-web-text",
        b"application/x-protobuf",
        b"application/vnd.example+proto",
        b"application/x-ndjson",
        b"application/jsonl; charset=utf-8",
        b"application/json-patch+json",
        b"application/graphql",
        b"application/x-git-upload-pack-request",
        b"image/png",
        b"image/svg+json",
    ] {
        for coding in [None, Some(&b"gzip"[..]), Some(b"made-up")] {
            let head = RequestHead { content_encoding: coding, ..with(Some(content_type)) };
            assert_eq!(decision(&config, &head, nvidia), Decision::Pass, "{}", content_type.escape_ascii());
        }
    }
    // A list of types proves nothing.
    assert_eq!(decision(&config, &with(Some(b"multipart/form-data,application/json")), nvidia), Decision::Meter(0));
}

#[test]
fn grpc_in_json_is_read_behind_its_prefix() {
    let config = config("");
    for content_type in [&b"application/grpc+json"[..], b"application/grpc-web+json; a=b"] {
        let head = RequestHead { content_type: Some(content_type), ..json_head() };
        for (model, expected) in [("nvidia/x", Decision::Meter(0)), ("gpt", Decision::Pass)] {
            let body = format!("\0\0\0\0\u{16}{{\"model\": \"{model}\"}}");
            assert_eq!(decision(&config, &head, &body), expected);
            let AtHead::Read(mut reader) = at_head(&config, &head) else { panic!("it is read") };
            let passes = body.bytes().filter(|byte| reader.feed(&config, &[*byte])).count();
            assert_eq!(passes > 0, expected == Decision::Pass, "without waiting for the conversation's end");
            assert_eq!(reader.finish(&config).decision, expected, "in single bytes");
        }
    }
}

#[test]
fn a_body_that_is_no_json_is_let_go_at_its_first_bytes() {
    let head = RequestHead { content_type: Some(b"audio/wav"), ..json_head() };
    assert!(classify(&config(""), &head, b"RIFF....").1);
}

#[test]
fn what_bounds_a_body_decides_whether_it_is_read() {
    let config = config("");
    let json = br#"{"model":"nvidia/a"}"#;
    let length = json.len().to_string();
    let (metered, unread) = (Some(Decision::Meter(0)), Some(Decision::MeterUnrecognised(0)));
    // Method, whether it upgrades, its content length, and what its headers alone decide.
    for (method, upgrades, content_length, at_once) in [
        // WebSockets over HTTP/1.1, for which Envoy writes a length of 0, and over HTTP/2, for which it does not.
        (&b"GET"[..], true, Some("0"), Some(Decision::Pass)),
        (b"GET", true, None, Some(Decision::Pass)),
        (b"CONNECT", false, None, Some(Decision::Pass)),
        (b"POST", true, Some("0"), Some(Decision::Pass)),
        (b"POST", true, Some(&*length), None),
        (b"GET", true, Some(&*length), None),
        (b"POST", false, None, None),
        (b"POST", true, None, unread),
        (b"POST", true, Some("many"), unread),
    ] {
        let content_length = content_length.map(str::as_bytes);
        let head = RequestHead { method, upgrades, content_length, content_type: None, ..json_head() };
        match at_head(&config, &head) {
            AtHead::Decided(classified) => assert_eq!(Some(classified.decision), at_once, "{head:?}"),
            AtHead::Read(mut reader) => {
                assert_eq!(at_once, None, "{head:?}");
                let (first, rest) = json.split_at(5);
                assert!(!reader.feed(&config, first) && !reader.is_complete());
                // What follows the body belongs to the conversation.
                assert!(!reader.feed(&config, &[rest, b"}{"].concat()) || !upgrades);
                assert_eq!(reader.is_complete(), upgrades);
                assert!(!upgrades || Some(reader.finish(&config).decision) == metered);
            }
        }
    }
}

#[test]
fn the_first_message_of_a_grpc_conversation_decides() {
    let config = config("");
    let head = RequestHead { content_type: Some(b"application/grpc+json"), ..json_head() };
    let json = br#"{"model":"nvidia/a"}"#;
    let size = u8::try_from(json.len()).unwrap();
    for (flag, expected) in [(0u8, Decision::Meter(0)), (1, Decision::MeterUnrecognised(0))] {
        let message = [&[flag, 0, 0, 0, size], &json[..]].concat();
        for step in [1, 3, message.len()] {
            let AtHead::Read(mut reader) = at_head(&config, &head) else { panic!("it is read") };
            for (at, piece) in message.chunks(step).enumerate() {
                assert!(!reader.is_complete(), "before piece {at}");
                reader.feed(&config, piece);
            }
            assert!(reader.is_complete());
            assert_eq!(reader.finish(&config).decision, expected);
        }
    }
}

#[test]
fn only_a_body_that_comes_before_any_answer_is_waited_for() {
    let upload = RequestHead { content_type: None, ..json_head() };
    assert!(body_comes_first(&upload));
    for conversation in [
        RequestHead { ends_here: true, ..upload },
        RequestHead { expects_word: true, ..upload },
        RequestHead { upgrades: true, ..upload },
        RequestHead { method: b"CONNECT", ..upload },
        RequestHead { content_type: Some(b"application/grpc-web"), ..upload },
    ] {
        assert!(!body_comes_first(&conversation), "{conversation:?}");
    }
}

#[test]
fn no_body_passes() {
    let head = RequestHead { ends_here: true, ..json_head() };
    assert_eq!(decision(&config(""), &head, ""), Decision::Pass);
}

#[test]
fn by_host_and_cluster_without_reading() {
    let config = config(
        r#"{"limits": [{"name": "h", "models": [], "hosts": ["*.nvidia.com", "[::1]", "port.test:443"]},
                       {"name": "c", "models": [], "clusters": ["nim"]}]}"#,
    );
    for (authority, cluster, expected) in [
        (&b"integrate.api.nvidia.com"[..], None, Decision::Meter(0)),
        (b"Integrate.API.nvidia.com.:443", None, Decision::Meter(0)),
        (b"port.test", None, Decision::Meter(0)),
        (b"port.test.", None, Decision::Meter(0)),
        (b"port.test.:443", None, Decision::Meter(0)),
        (b"port.test:444", None, Decision::Pass),
        (b"[::1]:80", None, Decision::Meter(0)),
        (b"nvidia.com.evil.org", None, Decision::Pass),
        (b"integrate.api.nvidia.com:x", None, Decision::Pass),
        (b"a", Some(&b"nim"[..]), Decision::Meter(1)),
        (b"a", Some(b"other"), Decision::Pass),
    ] {
        let head = RequestHead { authority, cluster, ..json_head() };
        let (classified, early) = classify(&config, &head, b"not even json");
        assert_eq!((classified.decision, early), (expected, true));
    }
}

#[test]
fn methods_narrow_and_preflights_cost_nothing() {
    let config = config(
        r#"{"limits": [{"name": "post", "methods": ["post"], "paths": ["/v1/*"], "hosts": ["h"]},
                       {"name": "host", "models": [], "hosts": ["h", "g"], "paths": ["/v2/*"]},
                       {"name": "all", "models": [], "hosts": ["all"], "methods": ["OPTIONS", "GET"]}]}"#,
    );
    for (method, authority, path, expected) in [
        (&b"POST"[..], &b"h"[..], &b"/v1/chat"[..], Decision::Meter(0)),
        (b"GET", b"h", b"/v1/models", Decision::Pass),
        (b"GET", b"h", b"/v2/models", Decision::Meter(1)),
        (b"PATCH", b"g", b"/v2/a", Decision::Meter(1)),
        (b"OPTIONS", b"h", b"/v2/a", Decision::Pass),
        (b"HEAD", b"h", b"/v2/a", Decision::Pass),
        (b"OPTIONS", b"all", b"/", Decision::Meter(2)),
        (b"POST", b"all", b"/", Decision::Pass),
    ] {
        let head = RequestHead { method, authority, path, ends_here: true, ..json_head() };
        assert_eq!(decision(&config, &head, ""), expected, "{} {}", method.escape_ascii(), path.escape_ascii());
    }
    let ours = r#"{"model": "nvidia/x"}"#;
    for (method, expected) in [(&b"POST"[..], Decision::Meter(0)), (b"PUT", Decision::Pass)] {
        let head = RequestHead { method, path: b"/v1/a", ..json_head() };
        assert_eq!(decision(&config, &head, ours), expected);
    }
}

/// A header of the client's may have matched a route, so which cluster it would be without is not known.
#[test]
fn a_route_that_the_client_may_have_chosen_is_not_believed() {
    let config = config(
        r#"{"limits": [{"name": "host", "models": [], "hosts": ["h"]}, {"name": "model", "models": ["x/*"]},
                       {"name": "cluster", "models": [], "clusters": ["nim"]}, {"name": "late", "models": ["y/*"]}]}"#,
    );
    for (authority, body, expected) in [
        (&b"a"[..], r#"{"model": "gpt"}"#, Decision::MeterUnrecognised(2)),
        (b"a", r#"{"model": "y/1"}"#, Decision::MeterUnrecognised(2)),
        (b"a", r#"{"model": "x/1"}"#, Decision::Meter(1)),
        (b"h", r#"{"model": "gpt"}"#, Decision::Meter(0)),
    ] {
        for cluster in [None, Some(&b"nim"[..]), Some(b"unlimited")] {
            let head = RequestHead { authority, cluster, may_have_chosen_route: true, ..json_head() };
            assert_eq!(decision(&config, &head, body), expected, "{body}");
        }
    }
    let without_clusters = super::Config::parse(b"").unwrap();
    let head = RequestHead { may_have_chosen_route: true, ..json_head() };
    assert_eq!(decision(&without_clusters, &head, r#"{"model": "gpt"}"#), Decision::Pass);
}

#[test]
fn the_first_match_wins_across_kinds() {
    let config = config(
        r#"{"limits": [{"name": "big", "models": ["*/big"]}, {"name": "host", "models": [], "hosts": ["h"]},
                       {"name": "rest", "models": ["*"]}]}"#,
    );
    let host = RequestHead { authority: b"h", ..json_head() };
    assert_eq!(decision(&config, &host, r#"{"model": "x/big"}"#), Decision::Meter(0));
    assert_eq!(decision(&config, &host, r#"{"model": "x/small"}"#), Decision::Meter(1));
    assert_eq!(decision(&config, &host, "broken"), Decision::Meter(1));
    assert_eq!(decision(&config, &json_head(), r#"{"model": "x/small"}"#), Decision::Meter(2));
    assert_eq!(decision(&config, &json_head(), r#"{"model": "y", "model": "x/big"}"#), Decision::Meter(0));
}

#[test]
fn paths_narrow_and_can_not_be_dodged() {
    let config = config(r#"{"limits": [{"name": "chat", "models": ["*"], "paths": ["/v1/chat/*"]}]}"#);
    for (path, expected) in [
        ("/v1/chat/completions", Decision::Meter(0)),
        ("/v1//chat/%63ompletions?x", Decision::Meter(0)),
        ("/v1/embeddings", Decision::Pass),
    ] {
        let head = RequestHead { path: path.as_bytes(), ..json_head() };
        assert_eq!(decision(&config, &head, r#"{"model": "m"}"#), expected, "{path}");
    }
}

#[test]
fn a_limit_without_paths_takes_all_of_them() {
    let config =
        config(r#"{"limits": [{"name": "chat", "models": ["*"], "paths": ["/v1/chat/*"]}, {"name": "rest"}]}"#);
    let head = RequestHead { path: b"/v1/embeddings", ..json_head() };
    assert_eq!(decision(&config, &head, r#"{"model": "nvidia/m"}"#), Decision::Meter(1));
}

#[test]
fn the_model_to_name_is_the_one_that_counted() {
    let config = config("");
    for (body, expected) in [
        (r#"{"model": "nvidia/a"}"#, Some("nvidia/a")),
        (r#"{"model": "gpt", "model": "nvidia/b", "model": "nvidia/c"}"#, Some("nvidia/b")),
        (r#"{"model": "gpt", "model": "o1"}"#, Some("gpt")),
        ("{}", None),
    ] {
        let AtHead::Read(mut reader) = at_head(&config, &json_head()) else { panic!("a body to read") };
        reader.feed(&config, body.as_bytes());
        assert_eq!(reader.model(), expected, "{body}");
    }
}

#[test]
fn what_is_nothing_or_someone_elses_passes_at_its_end_too() {
    let config = config("");
    assert_eq!(classify(&config, &json_head(), b"").0, Classified::certain(Decision::Pass));
    for body in ["a=b", "[1]"] {
        let head = RequestHead { content_type: None, ..json_head() };
        let AtHead::Read(mut reader) = at_head(&config, &head) else { panic!("a body to read") };
        reader.feed(&config, body.as_bytes());
        assert_eq!(reader.finish(&config), Classified::certain(Decision::Pass), "{body}");
    }
}

#[test]
fn each_reason_has_its_word() {
    for (reason, word) in [
        (Unclassifiable::Compressed, "compressed"),
        (Unclassifiable::BodyHidden, "body_hidden"),
        (Unclassifiable::HeadersHidden, "headers_hidden"),
        (Unclassifiable::Body(Unreadable::NotJson), Unreadable::NotJson.label()),
    ] {
        assert_eq!(reason.label(), word);
    }
}

#[test]
fn duplicates_are_distinguished() {
    let config = config("");
    for (body, expected) in [
        (r#"{"model": "a"}"#, Occurrence::Single),
        (r#"{"model": "a", "mod\u0065l": "\u0061"}"#, Occurrence::Duplicate),
        (r#"{"model": "a", "MODEL": "b"}"#, Occurrence::Ambiguous),
        (r#"{"model": "a", "model": "b", "model": "a"}"#, Occurrence::Ambiguous),
    ] {
        let (classified, _) = classify(&config, &json_head(), body.as_bytes());
        assert_eq!(classified.occurrence, expected, "{body}");
    }
}

#[test]
fn a_request_without_readable_headers_is_never_passed() {
    let hidden = Unclassifiable::HeadersHidden;
    let metered = Decision::MeterUnrecognised(0);
    for (policy, expected) in [("meter", metered), ("reject", Decision::Reject(hidden)), ("pass", metered)] {
        let config = config(&format!(r#"{{"on_unclassifiable": "{policy}"}}"#));
        let classified = without_head(&config);
        assert_eq!((classified.decision, classified.unclassifiable), (expected, Some(hidden)), "{policy}");
    }
}

#[test]
fn a_hidden_or_lost_body_follows_the_policy() {
    let config = config("");
    let AtHead::Read(mut reader) = at_head(&config, &json_head()) else { panic!("a body to read") };
    let hidden = reader.give_up(&config);
    assert_eq!(
        (hidden.decision, hidden.unclassifiable),
        (Decision::MeterUnrecognised(0), Some(Unclassifiable::BodyHidden))
    );
    reader.feed(&config, br#"{"model": "gpt"}"#);
    reader.spoil();
    assert_eq!(reader.finish(&config).decision, Decision::MeterUnrecognised(0));
}
