//! GC: removes every attachment of the network that the runtime does not list, and links and entries without a record.

use crate::config::{Config, Datapath};
use crate::datapath::PinDir;
use crate::error::{CniError, Code};
use crate::node_info::NodeInfo;
use crate::repair::{self, Keep};
use crate::store::Store;

pub(super) fn gc(config: &Config) -> Result<(), CniError> {
    let Some(listed) = &config.valid_attachments else {
        return Err(CniError::new(Code::InvalidConfig, "GC requires cni.dev/valid-attachments")
            .details("without it every attachment would be removed"));
    };
    let store = Store::open(&config.state_dir)?;
    // Without the daemon's file the location of the tables is unknown; their entries are left to the daemon.
    let pins = match config.datapath {
        Datapath::Ebpf => NodeInfo::read(&config.run_dir).ok().map(|info| PinDir::new(&info.bpffs)),
        Datapath::None => None,
    };
    let report = repair::repair(&store, pins.as_ref(), &Keep::Listed { network: &config.name, listed }, &[]);
    for name in &report.removed {
        tracing::info!(attachment = %name.id, "removed");
    }
    match report.errors.as_slice() {
        [] => Ok(()),
        errors => {
            let texts: Vec<String> = errors.iter().map(CniError::text).collect();
            Err(CniError::new(Code::Incomplete, format!("GC was incomplete; errors: {}", errors.len()))
                .details(texts.join("; ")))
        }
    }
}
