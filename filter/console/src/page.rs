//! The dashboard's files. They are kept compressed, as the build made them, and served so.

use super::reply::Reply;

pub fn html(accepted: Option<&[u8]>) -> Reply {
    compressed("text/html; charset=utf-8", include_bytes!(concat!(env!("OUT_DIR"), "/index.html.gz")), accepted)
}

/// Its script, the charts' library included.
pub fn script(accepted: Option<&[u8]>) -> Reply {
    compressed("text/javascript; charset=utf-8", include_bytes!(concat!(env!("OUT_DIR"), "/app.js.gz")), accepted)
}

/// Its styles, the charts' included.
pub fn style(accepted: Option<&[u8]>) -> Reply {
    compressed("text/css; charset=utf-8", include_bytes!(concat!(env!("OUT_DIR"), "/app.css.gz")), accepted)
}

pub fn icon() -> Reply {
    Reply::new(200, "image/svg+xml", include_bytes!("../page/icon.svg").as_slice())
}

fn compressed(content_type: &'static str, gzip: &'static [u8], accepted: Option<&[u8]>) -> Reply {
    if !accepted.is_none_or(accepts_gzip) {
        return Reply::refusal(
            406,
            "NotAcceptableError",
            "not_acceptable",
            None,
            "The dashboard is kept compressed; ask for it with `Accept-Encoding: gzip` (curl --compressed).",
        )
        .with("vary", "accept-encoding");
    }
    Reply::new(200, content_type, gzip).with("content-encoding", "gzip").with("vary", "accept-encoding")
}

/// Whether a list of compressions has gzip in it, or any, and not with the weight 0.
fn accepts_gzip(accepted: &[u8]) -> bool {
    accepted.split(|byte| *byte == b',').any(|entry| {
        let mut parts = entry.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let named = [&b"gzip"[..], b"x-gzip", b"*"].iter().any(|known| name.eq_ignore_ascii_case(known));
        let refused = parts.any(|part| {
            let weight = part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q="));
            weight.is_some_and(|weight| !weight.iter().any(|byte| (b'1'..=b'9').contains(byte)))
        });
        named && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn who_understands_gzip_gets_it() {
        for (accepted, served) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, GZIP;q=0.8", true),
            ("*", true),
            ("br", false),
            ("gzip;q=0", false),
            ("gzip; q=0.000, br", false),
            ("identity", false),
            ("", false),
        ] {
            assert_eq!(html(Some(accepted.as_bytes())).status == 200, served, "{accepted}");
        }
        assert_eq!(script(None).status, 200);
    }

    #[test]
    fn files_are_compressed_whole() {
        for reply in [html(None), script(None), style(None)] {
            assert!(reply.body.starts_with(&[0x1f, 0x8b, 8]) && reply.body.len() > 100);
            assert!(reply.headers.contains(&("content-encoding", "gzip".into())));
        }
    }
}
