//! Attaching the programs to interfaces and to the cgroup.

use std::{collections::BTreeMap, path::Path};

use podnet_cni::{
    datapath::{Direction, attach_tc, detach_tc},
    text::chain,
};
use podnet_common::{addr::IfIndex, layout::Hook};

use super::{
    Datapath,
    error::Error,
    hooks::{HookState, RAW_HOOKS, Side, UPLINK_HOOKS, UplinkHook, UplinkState},
    sockets, uplink_xdp,
};

impl Datapath {
    /// Attaches the hooks of uplinks, and detaches them from `others`, the interfaces that aren't uplinks. A failure
    /// at one interface doesn't affect the rest.
    pub fn attach_uplinks(&mut self, uplinks: &[UplinkHook], others: &[IfIndex]) -> Vec<UplinkState> {
        let with_xdp = uplinks.iter().filter(|uplink| uplink.xdp.is_some());
        let names: Vec<&str> = with_xdp.map(|uplink| uplink.name.as_str()).collect();
        if let Err(error) = uplink_xdp::detach_others(&self.pins, &names) {
            tracing::warn!("cannot detach an unwanted XDP program: {error}");
        }
        let kept = uplinks.iter().map(|uplink| (uplink.ifindex, uplink.sides()));
        let kept: BTreeMap<IfIndex, &'static [Side]> =
            others.iter().map(|ifindex| (*ifindex, &[][..])).chain(kept).collect();
        self.clear.retain(|ifindex, sides| kept.get(ifindex) == Some(sides));
        for (ifindex, sides) in kept {
            if self.clear.contains_key(&ifindex) {
                continue;
            }
            let mut rest = UPLINK_HOOKS.into_iter().chain(RAW_HOOKS).filter(|side| !sides.contains(side));
            let detached = rest.try_for_each(|(hook, direction)| detach_tc(&self.pins.hook(hook), ifindex, direction));
            match detached {
                Ok(()) => drop(self.clear.insert(ifindex, sides)),
                Err(error) => tracing::warn!("{}", chain(&error)),
            }
        }
        let state = |uplink: &UplinkHook| {
            let tc = uplink.sides().iter().map(|(hook, direction)| {
                let attached = attach_tc(&self.pins.hook(*hook), uplink.ifindex, *direction);
                HookState { hook: *hook, how: attached.map(|()| "tc".to_owned()).map_err(|error| chain(&error)) }
            });
            let xdp = uplink.xdp.map(|xdp| {
                let settled = uplink_xdp::settle(&self.pins, uplink, xdp);
                let how = settled.map(|state| state.to_string()).map_err(|error| chain(&error));
                HookState { hook: Hook::UplinkXdp, how }
            });
            UplinkState { name: uplink.name.clone(), hooks: tc.chain(xdp).collect() }
        };
        uplinks.iter().map(state).collect()
    }

    /// Attaches the hooks of the tunnel. From then on [`Self::attach_uplinks`] maintains them.
    pub fn attach_tunnel(&self, tunnel: IfIndex) -> Result<(), Error> {
        for (hook, direction) in UPLINK_HOOKS {
            attach_tc(&self.pins.hook(hook), tunnel, direction)?;
        }
        Ok(())
    }

    /// Attaches the hooks for packets of host processes: to podnet1 and to the loopback interface.
    pub fn attach_host(&self, podnet1: IfIndex, loopback: IfIndex) -> Result<(), Error> {
        attach_tc(&self.pins.hook(Hook::FromHost), podnet1, Direction::Ingress)?;
        Ok(attach_tc(&self.pins.hook(Hook::FromLoopback), loopback, Direction::Egress)?)
    }

    /// Detaches the hooks of a pod.
    pub fn detach_pod(&self, host_end: IfIndex) -> Result<(), Error> {
        Ok(podnet_cni::datapath::detach_pod(&self.pins, host_end)?)
    }

    /// Attaches or detaches the socket hooks.
    pub fn set_socket_hooks(&mut self, cgroup: Option<&Path>) -> Result<(), Error> {
        match cgroup {
            Some(cgroup) => sockets::attach(&mut self.ebpf, &self.pins, cgroup, &mut self.origins)?,
            None => sockets::detach(&self.pins).map_err(Error::SocketDetach)?,
        }
        // From here on no program uses the tables of an earlier daemon.
        match self.moves.take() {
            Some(moves) => Ok(moves.finish(&self.pins)?),
            None => Ok(()),
        }
    }
}
