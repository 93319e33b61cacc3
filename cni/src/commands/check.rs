//! CHECK: compares an attachment with its record and with the result that ADD gave.
//!
//! Whatever later plugins of a chain may change is not compared: MTU, additional addresses and routes.

use podnet_common::addr::IfIndex;

use super::node::refuse_own;
use crate::config::Config;
use crate::datapath::{Endpoints, PinDir, Sandboxes, missing_hook};
use crate::entries::endpoint;
use crate::env::Attachment;
use crate::error::{CniError, Code};
use crate::netlink::Netlink;
use crate::netns::NetNs;
use crate::record::{Record, State};
use crate::result::CniResult;
use crate::store::{Content, Store};
use crate::wiring;

fn failed(msg: impl Into<String>) -> CniError {
    CniError::new(Code::CheckFailed, msg).details("delete the pod: its replacement gets a working attachment")
}

pub(super) fn check(config: &Config, attachment: &Attachment) -> Result<(), CniError> {
    let Some(previous) = &config.prev_result else {
        return Err(CniError::new(Code::InvalidConfig, "CHECK requires prevResult, the result of ADD"));
    };
    let previous = CniResult::parse(previous)?;
    let pod = NetNs::open(attachment.netns()?)?;
    refuse_own(attachment, &pod, &NetNs::current()?)?;
    let record = record(config, attachment)?;
    check_result(&previous, &record)?;
    let mut netlink = Netlink::open()?;
    wiring::check_host(&mut netlink, &record).map_err(as_failed)?;
    wiring::check_pod(&pod, &record).map_err(as_failed)?;
    check_datapath(&mut netlink, &record)
}

/// Any error counts as a failed check: a missing link, for example, is a netlink error.
fn as_failed(error: wiring::WiringError) -> CniError {
    let error = CniError::from(error);
    match error.code {
        Code::CheckFailed | Code::Network => failed(error.msg),
        _ => error,
    }
}

fn record(config: &Config, attachment: &Attachment) -> Result<Record, CniError> {
    let store = Store::open(&config.state_dir)?;
    for name in store.find(&attachment.id)? {
        if let Some(Content::Valid(record)) = store.read(&name)? {
            return match name.state {
                State::Ready => Ok(*record),
                State::Allocating => Err(failed(format!("ADD of {} has not finished", attachment.id))),
            };
        }
    }
    Err(failed(format!("no attachment found for {}", attachment.id)))
}

fn check_result(previous: &CniResult, record: &Record) -> Result<(), CniError> {
    let name = record.id.ifname.as_str();
    // Results of old versions list no interfaces to compare, and a reconstructed record lacks the namespace's path.
    let is = |sandbox: &str| record.netns.is_empty() || sandbox == record.netns;
    let listed = previous.interfaces.iter().any(|i| i.name == name && !i.sandbox.is_empty() && is(&i.sandbox));
    if !previous.interfaces.is_empty() && !listed {
        return Err(failed(format!("prevResult has no interface {name} in {}", record.netns)));
    }
    match record.ips.iter().find(|ip| !previous.ips.iter().any(|p| p.address.ip() == **ip)) {
        Some(ip) => Err(failed(format!("{ip} is recorded for {name} but missing from prevResult"))),
        None => Ok(()),
    }
}

fn check_datapath(netlink: &mut Netlink, record: &Record) -> Result<(), CniError> {
    let Some(bpffs) = &record.bpffs else { return Ok(()) };
    let pins = PinDir::new(bpffs);
    if let Some(hook) = missing_hook(netlink, &pins, IfIndex(record.host_ifindex))? {
        let (name, link) = (hook.name(), &record.host_ifname);
        return Err(failed(format!("the program {name} is not attached to {link}: packets of the pod bypass podnet")));
    }
    let endpoints = Endpoints::open(&pins)?;
    let expected = endpoint(record);
    for ip in &record.ips {
        match endpoints.get(*ip)? {
            Some(found) if found == expected => {}
            Some(found) if found.ifindex == expected.ifindex => {
                return Err(failed(format!("the table endpoints has another entry for {ip} than the record")));
            }
            Some(found) => {
                return Err(failed(format!(
                    "the table endpoints maps {ip} to link {} instead of {} (link {})",
                    found.ifindex.0, record.host_ifname, record.host_ifindex
                )));
            }
            None => return Err(failed(format!("the table endpoints has no entry for {ip}"))),
        }
    }
    // The value may belong to another attachment of the same namespace.
    match record.netns_cookie {
        Some(cookie) if Sandboxes::open(&pins)?.get(cookie)?.is_none() => {
            Err(failed("the table sandboxes has no entry for the pod's network namespace"))
        }
        _ => Ok(()),
    }
}
