//! Lost segments of a TCP connection, as the kernel knows them.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

/// Words of `struct tcp_info` (linux/tcp.h) up to the last one that is read; libc's structure ends earlier.
const WORDS: usize = DSACK_DUPS + 1;
/// `tcpi_total_retrans`: segments that were sent again.
const TOTAL_RETRANS: usize = 25;
/// `tcpi_dsack_dups`: segments of which the peer has reported that they arrived twice (RFC 2883).
const DSACK_DUPS: usize = 54;

/// Segments sent by this end that were lost: those sent again, except for those that arrived twice. If a machine stands
/// still for 200 ms, the sender repeats a segment that was only late (RFC 3708).
pub(super) fn lost(stream: &TcpStream) -> io::Result<u32> {
    let mut info = [0_u32; WORDS];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to an array of that size.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if (length as usize) < size_of_val(&info) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's tcp_info is shorter than in Linux 4.19"));
    }
    Ok(info[TOTAL_RETRANS].saturating_sub(info[DSACK_DUPS]))
}
