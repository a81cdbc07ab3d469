//! The parts of documents that are made from the table of knobs are as the table says. To write them:
//!
//! ```text
//! NIMGATE_WRITE=1 cargo test -p nimgate-config --test generated
//! ```

use nimgate_core::limit::rules::{GROUPS, Kind, Knob, Number, Rules, Unit, Value, knobs, knobs_in};
use std::path::Path;
use std::{env, fs};

/// Holds the lines between the markers of `part` in a file to `wanted`, or writes them.
fn check(file: &str, part: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    let text = fs::read_to_string(&path).unwrap();
    let begin = text.find(&format!("begin {part}: ")).unwrap_or_else(|| panic!("{file} has no part {part}"));
    let begin = begin + text[begin..].find('\n').unwrap() + 1;
    let end = begin + text[begin..].find(&format!("end {part}")).unwrap();
    let end = text[..end].rfind('\n').unwrap() + 1;
    if env::var_os("NIMGATE_WRITE").is_some() {
        fs::write(&path, format!("{}{wanted}{}", &text[..begin], &text[end..])).unwrap();
    } else {
        assert_eq!(
            &text[begin..end],
            wanted,
            "{file} is not what the table of knobs says; NIMGATE_WRITE=1 cargo test -p nimgate-config --test generated"
        );
    }
}

#[test]
fn the_readme_lists_the_knobs() {
    for (part, expert) in [("knobs", false), ("expert knobs", true)] {
        let rows: String = knobs().filter(|knob| knob.expert == expert).map(row).collect();
        check(
            "README.md",
            part,
            &format!("\n| field | default | values | meaning |\n| --- | --- | --- | --- |\n{rows}\n"),
        );
    }
}

fn row(knob: &Knob) -> String {
    let default = match (knob.derived, knob.value(&Rules::DEFAULT)) {
        (Some(derived), _) => derived.words.to_owned(),
        (None, Value::Off) => "off".to_owned(),
        (None, Value::Switch(on)) => on.to_string(),
        (None, Value::Choice(word)) => format!("`{word}`"),
        (None, Value::Whole(number)) => number.to_string(),
        (None, Value::Fraction(number)) => number.to_string(),
    };
    let values = match knob.kind {
        Kind::Switch => "true, false".to_owned(),
        Kind::Choice(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Kind::Number(takes) => {
            let off = if takes.zero_is_off { ", 0 is off" } else { "" };
            format!("{} to {}{off}", bound(takes, takes.min), thousands(takes.max / takes.unit.scale()))
        }
    };
    format!("| `.{}` | {default} | {values} | {} |\n", knob.path, knob.meaning())
}

fn bound(takes: Number, word: u64) -> String {
    match takes.unit {
        Unit::Seconds => (word as f64 / 1e6).to_string(),
        unit => thousands(word / unit.scale()),
    }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut spaced = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            spaced.push(',');
        }
        spaced.push(digit);
    }
    spaced
}

#[test]
fn the_consoles_description_has_the_knobs() {
    let mut change = String::new();
    let mut settings = format!("      required: [{}]\n      properties:\n", names_in_limit().join(", "));
    for group in GROUPS {
        let mut indent = "        ";
        if !group.is_empty() {
            let names: Vec<&str> = knobs_in(group).map(|knob| knob.place().1).collect();
            change += &format!(
                "        {group}:\n          type: [object, \"null\"]\n          additionalProperties: false\n          properties:\n"
            );
            settings += &format!(
                "        {group}:\n          type: object\n          additionalProperties: false\n          required: [{}]\n          properties:\n",
                names.join(", ")
            );
            indent = "            ";
        }
        for knob in knobs_in(group) {
            let (_, name) = knob.place();
            change += &format!("{indent}{name}: {}\n", schema(knob, true));
            settings += &format!("{indent}{name}: {}\n", schema(knob, false));
        }
    }
    check("envoy/console-openapi.yaml", "knobs of a change", &change);
    check("envoy/console-openapi.yaml", "knobs of settings", &settings);
}

/// What stands in a limit's own object: its knobs, and the objects that hold others.
fn names_in_limit() -> Vec<&'static str> {
    knobs_in("").map(|knob| knob.path).chain(GROUPS.into_iter().filter(|group| !group.is_empty())).collect()
}

fn schema(knob: &Knob, is_change: bool) -> String {
    let nullable = |name: &str, off: bool| match is_change || off {
        true => format!("[{name}, \"null\"]"),
        false => name.to_owned(),
    };
    let values = match knob.kind {
        Kind::Switch => format!("type: {}", nullable("boolean", false)),
        Kind::Choice(words) => format!("enum: [{}{}]", words.join(", "), if is_change { ", null" } else { "" }),
        Kind::Number(takes) => {
            let name = if takes.unit == Unit::Seconds { "number" } else { "integer" };
            let min = if takes.zero_is_off { 0.0 } else { takes.min as f64 / takes.unit.scale() as f64 };
            let max = takes.max / takes.unit.scale();
            format!("type: {}, minimum: {min}, maximum: {max}", nullable(name, takes.zero_is_off))
        }
    };
    if !is_change {
        return format!("{{{values}}}");
    }
    let off = matches!(knob.kind, Kind::Number(Number { zero_is_off: true, .. }));
    let meaning = format!("{}{}", knob.meaning(), if off { "; 0 is off" } else { "" });
    format!("{{{values}, description: {}}}", serde_json::to_string(&meaning).unwrap())
}
