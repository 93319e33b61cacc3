use super::*;

#[test]
fn two_keys_are_enough() {
    let config = Config::parse("node: n1\nmanifests: /etc/podnet/manifests\n").unwrap();
    assert_eq!(config.service_cidrs(), ["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()]);
    assert_eq!((config.source_ip, config.socket_lb, config.xdp), (SourceIp::Auto, SocketLb::Host, Xdp::Auto));
    assert!(config.external_ips && config.frontends_max == 65_536);
    assert_eq!((config.masquerade, config.maglev_table_size, config.node_port_addresses.len()), (true, 16_381, 0));
    assert_eq!(config.non_masquerade_cidrs, cidrs(&["169.254.0.0/16", "fe80::/10"]));
    assert_eq!(config.healthz_bind_address.0, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.metrics_bind_address.0, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!((config.routing, config.mtu, config.conntrack_max), (Routing::Auto, 0, 262_144));
    assert_eq!((config.policy_wait_seconds, config.run_dir.as_path()), (2, Path::new("/run/podnet")));
}

#[test]
fn every_key_is_read() {
    let config = Config::parse(
        "node: n1\nmanifests: /m\nserviceCIDRs: [10.0.0.0/24]\nsourceIP: snat\nsocketLB: all\nxdp: native\n\
         nodePortAddresses: [172.30.0.0/24, \"fd00:30::1/128\"]\nmasquerade: false\nnonMasqueradeCIDRs: [10.0.0.0/8]\n\
         externalIPs: false\nprotectedAddresses: [192.0.2.0/24]\nmaglevTableSize: 65521\nhealthzBindAddress: \"[::1]:1\"\nmetricsBindAddress: 192.0.2.1:9\nlogFormat: json\n\
         uplinks: [eth0, eth1]\nrouting: vxlan\nmtu: 9000\nexternalClusterIP: true\npolicyWaitSeconds: 5\nconntrackMax: 4096\nfrontendsMax: 131072\nbpffs: /b\ncgroup: /c\n\
         stateDir: /s\nrunDir: /r\nsysctls: /y\ninstall: {binDir: /i, confDir: /j}\n",
    )
    .unwrap();
    let expected = Config {
        node: "n1".into(),
        manifests: Some("/m".into()),
        kubernetes: None,
        service_cidrs: Some(vec!["10.0.0.0/24".parse().unwrap()]),
        source_ip: SourceIp::Snat,
        socket_lb: SocketLb::All,
        node_port_addresses: cidrs(&["172.30.0.0/24", "fd00:30::1/128"]),
        masquerade: false,
        non_masquerade_cidrs: cidrs(&["10.0.0.0/8"]),
        external_ips: false,
        protected_addresses: cidrs(&["192.0.2.0/24"]),
        maglev_table_size: 65_521,
        healthz_bind_address: BindAddress(Some("[::1]:1".parse().unwrap())),
        metrics_bind_address: BindAddress(Some("192.0.2.1:9".parse().unwrap())),
        log_format: LogFormat::Json,
        xdp: Xdp::Native,
        uplinks: vec!["eth0".into(), "eth1".into()],
        routing: Routing::Vxlan,
        mtu: 9000,
        external_cluster_ip: true,
        policy_wait_seconds: 5,
        conntrack_max: 4096,
        frontends_max: 131_072,
        bpffs: "/b".into(),
        cgroup: "/c".into(),
        state_dir: "/s".into(),
        run_dir: "/r".into(),
        sysctls: "/y".into(),
        install: Some(Install { bin_dir: "/i".into(), conf_dir: "/j".into() }),
    };
    assert_eq!(config, expected);
    let written = serde_json::to_string(&config).unwrap();
    assert_eq!(Config::parse(&written).unwrap(), expected, "what is written can be read: {written}");
}

#[test]
fn mistakes_name_line_and_key() {
    for (text, line, part) in [
        ("", 1, "`manifests` or `kubernetes`"),
        ("node: n1\n", 1, "manifests: is missing"),
        ("node: n1\nmanifests: /m\nkubernetes: {}\n", 3, "remove one"),
        ("node: n1\nkubernetes:\n  server: 192.0.2.1\n", 3, "https://192.0.2.1:6443"),
        ("node: n1\nkubernetes:\n  kubeletConfig: x\n", 3, "not an absolute path"),
        ("node: n1\nkubernetes:\n  token: x\n", 3, "token"),
        ("manifests: /m\n", 1, "node: is missing"),
        ("node: n1\nmanifests: /m\nsnatPorts: 1\n", 3, "snatPorts"),
        ("node: n1\nmanifests: /m\nxdp: fast\n", 3, "fast"),
        ("node: n1\nmanifests: m\n", 2, "manifests: m is not an absolute path"),
        ("node: ''\nmanifests: /m\n", 1, "node: is missing"),
        ("node: n1\nmanifests: /m\nserviceCIDRs:\n- 10.96.0.1/16\n", 4, "write 10.96.0.0/16"),
        ("node: n1\nmanifests: /m\nserviceCIDRs:\n- 10.96.0.0/16\n- 10.97.0.0/16\n", 5, "second range of its family"),
        ("node: n1\nmanifests: /m\nserviceCIDRs:\n- 10.96.0.0/36\n", 4, "invalid address: 10.96.0.0/36"),
        ("node: n1\nmanifests: /m\nserviceCIDRs: [10.96.0.0]\n", 3, "a single address"),
        ("node: n1\nmanifests: /m\nnodePortAddresses:\n- 10.0.0.0/8\n- 172.30.0.5/24\n", 5, "write 172.30.0.0/24"),
        ("node: n1\nmanifests: /m\nnonMasqueradeCIDRs: [10.1.0.0/8]\n", 3, "write 10.0.0.0/8"),
        ("node: n1\nmanifests: /m\nprotectedAddresses: [10.1.0.0/8]\n", 3, "write 10.0.0.0/8"),
        ("node: n1\nmanifests: /m\nmaglevTableSize: 4095\n", 3, "4095 is not a prime"),
        ("node: n1\nmanifests: /m\nmaglevTableSize: 7\n", 3, "between 251"),
        ("node: n1\nmanifests: /m\nhealthzBindAddress: 0.0.0.0\n", 3, "0.0.0.0:10256"),
        ("node: n1\nmanifests: /m\nhealthzBindAddress: 127.0.0.1:0\n", 3, "not an address with a port"),
        ("node: n1\nmanifests: /m\nmetricsBindAddress: localhost:10249\n", 3, "not an address with a port"),
        ("node: n1\nmanifests: /m\nuplinks:\n- a/b\n", 4, "`a/b`"),
        ("node: n1\nmanifests: /m\nrouting: geneve\n", 3, "geneve"),
        ("node: n1\nmanifests: /m\nmtu: 600\n", 3, "1280"),
        ("node: n1\nmanifests: /m\npolicyWaitSeconds: 61\n", 3, "between 0 and 60"),
        ("node: n1\nmanifests: /m\nconntrackMax: 1\n", 3, "1024"),
        ("node: n1\nmanifests: /m\nfrontendsMax: 2000000\n", 3, "1048576"),
        ("node: n1\nnode: n2\nmanifests: /m\n", 2, "duplicate"),
        ("node: n1\nmanifests: /m\n---\nnode: n2\n", 3, "one YAML document"),
    ] {
        let error = Config::parse(text).expect_err(text);
        assert!(error.line == line && error.reason.contains(part), "{text:?} gave {error}");
    }
}

#[test]
fn an_empty_text_switches_a_server_off() {
    let text = "node: n1\nmanifests: /m\nhealthzBindAddress: ''\nmetricsBindAddress: ''\n";
    let config = Config::parse(text).unwrap();
    assert_eq!([config.healthz_bind_address, config.metrics_bind_address], [BindAddress(None); 2]);
    let written = serde_json::to_string(&config).unwrap();
    assert_eq!(Config::parse(&written).unwrap(), config, "{written}");
}

#[test]
fn an_error_says_which_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("podnet.yaml");
    assert!(Config::read(&path).unwrap_err().to_string().contains("--config"));
    std::fs::write(&path, "node: n1\nmanifests: /m\nfoo: 1\n").unwrap();
    let message = Config::read(&path).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}:3: ", path.display())), "{message}");
}
