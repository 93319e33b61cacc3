//! Detection of other programs' packet filters in a real kernel.

use podnet::host::firewall;
use podnet::host::sysctl::Sysctl;

use crate::{in_namespace, run};

#[test]
fn forward_drop_policy_and_kube_proxy_chains_are_detected() {
    in_namespace(|| async {
        let detect = || firewall::detect(&Sysctl::default(), &[]);
        assert_eq!(detect().findings, [], "an empty namespace has no filter");
        run("iptables", "-P FORWARD DROP");
        run("iptables", "-t nat -N KUBE-SERVICES");
        run("ip6tables", "-P INPUT DROP");
        let found: Vec<_> = detect().findings.into_iter().map(|f| f.what).collect();
        assert_eq!(
            found,
            ["the policy of chain FORWARD (ip filter) is drop", "table ip nat holds service rules of kube-proxy"]
        );
        run("iptables", "-P FORWARD ACCEPT");
        assert_eq!(detect().findings.len(), 1);
    });
}
