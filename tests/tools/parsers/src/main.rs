//! `nimgate-parsers`: sends the same odd bodies to the classifier and to the parsers that upstreams use, and looks for one
//! that is metered to a parser and passed by the classifier.
//!
//! The other way round is no fault: what some parser might read as a metered model is metered.

mod bodies;
mod reader;

#[path = "../../../../filter/classify/tests/support/models.rs"]
mod models;

use bodies::Bodies;
use models::Models;
use nimgate_classify::{AtHead, Decision, RequestHead, at_head};
use nimgate_config::Config;
use reader::Reader;
use serde_json::Value;
use std::process::ExitCode;
use std::thread;

const USAGE: &str = "usage: nimgate-parsers [--bodies N] [--seed S] [--planted] --reader NAME=COMMAND...

Compares the classifier with each reader (a program that follows tests/tools/parsers/readers/reader.py's protocol) and with
serde_json on N bodies. With --planted a classifier that only searches for a text takes the place of nimgate's: each
reader must be seen to read metered models that it misses.";

/// What the planted classifier looks for.
const PLANTED: &[u8] = b"\"model\":\"nvidia";

/// Bodies in one batch.
const BATCH: u64 = 10_000;

struct Asked {
    bodies: u64,
    seed: u64,
    planted: bool,
    readers: Vec<Reader>,
}

fn asked() -> Result<Asked, lexopt::Error> {
    use lexopt::prelude::*;
    let mut asked = Asked { bodies: 100_000, seed: 1, planted: false, readers: Vec::new() };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("bodies") => asked.bodies = parser.value()?.parse()?,
            Long("seed") => asked.seed = parser.value()?.parse()?,
            Long("planted") => asked.planted = true,
            Long("reader") => asked.readers.push(Reader::start(&parser.value()?.string()?)?),
            Short('h') | Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    if asked.readers.is_empty() || asked.bodies == 0 {
        return Err("at least one --reader, and one body".into());
    }
    Ok(asked)
}

fn is_metered(model: &str) -> bool {
    let model = model.to_ascii_lowercase();
    model.starts_with("nvidia/") || model.starts_with("nvidia_nim/")
}

/// What nimgate does with such a body: with a content type that says JSON and with none, whole and in pieces.
fn is_passed(config: &Config, body: &[u8]) -> bool {
    let ways = [(Some(&b"application/json"[..]), body.len().max(1)), (None, 7)];
    ways.into_iter().any(|(content_type, size)| {
        let head =
            RequestHead { method: b"POST", path: b"/v1/chat/completions", content_type, ..RequestHead::default() };
        match at_head(config, &head) {
            AtHead::Decided(classified) => classified.decision == Decision::Pass,
            AtHead::Read(mut reader) => {
                body.chunks(size).any(|piece| reader.feed(config, piece))
                    || reader.finish(config).decision == Decision::Pass
            }
        }
    })
}

/// What a classifier does that looks for the text.
fn is_passed_by_search(body: &[u8]) -> bool {
    !body.windows(PLANTED.len()).any(|text| text == PLANTED)
}

fn serde_reads_metered(body: &[u8]) -> bool {
    serde_json::from_slice::<Models>(body)
        .is_ok_and(|Models(values)| values.iter().filter_map(Value::as_str).any(is_metered))
}

/// What came of one parser.
#[derive(Default)]
struct Count {
    metered: u64,
    missed: u64,
    example: Option<Vec<u8>>,
}

fn compare(asked: &mut Asked) -> Result<Vec<(String, Count)>, String> {
    let config = Config::parse(b"").map_err(|error| error.to_string())?;
    let mut source = Bodies::new(asked.seed).map_err(|error| format!("JSONTestSuite can't be read: {error}"))?;
    let names = asked.readers.iter().map(|reader| reader.name.clone()).chain(["serde_json".to_owned()]);
    let mut counts: Vec<(String, Count)> = names.map(|name| (name, Count::default())).collect();
    let mut left = asked.bodies;
    while left > 0 {
        let bodies: Vec<Vec<u8>> = (0..left.min(BATCH)).map(|_| source.body()).collect();
        left -= bodies.len() as u64;
        let planted = asked.planted;
        let mut answers = thread::scope(|scope| {
            let at_work: Vec<_> = asked
                .readers
                .iter_mut()
                .map(|reader| scope.spawn(|| (reader.metered(&bodies), &reader.name)))
                .collect();
            at_work
                .into_iter()
                .map(|thread| match thread.join() {
                    Ok((answers, name)) => answers.map_err(|error| format!("{name} does not answer: {error}")),
                    Err(_) => Err("a thread that talks to a reader panicked".to_owned()),
                })
                .collect::<Result<Vec<_>, _>>()
        })?;
        answers.push(bodies.iter().map(|body| serde_reads_metered(body)).collect());
        for (at, body) in bodies.iter().enumerate() {
            let passed = if planted { is_passed_by_search(body) } else { is_passed(&config, body) };
            for ((_, count), answers) in counts.iter_mut().zip(&answers) {
                count.metered += u64::from(answers[at]);
                if answers[at] && passed {
                    count.missed += 1;
                    count.example.get_or_insert_with(|| body.clone());
                }
            }
        }
    }
    Ok(counts)
}

fn main() -> ExitCode {
    let mut asked = match asked() {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let counts = match compare(&mut asked) {
        Ok(counts) => counts,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let mut failed = 0;
    for (name, Count { metered, missed, example }) in &counts {
        println!("{name}: reads a metered model in {metered} of {} bodies, {missed} of them passed", asked.bodies);
        if let Some(example) = example {
            println!("  for example {}", example.escape_ascii());
        }
        // A parser that reads nothing, or a planted fault that it does not show, would make this a test of nothing.
        failed += u32::from(*metered == 0 || (*missed > 0) != asked.planted);
    }
    println!("other parsers: {} passed, {failed} failed", counts.len() - failed as usize);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
