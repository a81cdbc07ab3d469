//! Whose limit the books find it to be.

use super::*;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const WINDOW: Micros = Micros::from_secs(60);

fn at(seconds: u64) -> Instant {
    Instant::ZERO.after(Micros::from_secs(1_000 + seconds))
}

/// The books after so many answers, the model's at place 0 and of the others each: served and refused.
fn books(own: (u32, u32), others: &[(u32, u32)]) -> Books {
    let mut books = Books::default();
    for (model, (served, refused)) in core::iter::once(&own).chain(others).enumerate() {
        for _ in 0..*served {
            books.count(WINDOW, at(0), ModelKey(model as u64 + 1), false);
        }
        for _ in 0..*refused {
            books.count(WINDOW, at(0), ModelKey(model as u64 + 1), true);
        }
    }
    books
}

#[test]
fn a_share_far_above_the_others_is_a_limit_of_its_own() {
    let own = ModelKey(1);
    for (of_own, others, expected) in [
        ((1, 4), [(10, 0); 3].as_slice(), Finding::Own { others_clean: true }),
        ((1, 4), &[(1, 4), (10, 0), (10, 0), (10, 0)], Finding::Own { others_clean: false }),
        ((1, 5), &[(1, 4), (10, 0), (10, 0), (10, 0)], Finding::Own { others_clean: true }),
        ((10, 2), &[(10, 2), (9, 3), (11, 1)], Finding::Account),
        ((19, 1), &[(19, 1), (18, 2), (20, 0)], Finding::Account),
        ((0, 1), &[(10, 0); 3], Finding::Account),
        ((1, 2), &[(5, 0); 3], Finding::Uneven),
    ] {
        assert_eq!(books(of_own, others).finding(own, false, 0.0), expected, "{of_own:?} among {others:?}");
    }
}

#[test]
fn at_a_known_ceiling_it_takes_more_to_suspect_a_model() {
    let books = books((3, 2), &[(5, 0); 3]);
    assert_eq!(books.finding(ModelKey(1), false, 0.0), Finding::Uneven);
    assert_eq!(books.finding(ModelKey(1), true, 0.0), Finding::Account);
}

#[test]
fn one_model_alone_proves_nothing() {
    assert_eq!(books((1, 50), &[]).finding(ModelKey(1), false, 0.0), Finding::Account);
    assert_eq!(books((1, 50), &[(1, 50)]).finding(ModelKey(1), false, 0.0), Finding::Account);
}

#[test]
fn counts_fade_and_empty_books_go() {
    let mut books = books((100, 0), &[(0, 1)]);
    books.count(WINDOW, at(360), ModelKey(1), false);
    let first = books.books[0];
    assert!((37_700..=37_800).contains(&first.served), "{first:?}");
    books.count(WINDOW, at(360 * 5), ModelKey(3), false);
    assert!(books.books.iter().all(|book| book.key != ModelKey(2)), "{books:?}");
}

#[test]
fn invented_names_push_nobody_out() {
    let mut books = books((20, 0), &[(20, 0), (20, 0)]);
    for name in 0..10_000 {
        books.count(WINDOW, at(1), ModelKey(1_000 + name), true);
    }
    assert_eq!(books.books.len(), BOOKS_MAX);
    assert!((1..=3).all(|key| books.books.iter().any(|book| book.key == ModelKey(key))));
}
