//! What the pipeline decides about a packet, and why it drops one.

/// Declares the reasons once: number, name for machines, explanation for people.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $text:literal;)*) => {
        /// Why a packet was dropped. The number is its index in `counters`, after [`COUNTERS_BASE`].
        #[repr(u16)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $(#[doc = $text] $variant = $number,)* }

        impl Reason {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Short name for metrics and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means, as a sentence.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    Malformed = 0, "malformed", "a header is truncated or contradicts itself";
    SpoofedSource = 1, "spoofed_source", "a pod sent from an address or MAC that is not its own";
    NoEndpoint = 2, "no_endpoint", "the service has no ready endpoint";
    ConntrackFull = 3, "conntrack_full", "no room in the connection table: raise conntrackMax";
    SnatExhausted = 4, "snat_exhausted", "no free source port towards this destination";
    MappedAddress = 5, "mapped_address", "an IPv6 packet carries an IPv4-mapped address";
    Martian = 6, "martian", "the source or destination can't be on this link";
    ClusterIpFromOutside = 7, "cluster_ip_from_outside", "a ClusterIP was addressed from outside the cluster";
    LocalPodFromOutside = 8, "local_pod_from_outside", "a packet from outside claims to come from a pod of this node";
    PodFromWrongNode = 9, "pod_from_wrong_node", "a pod's packet did not come from that pod's node";
    UnallocatedService = 10, "unallocated_service", "no service has this address";
    UndefinedPort = 11, "undefined_port", "the service does not define this port or protocol";
    StaleTable = 12, "stale_table", "a table refers to an entry that is gone";
    NoProgram = 13, "no_program", "the daemon has not loaded its programs yet";
    NoTail = 14, "no_tail", "a tail call failed";
    NotTranslatable = 15, "not_translatable", "a fragment or protocol that services don't carry was sent to one";
    StoreFailed = 16, "store_failed", "the kernel refused to change the packet";
    NotIp = 17, "not_ip", "a pod sent a frame that is neither IP nor ARP";
    NoLocalEndpoint = 18, "no_local_endpoint", "a traffic policy leaves no endpoint on this node";
    SourceRange = 19, "source_range", "the client is not in the service's loadBalancerSourceRanges";
    TtlExceeded = 20, "ttl_exceeded", "TTL or hop limit exceeded; ICMP time exceeded sent";
    TooBig = 21, "too_big", "the packet exceeds the path MTU; ICMP packet too big sent";
    LostFragment = 22, "lost_fragment", "a fragment came without the first one of its packet";
    NotForThisNode = 23, "not_for_this_node", "another node sent on a connection for which this node has no endpoint";
    NoRoute = 24, "no_route", "there is no route to where the packet has to go";
    TunnelFromOutside = 25, "tunnel_from_outside", "a packet for the tunnel came from what is no node of the cluster";
    LinkScope = 26, "link_scope", "a pod sent IPv6 of the link, of which it needs duplicate address detection only";
    NotMasqueraded = 27, "not_masqueraded", "a pod sent out of the cluster what can't get its node's address";
    ConntrackShare = 28, "conntrack_share", "the connection table is scarce, and this sender holds most of it";
    UnrelatedError = 29, "unrelated_error", "an ICMP error quotes a packet that its sender can't have seen";
    Internal = 30, "internal", "a table of podnet's own lacks an entry that is always there: please report this";
}

/// Counters (per CPU array of `u64`): first the outcomes that are not drops, then one for each [`Reason`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// Flows that were begun.
    FlowsCreated = 0,
    /// Flows whose source port had to change.
    PortsChanged = 1,
    /// Entries that were made again from their other half.
    HalvesRebuilt = 2,
    /// Connections translated at the socket.
    SocketConnects = 3,
    /// Datagrams translated at the socket.
    SocketDatagrams = 4,
    /// Packets handed to the host's stack because they have to be fragmented, refused or answered there.
    ToStack = 5,
    /// Packets answered with a TCP reset or an ICMP error.
    Rejected = 6,
    /// Echo requests answered in a service's name.
    EchoReplies = 7,
}

impl Counter {
    /// All of them, by number.
    pub const ALL: &[Self] = &[
        Self::FlowsCreated,
        Self::PortsChanged,
        Self::HalvesRebuilt,
        Self::SocketConnects,
        Self::SocketDatagrams,
        Self::ToStack,
        Self::Rejected,
        Self::EchoReplies,
    ];

    /// Short name for metrics and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlowsCreated => "flows_created",
            Self::PortsChanged => "ports_changed",
            Self::HalvesRebuilt => "halves_rebuilt",
            Self::SocketConnects => "socket_connects",
            Self::SocketDatagrams => "socket_datagrams",
            Self::ToStack => "to_stack",
            Self::Rejected => "rejected",
            Self::EchoReplies => "echo_replies",
        }
    }
}

/// Index in `counters` of the reason with number 0.
pub const COUNTERS_BASE: u32 = 16;
/// Size of `counters`.
pub const COUNTERS: usize = 64;
