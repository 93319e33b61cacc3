//! A program attached as a clsact filter in direct-action mode: to pods' host ends on every kernel, and to all links on
//! kernels before 6.6, which have no TCX.
//!
//! The filter belongs to the device, not to a process: it stays until the device goes.

use std::io;
use std::path::Path;

use aya::programs::{
    Link, ProgramError, ProgramInfo, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use aya::sys::NetlinkError as AyaNetlinkError;
use nix::errno::Errno;
use podnet_common::addr::IfIndex;

use super::direction::Direction;
use crate::netlink::{Netlink, NetlinkError};

/// Priority and handle of clsact filters, so that a second attempt finds the first.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x706e);

/// Attaches a pinned program to a link of the caller's namespace. Says whether it was not there already.
pub fn attach(program: &Path, ifindex: IfIndex, direction: Direction) -> io::Result<bool> {
    let name = name_of(ifindex)?;
    tolerate(qdisc_add_clsact(&name).map_err(tc_errno), Errno::EEXIST)?;
    let mut classifier = SchedClassifier::from_pin(program).map_err(io::Error::other)?;
    let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
    let options = TcAttachOptions::Netlink(options);
    let attached = classifier.attach_with_options(&name, attach_type(direction), options);
    match attached {
        Ok(id) => {
            // aya detaches what it owns; this filter belongs to the device.
            let link = classifier.take_link(id).map_err(io::Error::other)?;
            std::mem::forget(link);
            Ok(true)
        }
        Err(ProgramError::TcError(e)) => tolerate(Err(tc_errno(e)), Errno::EEXIST).map(|()| false),
        Err(e) => Err(io::Error::other(e)),
    }
}

/// Detaches it again. Nothing happens when it is not there.
pub fn detach(ifindex: IfIndex, direction: Direction) -> io::Result<()> {
    let link = SchedClassifierLink::attached(
        &name_of(ifindex)?,
        attach_type(direction),
        CLSACT_PRIORITY,
        CLSACT_HANDLE,
        None,
    )?;
    match Link::detach(link) {
        // Without a clsact qdisc there, the parent is invalid.
        Err(ProgramError::NetlinkError(e)) => tolerate(tolerate(Err(netlink_errno(e)), Errno::ENOENT), Errno::EINVAL),
        other => other.map_err(io::Error::other),
    }
}

/// Detaches podnet's filter if it runs this pinned program.
pub fn detach_program(program: &Path, ifindex: IfIndex, direction: Direction) -> io::Result<()> {
    let id = ProgramInfo::from_pin(program).map_err(io::Error::other)?.id();
    let there = attached(id, ifindex, direction).map_err(io::Error::other)?;
    if there { detach(ifindex, direction) } else { Ok(()) }
}

/// Whether the program with this id is a filter of a link.
pub fn attached(program: u32, ifindex: IfIndex, direction: Direction) -> Result<bool, NetlinkError> {
    // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) and the same with TC_H_MIN_EGRESS (linux/pkt_sched.h).
    let parent = match direction {
        Direction::Ingress => 0xffff_fff2,
        Direction::Egress => 0xffff_fff3,
    };
    Ok(Netlink::open()?.filters(ifindex, parent)?.contains(&program))
}

fn tc_errno(error: TcError) -> io::Error {
    match error {
        TcError::AlreadyAttached => io::Error::from(Errno::EEXIST),
        TcError::IoError(e) => e,
        TcError::NetlinkError(e) => netlink_errno(e),
        e => io::Error::other(e),
    }
}

fn netlink_errno(error: AyaNetlinkError) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error),
    }
}

fn tolerate(result: io::Result<()>, errno: Errno) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(errno as i32) => Ok(()),
        other => other,
    }
}

fn attach_type(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

fn name_of(ifindex: IfIndex) -> io::Result<String> {
    let name = nix::net::if_::if_indextoname(ifindex.0).map_err(io::Error::from)?;
    name.into_string().map_err(io::Error::other)
}
