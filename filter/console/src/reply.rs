//! An answer of the console, with the headers that every answer carries.

use nimgate_core::outcome::ErrorBody;
use serde::Serialize;
use std::borrow::Cow;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    pub status: u16,
    /// All headers but the length.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    pub body: Cow<'static, [u8]>,
}

impl Reply {
    /// An answer with a body of this type.
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Cow<'static, [u8]>>) -> Self {
        let mut headers = vec![("content-type", Cow::Borrowed(content_type))];
        headers.extend(EVERYWHERE.map(|(name, value)| (name, Cow::Borrowed(value))));
        Self { status, headers, body: body.into() }
    }

    pub fn json(status: u16, value: &impl Serialize) -> Self {
        Self::new(status, "application/json", json(value))
    }

    /// A refusal. `param` names the field that is wrong.
    pub fn refusal(status: u16, kind: &str, code: &str, param: Option<&str>, message: &str) -> Self {
        Self::json(status, &ErrorBody::new(kind, code, param, message))
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// JSON in which nothing can be taken for markup, wherever a browser meets it. These characters occur only inside of
/// strings, where each may be written by its number as well.
pub fn json(value: &impl Serialize) -> Vec<u8> {
    let plain = serde_json::to_vec(value).unwrap_or_default();
    let mut safe = Vec::with_capacity(plain.len());
    for byte in plain {
        match byte {
            b'<' => safe.extend_from_slice(b"\\u003c"),
            b'>' => safe.extend_from_slice(b"\\u003e"),
            b'&' => safe.extend_from_slice(b"\\u0026"),
            byte => safe.push(byte),
        }
    }
    safe
}

/// Headers of every answer. The page takes scripts and styles from the console itself and talks to nothing else; it can't
/// be framed, and nothing is kept by a browser, so that what it shows is never old.
const EVERYWHERE: [(&str, &str); 8] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ("cache-control", "no-store"),
];

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn nothing_in_json_can_be_taken_for_markup() {
        let hostile = "</script><img src=x onerror=alert(1)>&amp;\u{2028}\"\\";
        let written = json(&serde_json::json!({ hostile: hostile }));
        assert!(!written.iter().any(|byte| b"<>&".contains(byte)));
        let read: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(read[hostile], hostile);
    }

    #[test]
    fn every_answer_forbids_what_the_page_does_not_need() {
        let reply = Reply::refusal(404, "NotFoundError", "not_found", None, "no");
        let header = |name: &str| reply.headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
        assert!(header("content-security-policy").unwrap().starts_with("default-src 'none'"));
        assert_eq!(header("x-content-type-options").unwrap(), "nosniff");
    }
}
