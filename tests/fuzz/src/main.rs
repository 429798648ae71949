//! libFuzzer's program: it looks for bytes that reach what no others have reached. `tests/fuzz/run` builds it with the
//! counters that this needs and calls it once for each target, which `GODWIT_FUZZ` names.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use godwit_fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("GODWIT_FUZZ").unwrap_or_default();
        let Some(target) = godwit_fuzz::named(&name) else {
            for target in TARGETS {
                println!("{} {}", target.name, target.longest);
            }
            std::process::exit(0);
        };
        // Good messages to begin from: written anew each time, so that they are always today's.
        if let Some(directory) = std::env::var_os("GODWIT_FUZZ_SEEDS") {
            for (number, bytes) in (target.good)().into_iter().enumerate() {
                let path = Path::new(&directory).join(format!("good-{number}"));
                if let Err(error) = std::fs::write(&path, bytes) {
                    eprintln!("{}: {error}", path.display());
                    std::process::exit(2);
                }
            }
        }
        let _ = TARGET.set(target);
    },
    |bytes: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.read)(bytes);
        }
    }
);
