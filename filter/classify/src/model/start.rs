//! The first bytes of a body: in which encoding it is, and whether it begins like a JSON object.
//!
//! FastAPI reads JSON in UTF-16 and UTF-32 too, with or without a byte order mark, so such a body must not pass for
//! something else. But images, sound and gRPC messages begin with zero bytes or 0xff as well, and those are none of
//! our business. So the encoding follows the rules of RFC 4627 section 3 (where the zeros stand among the first
//! four bytes), and then the first character that is no white space is looked at, whatever its width.

/// What kind of document the bytes so far begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Opening {
    /// More bytes are needed.
    Undecided,
    /// A JSON object in UTF-8, whose bracket was just read.
    Object,
    /// Another JSON value in UTF-8, whose first byte was just read.
    OtherValue,
    /// A JSON object in UTF-16 or UTF-32.
    WideObject,
    /// Another JSON value in UTF-16 or UTF-32.
    WideOther,
    /// Nothing that JSON can begin with.
    NotJson,
}

/// How far the beginning is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Start {
    /// Nothing has come.
    #[default]
    Fresh,
    /// One byte of white space, which a zero byte would make a character of UTF-16 or UTF-32.
    FirstSpace(u8),
    /// In UTF-8, after white space or the byte order mark.
    Narrow,
    /// After so many bytes of the byte order mark of UTF-8.
    Mark(u8),
    /// Four bytes are gathered to tell the encoding by.
    Gathering(Window),
    /// In UTF-16 or UTF-32, in the middle of a character.
    Wide(Encoding, Window),
}

/// The encodings in which a character takes several bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Encoding {
    Utf16Le,
    Utf16Be,
    Utf32Le,
    Utf32Be,
}

/// Up to four bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Window {
    bytes: [u8; 4],
    filled: usize,
}

impl Window {
    fn with(mut self, byte: u8) -> Self {
        if let Some(slot) = self.bytes.get_mut(self.filled) {
            *slot = byte;
            self.filled = self.filled.saturating_add(1);
        }
        self
    }
}

impl Start {
    /// Takes in the next byte.
    pub(super) fn push(&mut self, byte: u8) -> Opening {
        match (*self, byte) {
            (Self::Fresh, 0xef) => self.wait(Self::Mark(1)),
            (Self::Mark(1), 0xbb) => self.wait(Self::Mark(2)),
            (Self::Mark(2), 0xbf) => self.wait(Self::Narrow),
            (Self::Mark(_), _) => Opening::NotJson,
            (Self::Fresh, 0 | 0xfe | 0xff) => self.wait(Self::Gathering(Window::default().with(byte))),
            (Self::Fresh, _) if is_space(byte) => self.wait(Self::FirstSpace(byte)),
            (Self::FirstSpace(space), 0) => self.wait(Self::Gathering(Window::default().with(space).with(byte))),
            (Self::Fresh | Self::FirstSpace(_) | Self::Narrow, _) if is_space(byte) => self.wait(Self::Narrow),
            (Self::Fresh | Self::FirstSpace(_) | Self::Narrow, _) => opening(u32::from(byte)),
            (Self::Gathering(window), _) => match window.with(byte) {
                Window { bytes, filled: 4 } => self.choose(bytes),
                window => self.wait(Self::Gathering(window)),
            },
            (Self::Wide(encoding, window), _) => self.wide(encoding, window.with(byte)),
        }
    }

    /// Whether the body, if it ended here, would hold nothing at all.
    pub(super) fn is_blank(self) -> bool {
        matches!(self, Self::Fresh | Self::FirstSpace(_) | Self::Narrow)
    }

    fn wait(&mut self, state: Self) -> Opening {
        *self = state;
        Opening::Undecided
    }

    /// Tells the encoding by the first four bytes, as Python's `json` does, and reads what is no byte order mark.
    fn choose(&mut self, bytes: [u8; 4]) -> Opening {
        let [_, _, third, fourth] = bytes;
        let (encoding, characters): (Encoding, &[u8]) = match bytes {
            [0xff, 0xfe, 0, 0] => (Encoding::Utf32Le, &[]),
            [0, 0, 0xfe, 0xff] => (Encoding::Utf32Be, &[]),
            [0xff, 0xfe, ..] => (Encoding::Utf16Le, &[third, fourth]),
            [0xfe, 0xff, ..] => (Encoding::Utf16Be, &[third, fourth]),
            [0, 0, ..] => (Encoding::Utf32Be, &bytes),
            [0, ..] => (Encoding::Utf16Be, &bytes),
            [_, 0, 0, 0] => (Encoding::Utf32Le, &bytes),
            [_, 0, ..] => (Encoding::Utf16Le, &bytes),
            _ => return Opening::NotJson,
        };
        *self = Self::Wide(encoding, Window::default());
        for byte in characters {
            let opening = self.push(*byte);
            if opening != Opening::Undecided {
                return opening;
            }
        }
        Opening::Undecided
    }

    fn wide(&mut self, encoding: Encoding, window: Window) -> Opening {
        let Window { bytes, filled } = window;
        let [first, second, ..] = bytes;
        let character = match (encoding, filled) {
            (Encoding::Utf16Le, 2) => u32::from(u16::from_le_bytes([first, second])),
            (Encoding::Utf16Be, 2) => u32::from(u16::from_be_bytes([first, second])),
            (Encoding::Utf32Le, 4) => u32::from_le_bytes(bytes),
            (Encoding::Utf32Be, 4) => u32::from_be_bytes(bytes),
            _ => return self.wait(Self::Wide(encoding, window)),
        };
        match u8::try_from(character) {
            Ok(byte) if is_space(byte) => self.wait(Self::Wide(encoding, Window::default())),
            _ => match opening(character) {
                Opening::Object => Opening::WideObject,
                Opening::OtherValue => Opening::WideOther,
                other => other,
            },
        }
    }
}

/// What a document is whose first character, white space aside, is this one.
fn opening(character: u32) -> Opening {
    match u8::try_from(character) {
        Ok(b'{') => Opening::Object,
        Ok(b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n' | b'N' | b'I') => Opening::OtherValue,
        _ => Opening::NotJson,
    }
}

/// JSON's white space; no upstream parser in UTF-8 knows any other in front of a document.
pub(super) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}
