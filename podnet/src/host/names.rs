//! What podnet's own interfaces and routes are known by.

/// The host's end of the veth pair, where routes lead.
pub const NEAR: &str = "podnet0";
/// Its far end, which carries the program.
pub const FAR: &str = "podnet1";
/// The tunnel.
pub const TUNNEL: &str = "podnet-vxlan";
/// Routing protocol number of podnet's routes (`ip route show proto 112`).
pub const ROUTE_PROTOCOL: u8 = 112;
