//! Limits for the size of one object. Elements beyond are left out and named, so that no object takes more time or
//! memory than many ordinary ones together.

/// Ports of a Service, and of an EndpointSlice.
pub const PORTS: usize = 4096;
/// Addresses of a Service: limit for its external IPs, and separately for the ingress addresses of its load balancer.
pub const ADDRESSES: usize = 256;
/// Source ranges of a Service. Clients in ranges beyond the limit are refused.
pub const SOURCE_RANGES: usize = 4096;
/// Endpoints of an EndpointSlice. The API server allows 1,000.
pub const ENDPOINTS: usize = 16_384;
/// Addresses of a Node, of each type.
pub const NODE_ADDRESSES: usize = 16;
/// Addresses of a Pod. The API server allows one for each family.
pub const POD_ADDRESSES: usize = 16;
/// Named ports of a Pod.
pub const POD_PORTS: usize = 1024;
/// Rules of a NetworkPolicy, in each direction.
pub const POLICY_RULES: usize = 1024;
/// Peers of a rule, and separately its ports. A rule with more allows nothing.
pub const POLICY_ELEMENTS: usize = 4096;
