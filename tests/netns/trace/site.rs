//! The site of these tests: senders and services of every kind, and the comparison of a traced packet with one that is
//! sent.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podnet_tests::lab::{Lab, Node, Pod, Service, client_ip, eventually};
use podnet_tests::traffic::{Family, Frames, Transport};
use serde_json::{Value, json};

/// Port of the servers.
pub(crate) const TARGET: u16 = 8080;
/// Timeout for a frame that must arrive.
const ARRIVES: Duration = Duration::from_secs(5);

/// Two nodes with a server each, a client pod on the first, and an external machine.
pub(crate) struct Site {
    pub(crate) client: Pod,
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) lab: Lab,
}

impl Site {
    pub(crate) fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).build()?;
        let (near, far) = (lab.node(0).add_server("near", TARGET)?, lab.node(1).add_server("far", TARGET)?);
        let client = lab.node(0).add_pod("client")?;
        Ok(Self { client, near, far, lab })
    }

    pub(crate) fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Services of every kind, ready: `near`, `far`, `itself`, `none` and others, on port 80; the first two have
    /// NodePorts.
    pub(crate) fn services(&self) -> Result<()> {
        let service = |name: &str, number: u8| Service::new(name, number, 80, TARGET);
        for (service, mode, backends) in [
            (service("near", 10).node_port(30_010), None, vec![&self.near]),
            (service("far", 11).node_port(30_011), None, vec![&self.far]),
            (service("direct", 12).node_port(30_012), Some("preserve"), vec![&self.far]),
            (service("itself", 13), None, vec![&self.client]),
            (service("snat", 14), Some("snat"), vec![&self.far]),
            (service("none", 15), None, vec![]),
            (service("both", 16), None, vec![&self.near, &self.far]),
            (service("sticky", 17).affinity(600), None, vec![&self.near, &self.far]),
        ] {
            service.apply(&self.lab, mode)?;
            service.set_endpoints(&self.lab, &backends)?;
        }
        let ranges = service("ranges", 18).load_balancer(&["192.0.2.80".parse()?, "2001:db8:80::80".parse()?], 30_018);
        let ranges = ranges.source_ranges(&["198.51.100.0/24", "2001:db8:51::/48"]);
        ranges.apply(&self.lab, None)?;
        ranges.set_endpoints(&self.lab, &[&self.near])?;
        let ports = json!([{"name": "sctp", "protocol": "SCTP", "port": 80, "targetPort": TARGET}]);
        let sctp = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "sctp", "namespace": "default"},
            "spec": {"clusterIPs": ["10.96.0.19", "fd00:96::13"], "clusterIP": "10.96.0.19", "ports": ports,
                     "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}
        });
        let sctp = Service::from_object(sctp)?;
        sctp.apply(&self.lab, None)?;
        sctp.set_endpoints(&self.lab, &[&self.near])?;
        // From here on, neighbours are resolved and tables are written.
        for family in Family::ALL {
            let node = self.node();
            let address = |port: u16| (node.ip(family), port).into();
            self.lab.client().reaches(Transport::Tcp, address(30_010), &["near"])?;
            self.lab.client().reaches(Transport::Tcp, address(30_011), &["far"])?;
            self.client.place.reaches(Transport::Tcp, (self.far.ip(family), TARGET).into(), &["far"])?;
        }
        eventually("the last service is there", || {
            self.node().podnet(&["trace", "--from", "pod/default/client", "--to", "default/sctp"]).map(drop)
        })
    }

    pub(crate) fn trace(&self, args: &[String]) -> Result<Value> {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let traces = self.node().podnet_json(&[&["trace", "--bytes"], &args[..]].concat())?;
        match traces.as_array().map(Vec::as_slice) {
            Some([trace]) => Ok(trace.clone()),
            _ => bail!("it is not one trace: {traces}"),
        }
    }

    /// Where frames from this sender enter the datapath.
    pub(crate) fn entrance(&self, from: &Sender) -> Result<Frames> {
        match from {
            Sender::Client => Frames::on(&self.client.place, "eth0"),
            Sender::Outside => Frames::on(self.lab.client(), "eth0"),
            Sender::Host => Frames::on(&self.node().place, "podnet0"),
        }
    }

    /// Where a frame with this outcome leaves it.
    pub(crate) fn exit(&self, from: &Sender, outcome: &Value) -> Result<Frames> {
        let node = &self.node().place;
        match outcome["kind"].as_str() {
            Some("pod") => {
                let pods = [&self.client, &self.near, &self.far];
                let name = outcome["pod"].as_str().unwrap_or_default();
                let pod = pods.into_iter().find(|pod| name == format!("default/{}", pod.name()));
                Frames::on(&pod.with_context(|| format!("there is no pod {name}"))?.place, "eth0")
            }
            Some("leaves") => Frames::on(node, outcome["interface"].as_str().unwrap_or_default()),
            Some("answered") => self.entrance(from),
            Some("host") => Frames::on(node, "podnet0"),
            _ => bail!("nothing is seen of {outcome}"),
        }
    }

    /// Traces a packet, sends the same frame, and requires the traced result.
    pub(crate) fn same(&self, from: &Sender, args: &[String]) -> Result<Value> {
        let trace = self.trace(args)?;
        let hooks: Vec<_> =
            trace["steps"].as_array().into_iter().flatten().filter(|step| step["at"] == "hook").collect();
        let first = hooks.first().context("it meets no hook")?;
        let frame = digits(&first["before"])?;
        let outcome = &trace["outcome"];
        let entrance = self.entrance(from)?;
        if outcome["kind"] == "dropped" {
            let reason = outcome["reason"].as_str().unwrap_or_default();
            let drops = || -> Result<u64> { Ok(self.node().drops()?.get(reason).copied().unwrap_or_default()) };
            let before = drops()?;
            entrance.send(&frame)?;
            eventually("the drop is counted", || {
                let now = drops()?;
                ensure!(now == before + 1, "{reason}: {before} drops have become {now}");
                Ok(())
            })?;
            return Ok(trace);
        }
        let wanted = digits(&trace["frame"])?;
        // The neighbour table supplies the MACs of such a frame.
        let from_byte = if hooks.last().is_some_and(|hook| hook["route"]["mac"].is_null()) { 12 } else { 0 };
        let exit = self.exit(from, outcome)?;
        entrance.send(&frame)?;
        let mut seen = Vec::new();
        let arrived = exit.expect(ARRIVES, |frame| {
            seen.push(frame.to_vec());
            frame.len() == wanted.len() && frame[from_byte..] == wanted[from_byte..]
        })?;
        ensure!(
            arrived.is_some(),
            "{outcome}: nothing was seen of\n{wanted:02x?}\nbut\n{}",
            seen.iter().map(|frame| format!("{frame:02x?}\n")).collect::<String>()
        );
        Ok(trace)
    }
}

/// Sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// The client pod.
    Client,
    /// The external machine.
    Outside,
    /// The host, into podnet0.
    Host,
}

impl Sender {
    pub(crate) fn argument(self, family: Family) -> String {
        match self {
            Self::Client => "pod/default/client".to_owned(),
            Self::Outside => client_ip(family).to_string(),
            Self::Host => "host".to_owned(),
        }
    }
}

pub(crate) fn digits(value: &Value) -> Result<Vec<u8>> {
    let text = value.as_str().with_context(|| format!("{value} is no frame"))?;
    (0..text.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&text[at..at + 2], 16)?)).collect()
}

/// Arguments of a case, with a unique source port unless given.
pub(crate) fn arguments(sender: Sender, family: Family, words: &str, port: &mut u16) -> Vec<String> {
    let mut args = vec!["--from".to_owned(), sender.argument(family)];
    args.extend(words.split_whitespace().map(str::to_owned));
    if family == Family::V6 {
        args.push("--ipv6".to_owned());
    }
    if !words.contains("--sport") && !words.contains("icmp") {
        *port += 1;
        args.extend(["--sport".to_owned(), port.to_string()]);
    }
    args
}
