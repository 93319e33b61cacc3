//! DEL: removes an attachment, however much of it there is.

use super::refuse_own;
use crate::config::Config;
use crate::env::Attachment;
use crate::error::CniError;
use crate::netlink::{Netlink, Op};
use crate::netns::{NetNs, NetnsError};
use crate::store::Store;
use crate::teardown;

pub(super) fn del(config: &Config, attachment: &Attachment) -> Result<(), CniError> {
    refuse_own_if_there(attachment)?;
    let store = Store::open(&config.state_dir)?;
    let mut netlink = Netlink::open()?;
    let mut recorded = false;
    // Again until there is none: a record that is waited for may get another name meanwhile.
    while let Some(name) = store.find(&attachment.id)?.pop() {
        recorded = true;
        if let Some(_claim) = store.claim(&name)? {
            teardown::remove(&store, &mut netlink, &name)?;
        }
    }
    if !recorded {
        // The link's name follows from the attachment's, so one without a record is found as well.
        netlink.run(&[Op::delete_link(&attachment.id.host_ifname())])?;
    }
    Ok(())
}

/// The namespace is not needed, and may be gone or something else by now.
fn refuse_own_if_there(attachment: &Attachment) -> Result<(), CniError> {
    let Some(path) = &attachment.netns else { return Ok(()) };
    match NetNs::open(path) {
        Ok(pod) => refuse_own(attachment, &pod, &NetNs::current()?),
        Err(NetnsError::Io { .. } | NetnsError::Missing { .. } | NetnsError::NotANamespace { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
