//! A tenant, as people and the API speak of it.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use conntrack::Policy;
use ipnet::Ipv4Net;
use macaddr::MacAddr6;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::{Choice, Filtering, Limits, Mapping};
use crate::reference::shapes::{Mac, Network};
use crate::refusal::Refusal;

/// Prefix of the names of all links that Spillway makes.
pub const LINK_PREFIX: &str = "spw-";

/// TCP segments that a tenant may be held to, in bytes: from what every host takes (RFC 9293 section 3.7.1) to jumbo
/// frames.
pub const MSS_CLAMP: RangeInclusive<u16> = 536..=9000;

/// Longest time for which a removed tenant's sessions may go on, in seconds.
pub const MAX_DRAIN_SECONDS: u32 = 7 * 24 * 3600;

/// A tenant, in the words and the JSON of the API: `name`, `gatewayIP`, `gatewayMAC`, `egressIPs`,
/// `sources.podCIDRs`, `sources.fromPolicy`, `sources.nodes`, `mapping`, `filtering`, `limits`, `mssClamp`,
/// `drainSeconds`.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tenant {
    /// Name, unique on the gateway.
    #[serde(default)]
    pub name: String,
    /// Next hop that the cluster sends the tenant's traffic to.
    #[serde(rename = "gatewayIP")]
    pub gateway_ip: Ipv4Addr,
    /// Hardware address of the next hop; absent or empty: derived from `gatewayIP`.
    #[serde(rename = "gatewayMAC", default, with = "mac_text")]
    #[schemars(with = "Mac")]
    pub gateway_mac: Option<MacAddr6>,
    /// Addresses that the tenant's traffic leaves with.
    #[serde(rename = "egressIPs")]
    pub egress_ips: Vec<Ipv4Addr>,
    /// Source addresses that the tenant may use.
    #[serde(default)]
    pub sources: Sources,
    /// How outside ports are chosen.
    #[serde(default)]
    pub mapping: Mapping,
    /// Who may send to an outside port that a pod has opened.
    #[serde(default)]
    pub filtering: Filtering,
    /// Bounds on the tenant's sessions.
    #[serde(default)]
    pub limits: Limits,
    /// Greatest TCP segment that connections may agree on, in bytes; 0: as the ends like.
    #[serde(default)]
    pub mss_clamp: u16,
    /// Seconds for which sessions that live go on when the tenant is removed.
    #[serde(default)]
    pub drain_seconds: u32,
}

/// Source addresses that a tenant may use; at most one of the three. None: the cluster's pod networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sources {
    /// Pod networks.
    #[serde(rename = "podCIDRs", default)]
    #[schemars(with = "Vec<Network>")]
    pub pod_cidrs: Vec<Ipv4Net>,
    /// Exactly the live pods of the namespaces whose policies route to the gateway address.
    #[serde(default)]
    pub from_policy: bool,
    /// The cluster's nodes, for clusters that translate pods to their node's address.
    #[serde(default)]
    pub nodes: bool,
}

impl Tenant {
    /// Returns the hardware address of the next hop, set or derived.
    pub fn effective_mac(&self) -> MacAddr6 {
        self.gateway_mac.unwrap_or_else(|| derived_mac(self.gateway_ip))
    }

    /// Returns the name of the tenant's macvlan link.
    pub fn link_name(&self) -> String {
        format!("{LINK_PREFIX}{:08x}", self.gateway_ip.to_bits())
    }

    /// Returns what the tenant's sessions may do.
    pub fn policy(&self) -> Policy {
        Policy {
            mapping: self.mapping.into(),
            filtering: self.filtering.into(),
            tenant_quota: self.limits.tenant_quota(),
            pod_quota: self.limits.pod_quota(),
        }
    }

    /// Checks everything that can be checked without knowing the host or the other tenants.
    ///
    /// # Errors
    /// When a field is out of its bounds, naming it.
    pub fn check(&self) -> Result<(), Refusal> {
        check_name(&self.name)?;
        check_host_address("gatewayIP", self.gateway_ip)?;
        check_mac(self.effective_mac())?;
        self.check_egress()?;
        self.check_sources()?;
        self.check_filtering()?;
        self.check_mss_clamp()?;
        self.check_drain()
    }

    fn check_egress(&self) -> Result<(), Refusal> {
        if self.egress_ips.is_empty() {
            return Err(Refusal::invalid("egressIPs", "is empty; give one or more IPv4 addresses"));
        }
        for (index, egress) in self.egress_ips.iter().enumerate() {
            let field = format!("egressIPs[{index}]");
            check_host_address(&field, *egress)?;
            if self.egress_ips[..index].contains(egress) {
                return Err(Refusal::invalid(field, format!("{egress} is listed twice; list it once")));
            }
            if *egress == self.gateway_ip {
                let message =
                    format!("{egress} is also the gatewayIP; give an address of the outside network");
                return Err(Refusal::invalid(field, message));
            }
        }
        Ok(())
    }

    fn check_sources(&self) -> Result<(), Refusal> {
        let Sources { pod_cidrs, from_policy, nodes } = &self.sources;
        if [!pod_cidrs.is_empty(), *from_policy, *nodes].into_iter().filter(|given| *given).count() > 1 {
            let message = "has more than one of podCIDRs, fromPolicy and nodes; give one, or none for the cluster's \
                           pod networks";
            return Err(Refusal::invalid("sources", message));
        }
        for (index, cidr) in self.sources.pod_cidrs.iter().enumerate() {
            check_network(*cidr)
                .map_err(|why| Refusal::invalid(format!("sources.podCIDRs[{index}]"), why))?;
        }
        Ok(())
    }

    fn check_filtering(&self) -> Result<(), Refusal> {
        if self.filtering == Filtering::AddressAndPortDependent
            || self.mapping == Mapping::EndpointIndependent
        {
            return Ok(());
        }
        let message = format!(
            "{} needs endpoint-independent mapping: else pods share outside ports, and only address and port of the \
             other end tell whose an answer is (RFC 4787 section 5, RFC 7857 section 3); set mapping too, or leave \
             filtering out",
            self.filtering.word()
        );
        Err(Refusal::invalid("filtering", message))
    }

    fn check_mss_clamp(&self) -> Result<(), Refusal> {
        if self.mss_clamp == 0 || MSS_CLAMP.contains(&self.mss_clamp) {
            return Ok(());
        }
        let (value, least, most) = (self.mss_clamp, MSS_CLAMP.start(), MSS_CLAMP.end());
        let message =
            format!("{value} is not between {least} (RFC 9293 section 3.7.1) and {most}; 0 is no clamp");
        Err(Refusal::invalid("mssClamp", message))
    }

    fn check_drain(&self) -> Result<(), Refusal> {
        if self.drain_seconds <= MAX_DRAIN_SECONDS {
            return Ok(());
        }
        let message = format!("{} is over {MAX_DRAIN_SECONDS}, a week; give fewer", self.drain_seconds);
        Err(Refusal::invalid("drainSeconds", message))
    }
}

/// Returns the hardware address that stands for a gateway address: 02:53 and the address's four bytes.
pub fn derived_mac(gateway: Ipv4Addr) -> MacAddr6 {
    let [a, b, c, d] = gateway.octets();
    MacAddr6::new(0x02, 0x53, a, b, c, d)
}

/// Returns a hardware address as the kernel's tools spell it.
pub fn mac_to_text(mac: MacAddr6) -> String {
    mac.to_string().to_lowercase()
}

/// Checks that a network is written with its own first address.
///
/// # Errors
/// With what would be accepted.
pub fn check_network(network: Ipv4Net) -> Result<(), String> {
    if network.trunc() == network {
        return Ok(());
    }
    Err(format!("{network} has host bits set; write {}", network.trunc()))
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let sound = (1..=253).contains(&bytes.len())
        && bytes.iter().all(|byte| alphanumeric(*byte) || matches!(byte, b'-' | b'.'))
        && bytes.first().is_some_and(|byte| alphanumeric(*byte))
        && bytes.last().is_some_and(|byte| alphanumeric(*byte));
    if sound {
        return Ok(());
    }
    let accepted =
        "use 1 to 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends";
    Err(Refusal::invalid("name", format!("{name:?} is not a tenant name; {accepted}")))
}

fn check_host_address(field: &str, address: Ipv4Addr) -> Result<(), Refusal> {
    let special = address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_link_local();
    if special {
        return Err(Refusal::invalid(
            field,
            format!("{address} is no host's address; give a unicast address"),
        ));
    }
    Ok(())
}

fn check_mac(mac: MacAddr6) -> Result<(), Refusal> {
    if mac.is_unicast() && !mac.is_nil() {
        return Ok(());
    }
    let message = format!("{} is not a unicast address; leave it empty to derive one", mac_to_text(mac));
    Err(Refusal::invalid("gatewayMAC", message))
}

/// A hardware address as text; the empty text is none.
mod mac_text {
    use macaddr::MacAddr6;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mac: &Option<MacAddr6>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&mac.map(super::mac_to_text).unwrap_or_default())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<MacAddr6>, D::Error> {
        let text = Option::<String>::deserialize(from)?.unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let accepted = "write it as 02:53:c0:a8:63:0d, or leave it empty to derive it";
        text.parse().map(Some).map_err(|_| D::Error::custom(format!("{text:?} is no MAC; {accepted}")))
    }
}

#[cfg(test)]
mod tests {
    use conntrack::Quota;

    use super::*;

    #[test]
    fn derived_mac_and_link_name_hold_the_gateway_address() {
        let tenant = blue();
        assert_eq!(mac_to_text(tenant.effective_mac()), "02:53:c0:a8:63:0d");
        assert_eq!(tenant.link_name(), "spw-c0a8630d");
        assert!(tenant.link_name().len() <= 15);
    }

    #[test]
    fn json_round_trip_keeps_the_names_of_the_api() {
        let json = serde_json::to_value(with_policy()).unwrap();
        assert_eq!(json["gatewayIP"], "192.168.99.13");
        assert_eq!(json["gatewayMAC"], "");
        assert_eq!(json["egressIPs"][0], "192.168.55.113");
        assert_eq!(json["sources"]["podCIDRs"][0], "10.132.0.0/14");
        assert_eq!(json["mapping"], "EndpointIndependent");
        assert_eq!(json["filtering"], "AddressDependent");
        let limits = serde_json::json!({
            "sessions": 1, "sessionsPerPod": 2, "ports": 3, "portsPerPod": 4,
            "newSessionsPerSecond": 5, "newSessionsPerSecondPerPod": 6,
        });
        assert_eq!(json["limits"], limits);
        assert_eq!(json["mssClamp"], 1360);
        assert_eq!(serde_json::from_value::<Tenant>(json).unwrap(), with_policy());
    }

    #[test]
    fn what_is_left_out_is_as_before_policies() {
        let json = r#"{"gatewayIP":"192.168.99.13","egressIPs":["192.168.55.113"],"limits":{"ports":9}}"#;
        let tenant: Tenant = serde_json::from_str(json).unwrap();
        assert_eq!((tenant.mapping, tenant.filtering), (Mapping::default(), Filtering::default()));
        assert_eq!((tenant.limits, tenant.mss_clamp), (Limits { ports: 9, ..Limits::default() }, 0));
    }

    #[test]
    fn policy_holds_each_limit_in_its_place() {
        let expected = Policy {
            mapping: conntrack::Mapping::EndpointIndependent,
            filtering: conntrack::Filtering::AddressDependent,
            tenant_quota: Quota { sessions: 1, ports: 3, new_per_second: 5 },
            pod_quota: Quota { sessions: 2, ports: 4, new_per_second: 6 },
        };
        assert_eq!(with_policy().policy(), expected);
        assert_eq!(blue().policy(), Policy::default());
    }

    #[test]
    fn any_filtering_goes_with_endpoint_independent_mapping() {
        let filterings =
            [Filtering::AddressAndPortDependent, Filtering::AddressDependent, Filtering::EndpointIndependent];
        for filtering in filterings {
            assert_eq!(Tenant { filtering, ..with_policy() }.check(), Ok(()));
        }
    }

    #[test]
    fn refusals_name_the_field_and_the_value() {
        type Change = fn(&mut Tenant);
        let table: [(&str, Change); 11] = [
            ("name: \"Blue\"", |tenant| tenant.name = "Blue".into()),
            ("gatewayIP: 127.0.0.1", |tenant| tenant.gateway_ip = [127, 0, 0, 1].into()),
            ("gatewayMAC: 01:00:00:00:00:01", |tenant| {
                tenant.gateway_mac = Some(MacAddr6::new(1, 0, 0, 0, 0, 1));
            }),
            ("egressIPs: is empty", |tenant| tenant.egress_ips.clear()),
            ("egressIPs[1]: 192.168.55.113", |tenant| tenant.egress_ips.push([192, 168, 55, 113].into())),
            ("egressIPs[0]: 192.168.99.13", |tenant| tenant.egress_ips = vec![tenant.gateway_ip]),
            ("sources.podCIDRs[0]: 10.132.0.1/14 has host bits set; write 10.132.0.0/14", |tenant| {
                tenant.sources.pod_cidrs = vec!["10.132.0.1/14".parse().unwrap()];
            }),
            ("filtering: address needs endpoint-independent mapping: else", |tenant| {
                tenant.filtering = Filtering::AddressDependent;
            }),
            ("filtering: endpoint-independent needs endpoint-independent mapping", |tenant| {
                tenant.filtering = Filtering::EndpointIndependent;
            }),
            ("mssClamp: 535 is not between 536 (RFC 9293", |tenant| tenant.mss_clamp = 535),
            ("mssClamp: 9001 is not between", |tenant| tenant.mss_clamp = 9001),
        ];
        assert_eq!(blue().check(), Ok(()));
        for (expected, change) in table {
            let mut tenant = blue();
            change(&mut tenant);
            let refusal = tenant.check().unwrap_err().to_string();
            assert!(refusal.starts_with(expected), "{refusal:?} should start with {expected:?}");
        }
    }

    fn blue() -> Tenant {
        Tenant {
            name: "ns-blue".into(),
            gateway_ip: [192, 168, 99, 13].into(),
            gateway_mac: None,
            egress_ips: vec![[192, 168, 55, 113].into()],
            sources: Sources { pod_cidrs: vec!["10.132.0.0/14".parse().unwrap()], ..Sources::default() },
            mapping: Mapping::default(),
            filtering: Filtering::default(),
            limits: Limits::default(),
            mss_clamp: 0,
            drain_seconds: 0,
        }
    }

    fn with_policy() -> Tenant {
        Tenant {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressDependent,
            limits: Limits {
                sessions: 1,
                sessions_per_pod: 2,
                ports: 3,
                ports_per_pod: 4,
                new_sessions_per_second: 5,
                new_sessions_per_second_per_pod: 6,
            },
            mss_clamp: 1360,
            ..blue()
        }
    }
}
