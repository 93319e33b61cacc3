//! DEL: removes an attachment, however much of it there is.
//!
//! It never looks into the pod's namespace, which may be gone, or whose path may lead to something else by now: even to
//! the host's own, where a process id has been used again.

use crate::config::Config;
use crate::env::Attachment;
use crate::error::CniError;
use crate::netlink::Netlink;
use crate::store::Store;
use crate::teardown;

pub(super) fn del(config: &Config, attachment: &Attachment) -> Result<(), CniError> {
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
        teardown::remove_link(&store, &mut netlink, &attachment.id, None)?;
    }
    Ok(())
}
