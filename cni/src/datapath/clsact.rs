//! Programs attached as clsact filters in direct-action mode: to pods' host ends on every kernel, and to all links on
//! kernels before 6.6, which have no TCX.
//!
//! A filter belongs to its link, not to a process: it stays until the link goes. All filters of a link are added in one
//! netlink batch. aya can add filters as well, but before a process attaches its first program, aya probes the kernel
//! for a dozen features by loading programs and BTF, which would make every ADD half a millisecond slower.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::programs::ProgramInfo;
use podnet_common::addr::IfIndex;

use super::direction::Direction;
use super::error::{DatapathError, attach_error};
use super::pins::open_pin;
use crate::netlink::{Netlink, NetlinkError, Op};

/// Attaches pinned programs to a link of the socket's namespace. Returns whether one was not attached already.
pub fn attach(netlink: &mut Netlink, ifindex: IfIndex, programs: &[(&Path, Direction)]) -> Result<bool, DatapathError> {
    let opened = programs.iter().map(|(program, _)| open_pin(program)).collect::<Result<Vec<OwnedFd>, _>>()?;
    let filter = |(&(program, direction), opened): (&(&Path, Direction), &OwnedFd)| {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        Op::add_filter(ifindex, direction, opened.as_fd(), &name)
    };
    let mut ops = vec![Op::add_clsact(ifindex)];
    ops.extend(programs.iter().zip(&opened).map(filter));
    let failed = |i: usize, error: NetlinkError| {
        let (program, direction) = programs[i];
        attach_error("attach", program, ifindex, direction, io::Error::other(error))
    };
    let mut outcomes = netlink.outcomes(&ops).map_err(|e| failed(0, e))?.into_iter();
    outcomes.next().transpose().map_err(|e| failed(0, e))?;
    let mut attached = false;
    for (i, outcome) in outcomes.enumerate() {
        match outcome {
            Ok(_) => attached = true,
            Err(e) if e.errno() == Some(libc::EEXIST) => {}
            Err(e) => return Err(failed(i, e)),
        }
    }
    Ok(attached)
}

/// Detaches podnet's filter from a link of the caller's namespace. No error if there is none.
pub fn detach(ifindex: IfIndex, direction: Direction) -> io::Result<()> {
    let deleted = Netlink::open().and_then(|mut netlink| netlink.run(&[Op::delete_filter(ifindex, direction)]));
    deleted.map(drop).map_err(io::Error::other)
}

/// Detaches podnet's filter if it runs this pinned program.
pub fn detach_program(program: &Path, ifindex: IfIndex, direction: Direction) -> io::Result<()> {
    let there = attached(id(program)?, ifindex, direction).map_err(io::Error::other)?;
    if there { detach(ifindex, direction) } else { Ok(()) }
}

/// Id of a pinned program.
pub(super) fn id(program: &Path) -> io::Result<u32> {
    Ok(ProgramInfo::from_pin(program).map_err(io::Error::other)?.id())
}

/// Whether the program with this id is a filter of a link.
pub fn attached(program: u32, ifindex: IfIndex, direction: Direction) -> Result<bool, NetlinkError> {
    Ok(Netlink::open()?.filters(ifindex, direction)?.contains(&program))
}
