//! The scanner against serde_json: whatever serde_json reads as an object, the scanner reads alike.
//!
//! Documents come in three kinds: well-formed ones with random white space and escapes, the same after random damage,
//! and heaps of tokens. Each is also cut into random pieces, which must make no difference.

#![cfg(not(target_arch = "wasm32"))]

use models::Models;
use nimgate_classify::model::{DEPTH_MAX, MODEL_BYTES_MAX, Unreadable};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use scan::scan;
use serde_json::Value;

#[path = "support/models.rs"]
mod models;
#[path = "support/scan.rs"]
mod scan;

/// Compares the scanner with serde_json, and with itself on pieces. Answers whether serde_json read the document.
fn check(body: &[u8], cuts: &[Index]) -> Result<bool, TestCaseError> {
    let (models, end) = scan([body]);
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
    cuts.extend([0, body.len()]);
    cuts.sort_unstable();
    let pieces = cuts.windows(2).map(|pair| &body[pair[0]..pair[1]]);
    prop_assert_eq!(&scan(pieces), &(models.clone(), end), "in pieces {:?}", cuts);
    prop_assert_eq!(&scan(body.chunks(1)), &(models.clone(), end), "byte by byte");

    let Ok(Models(values)) = serde_json::from_slice::<Models>(body) else { return Ok(false) };
    let strings: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
    prop_assert!(strings.iter().all(|model| model.len() <= MODEL_BYTES_MAX), "documents are too short for that");
    prop_assert!(body.len() < DEPTH_MAX * 8);
    prop_assert_eq!(&models, &strings);
    let all_strings = values.iter().all(Value::is_string);
    let expected = if all_strings { Ok(values.len().try_into().unwrap()) } else { Err(Unreadable::ModelNotString) };
    prop_assert_eq!(end, expected);
    Ok(true)
}

fn blank() -> impl Strategy<Value = String> {
    prop_oneof![8 => Just(String::new()), 1 => "[ \t\r\n]{1,3}"]
}

/// A string in JSON: any text, and near misses of the word that matters, partly escaped.
fn string() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        3 => Just("model".to_owned()),
        1 => "[mM][oO][dD][eE][lL]",
        1 => "[model]{3,6}",
        1 => "nvidia/[a-z]{1,3}",
        1 => any::<String>().prop_map(|text| text.chars().take(12).collect()),
        1 => select(&["\u{1f600}", "\"", "\\", "{", "}", "[,:]", "\u{212a}", "\u{17f}", "\0", "\n"][..])
            .prop_map(str::to_owned),
    ];
    (word, any::<u32>()).prop_map(|(text, escaped)| {
        let mut json = String::from("\"");
        for (at, character) in text.chars().enumerate() {
            // Most texts stay plain, some have some characters escaped, a few all.
            let escape = escaped % 4 == 0 && (escaped >> (at % 29 + 2)) & 1 == 1;
            if escape || character < ' ' {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    json.push_str(&format!("\\u{unit:04x}"));
                }
            } else if matches!(character, '"' | '\\') {
                json.extend(['\\', character]);
            } else {
                json.push(character);
            }
        }
        json + "\""
    })
}

fn pair(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (blank(), string(), blank(), value).prop_map(|(before, key, after, value)| format!("{before}{key}{after}:{value}"))
}

fn object(value: impl Strategy<Value = String>, most: usize) -> impl Strategy<Value = String> {
    (blank(), vec(pair(value), 0..most))
        .prop_map(|(blank, pairs)| format!("{blank}{{{}{blank}}}{blank}", pairs.join(",")))
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => string(),
        1 => select(&["null", "true", "false", "0", "-1.5e+3", "1E40", "[]", "{}"][..]).prop_map(str::to_owned),
    ];
    let leaf = (blank(), leaf, blank()).prop_map(|(before, leaf, after)| before + &leaf + &after);
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            (blank(), vec(inner.clone(), 1..4), blank())
                .prop_map(|(before, items, after)| format!("{before}[{}]{after}", items.join(","))),
            object(inner, 4),
        ]
    })
}

fn document() -> impl Strategy<Value = String> {
    object(prop_oneof![3 => string(), 2 => value()], 6)
}

const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "\"model\"",
    "\"Model\":",
    "\"mod\\u0065l\"",
    "\"model\":\"nvidia/x\"",
    "\"x\":",
    "\"x\"",
    "\\u",
    "\\u00",
    "\\ud800",
    "\\q",
    "1",
    "-",
    "null",
    "tru",
    " ",
    "\n",
    "\t",
    "\0",
    "\u{feff}",
    "é",
    "'",
    "/*",
    "*/",
    "//",
    "(",
    "model",
];

/// A way to damage a document at a place.
#[derive(Clone, Debug)]
enum Damage {
    Remove,
    Insert(&'static str),
    Replace(u8),
    Repeat(Index),
    CutOff,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => Just(Damage::Remove),
        6 => select(TOKENS).prop_map(Damage::Insert),
        3 => any::<u8>().prop_map(Damage::Replace),
        2 => any::<Index>().prop_map(Damage::Repeat),
        1 => Just(Damage::CutOff),
    ]
}

fn apply(body: &mut Vec<u8>, place: &Index, damage: &Damage) {
    let at = place.index(body.len() + 1);
    match damage {
        Damage::Remove => drop(body.splice(at..body.len().min(at + 1), [])),
        Damage::Insert(token) => drop(body.splice(at..at, token.bytes())),
        Damage::Replace(byte) => drop(body.splice(at..body.len().min(at + 1), [*byte])),
        Damage::Repeat(to) => {
            let other = to.index(body.len() + 1);
            let part = body[at.min(other)..at.max(other)].to_vec();
            body.splice(at..at, part);
        }
        Damage::CutOff => body.truncate(at),
    }
}

/// A thousand cases take about a second; PROPTEST_CASES asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(1_024), failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn well_formed_documents(body in document(), cuts in vec(any::<Index>(), 0..6)) {
        prop_assert!(check(body.as_bytes(), &cuts)?, "serde_json reads what is well-formed");
    }

    #[test]
    fn damaged_documents(
        body in document(),
        damages in vec((any::<Index>(), damage()), 1..4),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let mut body = body.into_bytes();
        for (place, damage) in &damages {
            apply(&mut body, place, damage);
        }
        check(&body, &cuts)?;
    }

    #[test]
    fn heaps_of_tokens(tokens in vec(select(TOKENS), 0..24), cuts in vec(any::<Index>(), 0..6)) {
        check(format!("{{{}}}", tokens.concat()).as_bytes(), &cuts)?;
    }
}
