//! How much one object may hold. What is beyond is left out and named, so that no object costs more time or room than
//! many ordinary ones together.

/// Ports of a Service, and of an EndpointSlice.
pub const PORTS: usize = 4096;
/// Addresses of a Service: external IPs, and ingress addresses of its load balancer, of each as many.
pub const ADDRESSES: usize = 256;
/// Source ranges of a Service. More of them close it to those that are left out.
pub const SOURCE_RANGES: usize = 4096;
/// Endpoints of an EndpointSlice. The API server takes 1,000.
pub const ENDPOINTS: usize = 16_384;
/// Addresses of a Node, of each type.
pub const NODE_ADDRESSES: usize = 16;
