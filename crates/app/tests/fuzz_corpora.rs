//! The fuzz targets on their seeds, on parts of them and on seeds with one byte changed: no panic,
//! and each target's assertions hold. `scripts/fuzz.sh` explores further.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

#[path = "../../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "the library of another workspace")]
mod targets;

/// Places in each seed at which it is cut, and at which a byte is changed.
const PLACES: usize = 24;

#[test]
fn g6_g7_g11_no_seed_or_variation_of_one_makes_a_target_fail() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    for (name, target) in targets::TARGETS {
        let mut seeds = 0;
        for seed in std::fs::read_dir(folder.join(name)).unwrap() {
            let path = seed.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            println!("{}", path.display());
            target(&bytes);
            for place in 0..PLACES {
                let at = bytes.len() * place / PLACES;
                target(&bytes[..at]);
                let mut changed = bytes.clone();
                if let Some(byte) = changed.get_mut(at) {
                    *byte ^= 1 << (place % 7);
                }
                target(&changed);
            }
            seeds += 1;
        }
        assert!(seeds >= 8, "{name} has {seeds} seeds");
    }
}
