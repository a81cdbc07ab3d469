//! The scanner as a module of its own. `time.mjs` runs it in node, whose engine is V8, as Envoy's is.

#[path = "../../../../filter/classify/benches/common/corpus.rs"]
mod corpus;

use nimgate_classify::model::Scanner;
use std::cell::RefCell;

thread_local! {
    static BODY: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Makes the body of a kind and size; answers its length.
#[unsafe(no_mangle)]
pub extern "C" fn prepare(kind: usize, size: usize) -> usize {
    BODY.with_borrow_mut(|(body, copy)| {
        *body = corpus::KINDS.get(kind).map_or_else(Vec::new, |(_, make)| make(size));
        *copy = vec![0; body.len()];
        body.len()
    })
}

/// Scans it so many times; answers how many models were found in all.
#[unsafe(no_mangle)]
pub extern "C" fn scan(times: u32) -> u32 {
    BODY.with_borrow(|(body, _)| {
        let mut found = 0u32;
        for _ in 0..times {
            let mut scanner = Scanner::new();
            scanner.feed(body, &mut |model| found = found.wrapping_add(u32::from(!model.is_empty())));
            found = found.wrapping_add(scanner.finish().map_or(0, |found| found.models));
        }
        found
    })
}

/// The same with serde_json, which skips over everything.
#[unsafe(no_mangle)]
pub extern "C" fn skip(times: u32) -> u32 {
    BODY.with_borrow(|(body, _)| {
        (0..times).map(|_| u32::from(serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok())).sum()
    })
}

/// Copies it so many times.
#[unsafe(no_mangle)]
pub extern "C" fn copy(times: u32) -> u32 {
    BODY.with_borrow_mut(|(body, copy)| {
        for _ in 0..times {
            std::hint::black_box(&mut *copy).copy_from_slice(std::hint::black_box(body));
        }
        copy.last().copied().map_or(0, u32::from)
    })
}
