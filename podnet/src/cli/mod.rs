//! The command line: `podnet NOUN VERB`.
//!
//! Commands other than `daemon`, `mount-bpffs` and `cleanup` only read: from the pinned tables, and what these don't
//! contain from the daemon. So they work while the daemon is down, except for `policy` and `drops --follow`. Results go
//! to standard output, everything else to standard error; the exit status is 0 when the question could be answered, and
//! 1 with a message when it could not.

mod affinity;
pub mod cleanup;
mod conntrack;
mod daemon;
mod drops;
mod endpoint;
mod flow;
mod follow;
mod logging;
mod mount;
mod nat;
mod output;
mod policy;
mod runtime;
mod service;
mod status;
mod trace;
mod wanted;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use podnet_cni::config::{RUN_DIR, STATE_DIR};
use podnet_cni::node_info::NodeInfo;
use podnet_cni::text::chain;
use podnet_common::layout::PolicyDenial;
use tracing_subscriber::filter::LevelFilter;

pub use flow::Filter;
pub use output::Format;

use crate::compile::ServiceNames;
use crate::config::{BPFFS, Config, LogFormat};
use crate::datapath::inspect::{View, ViewError};
use crate::entry_counts::EntryCounts;
use crate::model::ObjectName;
use crate::socket::{Client, Explanation};
use crate::status::DaemonStatus;
use conntrack::NodeNames;
use runtime::block_on;
use wanted::{Wanted, WantedError};

/// Pod networking and Service load balancing with eBPF: runs and inspects the daemon of this node.
#[derive(Debug, Parser)]
#[command(name = "podnet", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

/// Options of all commands.
#[derive(Debug, Args)]
struct Options {
    /// Mount point of the BPF file system [default: as published by the daemon, or /sys/fs/bpf]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    bpffs: Option<PathBuf>,
    /// State directory with the CNI plugin's pod records [default: as published by the daemon, or /var/lib/podnet]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// Run directory of the daemon.
    #[arg(long, global = true, value_name = "DIRECTORY", default_value = RUN_DIR)]
    run_dir: PathBuf,
    /// Output format.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// Log format, on standard error; RUST_LOG sets the filter [default: as in the daemon's configuration, or text]
    #[arg(long, global = true, value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon of this node until SIGTERM or SIGINT.
    Daemon {
        /// Configuration file; its directories are used, and --bpffs, --run-dir and --state-dir are ignored.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Name of this node's Node object [default: `node` in the configuration]
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
    /// Show the state of this node: warnings, daemon, tables, settings.
    Status,
    /// Inspect Services in the datapath.
    Service {
        #[command(flatten)]
        objects: Objects,
        #[command(subcommand)]
        verb: ServiceVerb,
    },
    /// Inspect network policies, as the running daemon knows them.
    Policy {
        #[command(subcommand)]
        verb: policy::PolicyVerb,
    },
    /// Inspect this node's pods in the datapath.
    Endpoint {
        #[command(subcommand)]
        verb: EndpointVerb,
    },
    /// Inspect the connection table.
    Conntrack {
        #[command(subcommand)]
        verb: ConntrackVerb,
    },
    /// Inspect source NAT.
    Nat {
        #[command(subcommand)]
        verb: NatVerb,
    },
    /// Inspect session affinity.
    Affinity {
        #[command(subcommand)]
        verb: AffinityVerb,
    },
    /// Show dropped packets by reason.
    Drops {
        /// Show each dropped packet from now on, instead of the counts.
        #[arg(short, long)]
        follow: bool,
    },
    /// Trace a packet through the datapath step by step, without sending or changing anything.
    Trace(Box<trace::TraceArgs>),
    /// Mount a BPF file system for the daemon, unless one is already mounted.
    MountBpffs {
        /// Mount point.
        #[arg(long, value_name = "DIRECTORY", default_value = BPFFS)]
        at: PathBuf,
    },
    /// Remove programs, tables, routes, interfaces and files of a stopped daemon; host settings and the state directory
    /// stay. Pods lose their connectivity.
    Cleanup,
}

/// The source of objects.
#[derive(Debug, Args)]
struct Objects {
    /// Read the manifests, or list the cluster from the Kubernetes API, instead of asking the daemon.
    #[arg(long, global = true)]
    offline: bool,
    /// Configuration of the daemon, to find its manifests or API server; implies --offline [default: as published by
    /// the daemon]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ServiceVerb {
    /// List the addresses and ports of all Services.
    List,
    /// Show a Service with its backends, and why other endpoints are excluded.
    Show {
        /// The Service.
        #[arg(value_name = "NAMESPACE/NAME")]
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum EndpointVerb {
    /// List the addresses of this node's pods.
    List,
}

#[derive(Debug, Subcommand)]
enum ConntrackVerb {
    /// List tracked flows: to Services, out of the cluster, and between pods.
    List(Filter),
}

#[derive(Debug, Subcommand)]
enum NatVerb {
    /// List the flows with source NAT, and the source port usage per destination.
    List(Filter),
}

#[derive(Debug, Subcommand)]
enum AffinityVerb {
    /// List clients with their backends and the time until the entry expires.
    List,
}

/// Runs the command.
pub fn run(cli: Cli) -> ExitCode {
    // The daemon's configuration may set the log format.
    if !matches!(cli.command, Command::Daemon { .. }) {
        logging::start(cli.options.log_format.unwrap_or_default(), LevelFilter::WARN);
    }
    match execute(cli) {
        Ok(code) => code,
        Err(error) => {
            output::complain(&chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode> {
    let Cli { options, command } = cli;
    match command {
        Command::Daemon { config, node } => {
            let config = Config::read_for(&config, node.as_deref())?;
            logging::start(options.log_format.unwrap_or(config.log_format), LevelFilter::INFO);
            block_on(crate::daemon::run(config))??;
        }
        Command::Status => {
            let view = options.view();
            let answer = daemon::ask(&options.run_dir, Client::status)?.ok();
            let status = block_on(status::gather(view, &options.run_dir, answer))?;
            output::print(&status, options.output)?;
            if let Some(reason) = status.no_datapath() {
                bail!("{reason}");
            }
        }
        Command::Service { objects, verb: ServiceVerb::List } => {
            let mut list = service::list(options.view()?.as_ref(), &options.names())?;
            if list.lacks_kinds()
                && let Some(kinds) = options.kinds(&objects)?
            {
                list.complete(&kinds);
            }
            output::print(&list, options.output)?;
        }
        Command::Service { objects, verb: ServiceVerb::Show { name } } => {
            let Some((namespace, service)) = name.split_once('/') else {
                bail!("{name} is not a service name: use NAMESPACE/NAME, for example default/{name}");
            };
            let service = ObjectName { namespace: namespace.to_owned(), name: service.to_owned() };
            let view = options.view()?;
            let explanation = options.explanation(&objects, &service, service::tables(view.as_ref())?)?;
            let (names, pods, nodes) = (options.names(), options.pods(), options.nodes());
            match service::show(view.as_ref(), &names, &pods, &nodes, &service, explanation)? {
                Some(detail) => output::print(&detail, options.output)?,
                None => bail!("no service {name} in the tables or among the objects; see `podnet service list`"),
            }
        }
        Command::Policy { verb } => policy::run(&options.run_dir, verb, options.output)?,
        Command::Endpoint { verb: EndpointVerb::List } => {
            let list =
                endpoint::list(options.view()?.as_ref(), &options.pods(), crate::datapath::view::interface_name)?;
            output::print(&list, options.output)?;
        }
        Command::Conntrack { verb: ConntrackVerb::List(filter) } => {
            let now = crate::datapath::now();
            let list = conntrack::list(options.view()?.as_ref(), &options.names(), &options.nodes(), &filter, now)?;
            output::print(&list, options.output)?;
        }
        Command::Nat { verb: NatVerb::List(filter) } => {
            let now = crate::datapath::now();
            let list = nat::list(options.view()?.as_ref(), &options.names(), &filter, now)?;
            output::print(&list, options.output)?;
        }
        Command::Affinity { verb: AffinityVerb::List } => {
            let now = crate::datapath::now();
            let list = affinity::list(options.view()?.as_ref(), &options.names(), &options.pods(), now)?;
            output::print(&list, options.output)?;
        }
        Command::Trace(args) => {
            let names = trace::Names {
                services: options.names(),
                pods: options.pods(),
                nodes: options.nodes(),
                denials: options.denials(),
                interface: crate::datapath::view::interface_name,
            };
            let traces = trace::run(&options.bpffs(), options.view()?.as_ref(), &names, &args)?;
            output::print(&traces, options.output)?;
        }
        Command::Drops { follow: false } => output::print(&drops::read(options.view()?.as_ref())?, options.output)?,
        Command::Drops { follow: true } => daemon::follow_drops(&options.run_dir, options.output)?,
        Command::MountBpffs { at } => {
            let done =
                if mount::run(&at)? { "mounted a BPF file system" } else { "a BPF file system is already mounted" };
            output::say(&format!("{done} at {}", at.display()));
        }
        Command::Cleanup => return clean_up(&options.bpffs(), &options.run_dir),
    }
    Ok(ExitCode::SUCCESS)
}

fn clean_up(bpffs: &Path, run_dir: &Path) -> Result<ExitCode> {
    let outcome = block_on(cleanup::run(bpffs, run_dir))?;
    for done in &outcome.done {
        output::say(done);
    }
    for error in &outcome.errors {
        output::complain(&error.to_string());
    }
    if outcome.done.is_empty() && outcome.errors.is_empty() {
        output::say("nothing to remove");
    }
    Ok(if outcome.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Options {
    fn bpffs(&self) -> PathBuf {
        let published = || NodeInfo::read(&self.run_dir).ok().map(|info| info.bpffs);
        // A daemon that couldn't make its node ready has published only its configuration.
        let reported = || Some(self.report()?.config?["bpffs"].as_str()?.into());
        self.bpffs.clone().or_else(published).or_else(reported).unwrap_or_else(|| BPFFS.into())
    }

    /// The daemon's last report.
    fn report(&self) -> Option<DaemonStatus> {
        DaemonStatus::read(&self.run_dir).ok().flatten()
    }

    fn state_dir(&self) -> PathBuf {
        let reported = || self.report()?.state_dir;
        self.state_dir.clone().or_else(reported).unwrap_or_else(|| STATE_DIR.into())
    }

    fn view(&self) -> Result<Box<dyn View>, ViewError> {
        crate::datapath::view::open(&self.bpffs())
    }

    /// Names of services; without them, ids are shown.
    fn names(&self) -> ServiceNames {
        ServiceNames::read(&self.run_dir).unwrap_or_else(|error| {
            tracing::warn!("{error}; showing ids instead of service names");
            ServiceNames::default()
        })
    }

    /// The policies that deny by rule sets; without the daemon, traces show ids only.
    fn denials(&self) -> BTreeMap<PolicyDenial, Vec<String>> {
        let denials = Client::connect(&self.run_dir).and_then(|mut client| client.denials()).unwrap_or_default();
        denials.into_iter().map(|by| (PolicyDenial { set: by.set, rule: by.rule }, by.policies)).collect()
    }

    /// Names of other nodes; nodes without a known name are shown by address.
    fn nodes(&self) -> NodeNames {
        let nodes = self.report().unwrap_or_default().nodes;
        nodes.into_iter().filter_map(|node| Some((node.via?.parse().ok()?, node.name))).collect()
    }

    /// What a service's objects ask for, or why that isn't known.
    fn explanation(
        &self,
        objects: &Objects,
        name: &ObjectName,
        tables: EntryCounts,
    ) -> Result<Result<Explanation, String>> {
        if objects.are_read() {
            return Ok(self.wanted(objects).map(|wanted| wanted.explain(name, tables)).map_err(|e| e.to_string()));
        }
        let asked = daemon::ask(&self.run_dir, |client| client.explain(name))?;
        Ok(asked.map_err(|error| format!("{error}; `--offline` reads the objects instead")))
    }

    /// The kinds of services' external addresses, if they are known.
    fn kinds(&self, objects: &Objects) -> Result<Option<service::Kinds>> {
        if objects.are_read() {
            return Ok(self.wanted(objects).ok().map(|wanted| wanted.addresses().collect()));
        }
        Ok(daemon::ask(&self.run_dir, Client::addresses)?.ok().map(|addresses| addresses.into_iter().collect()))
    }

    /// What the objects ask for. Their source is that of the configuration given, or else of the daemon's.
    fn wanted(&self, objects: &Objects) -> Result<Wanted, WantedError> {
        let config = match (&objects.config, self.report().and_then(|report| report.config)) {
            (Some(file), _) => Config::read(file).map_err(|e| WantedError::Configuration(e.to_string()))?,
            (None, Some(told)) => {
                Config::parse(&told.to_string()).map_err(|e| WantedError::Configuration(e.to_string()))?
            }
            (None, None) => return Err(WantedError::NoConfiguration),
        };
        Wanted::read(&config)
    }

    /// Names of pods; without them, addresses are shown.
    fn pods(&self) -> endpoint::Pods {
        endpoint::Pods::read(&self.state_dir()).unwrap_or_else(|error| {
            tracing::warn!("{error}; showing addresses instead of pod names");
            endpoint::Pods::default()
        })
    }
}

impl Objects {
    /// Whether the command reads them itself.
    fn are_read(&self) -> bool {
        self.offline || self.config.is_some()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn directories_prefer_command_line_then_daemon_then_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let options = |more: &[&str]| {
            let run_dir = ["podnet", "drops", "--run-dir", dir.path().to_str().unwrap()];
            Cli::try_parse_from([&run_dir, more].concat()).unwrap().options
        };
        let directories = |options: Options| [options.bpffs(), options.state_dir()].map(|d| d.display().to_string());
        assert_eq!(directories(options(&[])), ["/sys/fs/bpf", "/var/lib/podnet"]);
        let status = DaemonStatus { state_dir: Some("/state".into()), ..DaemonStatus::default() };
        status.write(dir.path()).unwrap();
        let schema = podnet_cni::node_info::SCHEMA;
        let info = NodeInfo {
            schema,
            bpffs: "/bpf".into(),
            pod_cidrs: vec![],
            mtu: 1500,
            gateways: vec![],
            policed: Default::default(),
            policy_wait_seconds: podnet_cni::node_info::default_policy_wait(),
        };
        info.write_atomically(dir.path()).unwrap();
        assert_eq!(directories(options(&[])), ["/bpf", "/state"]);
        assert_eq!(directories(options(&["--bpffs", "/b", "--state-dir", "/s"])), ["/b", "/s"]);
    }

    #[test]
    fn options_may_follow_the_verb() {
        let cli = Cli::try_parse_from(["podnet", "conntrack", "list", "--proto", "udp", "-o", "json"]).unwrap();
        assert_eq!(cli.options.output, Format::Json);
        assert!(Cli::try_parse_from(["podnet", "conntrack", "list", "--proto", "nonsense"]).is_err());
        assert!(Cli::try_parse_from(["podnet", "daemon"]).is_err(), "a daemon needs its configuration");
    }
}
