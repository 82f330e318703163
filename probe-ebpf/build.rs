//! Links the eBPF programs so that they clear and copy memory word by word: bpf-linker asks LLVM for calls
//! of functions that do it byte by byte.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_CFG_TARGET_ARCH").is_some_and(|arch| arch == "bpf") {
        println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
