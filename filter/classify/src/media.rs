//! What a request's content type and coding say about its body.

/// What a content type says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The body is one JSON document.
    Json,
    /// It is JSON behind the prefix of a gRPC message.
    GrpcJson,
    /// It is something else by nature, and its bytes are not even looked at.
    NeverJson,
    /// Nothing, or nothing reliable: the bytes decide.
    Unsaid,
}

/// What this content type says. Envoy joins repeated headers with commas, and a list proves nothing but that some parser
/// may take the body for JSON.
pub(crate) fn kind(content_type: Option<&[u8]>) -> Kind {
    let Some(content_type) = content_type else { return Kind::Unsaid };
    // What nearly all clients write needs no closer look.
    if content_type == b"application/json" {
        return Kind::Json;
    }
    let is_list = content_type.contains(&b',');
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let lower = essence.to_ascii_lowercase();
    let is = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| lower.starts_with(prefix));
    let is_grpc = is(&[b"application/grpc"]);
    match (is_grpc, lower.ends_with(b"+json")) {
        _ if !is_list && (NEVER_JSON.contains(&lower.as_slice()) || is(NEVER_JSON_FAMILIES)) => Kind::NeverJson,
        (true, true) => Kind::GrpcJson,
        (true, false) if !is_list => Kind::NeverJson,
        (_, true) => Kind::Json,
        _ if lower.ends_with(b"/json") || lower.ends_with(b"/x-json") => Kind::Json,
        _ if !is_list && lower.ends_with(b"+proto") => Kind::NeverJson,
        _ => Kind::Unsaid,
    }
}

/// The codings that were applied to the body and must be decoded before it can be read. Names of character sets are no
/// codings, though some clients write them here.
pub(crate) fn codings(content_encoding: &[u8]) -> impl Iterator<Item = &[u8]> {
    let none = [&b"identity"[..], b"none", b"utf-8", b"utf8", b"us-ascii"];
    content_encoding
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(move |coding| !coding.is_empty() && !none.iter().any(|name| coding.eq_ignore_ascii_case(name)))
}

/// Types of which no parser reads a JSON object: binary ones, and those made of JSON documents of another shape.
const NEVER_JSON: &[&[u8]] = &[
    b"application/octet-stream",
    b"application/protobuf",
    b"application/x-protobuf",
    b"application/vnd.google.protobuf",
    b"application/x-ndjson",
    b"application/ndjson",
    b"application/jsonl",
    b"application/jsonlines",
    b"application/x-jsonlines",
    b"application/json-seq",
    b"application/json-patch+json",
    b"application/graphql",
    b"application/pdf",
    b"application/zip",
    b"application/gzip",
    b"application/x-tar",
    b"application/wasm",
    b"application/cbor",
    b"application/msgpack",
    b"application/x-msgpack",
    b"application/vnd.msgpack",
    b"text/event-stream",
];

/// The same for whole families of types.
const NEVER_JSON_FAMILIES: &[&[u8]] =
    &[b"multipart/", b"image/", b"audio/", b"video/", b"font/", b"application/x-git-", b"application/vnd.apache.arrow"];
