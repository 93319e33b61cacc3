//! A stand-in for the daemon's pins: two programs that do nothing and the plugin's tables, in a bpffs of their own.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// `enum bpf_cmd` of linux/bpf.h.
#[derive(Clone, Copy)]
enum Cmd {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
}

/// A part of `union bpf_attr`, as 32-bit words; the kernel takes what is missing as zeros.
type Attr = [u32; 16];

fn bpf(cmd: Cmd, attr: &mut Attr) -> io::Result<i64> {
    // SAFETY: every caller puts pointers to live values into the attributes, and sizes that fit them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd as libc::c_int, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn fd(cmd: Cmd, attr: &mut Attr) -> io::Result<OwnedFd> {
    let fd = bpf(cmd, attr)?;
    // SAFETY: the call has just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn put_pointer<T>(attr: &mut Attr, word: usize, pointer: *const T) {
    let address = pointer as u64;
    attr[word] = address as u32;
    attr[word + 1] = (address >> 32) as u32;
}

/// A hash map of keys with `K` bytes and values with `V` bytes.
struct Map<const K: usize, const V: usize>(OwnedFd);

impl<const K: usize, const V: usize> Map<K, V> {
    /// A new one with room for so many entries, pinned.
    fn new(entries: u32, path: &Path) -> Self {
        // BPF_MAP_TYPE_HASH; key size, value size, entries.
        let mut attr = Attr::default();
        attr[..4].copy_from_slice(&[1, K as u32, V as u32, entries]);
        let map = fd(Cmd::MapCreate, &mut attr).expect("a map");
        pin(&map, path);
        Self(map)
    }

    fn attr(&self, key: Option<&[u8; K]>) -> Attr {
        let mut attr = Attr::default();
        attr[0] = self.0.as_raw_fd() as u32;
        if let Some(key) = key {
            put_pointer(&mut attr, 2, key.as_ptr());
        }
        attr
    }

    fn get(&self, key: &[u8; K]) -> Option<[u8; V]> {
        let mut value = [0u8; V];
        let mut attr = self.attr(Some(key));
        put_pointer(&mut attr, 4, value.as_mut_ptr());
        bpf(Cmd::MapLookup, &mut attr).ok().map(|_| value)
    }

    fn insert(&self, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
        let mut attr = self.attr(Some(key));
        put_pointer(&mut attr, 4, value.as_ptr());
        bpf(Cmd::MapUpdate, &mut attr).map(drop)
    }

    fn remove(&self, key: &[u8; K]) {
        bpf(Cmd::MapDelete, &mut self.attr(Some(key))).expect("an entry to remove");
    }

    fn keys(&self) -> Vec<[u8; K]> {
        let mut keys: Vec<[u8; K]> = Vec::new();
        loop {
            let mut next = [0u8; K];
            let mut attr = self.attr(keys.last());
            put_pointer(&mut attr, 4, next.as_mut_ptr());
            if bpf(Cmd::MapNextKey, &mut attr).is_err() {
                return keys;
            }
            keys.push(next);
        }
    }
}

/// An endpoint, `struct Endpoint` of the layout: index, MTU, MAC, host MAC, flags and padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index of the host end.
    pub ifindex: u32,
    /// The pod's MTU.
    pub mtu: u32,
    /// The pod's MAC.
    pub mac: [u8; 6],
    /// The host end's MAC.
    pub host_mac: [u8; 6],
}

/// The pins.
pub struct Pins {
    /// Where the bpffs is mounted.
    pub bpffs: PathBuf,
    endpoints: Map<16, 32>,
    sandboxes: Map<8, 32>,
    programs: Vec<u32>,
}

/// Runs a function on a thread with a mount namespace of its own, which ends with it: what it mounts can't be left
/// behind.
pub fn with_private_mounts<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    assert!(nix::unistd::geteuid().is_root(), "these tests mount a bpffs: run them as root");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
            f()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

impl Drop for Pins {
    /// The directory below can't be removed while something is mounted on it.
    fn drop(&mut self) {
        umount2(&self.bpffs, MntFlags::MNT_DETACH).expect("unmount");
    }
}

impl Pins {
    /// Mounts a bpffs in a directory and pins everything in it; each table has room for so many entries.
    pub fn new(dir: &Path, entries: u32) -> Self {
        let bpffs = dir.join("bpf");
        std::fs::create_dir(&bpffs).unwrap();
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a bpffs");
        let hooks = bpffs.join("podnet/hooks");
        std::fs::create_dir_all(&hooks).unwrap();
        let programs = pin_programs(&hooks);
        let endpoints = Map::new(entries, &hooks.join("endpoints"));
        let sandboxes = Map::new(entries, &hooks.join("sandboxes"));
        Self { bpffs, endpoints, sandboxes, programs }
    }

    /// The endpoint of an address.
    pub fn entry(&self, ip: IpAddr) -> Option<Entry> {
        let value = self.endpoints.get(&octets(ip))?;
        let word = |at: usize| u32::from_ne_bytes(value[at..at + 4].try_into().unwrap());
        assert!(value[20..].iter().all(|b| *b == 0), "reserved bytes are zero");
        Some(Entry {
            ifindex: word(0),
            mtu: word(4),
            mac: value[8..14].try_into().unwrap(),
            host_mac: value[14..20].try_into().unwrap(),
        })
    }

    /// Writes an endpoint as a crashed process may have left it.
    pub fn insert(&self, ip: IpAddr, ifindex: u32) {
        let mut value = [0u8; 32];
        value[..4].copy_from_slice(&ifindex.to_ne_bytes());
        self.endpoints.insert(&octets(ip), &value).expect("an entry");
    }

    /// Removes an endpoint.
    pub fn remove(&self, ip: IpAddr) {
        self.endpoints.remove(&octets(ip));
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.endpoints.keys().len()
    }

    /// The sandboxes: cookies of namespaces, and the addresses there; `::` where there is none.
    pub fn sandboxes(&self) -> BTreeMap<u64, [IpAddr; 2]> {
        let entry = |key: [u8; 8]| {
            let value = self.sandboxes.get(&key).expect("a value");
            let address = |at: usize| {
                let octets: [u8; 16] = value[at..at + 16].try_into().unwrap();
                IpAddr::from(octets).to_canonical()
            };
            (u64::from_ne_bytes(key), [address(0), address(16)])
        };
        self.sandboxes.keys().into_iter().map(entry).collect()
    }

    /// Writes a sandbox as a crashed process may have left it; false when there is no room.
    pub fn insert_sandbox(&self, cookie: u64, ips: [IpAddr; 2]) -> bool {
        let value = ips.map(octets).concat().try_into().unwrap();
        self.sandboxes.insert(&cookie.to_ne_bytes(), &value).is_ok()
    }

    /// Removes a sandbox.
    pub fn remove_sandbox(&self, cookie: u64) {
        self.sandboxes.remove(&cookie.to_ne_bytes());
    }

    /// The ids of from_pod and to_pod.
    pub fn programs(&self) -> &[u32] {
        &self.programs
    }
}

/// The ids of the programs that clsact filters on a link of a namespace run, in one direction.
pub fn filters(netns: &crate::support::Netns, link: &str, direction: &str) -> Vec<u32> {
    let mut tc = std::process::Command::new("tc");
    tc.args(["-json", "filter", "show", "dev", link, direction]);
    netns.enter(&mut tc);
    let output = tc.output().expect("tc, of the package iproute2");
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON of tc");
    let ids = listed.as_array().into_iter().flatten().filter_map(|filter| filter["options"]["prog"]["id"].as_u64());
    ids.map(|id| id as u32).collect()
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// `r0 = TCX_NEXT; exit`.
fn load_program(name: &str) -> OwnedFd {
    let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x0000_0000_0000_0095];
    let mut attr = Attr::default();
    // BPF_PROG_TYPE_SCHED_CLS and two instructions.
    attr[..2].copy_from_slice(&[3, 2]);
    put_pointer(&mut attr, 2, instructions.as_ptr());
    put_pointer(&mut attr, 4, c"GPL".as_ptr());
    for (i, byte) in name.bytes().enumerate() {
        attr[12 + i / 4] |= u32::from(byte) << (8 * (i % 4));
    }
    fd(Cmd::ProgLoad, &mut attr).expect("a program")
}

/// Loads and pins from_pod and to_pod; returns their ids.
fn pin_programs(hooks: &Path) -> Vec<u32> {
    let load = |name| {
        let path = hooks.join(name);
        let _ = std::fs::remove_file(&path);
        let program = load_program(name);
        pin(&program, &path);
        program_id(&program)
    };
    ["from_pod", "to_pod"].map(load).to_vec()
}

fn program_id(program: &OwnedFd) -> u32 {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let info = std::fs::read_to_string(path).unwrap();
    let id = info.lines().find_map(|l| l.strip_prefix("prog_id:")).expect("prog_id");
    id.trim().parse().unwrap()
}

fn pin(object: &OwnedFd, path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut attr = Attr::default();
    put_pointer(&mut attr, 0, path.as_ptr());
    attr[2] = object.as_raw_fd() as u32;
    bpf(Cmd::ObjPin, &mut attr).expect("a pin");
}
