//! Strings, byte by byte: escapes, the comparison of a key with the word `model`, and a value as it is put together.

use super::{MODEL_BYTES_MAX, Unreadable};

/// How far an escape is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Escape {
    /// Not in one.
    #[default]
    None,
    /// Behind the backslash.
    Begun,
    /// Behind `\u` and so many hexadecimal digits, which make this number.
    Unicode(u8, u16),
}

/// What a byte of a string means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    /// It is in the middle of an escape.
    Pending,
    /// It is the quotation mark that ends the string.
    End,
    /// It stands for itself, or it ends a short escape for this byte.
    Byte(u8),
    /// It ends a `\uXXXX`.
    Code(u16),
    /// It is a control character, which JSON wants escaped.
    Control,
    /// It ends an escape that JSON doesn't know.
    Unknown,
    /// It breaks off a `\u` and must be read again, since it is no part of it.
    BrokenOff,
}

impl Escape {
    /// Takes in the next byte of a string.
    pub(super) fn read(&mut self, byte: u8) -> Unit {
        match *self {
            Self::None => match byte {
                b'"' => Unit::End,
                b'\\' => {
                    *self = Self::Begun;
                    Unit::Pending
                }
                0..b' ' => Unit::Control,
                _ => Unit::Byte(byte),
            },
            Self::Begun => {
                *self = Self::None;
                match byte {
                    b'u' => {
                        *self = Self::Unicode(0, 0);
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
            Self::Unicode(digits, code) => {
                *self = Self::None;
                match char::from(byte).to_digit(16).and_then(|digit| u16::try_from(digit).ok()) {
                    Some(digit) if digits == 3 => Unit::Code(code << 4 | digit),
                    Some(digit) => {
                        *self = Self::Unicode(digits.saturating_add(1), code << 4 | digit);
                        Unit::Pending
                    }
                    None => Unit::BrokenOff,
                }
            }
        }
    }
}

/// How a key compares with the word `model`, as far as it is read. Nothing of it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Key {
    /// It is a prefix of this length, perhaps all of the word.
    Prefix(u8),
    /// It is the word, whatever else follows.
    Model,
    /// It is another word.
    #[default]
    Other,
}

impl Key {
    const WORD: &'static [u8] = b"model";

    /// The comparison after one more unit.
    ///
    /// Go's decoder compares names without regard to case by Unicode's simple folding; only `k` and `s` have partners
    /// outside ASCII there, so ASCII is enough for this word. gjson cuts a name off where an unknown escape or a bare
    /// control character stands, so a name that is `model` up to there is `model`.
    pub(super) fn next(self, unit: Unit) -> Self {
        let byte = match unit {
            Unit::Pending => return self,
            Unit::Byte(byte) => Some(byte),
            Unit::Code(code) => u8::try_from(code).ok(),
            Unit::End | Unit::Control | Unit::Unknown | Unit::BrokenOff if self.is_model() => return Self::Model,
            Unit::End | Unit::Control | Unit::Unknown | Unit::BrokenOff => None,
        };
        match (self, byte) {
            (Self::Model, _) => Self::Model,
            (Self::Prefix(length), Some(byte))
                if Self::WORD.get(usize::from(length)) == Some(&byte.to_ascii_lowercase()) =>
            {
                Self::Prefix(length.saturating_add(1))
            }
            _ => Self::Other,
        }
    }

    /// Whether the key is `model` if it ends here.
    pub(super) fn is_model(self) -> bool {
        match self {
            Self::Prefix(length) => usize::from(length) == Self::WORD.len(),
            Self::Model => true,
            Self::Other => false,
        }
    }
}

/// The value of a `model`, unescaped as it comes. One buffer serves all values of a body.
#[derive(Debug, Default)]
pub(super) struct Value {
    bytes: Vec<u8>,
    high_surrogate: Option<u16>,
}

impl Value {
    /// Forgets the value before.
    pub(super) fn begin(&mut self) {
        self.bytes.clear();
        self.high_surrogate = None;
    }

    /// Takes in a unit other than the end. A control character is an error here, though not in other strings: gjson
    /// cuts a value off there, and so would read another model than was matched.
    pub(super) fn push(&mut self, unit: Unit) -> Result<(), Unreadable> {
        match (unit, self.high_surrogate.take()) {
            (Unit::Pending, high) => {
                self.high_surrogate = high;
                Ok(())
            }
            (Unit::Byte(byte), None) => self.keep(&[byte]),
            (Unit::Code(high @ 0xd800..=0xdbff), None) => {
                self.high_surrogate = Some(high);
                Ok(())
            }
            (Unit::Code(code), high) => self.keep_code(high.into_iter().chain([code])),
            _ => Err(Unreadable::ModelUnreadable),
        }
    }

    /// The whole value.
    pub(super) fn end(&self) -> Result<&str, Unreadable> {
        match (core::str::from_utf8(&self.bytes), self.high_surrogate) {
            (Ok(value), None) => Ok(value),
            _ => Err(Unreadable::ModelUnreadable),
        }
    }

    fn keep_code(&mut self, units: impl Iterator<Item = u16>) -> Result<(), Unreadable> {
        for unit in char::decode_utf16(units) {
            let character = unit.map_err(|_| Unreadable::ModelUnreadable)?;
            self.keep(character.encode_utf8(&mut [0; 4]).as_bytes())?;
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), Unreadable> {
        if self.bytes.len().saturating_add(bytes.len()) > MODEL_BYTES_MAX {
            return Err(Unreadable::ModelTooLong);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}
