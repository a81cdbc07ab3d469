//! Decodes bodies that clients have compressed, piece by piece, so that they can be read. What goes to the upstream stays as
//! it came.
//!
//! Only gzip and deflate are decoded: they look back 32 kB at most. Brotli and zstd may look back megabytes, which every
//! client with a key could have this worker allocate for each of its requests.

use flate2::write::{MultiGzDecoder, ZlibDecoder};
use std::io::Write;

/// Decodes a body with one coding.
#[derive(Debug)]
pub(crate) struct Decoder {
    coding: Coding,
    /// How many bytes have come out.
    produced: usize,
    is_broken: bool,
}

#[derive(Debug)]
enum Coding {
    Gzip(MultiGzDecoder<Vec<u8>>),
    Deflate(ZlibDecoder<Vec<u8>>),
}

impl Decoder {
    /// A decoder for a `content-encoding` that names one coding known here; `None` for any other.
    pub(crate) fn of(content_encoding: &[u8]) -> Option<Self> {
        let mut codings = super::media::codings(content_encoding);
        let (Some(coding), None) = (codings.next(), codings.next()) else { return None };
        let coding = match coding.to_ascii_lowercase().as_slice() {
            b"gzip" | b"x-gzip" => Coding::Gzip(MultiGzDecoder::new(Vec::new())),
            b"deflate" => Coding::Deflate(ZlibDecoder::new(Vec::new())),
            _ => return None,
        };
        Some(Self { coding, produced: 0, is_broken: false })
    }

    /// Takes in the next piece; `on_bytes` gets what comes out of it.
    pub(crate) fn feed(&mut self, piece: &[u8], on_bytes: &mut dyn FnMut(&[u8])) {
        for part in piece.chunks(PART_BYTES) {
            if self.is_broken {
                return;
            }
            let taken = match &mut self.coding {
                Coding::Gzip(decoder) => decoder.write_all(part),
                Coding::Deflate(decoder) => decoder.write_all(part),
            };
            self.is_broken = taken.is_err();
            self.hand_over(on_bytes);
        }
    }

    /// The body is complete. Says whether all of it could be decoded.
    pub(crate) fn finish(&mut self, on_bytes: &mut dyn FnMut(&[u8])) -> bool {
        let ended = match &mut self.coding {
            Coding::Gzip(decoder) => decoder.try_finish(),
            Coding::Deflate(decoder) => decoder.try_finish(),
        };
        self.is_broken |= ended.is_err();
        self.hand_over(on_bytes);
        !self.is_broken
    }

    fn hand_over(&mut self, on_bytes: &mut dyn FnMut(&[u8])) {
        let out = match &mut self.coding {
            Coding::Gzip(decoder) => decoder.get_mut(),
            Coding::Deflate(decoder) => decoder.get_mut(),
        };
        self.produced = self.produced.saturating_add(out.len());
        if self.produced > PRODUCED_MAX {
            self.is_broken = true;
        }
        on_bytes(out);
        out.clear();
        out.shrink_to(PART_BYTES);
    }
}

/// As much as is decoded at once. A byte becomes a thousand at most, so this bounds what is held in between.
const PART_BYTES: usize = 1_024;

/// As much as may come out of one body: what the local configuration lets a body have that is not compressed. A small body
/// must not keep a worker busy for long.
const PRODUCED_MAX: usize = 16 << 20;
