//! Flags for what a tenant's sessions may do, and how it is shown.

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::policy::{Choice, Filtering, Limits, Mapping};
use crate::tenant::Tenant;

/// What a tenant's sessions may do.
#[derive(Debug, Args)]
pub(super) struct PolicyArguments {
    /// How outside ports are chosen
    #[arg(long, value_parser = choice::<Mapping>(), default_value = Mapping::default().word())]
    mapping: Mapping,

    /// Who may send to an outside port that a pod has opened
    #[arg(long, value_parser = choice::<Filtering>(), default_value = Filtering::default().word())]
    filtering: Filtering,

    /// Sessions of the tenant at the same time; 0: any number
    #[arg(long, value_name = "N", default_value_t)]
    max_sessions: u32,

    /// Sessions of each of its pods at the same time; 0: any number
    #[arg(long, value_name = "N", default_value_t)]
    max_sessions_per_pod: u32,

    /// Outside ports of the tenant at the same time; 0: any number
    #[arg(long, value_name = "N", default_value_t)]
    max_ports: u32,

    /// Outside ports of each of its pods at the same time; 0: any number
    #[arg(long, value_name = "N", default_value_t)]
    max_ports_per_pod: u32,

    /// New sessions of the tenant in a second; 0: any number
    #[arg(long, value_name = "N", default_value_t)]
    max_new_sessions: u32,

    /// New sessions of each of its pods in a second; 0: any number
    #[arg(long, value_name = "N", default_value_t)]
    max_new_sessions_per_pod: u32,

    /// Greatest TCP segment that its connections may agree on, in bytes; 0: as the ends like
    #[arg(long, value_name = "BYTES", default_value_t)]
    mss_clamp: u16,
}

impl PolicyArguments {
    /// Returns a tenant whose sessions may do what the flags say.
    pub(super) fn apply(&self, tenant: Tenant) -> Tenant {
        Tenant {
            mapping: self.mapping,
            filtering: self.filtering,
            limits: Limits {
                sessions: self.max_sessions,
                sessions_per_pod: self.max_sessions_per_pod,
                ports: self.max_ports,
                ports_per_pod: self.max_ports_per_pod,
                new_sessions_per_second: self.max_new_sessions,
                new_sessions_per_second_per_pod: self.max_new_sessions_per_pod,
            },
            mss_clamp: self.mss_clamp,
            ..tenant
        }
    }
}

/// Reads a choice by its word.
pub(super) fn choice<T: Choice>() -> impl TypedValueParser<Value = T> {
    let words = T::WORDS.iter().map(|(_, word, help)| PossibleValue::new(*word).help(*help));
    PossibleValuesParser::new(words)
        .map(|word| T::from_word(&word).expect("only words of the table are let through"))
}

/// Returns what a tenant's sessions may do, as names and values.
pub(super) fn rows(tenant: &Tenant) -> [(&'static str, String); 4] {
    let clamp = match tenant.mss_clamp {
        0 => "none".to_owned(),
        bytes => format!("{bytes} bytes"),
    };
    [
        ("mapping", tenant.mapping.word().to_owned()),
        ("filtering", tenant.filtering.word().to_owned()),
        ("limits", limits(&tenant.limits)),
        ("mss clamp", clamp),
    ]
}

fn limits(limits: &Limits) -> String {
    let all = [
        (limits.sessions, "sessions"),
        (limits.sessions_per_pod, "sessions per pod"),
        (limits.ports, "ports"),
        (limits.ports_per_pod, "ports per pod"),
        (limits.new_sessions_per_second, "new sessions per second"),
        (limits.new_sessions_per_second_per_pod, "new sessions per second per pod"),
    ];
    let set: Vec<String> =
        all.into_iter().filter(|(most, _)| *most != 0).map(|(most, what)| format!("{most} {what}")).collect();
    if set.is_empty() { "none".to_owned() } else { set.join(", ") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        policy: PolicyArguments,
    }

    #[test]
    fn each_flag_has_its_place_in_the_tenant_and_in_what_is_shown() {
        let tenant = told(
            "--mapping endpoint-independent --filtering address --max-sessions 1 --max-sessions-per-pod 2 \
             --max-ports 3 --max-ports-per-pod 4 --max-new-sessions 5 --max-new-sessions-per-pod 6 \
             --mss-clamp 1360",
        );
        let expected = Limits {
            sessions: 1,
            sessions_per_pod: 2,
            ports: 3,
            ports_per_pod: 4,
            new_sessions_per_second: 5,
            new_sessions_per_second_per_pod: 6,
        };
        assert_eq!(
            (tenant.mapping, tenant.filtering),
            (Mapping::EndpointIndependent, Filtering::AddressDependent)
        );
        assert_eq!((tenant.limits, tenant.mss_clamp), (expected, 1360));
        let shown = rows(&tenant).map(|(_, value)| value);
        let limits = "1 sessions, 2 sessions per pod, 3 ports, 4 ports per pod, 5 new sessions per second, \
                      6 new sessions per second per pod";
        assert_eq!(shown, ["endpoint-independent", "address", limits, "1360 bytes"]);
    }

    #[test]
    fn without_flags_there_is_no_limit() {
        let tenant = told("");
        assert_eq!(tenant.policy(), conntrack::Policy::default());
        assert_eq!(
            rows(&tenant).map(|(_, value)| value),
            ["address-and-port", "address-and-port", "none", "none"]
        );
    }

    fn told(flags: &str) -> Tenant {
        let line = Line::try_parse_from(["tenant"].into_iter().chain(flags.split_whitespace())).unwrap();
        let json = r#"{"name":"ns-blue","gatewayIP":"192.168.99.13","egressIPs":["192.168.55.113"]}"#;
        line.policy.apply(serde_json::from_str(json).unwrap())
    }
}
