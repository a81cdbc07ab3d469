//! Replays the corpus: what fuzzing has found to be worth trying, and has once found to be wrong.

use nimgate_fuzz::TARGETS;
use std::path::Path;

#[test]
fn the_corpus_holds() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files: Vec<_> = std::fs::read_dir(&folder).expect("each target has a corpus").flatten().collect();
        assert!(files.len() >= 5, "{name} has a corpus of {} files", files.len());
        for file in files {
            let data = std::fs::read(file.path()).expect("the file can be read");
            println!("{name}: {}", file.path().display());
            target(&data);
        }
    }
}
