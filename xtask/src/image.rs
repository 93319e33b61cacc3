//! `cargo xtask image`: the static programs as a container image, in a file that can be imported without a registry.
//!
//! The file is a tar with an OCI image layout (image-spec 1.0) and, for the same blobs, the `manifest.json` of `docker
//! save`, since not every `docker load` reads the layout. The image is reproducible: entries are sorted and have
//! neither time nor owner, and the layer is not compressed, because the output of compressors differs between versions.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::build;
use crate::setup::{self, Purpose};
use crate::workspace::Workspace;

/// Name of the image in the manifests in `deploy/`. No registry has it, so it is never pulled.
const NAME: &str = concat!("localhost/podnet:", env!("CARGO_PKG_VERSION"));

/// Default program of a container.
const ENTRYPOINT: &str = "podnet";
const PROGRAMS: [&str; 2] = [ENTRYPOINT, "podnet-cni"];

/// Timestamp of everything.
const EPOCH: &str = "1970-01-01T00:00:00Z";

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(crate) fn run(workspace: &Workspace, out: Option<PathBuf>) -> Result<()> {
    let architecture = architecture(ARCH)?;
    setup::ensure(workspace, Purpose::Build)?;
    let directory = build::shipped(workspace)?.programs;
    let programs = PROGRAMS
        .iter()
        .map(|&name| {
            let path = directory.join(name);
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((name, bytes))
        })
        .collect::<Result<BTreeMap<_, _>>>()?;
    let image = Image::new(architecture, &programs)?;
    let out = out.unwrap_or_else(|| workspace.target.join("image/podnet.tar"));
    write(&out, &image.archive)?;
    let shown = out.display();
    println!("image:  {shown}, {:.1} MB, {NAME} for {architecture}", image.archive.len() as f64 / 1e6);
    println!("digest: {}", image.digest);
    println!("next:   kind load image-archive {shown}");
    println!("or:     ctr -n k8s.io images import {shown}   (as root, on each node)");
    Ok(())
}

/// Name of an architecture in images, from its name in Rust.
fn architecture(rust: &str) -> Result<&'static str> {
    match rust {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        _ => bail!("cannot build an image on {rust}: podnet runs on x86_64 and aarch64"),
    }
}

/// Writes a file under another name first, so that an interrupted run does not leave an incomplete one.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    directory
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&unfinished, bytes))
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// An image with one layer.
struct Image {
    /// The file for `ctr`, `kind` and `docker`.
    archive: Vec<u8>,
    /// Digest of the manifest, which runtimes show as the image's digest.
    digest: Digest,
}

impl Image {
    /// The programs, by name, in `/usr/bin`.
    fn new(architecture: &str, programs: &BTreeMap<&str, Vec<u8>>) -> Result<Self> {
        let mut files = BTreeMap::from(["usr/", "usr/bin/"].map(|directory| (directory.to_owned(), Entry::Directory)));
        files.extend(programs.iter().map(|(name, bytes)| (format!("usr/bin/{name}"), Entry::Program(bytes))));
        let layer = Blob::new(LAYER, archive(&files)?);
        let config = Blob::json(CONFIG, &config(architecture, &layer.digest))?;
        let manifest = Blob::json(
            MANIFEST,
            &json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": config.descriptor(),
                "layers": [layer.descriptor()],
            }),
        )?;
        let index = serde_json::to_vec(&index(architecture, &manifest))?;
        let layout = serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?;
        let docker = serde_json::to_vec(&json!([
            {"Config": config.path(), "RepoTags": [NAME], "Layers": [layer.path()]}
        ]))?;
        let mut parts = BTreeMap::from([
            ("index.json".to_owned(), Entry::File(&index)),
            ("oci-layout".to_owned(), Entry::File(&layout)),
            ("manifest.json".to_owned(), Entry::File(&docker)),
        ]);
        parts.extend([&layer, &config, &manifest].map(|blob| (blob.path(), Entry::File(&blob.bytes))));
        Ok(Self { archive: archive(&parts)?, digest: manifest.digest })
    }
}

/// Configuration of containers. The layer is not compressed, so its digest and diff ID are equal.
fn config(architecture: &str, layer: &Digest) -> Value {
    json!({
        "created": EPOCH,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/usr/bin/{ENTRYPOINT}")],
            "Env": ["PATH=/usr/bin"],
            "Labels": {
                "org.opencontainers.image.title": "podnet",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.to_string()]},
        "history": [{"created": EPOCH, "created_by": "cargo xtask image"}],
    })
}

/// The layout's index. containerd takes the image's name from the first annotation, others from the second.
fn index(architecture: &str, manifest: &Blob) -> Value {
    let mut descriptor = manifest.descriptor();
    descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
    descriptor["annotations"] = json!({
        "io.containerd.image.name": NAME,
        "org.opencontainers.image.ref.name": NAME,
    });
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]})
}

/// Digest of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Digest {
    /// Lower case.
    hex: String,
}

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        let mut hex = String::new();
        for byte in Sha256::digest(bytes) {
            write!(hex, "{byte:02x}").expect("a String takes everything");
        }
        Self { hex }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex)
    }
}

/// A piece of content.
struct Blob {
    media_type: &'static str,
    digest: Digest,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: Digest::of(&bytes), bytes }
    }

    fn json(media_type: &'static str, value: &Value) -> Result<Self> {
        Ok(Self::new(media_type, serde_json::to_vec(value)?))
    }

    /// Its path in the layout.
    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest.hex)
    }

    /// Its descriptor.
    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest.to_string(), "size": self.bytes.len()})
    }
}

/// Entry at a path of a tar.
enum Entry<'a> {
    Directory,
    Program(&'a [u8]),
    File(&'a [u8]),
}

/// A tar of the entries in the order of their paths, which puts directories before their contents.
fn archive(entries: &BTreeMap<String, Entry<'_>>) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for (path, entry) in entries {
        let (kind, mode, bytes) = match *entry {
            Entry::Directory => (EntryType::Directory, 0o755, &[][..]),
            Entry::Program(bytes) => (EntryType::Regular, 0o755, bytes),
            Entry::File(bytes) => (EntryType::Regular, 0o644, bytes),
        };
        let mut header = Header::new_ustar();
        header.set_path(path).with_context(|| format!("{path} does not fit into a tar archive"))?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append(&header, bytes).with_context(|| format!("cannot archive {path}"))?;
    }
    builder.into_inner().context("cannot finish the archive")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use tar::Archive;

    use super::*;

    /// A file or directory in a tar.
    struct Found {
        header: Header,
        bytes: Vec<u8>,
    }

    fn image() -> Image {
        // Larger and smaller than a block of a tar.
        let programs = BTreeMap::from([("podnet-cni", vec![2; 9]), ("podnet", vec![1; 1000])]);
        Image::new("amd64", &programs).unwrap()
    }

    /// The entries in their order.
    fn unpack(archive: &[u8]) -> Vec<(String, Found)> {
        let mut archive = Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (path, Found { header: entry.header().clone(), bytes })
        });
        entries.collect()
    }

    /// Contents of the layout's files.
    fn layout() -> BTreeMap<String, Vec<u8>> {
        unpack(&image().archive).into_iter().map(|(path, found)| (path, found.bytes)).collect()
    }

    fn json_at(layout: &BTreeMap<String, Vec<u8>>, path: &str) -> Value {
        serde_json::from_slice(&layout[path]).unwrap()
    }

    /// Path of the blob of a descriptor, after checking size and digest.
    fn path_of(layout: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> String {
        let digest = descriptor["digest"].as_str().unwrap();
        let path = digest.replace("sha256:", "blobs/sha256/");
        let bytes = &layout[&path];
        assert_eq!(Digest::of(bytes).to_string(), digest);
        assert_eq!(descriptor["size"], bytes.len());
        path
    }

    #[test]
    fn image_is_reproducible() {
        assert!(image().archive == image().archive);
        let others = BTreeMap::from([("podnet-cni", vec![2; 9]), ("podnet", vec![1; 1001])]);
        let others = Image::new("amd64", &others).unwrap();
        assert_ne!(image().digest, others.digest);
    }

    #[test]
    fn digests_are_sha256() {
        // First example of FIPS 180-4.
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), abc);
    }

    #[test]
    fn every_descriptor_matches_its_blob() {
        let layout = layout();
        assert_eq!(json_at(&layout, "oci-layout"), json!({"imageLayoutVersion": "1.0.0"}));
        let index = json_at(&layout, "index.json");
        let [descriptor] = &index["manifests"].as_array().unwrap()[..] else { panic!("{index}") };
        assert_eq!(descriptor["mediaType"], MANIFEST);
        assert_eq!(descriptor["digest"], image().digest.to_string());
        assert_eq!(descriptor["platform"], json!({"architecture": "amd64", "os": "linux"}));

        let manifest = json_at(&layout, &path_of(&layout, descriptor));
        assert_eq!(
            (&manifest["config"]["mediaType"], &manifest["layers"][0]["mediaType"]),
            (&CONFIG.into(), &LAYER.into())
        );
        let config_path = path_of(&layout, &manifest["config"]);
        let layer_path = path_of(&layout, &manifest["layers"][0]);
        let config = json_at(&layout, &config_path);
        assert_eq!(config["rootfs"]["diff_ids"], json!([manifest["layers"][0]["digest"]]));
        assert_eq!((&config["architecture"], &config["os"]), (&"amd64".into(), &"linux".into()));
        assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/podnet"]));
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");

        let docker = json_at(&layout, "manifest.json");
        assert_eq!(docker, json!([{"Config": config_path, "RepoTags": [NAME], "Layers": [layer_path]}]));
        assert_eq!(layout.len(), 6, "three blobs and three files that lead to them");
    }

    #[test]
    fn image_name_matches_the_manifests() {
        let index = json_at(&layout(), "index.json");
        let annotations = &index["manifests"][0]["annotations"];
        let expected = format!("localhost/podnet:{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(annotations["io.containerd.image.name"], expected);
        assert_eq!(annotations["org.opencontainers.image.ref.name"], expected);
        let deployed = include_str!("../../deploy/podnet.yaml");
        let images: Vec<_> = deployed.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
        assert_eq!(images, [expected.as_str(); 2]);
    }

    #[test]
    fn entries_are_sorted_without_owner_and_time() {
        let layout = layout();
        let manifest = json_at(&layout, &path_of(&layout, &json_at(&layout, "index.json")["manifests"][0]));
        let layer = unpack(&layout[&path_of(&layout, &manifest["layers"][0])]);
        let archive = unpack(&image().archive);
        for entries in [&layer, &archive] {
            assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b));
            for (path, found) in entries {
                let header = &found.header;
                assert_eq!(
                    (header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()),
                    (0, 0, 0),
                    "{path}"
                );
                assert_eq!((header.username(), header.groupname()), (Ok(Some("")), Ok(Some(""))), "{path}");
            }
        }
        let shown: Vec<_> = layer
            .iter()
            .map(|(path, found)| (path.as_str(), found.header.entry_type(), found.header.mode().unwrap()))
            .collect();
        assert_eq!(
            shown,
            [
                ("usr/", EntryType::Directory, 0o755),
                ("usr/bin/", EntryType::Directory, 0o755),
                ("usr/bin/podnet", EntryType::Regular, 0o755),
                ("usr/bin/podnet-cni", EntryType::Regular, 0o755),
            ]
        );
        assert_eq!((&layer[2].1.bytes, &layer[3].1.bytes), (&vec![1; 1000], &vec![2; 9]));
    }

    #[test]
    fn image_requires_a_supported_architecture() {
        assert_eq!(architecture("x86_64").unwrap(), "amd64");
        assert_eq!(architecture("aarch64").unwrap(), "arm64");
        assert!(architecture("riscv64").unwrap_err().to_string().contains("riscv64"));
    }

    #[test]
    fn image_is_written_to_the_given_path() {
        let directory = std::env::temp_dir().join(format!("podnet-image-{}", std::process::id()));
        let path = directory.join("new/podnet.tar");
        write(&path, b"first").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let error = write(&path.join("below a file"), b"").unwrap_err().to_string();
        assert!(error.contains("below a file"), "{error}");
        fs::remove_dir_all(directory).unwrap();
    }
}
