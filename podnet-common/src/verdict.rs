//! Counters of datapath events, and the reasons for which packets are dropped or rejected.

/// Declares the reasons once: number, name for machines, explanation for people.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $text:literal;)*) => {
        /// Why a packet was dropped or rejected. The number is its index in `counters`, after [`COUNTERS_BASE`].
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
    Malformed = 0, "malformed", "truncated or inconsistent packet headers";
    SpoofedSource = 1, "spoofed_source", "source IP or MAC is not the sending pod's own";
    NoEndpoint = 2, "no_endpoint", "service has no ready endpoints";
    ConntrackFull = 3, "conntrack_full", "connection table full; raise conntrackMax, then `podnet cleanup` or reboot";
    SnatExhausted = 4, "snat_exhausted", "no free SNAT source port for this destination; see `podnet nat list`";
    MappedAddress = 5, "mapped_address", "IPv4-mapped address in an IPv6 packet";
    Martian = 6, "martian", "source or destination address not valid on this link";
    ClusterIpFromOutside = 7, "cluster_ip_from_outside", "packet to a ClusterIP from outside the cluster (externalClusterIP is off)";
    LocalPodFromOutside = 8, "local_pod_from_outside", "packet from outside with the source IP of a pod on this node";
    PodFromWrongNode = 9, "pod_from_wrong_node", "pod source address not received from that pod's node";
    UnallocatedService = 10, "unallocated_service", "no service has this destination address";
    UndefinedPort = 11, "undefined_port", "service does not define this port or protocol";
    StaleTable = 12, "stale_table", "table entry refers to an entry that no longer exists";
    NoProgram = 13, "no_program", "eBPF programs not loaded yet by the daemon";
    MissedTailCall = 14, "missed_tail_call", "a program is missing after an incomplete start; restart the daemon";
    NotTranslatable = 15, "not_translatable", "fragment or protocol not supported by services";
    PacketWriteFailed = 16, "packet_write_failed", "kernel helper failed to modify the packet";
    NotIp = 17, "not_ip", "pod sent a frame that is neither IP nor ARP";
    NoLocalEndpoint = 18, "no_local_endpoint", "traffic policy Local and no local endpoints";
    SourceRange = 19, "source_range", "client not in the service's loadBalancerSourceRanges";
    TtlExceeded = 20, "ttl_exceeded", "TTL or hop limit exceeded; ICMP time exceeded sent";
    TooBig = 21, "too_big", "packet larger than the path MTU; ICMP packet too big sent";
    OrphanFragment = 22, "orphan_fragment", "fragment received without the first fragment of its datagram";
    NotForThisNode = 23, "not_for_this_node", "connection forwarded by another node, but no local endpoint for it";
    NoRoute = 24, "no_route", "no route to the destination or backend";
    TunnelFromOutside = 25, "tunnel_from_outside", "tunnel packet not received from a node of the cluster";
    LinkScope = 26, "link_scope", "link-scoped IPv6 from a pod, other than duplicate address detection";
    NotMasqueraded = 27, "not_masqueraded", "pod traffic to outside the cluster that cannot be masqueraded";
    ConntrackShare = 28, "conntrack_share", "sender exceeds its share of the nearly full connection table";
    UnrelatedIcmpError = 29, "unrelated_icmp_error", "ICMP error quotes a packet that its sender cannot have seen";
    Internal = 30, "internal", "internal table lacks a mandatory entry; please report this bug";
    PolicyIngress = 31, "policy_ingress", "denied by a network policy for ingress of the receiving pod";
    PolicyEgress = 32, "policy_egress", "denied by a network policy for egress of the sending pod";
}

/// Counters (per CPU array of `u64`): first the outcomes that are not drops, then one for each [`Reason`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// Flows that were begun.
    FlowsCreated = 0,
    /// Flows without source NAT that got another source port because the replies would have collided with another
    /// flow's.
    SourcePortsChanged = 1,
    /// Entries that were made again from their other half.
    FlowEntriesRebuilt = 2,
    /// Connections translated at the socket.
    SocketConnects = 3,
    /// Datagrams translated at the socket.
    SocketDatagrams = 4,
    /// Packets handed to the host's stack because they have to be fragmented, refused or answered there.
    ToStack = 5,
    /// Packets answered with a TCP reset or an ICMP error. Each is also counted under its [`Reason`].
    Rejected = 6,
    /// Echo requests answered in a service's name.
    EchoReplies = 7,
}

impl Counter {
    /// All of them, by number.
    pub const ALL: &[Self] = &[
        Self::FlowsCreated,
        Self::SourcePortsChanged,
        Self::FlowEntriesRebuilt,
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
            Self::SourcePortsChanged => "source_ports_changed",
            Self::FlowEntriesRebuilt => "flow_entries_rebuilt",
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
