//! Which sessions are meant, in the words of people: the same on the command line and in the API.

use std::net::Ipv4Addr;
use std::time::Duration;

use clap::Args;
use conntrack::{Protocol, TenantId};
use fastpath::survey::{Cursor, EndFilter, SessionFilter, SessionState};
use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// Which sessions are meant: those that everything said of them fits.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selection {
    /// Of this tenant
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,

    /// Of this protocol: tcp, udp, icmp, gre, esp, sctp, udplite or ipip
    #[arg(long, value_name = "PROTOCOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,

    /// With this pod: ADDRESS, ADDRESS:PORT, NETWORK or :PORT
    #[arg(long, value_name = "END")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,

    /// With this other end: ADDRESS, ADDRESS:PORT, NETWORK or :PORT
    #[arg(long, value_name = "END")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,

    /// By this egress address and outside port: ADDRESS, ADDRESS:PORT, NETWORK or :PORT
    #[arg(long, value_name = "END")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<String>,

    /// In this state: opening, established or closing for TCP, active for all else
    #[arg(long, value_name = "STATE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,

    /// That began so long ago or longer, as in 10m
    #[arg(long, value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than: Option<String>,

    /// That began so long ago at most, as in 30s
    #[arg(long, value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub younger_than: Option<String>,

    /// Without a packet for so long, as in 1h
    #[arg(long, value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_for: Option<String>,
}

impl Selection {
    /// Tells whether all sessions are meant.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the filter that the workers heed; `find` finds a tenant by its name.
    ///
    /// # Errors
    /// When something is said that means nothing, or of a tenant that does not exist.
    pub fn filter(
        &self,
        find: impl FnOnce(&str) -> Result<TenantId, Refusal>,
    ) -> Result<SessionFilter, Refusal> {
        let end = |field, text: &Option<String>| {
            text.as_ref().map_or(Ok(EndFilter::default()), |text| parse_end(field, text))
        };
        let time =
            |field, text: &Option<String>| text.as_ref().map(|text| parse_time(field, text)).transpose();
        Ok(SessionFilter {
            tenant: self.tenant.as_deref().map(find).transpose()?,
            protocol: self.protocol.as_deref().map(parse_protocol).transpose()?,
            inside: end("pod", &self.pod)?,
            remote: end("remote", &self.remote)?,
            outside: end("egress", &self.egress)?,
            state: self.state.as_deref().map(parse_state).transpose()?,
            older_than: time("olderThan", &self.older_than)?,
            younger_than: time("youngerThan", &self.younger_than)?,
            idle_for: time("idleFor", &self.idle_for)?,
        })
    }
}

/// Reads a protocol's name.
///
/// # Errors
/// When it is none that is translated.
pub fn parse_protocol(text: &str) -> Result<Protocol, Refusal> {
    let all = || (0..=u8::MAX).filter_map(Protocol::from_number);
    all().find(|protocol| protocol.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let names: Vec<_> = all().map(Protocol::name).collect();
        Refusal::invalid("protocol", format!("{text:?} is none of {}", names.join(", ")))
    })
}

/// Reads one end of a session: `ADDRESS`, `ADDRESS:PORT`, `NETWORK`, `NETWORK:PORT` or `:PORT`.
///
/// # Errors
/// When it is none of these.
pub fn parse_end(field: &str, text: &str) -> Result<EndFilter, Refusal> {
    let refusal = || {
        let message = format!("{text:?} is no address, network, ADDRESS:PORT or :PORT, as in 10.132.0.5:443");
        Refusal::invalid(field, message)
    };
    let (address, port) = match text.rsplit_once(':') {
        Some((address, port)) => (address, Some(port.parse().map_err(|_| refusal())?)),
        None => (text, None),
    };
    let network = match (address, port) {
        ("", Some(_)) => None,
        (address, _) if address.contains('/') => {
            Some(address.parse::<Ipv4Net>().map_err(|_| refusal())?.trunc())
        }
        (address, _) => Some(address.parse::<Ipv4Addr>().map_err(|_| refusal())?.into()),
    };
    Ok(EndFilter { network, port })
}

fn parse_state(text: &str) -> Result<SessionState, Refusal> {
    let found = SessionState::ALL.into_iter().find(|state| state.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        let names = SessionState::ALL.map(SessionState::name).join(", ");
        Refusal::invalid("state", format!("{text:?} is none of {names}"))
    })
}

/// Reads a time, as in `90s` or `1h 30m`.
///
/// # Errors
/// When it is none.
pub fn parse_time(field: &str, text: &str) -> Result<Duration, Refusal> {
    humantime::parse_duration(text)
        .map_err(|error| Refusal::invalid(field, format!("{text:?} is no time such as 30s or 10m: {error}")))
}

/// Returns where a list goes on, as text.
pub fn cursor_to_text(cursor: Cursor) -> String {
    format!("{}.{}", cursor.worker, cursor.entry)
}

/// Reads where a list goes on.
///
/// # Errors
/// When it is none that an earlier page gave.
pub fn parse_cursor(text: &str) -> Result<Cursor, Refusal> {
    let parts = text.split_once('.');
    let cursor = parts.and_then(|(worker, entry)| {
        Some(Cursor { worker: worker.parse().ok()?, entry: entry.parse().ok()? })
    });
    cursor.ok_or_else(|| {
        Refusal::invalid("after", format!("{text:?} is not what an earlier page gave as `next`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(change: impl FnOnce(&mut Selection)) -> Selection {
        let mut selection = Selection::default();
        change(&mut selection);
        selection
    }

    fn blue(name: &str) -> Result<TenantId, Refusal> {
        match name {
            "ns-blue" => Ok(TenantId(7)),
            name => Err(Refusal::UnknownTenant { name: name.to_owned() }),
        }
    }

    #[test]
    fn all_that_is_said_becomes_the_filter() {
        let selection = Selection {
            tenant: Some("ns-blue".to_owned()),
            protocol: Some("TCP".to_owned()),
            pod: Some("10.132.0.5".to_owned()),
            remote: Some("198.51.100.9/24".to_owned()),
            egress: Some("192.168.55.113:40123".to_owned()),
            state: Some("established".to_owned()),
            older_than: Some("1h 30m".to_owned()),
            younger_than: Some("2h".to_owned()),
            idle_for: Some("90s".to_owned()),
        };
        let end = |network: &str, port| EndFilter { network: Some(network.parse().unwrap()), port };
        let expected = SessionFilter {
            tenant: Some(TenantId(7)),
            protocol: Some(Protocol::Tcp),
            inside: end("10.132.0.5/32", None),
            remote: end("198.51.100.0/24", None),
            outside: end("192.168.55.113/32", Some(40123)),
            state: Some(SessionState::Established),
            older_than: Some(Duration::from_secs(5400)),
            younger_than: Some(Duration::from_secs(7200)),
            idle_for: Some(Duration::from_secs(90)),
        };
        assert_eq!(selection.filter(blue), Ok(expected));
        assert_eq!(Selection::default().filter(blue), Ok(SessionFilter::default()));
        assert!(Selection::default().is_all() && !selection.is_all());
        assert_eq!(parse_end("pod", ":53"), Ok(EndFilter { network: None, port: Some(53) }));
    }

    #[test]
    fn what_means_nothing_is_refused_with_its_field_and_value() {
        let cases = [
            (selection(|it| it.tenant = Some("nobody".into())), "nobody"),
            (selection(|it| it.protocol = Some("tpc".into())), "protocol: \"tpc\" is none of "),
            (selection(|it| it.pod = Some("10.132.0".into())), "pod: \"10.132.0\""),
            (selection(|it| it.pod = Some("".into())), "pod: \"\""),
            (selection(|it| it.remote = Some("10.0.0.1:65536".into())), "remote: \"10.0.0.1:65536\""),
            (selection(|it| it.egress = Some("10.0.0.0/33".into())), "egress: \"10.0.0.0/33\""),
            (selection(|it| it.state = Some("open".into())), "state: \"open\" is none of opening, "),
            (selection(|it| it.older_than = Some("5".into())), "olderThan: \"5\""),
            (selection(|it| it.younger_than = Some("".into())), "youngerThan: \"\""),
            (selection(|it| it.idle_for = Some("-1s".into())), "idleFor: \"-1s\""),
        ];
        for (selection, expected) in cases {
            let refused = selection.filter(blue).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let cursor = Cursor { worker: 3, entry: 70_000 };
        assert_eq!(parse_cursor(&cursor_to_text(cursor)), Ok(cursor));
        for text in ["", "3", "3.", "x.1", "1.4294967296", "-1.0"] {
            assert!(parse_cursor(text).is_err(), "{text}");
        }
    }
}
