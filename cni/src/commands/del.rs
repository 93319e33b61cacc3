//! DEL: removes whatever exists of an attachment.
//!
//! It never enters the pod's namespace: that may be gone, and its path may lead to another one by now, even to the
//! host's if a process id has been reused.

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
    // Repeated until there is none: while this waits for a record, it may be renamed.
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
