//! The command line: `podnet NOUN VERB`.
//!
//! Commands other than `daemon` and `cleanup` only read, from the pinned tables, so they work while the daemon is down.
//! Results go to standard output, everything else to standard error; the exit status is 0 when the question could be
//! answered, and 1 with a message when it could not.

mod affinity;
pub mod cleanup;
mod conntrack;
mod drops;
mod endpoint;
mod flow;
mod logging;
mod mount;
mod nat;
mod output;
mod runtime;
mod service;
mod status;
mod trace;
mod wanted;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use podnet_cni::node_info::NodeInfo;
use podnet_cni::text::chain;
use tracing_subscriber::filter::LevelFilter;

pub use flow::Filter;
pub use output::Format;

use crate::compile::ServiceNames;
use crate::config::{Config, LogFormat};
use crate::datapath::inspect::{View, ViewError};
use crate::model::ObjectName;
use crate::status::DaemonStatus;
use conntrack::NodeNames;
use runtime::block_on;
use wanted::{Wanted, WantedError};

/// The pod network of this node: its daemon, and what the datapath is doing.
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
    /// Where the BPF file system is mounted [default: what the daemon has published, or /sys/fs/bpf]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    bpffs: Option<PathBuf>,
    /// The plugin's records of pods [default: what the daemon has published, or /var/lib/podnet]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// What the daemon publishes.
    #[arg(long, global = true, value_name = "DIRECTORY", default_value = "/run/podnet")]
    run_dir: PathBuf,
    /// How to print results.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// How to log, on standard error; RUST_LOG chooses what [default: what the daemon's configuration says, or text]
    #[arg(long, global = true, value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon of this node until it is told to stop.
    Daemon {
        /// Its configuration; directories are taken from there, not from the command line.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Name of this node's Node object [default: the configuration's `node`]
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
    /// Explain how this node is: what needs attention, daemon, tables, settings.
    Status,
    /// Services as the datapath has them.
    Service {
        /// The daemon's configuration, which says where the manifests are [default: what the daemon has published]
        #[arg(long, global = true, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(subcommand)]
        verb: ServiceVerb,
    },
    /// Pods of this node as the datapath has them.
    Endpoint {
        #[command(subcommand)]
        verb: EndpointVerb,
    },
    /// Flows that the datapath translates.
    Conntrack {
        #[command(subcommand)]
        verb: ConntrackVerb,
    },
    /// Flows whose source is changed.
    Nat {
        #[command(subcommand)]
        verb: NatVerb,
    },
    /// Clients that stay with their backends.
    Affinity {
        #[command(subcommand)]
        verb: AffinityVerb,
    },
    /// Show how many packets were dropped, and why.
    Drops,
    /// Show step by step what this node would do with a packet. Nothing is changed, and nothing is sent.
    Trace(Box<trace::TraceArgs>),
    /// Mount a BPF file system, unless there is one: what the daemon needs, where the node's own system doesn't do so.
    MountBpffs {
        /// Where.
        #[arg(long, value_name = "DIRECTORY", default_value = "/sys/fs/bpf")]
        at: PathBuf,
    },
    /// Remove everything that the daemon has set up on this node. Pods lose services and their datapath.
    Cleanup,
}

#[derive(Debug, Subcommand)]
enum ServiceVerb {
    /// List the addresses and ports of all services.
    List,
    /// Show one service with its backends, and why other endpoints were left out.
    Show {
        /// The service.
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
    /// List the flows to services and to what is outside of the cluster.
    List(Filter),
}

#[derive(Debug, Subcommand)]
enum NatVerb {
    /// List the flows whose source is changed, and how far the source ports towards each destination are used.
    List(Filter),
}

#[derive(Debug, Subcommand)]
enum AffinityVerb {
    /// List the clients with their backends and the time that is left.
    List,
}

/// Does what the command line asks for.
pub fn run(cli: Cli) -> ExitCode {
    // The daemon's configuration may say how it logs.
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
            let status = block_on(status::gather(view, &options.run_dir))?;
            output::print(&status, options.output)?;
            if let Some(reason) = status.no_datapath() {
                bail!("{reason}");
            }
        }
        Command::Service { config, verb: ServiceVerb::List } => {
            let wanted = || options.wanted(config.as_deref()).ok();
            let list = service::list(options.view()?.as_ref(), &options.names(), wanted)?;
            output::print(&list, options.output)?;
        }
        Command::Service { config, verb: ServiceVerb::Show { name } } => {
            let Some((namespace, service)) = name.split_once('/') else {
                bail!("{name} is no name of a service: write NAMESPACE/NAME, for example default/{name}");
            };
            let service = ObjectName { namespace: namespace.to_owned(), name: service.to_owned() };
            let wanted = options.wanted(config.as_deref());
            let (names, pods, nodes) = (options.names(), options.pods(), options.nodes());
            match service::show(options.view()?.as_ref(), &names, &pods, &nodes, &service, wanted)? {
                Some(detail) => output::print(&detail, options.output)?,
                None => bail!("neither tables nor manifests have a service {name}; see `podnet service list`"),
            }
        }
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
                interface: crate::datapath::view::interface_name,
            };
            let traces = trace::run(&options.bpffs(), options.view()?.as_ref(), &names, &args)?;
            output::print(&traces, options.output)?;
        }
        Command::Drops => output::print(&drops::read(options.view()?.as_ref())?, options.output)?,
        Command::MountBpffs { at } => {
            let done = if mount::run(&at)? { "mounted a BPF file system" } else { "there is a BPF file system" };
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
        output::say("there is nothing to remove");
    }
    Ok(if outcome.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Options {
    fn bpffs(&self) -> PathBuf {
        let published = || NodeInfo::read(&self.run_dir).ok().map(|info| info.bpffs);
        // A daemon that couldn't make its node ready has published nothing but what it runs with.
        let reported = || Some(self.report()?.config?["bpffs"].as_str()?.into());
        self.bpffs.clone().or_else(published).or_else(reported).unwrap_or_else(|| "/sys/fs/bpf".into())
    }

    /// What the daemon has reported last.
    fn report(&self) -> Option<DaemonStatus> {
        DaemonStatus::read(&self.run_dir).ok().flatten()
    }

    fn state_dir(&self) -> PathBuf {
        let reported = || self.report()?.state_dir;
        self.state_dir.clone().or_else(reported).unwrap_or_else(|| "/var/lib/podnet".into())
    }

    fn view(&self) -> Result<Box<dyn View>, ViewError> {
        crate::datapath::view::open(&self.bpffs())
    }

    /// The services' names; without them, ids are shown.
    fn names(&self) -> ServiceNames {
        ServiceNames::read(&self.run_dir).unwrap_or_else(|error| {
            tracing::warn!("{error}; services are shown by their ids");
            ServiceNames::default()
        })
    }

    /// The names of other nodes that have one; others are shown by their addresses.
    fn nodes(&self) -> NodeNames {
        let nodes = self.report().unwrap_or_default().nodes;
        nodes.into_iter().filter_map(|node| Some((node.via?.parse().ok()?, node.name))).collect()
    }

    /// What the manifests ask for, by a configuration file or the one that the daemon runs with.
    fn wanted(&self, config: Option<&Path>) -> Result<Wanted, WantedError> {
        let config = match (config, self.report().and_then(|report| report.config)) {
            (Some(file), _) => Config::read(file).map_err(|e| WantedError::Configuration(e.to_string()))?,
            (None, Some(told)) => {
                Config::parse(&told.to_string()).map_err(|e| WantedError::Configuration(e.to_string()))?
            }
            (None, None) => return Err(WantedError::NoConfiguration),
        };
        Wanted::read(&config)
    }

    /// The pods' names; without them, addresses are shown.
    fn pods(&self) -> endpoint::Pods {
        endpoint::Pods::read(&self.state_dir()).unwrap_or_else(|error| {
            tracing::warn!("{error}; pods are shown by their addresses");
            endpoint::Pods::default()
        })
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
    fn directories_come_from_the_command_line_then_from_the_daemon_then_from_the_defaults() {
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
        let info = NodeInfo { schema, bpffs: "/bpf".into(), pod_cidrs: vec![], mtu: 1500, gateways: vec![] };
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
