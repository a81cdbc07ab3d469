//! Bodies that parsers may read differently: objects with several spellings of `model`, written oddly, then damaged.

use fastrand::Rng;
use std::path::Path;
use std::{fs, io};

/// Keys, as they stand between the quotes. Half of them are `model` to some parser.
const KEYS: [&str; 16] = [
    "model",
    "model",
    "model",
    "model",
    "Model",
    "MODEL",
    "mOdEl",
    "mod\\u0065l",
    "\\u006dodel",
    "\\u004Dodel",
    "model ",
    "mode",
    "mode\u{142}",
    "messages",
    "",
    "m\\u006fd\\u0065\\u006c",
];

/// Values that name a model, as they stand in the text. Most are metered.
const NAMES: [&str; 12] = [
    "\"nvidia/m\"",
    "\"nvidia/llama-3.1-nemotron\"",
    "\"NVIDIA/m\"",
    "\"nvidia_nim/m\"",
    "\"nvidia\\/m\"",
    "\"\\u006evidia/m\"",
    "\"nvidia/\\ud83d\\ude00\"",
    "\"nvidia/\u{1f600}\"",
    "\"nvidia/\\ud83d\"",
    "\"gpt-5\"",
    "\"meta/nvidia/m\"",
    "\"\"",
];

/// Other values.
const VALUES: [&str; 18] = [
    "null",
    "true",
    "false",
    "0",
    "-1.5e+3",
    "1E400",
    "NaN",
    "-Infinity",
    "01",
    "[]",
    "{}",
    "[1,[2,{\"model\":\"nvidia/m\"}]]",
    "{\"model\":\"nvidia/m\",\"x\":{}}",
    "\"}\"",
    "\"\\\"\"",
    "\"\\\\\"",
    "\"a\\u0000b\"",
    "\"\t\"",
];

/// What damage puts into a body.
const SHARDS: [&[u8]; 26] = [
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b" ",
    b"\n",
    b"\0",
    b"\x0b",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xc2\xa0",
    b"/*",
    b"*/",
    b"//",
    b"'",
    b"\\u",
    b"\\x6d",
    b"\"model\":\"nvidia/m\"",
    b"tru",
    b"1",
];

/// Where bodies come from.
pub struct Bodies {
    random: Rng,
    /// JSONTestSuite's files, as values of a field.
    suite: Vec<Vec<u8>>,
}

impl Bodies {
    /// The bodies of this seed.
    ///
    /// # Errors
    ///
    /// If JSONTestSuite's folder can't be read.
    pub fn new(seed: u64) -> io::Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/JSONTestSuite/test_parsing");
        let mut files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        files.sort();
        let suite = files.iter().map(fs::read).collect::<io::Result<Vec<_>>>()?;
        // Two files are hundreds of kilobytes of one bracket, which would be most of what is read.
        let suite = suite.into_iter().filter(|file| file.len() < 1_000).collect();
        Ok(Self { random: Rng::with_seed(seed), suite })
    }

    /// The next body.
    pub fn body(&mut self) -> Vec<u8> {
        let mut body = self.object();
        for _ in 0..[0, 0, 1, 1, 2, 4][self.random.usize(..6)] {
            self.damage(&mut body);
        }
        match self.random.u32(..40) {
            0 => [b"\xef\xbb\xbf", &body[..]].concat(),
            1 => self.in_wide_characters(&body),
            _ => body,
        }
    }

    fn object(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        self.space(&mut body);
        body.push(b'{');
        for field in 0..self.random.usize(1..5) {
            if field > 0 {
                body.push(b',');
            }
            self.space(&mut body);
            body.push(b'"');
            body.extend(self.random.choice(KEYS).unwrap_or_default().bytes());
            body.push(b'"');
            self.space(&mut body);
            body.push(b':');
            self.space(&mut body);
            let value = match self.random.u32(..10) {
                0..6 => self.random.choice(NAMES).unwrap_or_default().as_bytes(),
                6..9 => self.random.choice(VALUES).unwrap_or_default().as_bytes(),
                _ => &self.suite[self.random.usize(..self.suite.len())],
            };
            body.extend(value);
            self.space(&mut body);
        }
        body.push(b'}');
        self.space(&mut body);
        body
    }

    fn space(&mut self, body: &mut Vec<u8>) {
        while self.random.u32(..6) == 0 {
            body.push(*self.random.choice(b" \t\r\n").unwrap_or(&b' '));
        }
    }

    fn damage(&mut self, body: &mut Vec<u8>) {
        let from = self.random.usize(..=body.len());
        let to = (from + self.random.usize(..8)).min(body.len());
        match self.random.u32(..8) {
            0 => body.truncate(from),
            1 => drop(body.drain(from..to)),
            2 => body.extend_from_within(from..to),
            3 => {
                let byte = self.random.u8(..);
                body.splice(from..to.min(from + 1), [byte]);
            }
            4 => {
                let other = self.object();
                body.splice(from..from, other);
            }
            _ => {
                let shard = self.random.choice(SHARDS).unwrap_or_default();
                body.splice(from..from, shard.iter().copied());
            }
        }
    }

    /// UTF-16 or UTF-32, as Python's json recognises it, with or without a byte order mark.
    fn in_wide_characters(&mut self, body: &[u8]) -> Vec<u8> {
        let (wide, big, marked) = (self.random.bool(), self.random.bool(), self.random.bool());
        let text = String::from_utf8_lossy(body);
        let units = marked.then_some('\u{feff}').into_iter().chain(text.chars());
        let in_order = |unit: &[u8]| if big { unit.iter().rev().copied().collect() } else { unit.to_vec() };
        if wide {
            units.flat_map(|unit| in_order(&u32::from(unit).to_le_bytes())).collect()
        } else {
            let text: String = units.collect();
            text.encode_utf16().flat_map(|unit| in_order(&unit.to_le_bytes())).collect()
        }
    }
}
