//! The incremental scan of a JSON body for its top-level `model`.
//!
//! Upstream parsers disagree. Of two `model` keys Python and Node take the last and gjson the first; Go takes `MODEL`
//! too; FastAPI accepts a byte order mark and `NaN`. So the whole top-level object is read, every key that is `model`
//! after unescaping counts, in any letter case, and each of its values is reported. Nested keys never count.
//!
//! The scanner is strict where leniency could hide a key from it: the structure of the top-level object, where strings
//! begin and end, how deep brackets nest. It is lenient everywhere else (control characters, invalid UTF-8, the inside
//! of numbers and of nested values), because it must accept at least what any upstream accepts, and because a client's
//! mistake inside a value is for the upstream to report.
//!
//! Each byte is looked at once, whatever the pieces in which the body comes. Memory is constant: nesting is a counter,
//! keys are compared as they pass, and one value at a time is kept, up to [`MODEL_BYTES_MAX`]. Nothing recurses.

use memchr::memchr2;

/// The longest `model` value that is read, in bytes after unescaping. Real ones have fewer than a hundred.
pub const MODEL_BYTES_MAX: usize = 1_024;

/// What is certain about a body from its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Looks {
    /// Only white space, or part of a byte order mark, has come.
    Undecided,
    /// It begins like a JSON object, in UTF-8 or in an encoding that is not read here.
    Json,
    /// It begins like anything else.
    NotJson,
}

/// A body that was read to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// How many top-level keys were `model`.
    pub models: u32,
}

/// Why a body could not be read, or its `model` not understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// There is nothing but white space.
    Empty,
    /// It does not begin like any JSON.
    NotJson,
    /// It breaks the rules of JSON where they matter here.
    Syntax,
    /// It is JSON of another kind: an array, a string, a number, a word.
    NotAnObject,
    /// A `model` is not a string.
    ModelNotString,
    /// A `model` holds invalid UTF-8, half a surrogate pair or an unknown escape.
    ModelUnreadable,
    /// A `model` is longer than [`MODEL_BYTES_MAX`].
    ModelTooLong,
    /// It is in UTF-16 or UTF-32, which FastAPI accepts and others don't.
    Encoding,
    /// Something follows the object; some upstreams stop at its end and never see that.
    TrailingData,
    /// It ends before the object does.
    Truncated,
}

impl Unreadable {
    /// Whether only a `model` is wrong, in a document that is read well otherwise.
    pub const fn is_about_model(self) -> bool {
        matches!(self, Self::ModelNotString | Self::ModelUnreadable | Self::ModelTooLong)
    }

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotJson => "not_json",
            Self::Syntax => "syntax",
            Self::NotAnObject => "not_an_object",
            Self::ModelNotString => "model_not_string",
            Self::ModelUnreadable => "model_unreadable",
            Self::ModelTooLong => "model_too_long",
            Self::Encoding => "encoding",
            Self::TrailingData => "trailing_data",
            Self::Truncated => "truncated",
        }
    }
}

/// Reads a body piece by piece and reports the values of its top-level `model` keys.
#[derive(Debug, Default)]
pub struct Scanner {
    at: At,
    key: KeyMatch,
    escape: Escape,
    /// Brackets that are open below the top-level object.
    depth: u32,
    /// Whether the value that comes or is being read belongs to a `model` key.
    is_model: bool,
    value: Vec<u8>,
    high_surrogate: Option<u16>,
    models: u32,
    /// What is wrong with a `model`; reading goes on, since another may be right.
    flaw: Option<Unreadable>,
}

/// Where in the document the next byte stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum At {
    /// Before the first significant byte.
    #[default]
    Start,
    /// Behind so many bytes of a byte order mark.
    ByteOrderMark(u8),
    /// Behind `{`: a key or the end.
    FirstKey,
    /// Behind a comma: a key.
    Key,
    InKey,
    Colon,
    Value,
    /// In a top-level string that is a `model`.
    InModel,
    /// In any other string, at any depth.
    InString,
    /// In a number or a word at the top level.
    InScalar,
    /// In a nested object or array, outside its strings.
    InNested,
    AfterValue,
    /// Behind the object.
    End,
    /// Reading is over before the body is.
    Stopped(Unreadable),
}

/// How far an escape is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Escape {
    #[default]
    None,
    /// Behind the backslash.
    Begun,
    /// Behind `\u` and so many hexadecimal digits, which make this number.
    Unicode(u8, u16),
}

/// What a byte of a string means once escapes are resolved.
enum Unit {
    /// Nothing yet.
    Pending,
    /// A byte that stands for itself, or a simple escape.
    Byte(u8),
    /// A `\uXXXX` escape.
    Code(u16),
    /// An escape that JSON does not know.
    Unknown,
}

/// How much of the word `model` the key so far is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum KeyMatch {
    /// It is a prefix of this length.
    Prefix(u8),
    /// It is another word.
    #[default]
    Other,
}

impl KeyMatch {
    const WORD: &'static [u8] = b"model";

    /// Go's decoder compares keys by Unicode case folding; no letter outside ASCII folds to one of this word's.
    fn next(self, byte: u8) -> Self {
        match self {
            Self::Prefix(length) if Self::WORD.get(usize::from(length)) == Some(&byte.to_ascii_lowercase()) => {
                Self::Prefix(length.saturating_add(1))
            }
            _ => Self::Other,
        }
    }

    fn is_whole(self) -> bool {
        matches!(self, Self::Prefix(length) if usize::from(length) == Self::WORD.len())
    }
}

impl Scanner {
    /// A scanner at the start of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next piece of the body. `on_model` gets each value of a top-level `model` as it is complete.
    pub fn feed(&mut self, piece: &[u8], on_model: &mut dyn FnMut(&str)) {
        let mut rest = piece;
        while let Some((byte, tail)) = rest.split_first() {
            rest = match self.at {
                At::Stopped(_) => return,
                At::InString => self.skip_string(rest),
                At::InKey if self.key == KeyMatch::Other => self.skip_string(rest),
                At::InNested => self.skip_nested(rest),
                _ => {
                    self.step(*byte, on_model);
                    tail
                }
            };
        }
    }

    /// What the first bytes say.
    pub fn looks_like_json(&self) -> Looks {
        match self.at {
            At::Start | At::ByteOrderMark(_) => Looks::Undecided,
            At::Stopped(Unreadable::NotJson | Unreadable::NotAnObject) => Looks::NotJson,
            _ => Looks::Json,
        }
    }

    /// The body is complete.
    ///
    /// # Errors
    /// [`Unreadable`] when it could not be read, or one of its `model` values is not a readable string. Values that
    /// were reported before stay true all the same.
    pub fn finish(&mut self) -> Result<Found, Unreadable> {
        match (self.at, self.flaw) {
            (At::Stopped(why), _) => Err(why),
            (At::Start, _) => Err(Unreadable::Empty),
            (At::ByteOrderMark(3), _) => Err(Unreadable::Empty),
            (At::ByteOrderMark(_), _) => Err(Unreadable::NotJson),
            (At::End, None) => Ok(Found { models: self.models }),
            (At::End, Some(flaw)) => Err(flaw),
            _ => Err(Unreadable::Truncated),
        }
    }

    fn step(&mut self, byte: u8, on_model: &mut dyn FnMut(&str)) {
        match self.at {
            At::Start | At::ByteOrderMark(_) => self.at = self.begin(byte),
            At::InKey => self.in_key(byte),
            At::InModel => self.in_model(byte, on_model),
            At::InScalar if !is_structural(byte) => {}
            _ if is_space(byte) => self.at = if self.at == At::InScalar { At::AfterValue } else { self.at },
            // No JSON has a zero byte outside a string; UTF-16 and UTF-32 have it next to every bracket.
            _ if byte == 0 => self.stop(Unreadable::Encoding),
            At::FirstKey | At::Key => match (byte, self.at) {
                (b'"', _) => {
                    self.key = KeyMatch::Prefix(0);
                    self.at = At::InKey;
                }
                (b'}', At::FirstKey) => self.at = At::End,
                _ => self.stop(Unreadable::Syntax),
            },
            At::Colon if byte == b':' => self.at = At::Value,
            At::Value => self.value(byte),
            At::InScalar | At::AfterValue => match byte {
                b',' => self.at = At::Key,
                b'}' => self.at = At::End,
                _ => self.stop(Unreadable::Syntax),
            },
            At::End => self.stop(Unreadable::TrailingData),
            At::Colon => self.stop(Unreadable::Syntax),
            At::InString | At::InNested | At::Stopped(_) => {}
        }
    }

    /// The first bytes: white space, a byte order mark, and what kind of document it is.
    fn begin(&self, byte: u8) -> At {
        match (self.at, byte) {
            (At::Start, 0xef) => At::ByteOrderMark(1),
            (At::ByteOrderMark(1), 0xbb) => At::ByteOrderMark(2),
            (At::ByteOrderMark(2), 0xbf) => At::ByteOrderMark(3),
            (At::ByteOrderMark(1 | 2), _) => At::Stopped(Unreadable::NotJson),
            (at, byte) if is_space(byte) => at,
            (_, b'{') => At::FirstKey,
            (_, 0 | 0xfe | 0xff) => At::Stopped(Unreadable::Encoding),
            (_, b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n' | b'N' | b'I') => {
                At::Stopped(Unreadable::NotAnObject)
            }
            _ => At::Stopped(Unreadable::NotJson),
        }
    }

    fn in_key(&mut self, byte: u8) {
        if byte == b'"' && self.escape == Escape::None {
            self.is_model = self.key.is_whole();
            self.models = self.models.saturating_add(u32::from(self.is_model));
            self.at = At::Colon;
            return;
        }
        self.key = match self.unescape(byte) {
            Unit::Pending => self.key,
            Unit::Byte(byte) => self.key.next(byte),
            Unit::Code(code) => u8::try_from(code).map_or(KeyMatch::Other, |byte| self.key.next(byte)),
            Unit::Unknown => KeyMatch::Other,
        };
    }

    fn value(&mut self, byte: u8) {
        if self.is_model && byte != b'"' {
            self.flaw.get_or_insert(Unreadable::ModelNotString);
        }
        match byte {
            b'"' if self.is_model => {
                self.value.clear();
                self.at = At::InModel;
            }
            b'"' => self.at = At::InString,
            b'{' | b'[' => {
                self.depth = 1;
                self.at = At::InNested;
            }
            b'}' | b']' | b',' | b':' => self.stop(Unreadable::Syntax),
            _ => self.at = At::InScalar,
        }
    }

    fn in_model(&mut self, byte: u8, on_model: &mut dyn FnMut(&str)) {
        if byte == b'"' && self.escape == Escape::None {
            self.end_surrogate();
            match core::str::from_utf8(&self.value) {
                Ok(model) if self.is_model => on_model(model),
                Ok(_) => {}
                Err(_) => {
                    self.flaw.get_or_insert(Unreadable::ModelUnreadable);
                }
            }
            self.at = At::AfterValue;
            return;
        }
        match self.unescape(byte) {
            Unit::Pending => {}
            Unit::Byte(byte) => {
                self.end_surrogate();
                self.keep(&[byte]);
            }
            Unit::Code(code) => self.keep_code(code),
            Unit::Unknown => self.spoil(Unreadable::ModelUnreadable),
        }
    }

    fn keep_code(&mut self, code: u16) {
        let pair = match (self.high_surrogate.take(), code) {
            (None, 0xd800..=0xdbff) => {
                self.high_surrogate = Some(code);
                return;
            }
            (high, code) => high.into_iter().chain([code]),
        };
        for unit in char::decode_utf16(pair) {
            match unit {
                Ok(c) => self.keep(c.encode_utf8(&mut [0; 4]).as_bytes()),
                Err(_) => self.spoil(Unreadable::ModelUnreadable),
            }
        }
    }

    fn end_surrogate(&mut self) {
        if self.high_surrogate.take().is_some() {
            self.spoil(Unreadable::ModelUnreadable);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.value.len().saturating_add(bytes.len()) > MODEL_BYTES_MAX {
            self.spoil(Unreadable::ModelTooLong);
        } else {
            self.value.extend_from_slice(bytes);
        }
    }

    /// Something is wrong with the `model` being read: it is not reported, but read to its end.
    fn spoil(&mut self, flaw: Unreadable) {
        self.flaw.get_or_insert(flaw);
        self.is_model = false;
    }

    fn unescape(&mut self, byte: u8) -> Unit {
        match self.escape {
            Escape::None if byte == b'\\' => {
                self.escape = Escape::Begun;
                Unit::Pending
            }
            Escape::None => Unit::Byte(byte),
            Escape::Begun => {
                self.escape = Escape::None;
                match byte {
                    b'u' => {
                        self.escape = Escape::Unicode(0, 0);
                        Unit::Pending
                    }
                    b'"' | b'\\' | b'/' => Unit::Byte(byte),
                    b'b' => Unit::Byte(0x08),
                    b'f' => Unit::Byte(0x0c),
                    b'n' => Unit::Byte(b'\n'),
                    b'r' => Unit::Byte(b'\r'),
                    b't' => Unit::Byte(b'\t'),
                    _ => Unit::Unknown,
                }
            }
            Escape::Unicode(digits, code) => match char::from(byte).to_digit(16).and_then(|d| u16::try_from(d).ok()) {
                Some(digit) => {
                    let code = code << 4 | digit;
                    if digits == 3 {
                        self.escape = Escape::None;
                        Unit::Code(code)
                    } else {
                        self.escape = Escape::Unicode(digits.saturating_add(1), code);
                        Unit::Pending
                    }
                }
                None => {
                    // The escape is broken off; a quotation mark here ends the string, as lenient parsers see it. No
                    // strict parser reads on, so the document as a whole is no JSON.
                    self.escape = Escape::None;
                    self.stop(Unreadable::Syntax);
                    Unit::Unknown
                }
            },
        }
    }

    /// Goes to the end of a string whose content does not matter, and returns what is behind it.
    fn skip_string<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let mut rest = piece;
        if self.escape != Escape::None {
            // Whatever follows the backslash belongs to it; the digits of `\u` are ordinary characters here.
            self.escape = Escape::None;
            rest = rest.get(1..).unwrap_or_default();
        }
        loop {
            let Some(found) = memchr2(b'"', b'\\', rest) else {
                return &[];
            };
            let behind = rest.get(found..).unwrap_or_default();
            match behind {
                [b'"', tail @ ..] => {
                    self.at = match (self.at, self.depth) {
                        (At::InKey, _) => {
                            self.is_model = false;
                            At::Colon
                        }
                        (_, 0) => At::AfterValue,
                        _ => At::InNested,
                    };
                    return tail;
                }
                [_, _, tail @ ..] => rest = tail,
                _ => {
                    self.escape = Escape::Begun;
                    return &[];
                }
            }
        }
    }

    /// Goes on to the next string in a nested value, or to that value's end, and returns what is behind it.
    fn skip_nested<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let mut rest = piece;
        while let Some((byte, tail)) = rest.split_first() {
            rest = tail;
            match byte {
                b'"' => {
                    self.at = At::InString;
                    return rest;
                }
                b'{' | b'[' => match self.depth.checked_add(1) {
                    Some(depth) => self.depth = depth,
                    None => {
                        self.stop(Unreadable::Syntax);
                        return &[];
                    }
                },
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.at = At::AfterValue;
                        return rest;
                    }
                }
                _ => {}
            }
        }
        &[]
    }

    fn stop(&mut self, why: Unreadable) {
        self.at = At::Stopped(why);
    }
}

/// JSON's white space.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// What ends a number or a word, or can't stand in one.
const fn is_structural(byte: u8) -> bool {
    is_space(byte) || matches!(byte, 0 | b',' | b':' | b'"' | b'{' | b'}' | b'[' | b']')
}

#[cfg(test)]
#[path = "model/tests.rs"]
mod tests;
