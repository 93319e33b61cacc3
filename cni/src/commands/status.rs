//! STATUS: whether ADD would succeed now.

use super::node::Node;
use crate::config::Config;
use crate::datapath;
use crate::error::{CniError, Code};
use crate::store::Store;

pub(super) fn status(config: &Config) -> Result<(), CniError> {
    let answer = || -> Result<(), CniError> {
        let node = Node::load(config)?;
        if let Some(pins) = node.pins() {
            datapath::ready(&pins)?;
        }
        let store = Store::open(&config.state_dir)?;
        store.has_room(&node.pools)?;
        Ok(store.is_writable()?)
    };
    // One code for every reason but an invalid configuration, which keeps its own.
    answer().map_err(|e| match e.code {
        Code::InvalidConfig | Code::UnsupportedField => e,
        _ => CniError { code: Code::NotAvailable, ..e },
    })
}
