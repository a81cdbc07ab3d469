//! What the scanner reads of a body that comes in pieces.

use nimgate_classify::model::{Scanner, Unreadable};

/// The models in the order in which they were reported; and how many there are, or why the body can't be read.
pub fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Result<u32, Unreadable>) {
    let mut scanner = Scanner::new();
    let mut models = Vec::new();
    for piece in pieces {
        scanner.feed(piece, &mut |model| models.push(model.to_owned()));
    }
    (models, scanner.finish().map(|found| found.models))
}
