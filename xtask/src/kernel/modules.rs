//! The kernel modules that the guest needs, and the order in which they are loaded.
//!
//! A module contains its dependencies, so neither `depmod` nor, in the guest, `modprobe` is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::packages::module;

/// Modules that podnet and its tests use, unless they are built in.
const WANTED: [&str; 12] = [
    // Other modules request this one by the name of an algorithm, which would require `modprobe`.
    "crc32c_generic",
    "veth",
    "bridge",
    "vxlan",
    "dummy",
    "sch_ingress",
    "cls_bpf",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "nf_conntrack",
    "sctp",
];

/// A module: name and content.
pub(super) type Module = (String, Vec<u8>);

/// The wanted modules and their dependencies, in load order.
pub(super) fn load_order(directory: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(&directory.join("kernel"), &mut files)?;
    let builtin = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    let builtin: BTreeSet<_> = builtin.lines().filter_map(|line| name_of(Path::new(line))).collect();
    let mut order = Order { files: &files, builtin: &builtin, seen: BTreeSet::new(), modules: Vec::new() };
    WANTED.into_iter().try_for_each(|name| order.add(name))?;
    Ok(order.modules)
}

struct Order<'a> {
    files: &'a BTreeMap<String, PathBuf>,
    builtin: &'a BTreeSet<String>,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        if !self.seen.insert(name.to_owned()) || self.builtin.contains(name) {
            return Ok(());
        }
        // Newer kernels have no such module.
        let Some(path) = self.files.get(name) else {
            ensure!(name == WANTED[0], "this kernel has no {name}");
            return Ok(());
        };
        let content = module(path)?;
        for dependency in dependencies(&content) {
            self.add(&dependency).with_context(|| format!("which {name} depends on"))?;
        }
        self.modules.push((name.to_owned(), content));
        Ok(())
    }
}

/// Modules below a directory, by name.
fn find(directory: &Path, modules: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, modules)?;
        } else if let Some(name) = name_of(&path) {
            modules.insert(name, path);
        }
    }
    Ok(())
}

/// `…/nf-conntrack.ko.xz` → `nf_conntrack`.
fn name_of(file: &Path) -> Option<String> {
    let (name, _) = file.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// Names of the modules required by a module, from its section `.modinfo`: strings terminated by a zero byte.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_are_normalised() {
        assert_eq!(name_of(Path::new("kernel/net/nf-conntrack.ko.zst")).unwrap(), "nf_conntrack");
        assert_eq!(name_of(Path::new("veth.ko")).unwrap(), "veth");
        assert_eq!(name_of(Path::new("modules.order")), None);
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"\x7fELF\0license=GPL\0depends=udp_tunnel,ip6-udp-tunnel\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["udp_tunnel", "ip6_udp_tunnel"]);
        assert!(dependencies(b"\0depends=\0name=veth\0").is_empty());
        assert!(dependencies(b"").is_empty());
    }

    #[test]
    fn dependencies_are_loaded_first() {
        let directory = std::env::temp_dir().join(format!("podnet-modules-{}", std::process::id()));
        let kernel = directory.join("kernel/net");
        fs::create_dir_all(&kernel).unwrap();
        for name in WANTED {
            let needs = if name == "veth" { "deep" } else { "" };
            fs::write(kernel.join(format!("{name}.ko")), format!("\0depends={needs}\0")).unwrap();
        }
        fs::write(kernel.join("deep.ko"), "\0depends=dummy,built-in\0").unwrap();
        fs::remove_file(kernel.join("sctp.ko")).unwrap();
        fs::remove_file(kernel.join("crc32c_generic.ko")).unwrap();
        fs::write(directory.join("modules.builtin"), "kernel/net/built-in.ko\nkernel/net/sctp.ko\n").unwrap();
        let names: Vec<_> = load_order(&directory).unwrap().into_iter().map(|(name, _)| name).collect();
        let rest = ["bridge", "vxlan", "sch_ingress", "cls_bpf", "inet_diag", "tcp_diag", "udp_diag", "nf_conntrack"];
        assert_eq!(names, [&["dummy", "deep", "veth"][..], &rest].concat());
        fs::remove_file(kernel.join("bridge.ko")).unwrap();
        assert_eq!(load_order(&directory).unwrap_err().to_string(), "this kernel has no bridge");
        fs::remove_dir_all(directory).unwrap();
    }
}
