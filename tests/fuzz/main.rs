//! One program for all targets of `warmimg::fuzzing`: `FUZZ_TARGET` chooses one, the arguments are
//! libFuzzer's.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    static TARGET: std::sync::LazyLock<fn(&[u8])> = std::sync::LazyLock::new(|| {
        let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET is set");
        let found = warmimg::fuzzing::TARGETS
            .iter()
            .find(|(target, _)| *target == name);
        found.expect("FUZZ_TARGET is the name of a target").1
    });
    TARGET(input);
});

#[cfg(not(fuzzing))]
fn main() {
    println!("`cargo xtask fuzz` builds and runs this");
}
