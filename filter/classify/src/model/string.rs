//! Strings, byte by byte: escapes, the comparison of a key with the word `model`, and a value as it is put together.

use super::{MODEL_BYTES_MAX, Unreadable};

/// How far an escape is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Escape {
    /// Not in one.
    #[default]
    None,
    /// After the backslash.
    Begun,
    /// After `\u` and so many hexadecimal digits, which make this number.
    Unicode(u8, u16),
}

/// What a byte of a string means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StringUnit {
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
    pub(super) fn read(&mut self, byte: u8) -> StringUnit {
        match *self {
            Self::None => match byte {
                b'"' => StringUnit::End,
                b'\\' => {
                    *self = Self::Begun;
                    StringUnit::Pending
                }
                0..b' ' => StringUnit::Control,
                _ => StringUnit::Byte(byte),
            },
            Self::Begun => {
                *self = Self::None;
                match byte {
                    b'u' => {
                        *self = Self::Unicode(0, 0);
                        StringUnit::Pending
                    }
                    b'"' | b'\\' | b'/' => StringUnit::Byte(byte),
                    b'b' => StringUnit::Byte(0x08),
                    b'f' => StringUnit::Byte(0x0c),
                    b'n' => StringUnit::Byte(b'\n'),
                    b'r' => StringUnit::Byte(b'\r'),
                    b't' => StringUnit::Byte(b'\t'),
                    _ => StringUnit::Unknown,
                }
            }
            Self::Unicode(digits, code) => {
                *self = Self::None;
                match char::from(byte).to_digit(16).and_then(|digit| u16::try_from(digit).ok()) {
                    Some(digit) if digits == 3 => StringUnit::Code(code << 4 | digit),
                    Some(digit) => {
                        *self = Self::Unicode(digits.saturating_add(1), code << 4 | digit);
                        StringUnit::Pending
                    }
                    None => StringUnit::BrokenOff,
                }
            }
        }
    }
}

/// How a key compares with the word `model`, as far as it is read. Nothing of it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum KeyMatch {
    /// It is a prefix of this length, perhaps all of the word.
    Prefix(u8),
    /// It is the word, whatever else follows.
    Model,
    /// It is another word.
    #[default]
    Other,
}

impl KeyMatch {
    const WORD: &'static [u8] = b"model";

    /// The comparison after one more unit.
    ///
    /// Go's decoder compares names without regard to case by Unicode's simple folding; only `k` and `s` have partners
    /// outside ASCII there, so ASCII is enough for this word. gjson cuts a name off where an unknown escape or a bare
    /// control character stands, so a name that is `model` up to there is `model`.
    pub(super) fn next(self, unit: StringUnit) -> Self {
        let byte = match unit {
            StringUnit::Pending => return self,
            StringUnit::Byte(byte) => Some(byte),
            StringUnit::Code(code) => u8::try_from(code).ok(),
            StringUnit::End | StringUnit::Control | StringUnit::Unknown | StringUnit::BrokenOff if self.is_model() => {
                return Self::Model;
            }
            StringUnit::End | StringUnit::Control | StringUnit::Unknown | StringUnit::BrokenOff => None,
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
pub(super) struct ModelValue {
    bytes: Vec<u8>,
    high_surrogate: Option<u16>,
}

impl ModelValue {
    /// Forgets the value before.
    pub(super) fn begin(&mut self) {
        self.bytes.clear();
        self.high_surrogate = None;
    }

    /// Takes in a unit other than the end. A control character is an error here, though not in other strings: gjson
    /// cuts a value off there, and so would read another model than was matched.
    pub(super) fn push(&mut self, unit: StringUnit) -> Result<(), Unreadable> {
        match (unit, self.high_surrogate.take()) {
            (StringUnit::Pending, high) => {
                self.high_surrogate = high;
                Ok(())
            }
            (StringUnit::Byte(byte), None) => self.keep(&[byte]),
            (StringUnit::Code(high @ 0xd800..=0xdbff), None) => {
                self.high_surrogate = Some(high);
                Ok(())
            }
            (StringUnit::Code(code), high) => self.keep_code(high.into_iter().chain([code])),
            _ => Err(Unreadable::ModelUnreadable),
        }
    }

    /// Whether the last unit was the first half of a character that takes two.
    pub(super) const fn is_in_surrogate(&self) -> bool {
        self.high_surrogate.is_some()
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

    /// Takes in bytes that stand for themselves.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Result<(), Unreadable> {
        if self.bytes.len().saturating_add(bytes.len()) > MODEL_BYTES_MAX {
            return Err(Unreadable::ModelTooLong);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}
