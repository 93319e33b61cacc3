//! Embeds the eBPF object that `PODNET_EBPF_OBJECT` names (`cargo xtask build` sets it) in the daemon.
//!
//! Copies it to `$OUT_DIR/object` and writes `$OUT_DIR/object.rs`, which `datapath::object` includes. Without the
//! variable, as in a plain `cargo build` or `cargo test`, the daemon is built without an object and says so when it
//! starts.

use std::path::{Path, PathBuf};
use std::{env, fs};

const VARIABLE: &str = "PODNET_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = &object {
        println!("cargo::rerun-if-changed={}", path.display());
        if let Err(problem) = check(path) {
            println!("cargo::error={VARIABLE}={}: {problem}; `cargo xtask build` makes the object", path.display());
            return;
        }
    }
    let value = match &object {
        // Not the path itself: the positions of inline assembler in the compiler's output, and so its hash, would
        // depend on the path's length.
        Some(path) => {
            fs::copy(path, out.join("object")).expect("OUT_DIR can be written");
            "Some(aya::include_bytes_aligned!(concat!(env!(\"OUT_DIR\"), \"/object\")))"
        }
        None => "None",
    };
    let source = format!(
        "/// The eBPF object that this program was built with, if any.\npub(super) static OBJECT: Option<&[u8]> = {value};\n"
    );
    fs::write(out.join("object.rs"), source).expect("OUT_DIR can be written");
}

/// An absolute path (the compiler would look for a relative one in `OUT_DIR`) of a little-endian ELF file for BPF.
fn check(path: &Path) -> Result<(), String> {
    const EM_BPF: u16 = 247;
    if !path.is_absolute() {
        return Err("the path must be absolute".into());
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    match bytes.get(..20) {
        Some(header) if header.starts_with(b"\x7fELF") && header[18..20] == EM_BPF.to_le_bytes() => Ok(()),
        _ => Err("this is no eBPF object".into()),
    }
}
