//! Who gets an answer, and who does not.

use super::*;
use nimgate_config::Config;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const TOKEN: &str = "0123456789abcdef";

fn console(token: Option<&str>) -> Console {
    let config = Config::parse(br#"{"console": {"hosts": ["ops.example"]}}"#).unwrap();
    Console::new(config.console.unwrap(), token.map(str::to_owned))
}

fn get(path: &[u8]) -> ConsoleRequest<'_> {
    ConsoleRequest { method: b"GET", path, authority: b"127.0.0.1:9190", ..ConsoleRequest::default() }
}

fn post() -> ConsoleRequest<'static> {
    ConsoleRequest {
        method: b"POST",
        content_type: Some(b"application/json"),
        authorization: Some(b"Bearer 0123456789abcdef"),
        ..get(b"/config")
    }
}

fn status(asked: Asked) -> u16 {
    match asked {
        Asked::Answer(reply) | Asked::Intrusion(reply) => reply.status,
        Asked::Ready | Asked::Status | Asked::Events | Asked::Change => 0,
    }
}

#[test]
fn paths_lead_where_they_should() {
    let console = console(None);
    assert_eq!(console.at_head(&get(b"/status?x=1")), Asked::Status);
    assert_eq!(console.at_head(&get(b"/events")), Asked::Events);
    assert_eq!(console.at_head(&get(b"/health/ready")), Asked::Ready);
    for path in [&b"/"[..], b"/app.js", b"/app.css", b"/icon.svg", b"/health"] {
        assert_eq!(status(console.at_head(&get(path))), 200);
        assert_eq!(status(console.at_head(&ConsoleRequest { method: b"HEAD", ..get(path) })), 200);
    }
    for path in [&b""[..], b"/status/", b"/STATUS", b"//status", b"/..", b"/%73tatus", b"*"] {
        assert_eq!(status(console.at_head(&get(path))), 404);
    }
}

#[test]
fn without_a_token_nothing_can_be_changed() {
    assert_eq!(status(console(None).at_head(&post())), 404);
    assert_eq!(console(Some(TOKEN)).at_head(&post()), Asked::Change);
}

#[test]
fn a_change_needs_the_token_whole() {
    let console = console(Some(TOKEN));
    for sent in
        ["", "Bearer", "Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdef0", "Basic 0123456789abcdef"]
    {
        let head = ConsoleRequest { authorization: Some(sent.as_bytes()), ..post() };
        assert_eq!(status(console.at_head(&head)), 401, "{sent}");
    }
    assert_eq!(status(console.at_head(&ConsoleRequest { authorization: None, ..post() })), 401);
    let head = ConsoleRequest { authorization: Some(b"bearer  0123456789abcdef "), ..post() };
    assert_eq!(console.at_head(&head), Asked::Change);
}

#[test]
fn a_change_is_json_and_nothing_else() {
    let console = console(Some(TOKEN));
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "application/json, text/plain", "application/jsonp", ""]
    {
        let head = ConsoleRequest { content_type: Some(kind.as_bytes()), ..post() };
        assert_eq!(status(console.at_head(&head)), 415, "{kind}");
    }
    assert_eq!(status(console.at_head(&ConsoleRequest { content_type: None, ..post() })), 415);
    assert_eq!(status(console.at_head(&ConsoleRequest { content_encoding: Some(b"gzip"), ..post() })), 415);
    assert_eq!(status(console.at_head(&ConsoleRequest { content_length: Some(b"16385"), ..post() })), 413);
    let head = ConsoleRequest { content_type: Some(b"Application/JSON; charset=UTF-8"), ..post() };
    assert_eq!(console.at_head(&head), Asked::Change);
}

#[test]
fn reading_changes_nothing_and_changing_reads_nothing() {
    let console = console(Some(TOKEN));
    for method in [&b"GET"[..], b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"post"] {
        let Asked::Answer(reply) = console.at_head(&ConsoleRequest { method, ..post() }) else { panic!() };
        assert_eq!(reply.status, 405);
        assert!(reply.headers.contains(&("allow", "POST".into())));
    }
    let Asked::Answer(reply) = console.at_head(&ConsoleRequest { method: b"POST", ..get(b"/status") }) else {
        panic!()
    };
    assert!(reply.status == 405 && reply.headers.contains(&("allow", "GET, HEAD".into())));
}

#[test]
fn a_page_from_elsewhere_changes_nothing() {
    let console = console(Some(TOKEN));
    for origin in ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:9191", "file://127.0.0.1:9190"]
    {
        let head = ConsoleRequest { origin: Some(origin.as_bytes()), ..post() };
        assert_eq!(status(console.at_head(&head)), 403, "{origin}");
    }
    let head = ConsoleRequest { origin: Some(b"http://127.0.0.1:9190"), ..post() };
    assert_eq!(console.at_head(&head), Asked::Change);
}

#[test]
fn it_answers_under_no_name_that_a_page_could_own() {
    let console = console(None);
    for (authority, answers) in [
        ("127.0.0.1", true),
        ("10.1.2.3:9190", true),
        ("localhost:9190", true),
        ("LocalHost", true),
        ("[::1]:9190", true),
        ("[::1]", true),
        ("ops.example:80", true),
        ("evil.example", false),
        ("evil.example:9190", false),
        ("127.0.0.1.evil.example", false),
        ("localhost.evil.example", false),
        ("", false),
        ("[::1", false),
        ("[evil]", false),
    ] {
        let head = ConsoleRequest { authority: authority.as_bytes(), ..get(b"/health") };
        assert_eq!(status(console.at_head(&head)) == 200, answers, "{authority}");
    }
}
