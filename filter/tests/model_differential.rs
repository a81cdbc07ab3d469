//! The scanner against serde_json: whatever model a real parser reads, the scanner must have reported.
//!
//! Documents are made at random, with many keys that are almost `model`, and then broken at random. Only one direction
//! matters: a model that the scanner reports and the parser does not costs a token, one that the parser reads and the
//! scanner does not costs everyone the quota.

use nimgate::classify::model::{MODEL_BYTES_MAX, Scanner, Unreadable};
use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The values of all top-level keys that are `model` in any letter case, as serde_json reads them.
struct Models(Vec<String>);

impl<'de> Deserialize<'de> for Models {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Models;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Models, A::Error> {
                let mut models = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key.eq_ignore_ascii_case("model") {
                        if let serde_json::Value::String(model) = map.next_value()? {
                            models.push(model);
                        }
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Models(models))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

fn scan(body: &[u8], piece: usize) -> (Vec<String>, Result<u32, Unreadable>) {
    let mut scanner = Scanner::new();
    let mut models = Vec::new();
    for piece in body.chunks(piece.max(1)) {
        scanner.feed(piece, &mut |model| models.push(model.to_owned()));
    }
    (models, scanner.finish().map(|found| found.models))
}

fn check(body: &[u8], piece: usize) -> Result<(), TestCaseError> {
    let (found, end) = scan(body, piece);
    prop_assert_eq!(&scan(body, body.len()), &(found.clone(), end));
    if let Ok(Models(expected)) = serde_json::from_slice(body) {
        let fits: Vec<_> = expected.into_iter().filter(|model| model.len() <= MODEL_BYTES_MAX).collect();
        prop_assert_eq!(found, fits, "{}", String::from_utf8_lossy(body));
        prop_assert!(end.is_ok() || matches!(end, Err(why) if why.is_about_model()));
    }
    Ok(())
}

fn string() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::sample::select(vec![
            r#""model""#, r#""Model""#, r#""mod\u0065l""#, r#""\u004dODEL""#, r#""models""#, r#""mode""#, r#""nvidia\/x""#,
            r#""nvidia/llama""#, r#""\ud83d\ude00""#, r#""\\""#, r#""\"""#, r#""{\"model\":\"x\"}""#, r#""""#,
        ]).prop_map(str::to_owned),
        1 => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ]
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        string(),
        prop::sample::select(vec!["1", "-0.5e+7", "true", "false", "null", "123456789012345678901234567890"])
            .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" ,"))),
            prop::collection::vec((string(), inner), 0..4).prop_map(|members| object(&members)),
        ]
    })
}

fn object(members: &[(String, String)]) -> String {
    let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}\n:{value}")).collect();
    format!("{{{}}}", members.join(", "))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_document_gives_up_every_model(members in prop::collection::vec((string(), value()), 0..6), piece in 1usize..40) {
        check(object(&members).as_bytes(), piece)?;
    }

    #[test]
    fn a_broken_document_hides_none(
        members in prop::collection::vec((string(), value()), 0..6),
        breaks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..4),
        piece in 1usize..40,
    ) {
        let mut body = object(&members).into_bytes();
        for (at, byte, how) in breaks {
            let at = at.index(body.len().max(1)).min(body.len().saturating_sub(1));
            let structural = b"\"\\{}[]:, um"[usize::from(byte) % 11];
            match how {
                _ if body.is_empty() => body.push(structural),
                0 => body[at] = byte,
                1 => body[at] = structural,
                2 => { body.remove(at); }
                _ => body.insert(at, structural),
            }
        }
        check(&body, piece)?;
    }

    #[test]
    fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..200), piece in 1usize..40) {
        check(&body, piece)?;
    }
}
