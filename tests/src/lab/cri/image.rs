//! Images that consist of static programs, as archives with an OCI image layout (image-spec 1.0). All containers of the
//! tests, including pod sandboxes, use the same image.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

use crate::lab::BIN_DIR;

/// Name of the image. No registry has it, so it is never pulled.
pub const NAME: &str = "localhost/podnet-lab:1";
/// Path of the program in the image.
pub(super) const PROGRAM: &str = "/podnet-lab";

/// An image of static programs.
#[derive(Debug)]
pub(super) struct Image<'a> {
    pub(super) name: &'a str,
    /// Programs: path in the image, and source file.
    pub(super) programs: &'a [(&'a str, &'a Path)],
    pub(super) entrypoint: &'a [&'a str],
    /// Default arguments of the entry point.
    pub(super) cmd: &'a [&'a str],
}

/// Writes an image.
pub(super) fn write(path: &Path, image: &Image<'_>) -> Result<()> {
    let architecture = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no name is known that images have for the architecture {other}"),
    };
    let programs = image.programs.iter().map(|(_, from)| read(from)).collect::<Result<Vec<_>>>()?;
    let places = image.programs.iter().map(|(place, _)| place.trim_start_matches('/'));
    let files: Vec<_> = places.zip(&programs).map(|(place, program)| (place, 0o755, &program[..])).collect();
    let mut layer = Vec::new();
    archive(&mut layer, &files)?;
    let mut blobs = BTreeMap::new();
    let layer = blob(&mut blobs, "layer.v1.tar", layer);
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": image.entrypoint, "Cmd": image.cmd},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(&mut blobs, "config.v1+json", serde_json::to_vec(&config)?);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let mut manifest = blob(&mut blobs, "manifest.v1+json", serde_json::to_vec(&manifest)?);
    manifest["annotations"] = json!({"io.containerd.image.name": image.name});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [manifest]}))?;
    let mut files =
        vec![("oci-layout", 0o644, &br#"{"imageLayoutVersion": "1.0.0"}"#[..]), ("index.json", 0o644, &index)];
    files.extend(blobs.iter().map(|(path, bytes)| (&path[..], 0o644, &bytes[..])));
    archive(File::create(path)?, &files).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a program, which must be statically linked.
fn read(program: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    // The name of its interpreter, if any, is near the beginning of the file.
    let dynamic = bytes[..bytes.len().min(4096)].windows(3).any(|bytes| bytes == b"/ld");
    let shown = program.display();
    ensure!(!dynamic, "{shown} is not static: let {BIN_DIR} name the directory that `cargo xtask build` tells");
    Ok(bytes)
}

/// Adds a blob to those of an image and returns its descriptor.
fn blob(blobs: &mut BTreeMap<String, Vec<u8>>, kind: &str, bytes: Vec<u8>) -> Value {
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let descriptor = json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": format!("sha256:{digest}"),
        "size": bytes.len(),
    });
    blobs.insert(format!("blobs/sha256/{digest}"), bytes);
    descriptor
}

/// A tar archive of files: path, mode, content.
fn archive(to: impl std::io::Write, files: &[(&str, u32, &[u8])]) -> Result<()> {
    let mut builder = Builder::new(to);
    for (path, mode, content) in files {
        let mut header = Header::new_ustar();
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, *content)?;
    }
    builder.into_inner()?;
    Ok(())
}
