//! Names of podnet's interfaces and the protocol number of its routes.

/// Host end of the veth pair, to which routes lead.
pub const NEAR: &str = "podnet0";
/// Far end of the pair, which carries the program.
pub const FAR: &str = "podnet1";
/// The tunnel's device.
pub const TUNNEL: &str = "podnet-vxlan";
/// Routing protocol number of podnet's routes (`ip route show proto 112`).
pub const ROUTE_PROTOCOL: u8 = 112;
