//! Where the body of a request ends, as its headers say.

use super::RequestHead;

/// Where a request's body ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bound {
    /// It has none: what follows its head is a conversation.
    NoBody,
    /// With its stream.
    EndOfStream,
    /// After so many bytes, while the stream goes on as a conversation.
    Bytes(u64),
    /// Where, can't be said.
    Unknown,
}

/// What bounds the body of a request. The stream of one that upgrades its connection goes on without an end, and what an
/// upstream that doesn't care for the upgrade takes for the body is the rest of an HTTP/1.1 request: as many bytes as
/// `content-length` says, none where nothing is said (Envoy then writes `content-length: 0`), or chunks, whose
/// `transfer-encoding` Envoy has removed. A GET with chunks is the conversation of an HTTP/2 client (RFC 8441), which Envoy
/// turns into one.
pub(crate) fn bound_of_body(head: &RequestHead<'_>) -> Bound {
    if head.method == b"CONNECT" {
        return Bound::NoBody;
    }
    if !head.upgrades {
        return Bound::EndOfStream;
    }
    let length = head.content_length.map(|written| core::str::from_utf8(written).ok()?.trim().parse::<u64>().ok());
    match length {
        Some(Some(0)) => Bound::NoBody,
        Some(Some(length)) => Bound::Bytes(length),
        None if head.method == b"GET" => Bound::NoBody,
        None | Some(None) => Bound::Unknown,
    }
}

/// Whether a body of this request must begin before it can be of use to an upstream. Not so for conversations, in which the
/// upstream may speak first.
pub fn body_comes_first(head: &RequestHead<'_>) -> bool {
    let is_grpc = head.content_type.is_some_and(|value| value.trim_ascii_start().starts_with(b"application/grpc"));
    !head.ends_here && !head.expects_word && !is_grpc && bound_of_body(head) == Bound::EndOfStream
}
