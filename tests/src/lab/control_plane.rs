//! A real control plane for the lab's nodes, in the fabric's namespace and at its address: etcd and kube-apiserver, and
//! for nodes with [kubelets](super::kubelet) also kube-controller-manager and kube-scheduler.
//!
//! The programs are supplied by the user in the directory `KUBEBUILDER_ASSETS`. The token grants all rights; rights are
//! tested with the service accounts of pods.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Lab, PATIENCE, Place, Process, eventually, output};

const TOKEN: &str = "lab";
const SERVICE_CIDRS: &str = "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112";

/// A control plane; its processes end when it is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    place: Place,
    assets: PathBuf,
    directory: PathBuf,
    api: Option<Process>,
    others: Vec<Process>,
}

impl ControlPlane {
    /// Starts etcd and kube-apiserver.
    pub fn start(lab: &Lab) -> Result<Self> {
        let assets = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS").context("KUBEBUILDER_ASSETS is not set")?);
        let directory = lab.dir().join("control-plane");
        fs::create_dir(&directory)?;
        let place = lab.fabric().clone();
        let mut control = Self { place, assets, directory, api: None, others: Vec::new() };
        fs::write(control.file("tokens")?, format!("{TOKEN},admin,1,system:masters\n"))?;
        fs::write(control.file("kubeconfig")?, control.kubeconfig())?;
        control.place.run("openssl", &["genrsa", "-out", &control.file("account.key")?, "2048"])?;
        let etcd = control.run("etcd", &[&format!("--data-dir={}", control.file("etcd")?)])?;
        control.others.push(etcd);
        control.resume()?;
        Ok(control)
    }

    /// Starts the programs that allocate pod CIDRs, manage EndpointSlices, service accounts and workloads, and schedule
    /// pods.
    pub fn add_controllers(&mut self) -> Result<()> {
        let kubeconfig = format!("--kubeconfig={}", self.file("kubeconfig")?);
        let common = [&kubeconfig, "--leader-elect=false", "--secure-port=0"];
        let scheduler = self.run("kube-scheduler", &common)?;
        let own = [
            "--allocate-node-cidrs",
            "--cluster-cidr=10.244.0.0/16,fd00:244::/48",
            SERVICE_CIDRS,
            // A separate account per controller; otherwise missing rights would go unnoticed.
            "--use-service-account-credentials",
            &format!("--service-account-private-key-file={}", self.file("account.key")?),
            // For pods: the API server's certificate is signed by a CA that is in the same file.
            &format!("--root-ca-file={}/apiserver.crt", self.file("certificates")?),
        ];
        let manager = self.run("kube-controller-manager", &[&common[..], &own].concat())?;
        self.others.extend([scheduler, manager]);
        Ok(())
    }

    /// Starts the API server.
    pub fn resume(&mut self) -> Result<()> {
        let key = self.file("account.key")?;
        let args = [
            "--etcd-servers=http://127.0.0.1:2379",
            "--advertise-address=172.30.0.254",
            &format!("--cert-dir={}", self.file("certificates")?),
            &format!("--token-auth-file={}", self.file("tokens")?),
            &format!("--service-account-key-file={key}"),
            &format!("--service-account-signing-key-file={key}"),
            "--service-account-issuer=https://kubernetes.default.svc",
            SERVICE_CIDRS,
            "--authorization-mode=RBAC",
            // As in kubeadm and kind; some system pods are privileged.
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
        ];
        self.api = Some(self.run("kube-apiserver", &args)?);
        eventually("an API server", || {
            self.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab"}}))
        })?;
        Ok(())
    }

    /// Stops the API server.
    pub fn pause(&mut self) {
        self.api = None;
    }

    /// Starts a program from the directory; its log file has its name.
    fn run(&self, program: &str, args: &[&str]) -> Result<Process> {
        let log = File::create(self.directory.join(program).with_extension("log"))?;
        let mut command = self.place.command(self.program(program)?)?;
        command.args(args).stdout(log.try_clone()?).stderr(log);
        Process::start(command).with_context(|| format!("cannot start {program}"))
    }

    /// Path of one of the programs.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.assets.join(name);
        ensure!(path.is_file(), "KUBEBUILDER_ASSETS: there is no {}", path.display());
        Ok(path)
    }

    fn file(&self, name: &str) -> Result<String> {
        path(&self.directory.join(name)).map(str::to_owned)
    }

    /// Kubeconfig with server and credentials, for daemons and kubelets.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster":
                {"server": "https://172.30.0.254:6443", "insecure-skip-tls-verify": true}}],
            "users": [{"name": "lab", "user": {"token": TOKEN}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        })
        .to_string()
    }

    /// Creates or changes an object and returns the result.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        self.with_api(object, async |api, name| {
            let new: DynamicObject = serde_json::from_value(object.clone())?;
            match api.create(&PostParams::default(), &new).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    Ok(api.patch(name, &PatchParams::default(), &Patch::Merge(object)).await?)
                }
                created => Ok(created?),
            }
        })
    }

    /// Returns what the server would store for an object; unknown keys are errors.
    pub fn dry_run(&self, object: &Value) -> Result<Value> {
        let params = PatchParams::apply("lab").dry_run().validation_strict();
        self.with_api(object, async |api, name| Ok(api.patch(name, &params, &Patch::Apply(object)).await?))
    }

    /// Objects of a kind in all namespaces, by field selector.
    pub fn list(&self, api_version: &str, kind: &str, fields: &str) -> Result<Vec<Value>> {
        let of_kind = json!({"apiVersion": api_version, "kind": kind});
        let params = ListParams::default().fields(fields);
        let objects = self.with_api(&of_kind, async |api, _| Ok(api.list(&params).await?.items))?;
        Ok(serde_json::from_value(objects)?)
    }

    /// Calls the API for objects of this object's kind and namespace.
    fn with_api<T: Serialize>(
        &self,
        object: &Value,
        call: impl AsyncFnOnce(Api<DynamicObject>, &str) -> Result<T> + Send,
    ) -> Result<Value> {
        let work = || -> Result<Value> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let options = KubeConfigOptions::default();
                let file = Kubeconfig::from_yaml(&self.kubeconfig())?;
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
                Ok(serde_json::to_value(call(api, metadata["name"].as_str().unwrap_or_default()).await?)?)
            })
        };
        self.place.netns().run(work)?
    }

    /// A command of kubectl.
    pub fn kubectl_command(&self, args: &[&str]) -> Result<std::process::Command> {
        let mut command = self.place.command(self.program("kubectl")?)?;
        // Otherwise kubectl caches discovery results in the user's home directory.
        command
            .args(["--kubeconfig", &self.file("kubeconfig")?, "--cache-dir", &self.file("kubectl-cache")?])
            .args(args);
        Ok(command)
    }

    /// Runs kubectl and returns its standard output.
    ///
    /// # Errors
    /// Its standard error unless its exit status is 0, or a timeout after [`PATIENCE`].
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        let output = output(self.kubectl_command(args)?, input.as_bytes(), PATIENCE)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let shown = args.join(" ");
        ensure!(output.status.success(), "kubectl {shown}: {}{}", text(&output.stderr), text(&output.stdout));
        Ok(text(&output.stdout))
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}
