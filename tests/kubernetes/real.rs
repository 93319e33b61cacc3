//! Daemons that watch a real API server: what it allocates works, and it may go and come back.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use podnet::config::Kubernetes;
use podnet_tests::lab::{Lab, Process, eventually, manifest, wait_until};
use podnet_tests::traffic::{Ask, Family, Transport};
use serde_json::{Value, json};

/// etcd and kube-apiserver in the fabric's namespace, at its address.
struct Server<'a> {
    lab: &'a Lab,
    assets: PathBuf,
    directory: PathBuf,
    _etcd: Process,
    api: Option<Process>,
}

const TOKEN: &str = "lab";

impl<'a> Server<'a> {
    /// Starts both with binaries from the directory that `KUBEBUILDER_ASSETS` names.
    fn start(lab: &'a Lab) -> Result<Self> {
        let assets = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS").context("KUBEBUILDER_ASSETS is not set")?);
        let directory = lab.dir().join("api");
        fs::create_dir(&directory)?;
        fs::write(directory.join("tokens"), format!("{TOKEN},admin,1,system:masters\n"))?;
        let key = directory.join("account.key");
        lab.fabric().run("openssl", &["genrsa", "-out", path(&key)?, "2048"])?;
        let etcd = Self::run(lab, &assets.join("etcd"), &directory, &["--data-dir", path(&directory.join("etcd"))?])?;
        let mut server = Self { lab, assets, directory, _etcd: etcd, api: None };
        server.resume()?;
        Ok(server)
    }

    fn run(lab: &Lab, program: &Path, directory: &Path, args: &[&str]) -> Result<Process> {
        let name = program.file_name().context("no name")?;
        let log = fs::File::create(directory.join(name).with_extension("log"))?;
        let mut command = lab.fabric().command(program)?;
        command.args(args).stdout(log.try_clone()?).stderr(log);
        Process::start(command).with_context(|| format!("can't start {}", program.display()))
    }

    /// Starts the API server.
    fn resume(&mut self) -> Result<()> {
        let file = |name: &str| path(&self.directory.join(name)).map(str::to_owned);
        let args = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--advertise-address=172.30.0.254".to_owned(),
            format!("--cert-dir={}", file("certificates")?),
            format!("--token-auth-file={}", file("tokens")?),
            format!("--service-account-key-file={}", file("account.key")?),
            format!("--service-account-signing-key-file={}", file("account.key")?),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.api = Some(Self::run(self.lab, &self.assets.join("kube-apiserver"), &self.directory, &args)?);
        eventually("an API server", || {
            self.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab"}}))
        })?;
        Ok(())
    }

    /// Ends the API server.
    fn pause(&mut self) {
        self.api = None;
    }

    fn kubeconfig() -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster":
                {"server": "https://172.30.0.254:6443", "insecure-skip-tls-verify": true}}],
            "users": [{"name": "lab", "user": {"token": TOKEN}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        })
        .to_string()
    }

    /// Creates or changes an object and returns what it has become.
    fn apply(&self, object: &Value) -> Result<Value> {
        let work = || -> Result<Value> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let options = KubeConfigOptions::default();
                let file = Kubeconfig::from_yaml(&Self::kubeconfig())?;
                let client = kube::Client::try_from(kube::Config::from_custom_kubeconfig(file, &options).await?)?;
                let text = |key: &str| object[key].as_str().unwrap_or_default();
                let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
                let resource = ApiResource {
                    group: group.into(),
                    version: version.into(),
                    api_version: text("apiVersion").into(),
                    kind: text("kind").into(),
                    plural: format!("{}s", text("kind").to_lowercase()),
                };
                let metadata = &object["metadata"];
                let api: Api<DynamicObject> = match metadata["namespace"].as_str() {
                    Some(namespace) => Api::namespaced_with(client, namespace, &resource),
                    None => Api::all_with(client, &resource),
                };
                let name = metadata["name"].as_str().context("no name")?;
                let new: DynamicObject = serde_json::from_value(object.clone())?;
                let there = match api.create(&PostParams::default(), &new).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        api.patch(name, &PatchParams::default(), &Patch::Merge(object)).await?
                    }
                    created => created?,
                };
                Ok(serde_json::to_value(there)?)
            })
        };
        self.lab.fabric().netns().run(work)?
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

#[test]
#[ignore = "needs KUBEBUILDER_ASSETS, a directory with kube-apiserver and etcd"]
fn services_follow_a_real_api_server() -> Result<()> {
    let lab = Lab::builder().daemons(false).build()?;
    let mut server = Server::start(&lab)?;
    for (number, node) in lab.nodes().iter().enumerate() {
        let addrs: Vec<IpAddr> = Family::ALL.iter().map(|family| node.ip(*family)).collect();
        let mut object = manifest::node(node.name(), node.pod_cidrs(), &addrs);
        object["spec"]["podCIDR"] = node.pod_cidrs()[0].clone().into();
        server.apply(&object)?;
        let kubeconfig = lab.dir().join(format!("kubeconfig-{number}"));
        fs::write(&kubeconfig, Server::kubeconfig())?;
        node.configure(|config| {
            config.manifests = None;
            config.kubernetes = Some(Kubernetes { kubeconfig: Some(kubeconfig), ..Kubernetes::default() });
        })?;
        node.start_daemon()?;
    }
    let client = lab.node(0).add_pod("client")?;
    let backends = [lab.node(0).add_server("web-0", 8080)?, lab.node(1).add_server("web-1", 8080)?];

    // The server allocates the addresses.
    let service = server.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    }))?;
    let ips: Vec<IpAddr> = serde_json::from_value(service["spec"]["clusterIPs"].clone())?;
    ensure!(ips.len() == 2, "{service}");
    let lead_to = |server: &Server<'_>, backend: usize| -> Result<()> {
        for family in Family::ALL {
            server.apply(&json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family.name(),
                "metadata": {"name": format!("web-{}", family.name().to_lowercase()), "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": [backends[backend].ip(family)], "conditions": {"ready": true}}],
            }))?;
        }
        Ok(())
    };
    let answered_by = |backend: usize| {
        ips.iter().try_for_each(|ip| {
            let ask = Ask::new(Transport::Tcp, SocketAddr::new(*ip, 80));
            let expected = format!("web-{backend}");
            wait_until(&format!("{expected} at {ip}"), || {
                Ok(ask.from(&client.place).is_ok_and(|answer| answer.server == expected))
            })
        })
    };
    lead_to(&server, 1)?;
    answered_by(1)?;

    server.pause();
    answered_by(1)?;
    server.resume()?;
    lead_to(&server, 0)?;
    answered_by(0)?;
    let shown = lab.node(0).podnet(&["service", "show", "default/web"])?;
    ensure!(shown.contains(&format!("{}", backends[0].ip(Family::V4))), "{shown}");
    Ok(())
}
