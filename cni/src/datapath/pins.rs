//! Paths of pinned objects, and opening them.

use std::ffi::CString;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use podnet_common::{
    layout::{FIRST_TABLES, FROZEN, Hook, LATER_TABLES, PIN_ROOT},
    tables::{Class, Table},
};

use super::error::{DatapathError, open_error};
use super::syscall::bpf;

/// The pins below `<bpffs>/podnet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    root: PathBuf,
}

impl PinDir {
    /// The pins in a mounted bpffs.
    pub fn new(bpffs: &Path) -> Self {
        Self { root: bpffs.join(PIN_ROOT) }
    }

    /// The directory of all pins.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of programs and tables whose layout never changes.
    pub fn frozen(&self) -> PathBuf {
        self.root.join(FROZEN)
    }

    /// A hook's dispatcher.
    pub fn hook(&self, hook: Hook) -> PathBuf {
        self.frozen().join(hook.name())
    }

    /// The directories of all other tables: that of first versions, then that of later ones.
    pub fn tables(&self) -> [PathBuf; 2] {
        [self.root.join(FIRST_TABLES), self.root.join(LATER_TABLES)]
    }

    /// A table, in the version that this build uses.
    pub fn table(&self, table: impl Into<Table>) -> PathBuf {
        let table = table.into();
        let [first, later] = self.tables();
        match table.version() {
            _ if table.class() == Class::Frozen => self.frozen().join(table.name()),
            1 => first.join(table.name()),
            version => later.join(format!("{}_v{version}", table.name())),
        }
    }

    /// The pinned versions of a table.
    pub fn versions(&self, table: impl Into<Table>) -> Vec<(u32, PathBuf)> {
        let table = table.into();
        if table.class() == Class::Frozen {
            return Vec::new();
        }
        let [first, later] = self.tables();
        let first = Some(first.join(table.name())).filter(|pin| pin.exists()).map(|pin| (1, pin));
        let of_table = |pin: &PathBuf| {
            let rest = pin.file_name()?.to_str()?.strip_prefix(table.name())?;
            rest.strip_prefix("_v")?.parse().ok()
        };
        let later = std::fs::read_dir(later).into_iter().flatten().flatten().map(|entry| entry.path());
        first.into_iter().chain(later.filter_map(|pin| Some((of_table(&pin)?, pin)))).collect()
    }

    /// The directory of pinned links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }
}

/// `struct` of `union bpf_attr` for BPF_OBJ_GET.
#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens a pinned object (BPF_OBJ_GET).
pub fn open_pin(path: &Path) -> Result<OwnedFd, DatapathError> {
    let text = CString::new(path.as_os_str().as_bytes()).map_err(|e| open_error(path, e.into()))?;
    let mut attr = ObjectAttr { pathname: text.as_ptr() as u64, ..ObjectAttr::default() };
    // SAFETY: BPF_OBJ_GET is 7; the path outlives the call.
    let fd = unsafe { bpf(7, &mut attr) }.map_err(|e| open_error(path, e))?;
    // SAFETY: the call has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
