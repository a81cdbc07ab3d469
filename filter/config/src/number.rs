//! Numbers as they are written in a configuration.

use core::fmt;
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number as it was written, so that a sentence about it can quote it.
#[derive(Clone, Copy, Debug)]
pub enum WrittenNumber {
    Whole(i128),
    Float(f64),
}

impl WrittenNumber {
    /// The value if it is whole, however it was written.
    pub fn whole(self) -> Option<i128> {
        match self {
            Self::Whole(value) => Some(value),
            Self::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => Some(value as i128),
            Self::Float(_) => None,
        }
    }

    /// The value, rounded if it is very large.
    pub fn float(self) -> f64 {
        match self {
            Self::Whole(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

impl fmt::Display for WrittenNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for WrittenNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberVisitor;
        impl Visitor<'_> for NumberVisitor {
            type Value = WrittenNumber;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<WrittenNumber, E> {
                Ok(WrittenNumber::Whole(i128::from(value)))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<WrittenNumber, E> {
                Ok(WrittenNumber::Whole(i128::from(value)))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<WrittenNumber, E> {
                Ok(WrittenNumber::Float(value))
            }
        }
        deserializer.deserialize_any(NumberVisitor)
    }
}
