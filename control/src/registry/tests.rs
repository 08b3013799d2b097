use super::*;

#[test]
fn of_the_clusters_tenants_the_first_has_what_two_want_and_the_other_keeps_what_it_had() {
    let mut registry = Registry::default();
    let [blue, red] = [tenant("blue", 13, 113), tenant("red", 14, 114)];
    assert!(replace(&mut registry, &[blue.clone(), red.clone()]).is_empty());
    let before: Vec<_> = registry.entries().map(|entry| (entry.tenant.name.clone(), entry.id)).collect();
    let refused = replace(&mut registry, &[blue.clone(), tenant("red", 14, 113)]);
    assert!(refused["red"].contains("egressIPs[0]: 192.168.55.113") && refused["red"].contains("\"blue\""));
    assert_eq!(registry.get("red").unwrap().tenant, red);
    // The first one now wants what the second has: nothing of the second stays.
    let refused = replace(&mut registry, &[tenant("blue", 13, 114), red]);
    assert!(refused["red"].contains("192.168.55.114") && refused.len() == 1, "{refused:?}");
    assert!(registry.get("red").is_err());
    assert!(replace(&mut registry, &[blue, tenant("red", 14, 114)]).is_empty());
    let after: Vec<_> = registry.entries().map(|entry| (entry.tenant.name.clone(), entry.id)).collect();
    assert_eq!(after[0], before[0], "a tenant keeps its slot through every change");
}

#[test]
fn tenants_of_other_sources_come_before_the_clusters() {
    let mut registry = Registry::default();
    registry.put(tenant("blue", 13, 113), Source::ConfigFile, &host()).unwrap();
    let refused = replace(&mut registry, &[tenant("blue", 15, 115), tenant("red", 13, 114)]);
    assert!(refused["blue"].contains("already a tenant from the config file"), "{refused:?}");
    assert!(refused["red"].contains("the gatewayIP of tenant \"blue\" from the config file"), "{refused:?}");
    assert_eq!(registry.entries().count(), 1);
}

#[test]
fn a_removed_tenant_drains_and_keeps_its_addresses_until_then() {
    let (mut registry, start) = (Registry::default(), now());
    let blue = Tenant { drain_seconds: 60, ..tenant("blue", 13, 113) };
    assert!(replace(&mut registry, &[blue.clone(), tenant("red", 14, 114)]).is_empty());
    let slot = registry.get("blue").unwrap().id;
    let refused = registry.replace_cluster([tenant("green", 13, 115)].iter(), &host(), start);
    assert!(refused["green"].to_string().contains("still drains"), "{refused:?}");
    assert!(registry.get("red").is_err(), "red does not drain");
    assert_eq!(registry.next_drained(), Some(start + Duration::from_secs(60)));
    assert!(registry.tenants_from(Source::Kubernetes).is_empty());
    let later = start + Duration::from_secs(59);
    assert!(registry.remove_drained(later, |_| false).is_empty());
    assert_eq!(registry.clone().remove_drained(later, |id| id == slot), ["blue"], "no session is left");
    // It comes again before its time is over.
    assert!(replace(&mut registry, &[blue]).is_empty());
    assert_eq!((registry.get("blue").unwrap().id, registry.next_drained()), (slot, None));
    assert!(registry.replace_cluster([].iter(), &host(), start).is_empty());
    assert_eq!(registry.remove_drained(start + Duration::from_secs(60), |_| false), ["blue"]);
    assert!(replace(&mut registry, &[tenant("green", 13, 115)]).is_empty());
}

#[test]
fn sources_of_the_cluster_need_the_kubernetes_api() {
    let mut green = tenant("green", 13, 113);
    green.sources.from_policy = true;
    let without = Host { has_kubernetes: false, ..host() };
    let refusal = Registry::default().put(green.clone(), Source::ControlSocket, &without).unwrap_err();
    assert_eq!(refusal.field(), Some("sources.fromPolicy"));
    let no_pods = Host { pod_cidrs: Vec::new(), ..host() };
    assert_eq!(Registry::default().put(green, Source::ControlSocket, &no_pods), Ok(true));
}

#[test]
fn put_is_idempotent_and_keeps_the_slot() {
    let mut registry = Registry::default();
    assert_eq!(registry.put(tenant("blue", 13, 113), Source::ControlSocket, &host()), Ok(true));
    assert_eq!(registry.put(tenant("blue", 13, 113), Source::ControlSocket, &host()), Ok(false));
    assert_eq!(registry.put(tenant("blue", 13, 120), Source::ControlSocket, &host()), Ok(true));
    assert_eq!(registry.get("blue").unwrap().id, TenantId(0));
    assert_eq!(registry.entries().count(), 1);
}

#[test]
fn slots_are_not_reused_until_they_wrap() {
    let mut registry = Registry { next_id: u16::MAX - 1, ..Registry::default() };
    let mut ids = Vec::new();
    for _ in 0..4 {
        registry.put(tenant("blue", 13, 113), Source::ControlSocket, &host()).unwrap();
        ids.push(registry.get("blue").unwrap().id.0);
        registry.remove("blue", Source::ControlSocket, now()).unwrap();
    }
    assert_eq!(ids, [65534, 65535, 0, 1]);
}

#[test]
fn a_slot_in_use_is_passed_over_after_the_wrap() {
    let mut registry = Registry::default();
    registry.put(tenant("blue", 13, 113), Source::ControlSocket, &host()).unwrap();
    registry.next_id = 0;
    registry.put(tenant("red", 14, 114), Source::ControlSocket, &host()).unwrap();
    assert_eq!(registry.get("red").unwrap().id, TenantId(1));
}

#[test]
fn conflicts_name_field_value_and_both_sources() {
    let mut registry = Registry::default();
    registry.put(tenant("blue", 13, 113), Source::ConfigFile, &host()).unwrap();
    let mac = Tenant { gateway_mac: Some("02:53:c0:a8:63:0d".parse().unwrap()), ..tenant("red", 14, 114) };
    let table = [
        (tenant("blue", 14, 114), "name", "\"blue\""),
        (tenant("red", 13, 114), "gatewayIP", "192.168.99.13"),
        (tenant("red", 14, 113), "egressIPs[0]", "192.168.55.113"),
        (mac, "gatewayMAC", "02:53:c0:a8:63:0d"),
    ];
    for (tenant, field, value) in table {
        let refusal = registry.put(tenant, Source::ControlSocket, &host()).unwrap_err();
        let text = refusal.to_string();
        assert!(matches!(refusal, Refusal::Conflict { .. }), "{text}");
        assert_eq!(refusal.field(), Some(field));
        for part in [value, "the config file", "the control socket"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[test]
fn a_tenant_must_fit_the_host() {
    let egress_own = Tenant { egress_ips: vec![[192, 168, 55, 12].into()], ..tenant("blue", 13, 113) };
    let outside_network = Tenant { gateway_ip: [10, 0, 0, 1].into(), ..tenant("blue", 13, 113) };
    let own_mac =
        Tenant { gateway_mac: Some("02:00:00:00:00:01".parse().unwrap()), ..tenant("blue", 13, 113) };
    let table = [
        (outside_network, "gatewayIP: 10.0.0.1 is no host address of the inside network"),
        (tenant("blue", 255, 113), "gatewayIP: 192.168.99.255 is no host address"),
        (tenant("blue", 12, 113), "gatewayIP: 192.168.99.12 is the gateway's own address on in0"),
        (egress_own, "egressIPs[0]: 192.168.55.12 is the gateway's own address on out0"),
        (own_mac, "gatewayMAC: 02:00:00:00:00:01 is an interface's own"),
    ];
    for (tenant, expected) in table {
        let text = Registry::default().put(tenant, Source::ConfigFile, &host()).unwrap_err().to_string();
        assert!(text.starts_with(expected), "{text:?} should start with {expected:?}");
    }
    let no_pods = Host { pod_cidrs: Vec::new(), ..host() };
    let refusal = Registry::default().put(tenant("blue", 13, 113), Source::ConfigFile, &no_pods).unwrap_err();
    assert_eq!(refusal.field(), Some("sources.podCIDRs"));
}

#[test]
fn a_tenant_is_removed_only_where_it_came_from() {
    let mut registry = Registry::default();
    registry.put(tenant("blue", 13, 113), Source::ConfigFile, &host()).unwrap();
    let refusal = registry.remove("blue", Source::ControlSocket, now()).unwrap_err();
    assert!(refusal.to_string().contains("comes from the config file"), "{refusal}");
    assert!(matches!(
        registry.remove("red", Source::ControlSocket, now()),
        Err(Refusal::UnknownTenant { .. })
    ));
    assert_eq!(registry.remove("blue", Source::ConfigFile, now()), Ok(()));
}

fn replace(registry: &mut Registry, wanted: &[Tenant]) -> BTreeMap<String, String> {
    let refused = registry.replace_cluster(wanted.iter(), &host(), now());
    refused.into_iter().map(|(name, refusal)| (name, refusal.to_string())).collect()
}

fn now() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}

fn tenant(name: &str, gateway: u8, egress: u8) -> Tenant {
    serde_json::from_value(serde_json::json!({
        "name": name,
        "gatewayIP": Ipv4Addr::new(192, 168, 99, gateway),
        "egressIPs": [Ipv4Addr::new(192, 168, 55, egress)],
    }))
    .unwrap()
}

fn host() -> Host {
    Host {
        inside_network: "192.168.99.12/24".parse().unwrap(),
        addresses: BTreeMap::from([
            ([192, 168, 99, 12].into(), "the gateway's own address on in0".into()),
            ([192, 168, 55, 12].into(), "the gateway's own address on out0".into()),
        ]),
        macs: vec!["02:00:00:00:00:01".parse().unwrap()],
        pod_cidrs: vec!["10.132.0.0/14".parse().unwrap()],
        has_kubernetes: true,
    }
}
