//! Tests of what the plugin learns.

use podnet_cni::node_info::default_policy_wait;

use super::*;

#[test]
fn pods_that_start_closed_are_published_by_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let policed = Policed { all: false, namespaces: ["shop".to_owned()].into() };
    publish_policed(directory.path(), &policed).unwrap();
    assert!(NodeInfo::read(directory.path()).is_err(), "no pod can start, so none can start open");
    let info = NodeInfo {
        schema: SCHEMA,
        bpffs: "/sys/fs/bpf".into(),
        pod_cidrs: Vec::new(),
        mtu: 1400,
        gateways: GATEWAYS.to_vec(),
        policed: Policed::default(),
        policy_wait_seconds: default_policy_wait(),
    };
    info.write_atomically(directory.path()).unwrap();
    publish_policed(directory.path(), &policed).unwrap();
    assert_eq!(NodeInfo::read(directory.path()).unwrap(), NodeInfo { policed, ..info });
}
