//! Patterns with `*` for any run of characters, as operators know them from shells. Letter case is ignored: a request
//! that is metered once too often waits, one that is missed costs everyone their quota.

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Glob(Box<[u8]>);

impl Glob {
    /// A pattern from its text; `*` stands for any run of characters, also an empty one, and everything else for
    /// itself in either letter case.
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_ascii_lowercase().into_bytes().into_boxed_slice())
    }

    /// The pattern's text, in lower case.
    pub fn text(&self) -> &[u8] {
        &self.0
    }

    /// Whether `text` as a whole fits the pattern. Takes O(pattern × text) steps at worst and no memory.
    pub fn matches(&self, text: &[u8]) -> bool {
        let (mut pattern, mut rest) = (&*self.0, text);
        // Where to go on if the characters after the last `*` don't fit: after that `*`, one character later.
        let mut retry: Option<(&[u8], &[u8])> = None;
        loop {
            match (pattern.split_first(), rest.split_first()) {
                (Some((b'*', next)), _) => {
                    retry = Some((next, rest));
                    pattern = next;
                }
                (Some((expected, next)), Some((found, tail))) if *expected == found.to_ascii_lowercase() => {
                    pattern = next;
                    rest = tail;
                }
                (None, None) => return true,
                _ => match retry {
                    Some((next, [_, tail @ ..])) => {
                        retry = Some((next, tail));
                        pattern = next;
                        rest = tail;
                    }
                    _ => return false,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn matches_as_in_a_shell() {
        for (pattern, text, expected) in [
            ("nvidia/*", "nvidia/llama-3.1", true),
            ("nvidia/*", "nvidia/", true),
            ("nvidia/*", "nvidia", false),
            ("nvidia/*", "xnvidia/y", false),
            ("NVIDIA/*", "Nvidia/Y", true),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("a*b*c", "a__b__b_c", true),
            ("a*b*c", "a__c__b", false),
            ("*.nvidia.com", "integrate.api.nvidia.com", true),
            ("a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(text.as_bytes()), expected, "{pattern} {text}");
        }
    }
}
