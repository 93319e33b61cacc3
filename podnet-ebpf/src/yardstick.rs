//! Yardstick for the benchmarks: the cost of a packet of an established IPv4 flow in a single handwritten function.
//!
//! It does the work of podnet's fast path in its simplest form: parse, look up one hash table with the pipeline's key
//! and value, rewrite destination address and port, update both checksums, send. It has one address family and no
//! source, TTL or length checks, no counters and no hooks. It is used for measurements only and not shipped.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action::{XDP_PASS, XDP_TX},
    btf_maps::HashMap,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use podnet_common::{
    addr::{Addr, Port, Proto},
    layout::{CtEntry, Tuple},
    tables,
};

#[btf_map]
static FLOWS: HashMap<Tuple, CtEntry, { tables::CONNTRACK.capacity() }> = HashMap::new();

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// An IPv4 header without options (RFC 791, section 3.1).
#[repr(C)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_len: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    proto: u8,
    checksum: u16,
    src: u32,
    dst: u32,
}

#[xdp]
pub(crate) fn yardstick(ctx: XdpContext) -> u32 {
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + ETHERNET + size_of::<Ipv4>() > end {
        return XDP_PASS;
    }
    // SAFETY: all pointers are into the packet, and each is compared with its end before, as the verifier requires.
    unsafe {
        if *((data + 12) as *const u16) != 0x0800u16.to_be() {
            return XDP_PASS;
        }
        let ip = (data + ETHERNET) as *mut Ipv4;
        let length = ((*ip).version_ihl & 0xf) as usize * 4;
        if (*ip).version_ihl >> 4 != 4 || length < 20 || (*ip).fragment & 0x3fffu16.to_be() != 0 {
            return XDP_PASS;
        }
        let l4 = data + ETHERNET + length;
        let checksum = l4
            + match (*ip).proto {
                TCP if l4 + 20 <= end => 16,
                UDP if l4 + 8 <= end => 6,
                _ => return XDP_PASS,
            };
        let ports = l4 as *mut [u16; 2];
        let key = Tuple {
            src: Addr::v4((*ip).src),
            dst: Addr::v4((*ip).dst),
            sport: Port::from_wire((*ports)[0]),
            dport: Port::from_wire((*ports)[1]),
            proto: Proto((*ip).proto),
            _pad: [0; 3],
        };
        let Some(entry) = FLOWS.get(key) else { return XDP_PASS };
        let (address, port) = (entry.dst.0[3], entry.dport.wire());
        let change = u64::from(!(*ip).dst) + u64::from(address);
        (*ip).dst = address;
        (*ip).checksum = update((*ip).checksum, change);
        let change = change + u64::from(!(*ports)[1]) + u64::from(port);
        (*ports)[1] = port;
        if checksum + 2 > end {
            return XDP_PASS;
        }
        let checksum = checksum as *mut u16;
        // A UDP checksum of zero means none (RFC 768).
        if *checksum != 0 || (*ip).proto == TCP {
            *checksum = update(*checksum, change);
        }
        XDP_TX
    }
}

/// Updates a checksum by a sum of differences (RFC 1624, equation 3).
#[inline(always)]
fn update(checksum: u16, change: u64) -> u16 {
    let mut sum = u64::from(!checksum) + change;
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
