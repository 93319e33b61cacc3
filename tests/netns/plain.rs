//! `datapath: none`: the plugin alone, without daemon and eBPF, sets up routed pods.

use anyhow::{Context, Result, ensure};
use podnet_tests::lab::{Families, Lab};
use podnet_tests::traffic::{Family, Transport};
use serde_json::json;

fn plain(families: Families) -> Result<Lab> {
    Lab::builder()
        .families(families)
        .daemons(false)
        .plugin(move |index, config| {
            let cidrs: Vec<_> = families
                .list()
                .iter()
                .map(|family| match family {
                    Family::V4 => format!("10.244.{}.0/24", index + 1),
                    Family::V6 => format!("fd00:244:{}::/64", index + 1),
                })
                .collect();
            config.insert("datapath".into(), json!("none"));
            config.insert("podCIDRs".into(), json!(cidrs));
        })
        .build()
}

fn pods_work(families: Families) -> Result<()> {
    let lab = plain(families)?;
    // In place of the daemon: routes to the other node's pods.
    for (node, other) in [(0, 1), (1, 0)] {
        for &family in families.list() {
            let cidr = &lab.node(other).pod_cidrs()[family as usize % families.list().len()];
            lab.node(node).place.ip(&format!("route add {cidr} via {}\n", lab.node(other).ip(family)))?;
        }
    }
    let mut pods = vec![lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    pods.iter_mut().try_for_each(|pod| pod.serve(8080))?;
    for &family in families.list() {
        for to in &pods {
            let sources = pods.iter().map(|pod| (&pod.place, pod.ip(family)));
            let hosts = lab.nodes().iter().map(|node| (&node.place, node.ip(family)));
            for (place, own) in sources.chain(hosts) {
                let what = || format!("{family} from {} to {}", place.name(), to.name());
                place.ping(to.ip(family)).with_context(what)?;
                for transport in Transport::ALL {
                    let answer = place.ask(transport, to.addr(family, 8080)).with_context(what)?;
                    ensure!(answer.server == to.name(), "{}: {} answered", what(), answer.server);
                    ensure!(answer.seen.ip() == own, "{}: seen as {}", what(), answer.seen);
                }
            }
        }
    }
    for pod in pods {
        pod.invoke("CHECK")?;
        pod.delete()?;
    }
    for node in lab.nodes() {
        ensure!(node.place.run("ls", &["/sys/class/net"])? == "eth0\nlo\n", "links are left on {}", node.name());
    }
    Ok(())
}

#[test]
fn routed_pods_without_datapath_dual_stack() -> Result<()> {
    pods_work(Families::Dual)
}

#[test]
fn routed_pods_without_datapath_ipv4() -> Result<()> {
    pods_work(Families::V4)
}

#[test]
fn routed_pods_without_datapath_ipv6() -> Result<()> {
    pods_work(Families::V6)
}
