//! Carries out the steps for the tunnel's device, which [`tunnel`] plans.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::neighbour::NeighbourFlags;
use podnet_common::addr::IfIndex;
use podnet_common::layout::TUNNEL_PORT;
use rtnetlink::{LinkUnspec, LinkVxlan};

use super::error::{HostError, errno};
use super::families::Families;
use super::snapshot::Snapshot;
use super::tunnel::{self, Tunnel};
use super::{Host, messages, read, settings};

impl Host {
    /// Creates the tunnel's device, or adopts it.
    pub(super) async fn make_tunnel(
        &self,
        snapshot: &mut Snapshot,
        wanted: &tunnel::Wanted,
        families: Families,
        errors: &mut Vec<HostError>,
    ) -> Result<Tunnel, HostError> {
        let device = tunnel::examine(snapshot, wanted)?;
        if let tunnel::Device::Outdated(ifindex) = device {
            self.delete_link(ifindex, tunnel::NAME).await?;
        }
        if device != tunnel::Device::Right {
            self.create_tunnel(wanted).await?;
            *snapshot = self.snapshot().await?;
        }
        // Before the interface comes up: it must not get a link-local address.
        let applied = settings::apply(&self.sysctl, &settings::tunnel(families));
        errors.extend(applied.failed.into_iter().map(HostError::from));
        let link = snapshot.link(tunnel::NAME).ok_or(HostError::Vanished { name: tunnel::NAME })?;
        Ok(Tunnel { ifindex: link.ifindex, mac: wanted.mac, mtu: wanted.mtu })
    }

    /// Brings the device into line, and sets it up. Rejected changes are added to `errors`.
    pub(super) async fn fill_tunnel(
        &self,
        snapshot: &Snapshot,
        wanted: &tunnel::Wanted,
        errors: &mut Vec<HostError>,
    ) -> Result<(), HostError> {
        let link = snapshot.link(tunnel::NAME).ok_or(HostError::Vanished { name: tunnel::NAME })?;
        let mut query = self.handle.neighbours().get();
        query.message_mut().header.family = AddressFamily::Bridge;
        let table = read("forwarding tables", query.execute(), messages::forwarding).await?;
        for step in tunnel::plan(snapshot, link, &table, wanted) {
            if let Err(e) = self.tunnel_step(link.ifindex, &step).await {
                errors.push(e);
            }
        }
        Ok(())
    }

    async fn create_tunnel(&self, wanted: &tunnel::Wanted) -> Result<(), HostError> {
        let device =
            LinkVxlan::new(tunnel::NAME, tunnel::VNI).address(wanted.mac.0.to_vec()).port(TUNNEL_PORT).learning(false);
        let device = match wanted.local {
            // Zero checksums as in RFC 7348: the inner packets have checksums of their own.
            IpAddr::V4(local) => device.local(local).udp_csum(false),
            IpAddr::V6(local) => device.local6(local),
        };
        self.handle.link().add(device.build()).execute().await.map_err(|source| HostError::Change {
            action: format!("create the VXLAN device {}{}", tunnel::NAME, tunnel::why_not_created(errno(&source))),
            source,
        })
    }

    async fn tunnel_step(&self, dev: IfIndex, step: &tunnel::Step) -> Result<(), HostError> {
        let neighbours = self.handle.neighbours();
        let done = match step {
            tunnel::Step::NoController => {
                self.handle.link().set(LinkUnspec::new_with_index(dev.0).nocontroller().build()).execute().await
            }
            tunnel::Step::Mtu(mtu) => {
                self.handle.link().set(LinkUnspec::new_with_index(dev.0).mtu(*mtu).build()).execute().await
            }
            tunnel::Step::Up => self.handle.link().set(LinkUnspec::new_with_index(dev.0).up().build()).execute().await,
            tunnel::Step::Address => {
                let mut request = self.handle.address().add(dev.0, tunnel::ADDRESS.into(), 32);
                request.message_mut().header.scope = AddressScope::Link;
                request.execute().await
            }
            tunnel::Step::Forward { mac, remote } => {
                let entry = neighbours.add_bridge(dev.0, &mac.0).destination(*remote);
                entry.flags(NeighbourFlags::Own).replace().execute().await
            }
            tunnel::Step::Neighbour { addr, mac } => {
                neighbours.add(dev.0, *addr).link_layer_address(&mac.0).replace().execute().await
            }
            tunnel::Step::ForgetNeighbour { addr } => {
                let message = neighbours.add(dev.0, *addr).message_mut().clone();
                neighbours.del(message).execute().await
            }
            tunnel::Step::ForgetForward(entry) => {
                let mut entry = neighbours.add_bridge(dev.0, &entry.mac.0).destination(entry.remote);
                entry = entry.flags(NeighbourFlags::Own);
                neighbours.del(entry.message_mut().clone()).execute().await
            }
        };
        done.map_err(|source| HostError::Change { action: step.to_string(), source })
    }
}
