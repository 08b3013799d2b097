//! `[nat_log]`: what is logged of translations, and where to.

use std::path::PathBuf;

use fastpath::journal::Records;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::nat_log::place::Place;
use crate::nat_log::syslog::FACILITIES;

const DEFAULT_PER_SECOND: u32 = 20_000;
const MAX_PER_SECOND: u32 = 1_000_000;
const DEFAULT_MEGABYTES: u32 = 100;
const MAX_MEGABYTES: u32 = 1 << 20;
const DEFAULT_FILES: u32 = 10;
const MAX_FILES: u32 = 1000;
const DEFAULT_DOMAIN: u32 = 1;

/// What is logged of translations, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatLog {
    /// What is logged.
    pub records: Records,
    /// Whether records hold the other end of sessions.
    pub has_destinations: bool,
    /// Records that are written in a second at most.
    pub most_per_second: u32,
    /// The file that it is written to, if it is.
    pub file: Option<NatLogFile>,
    /// Who gets it as syslog, if somebody does.
    pub syslog: Option<NatLogSyslog>,
    /// Who gets it as IPFIX, if somebody does.
    pub ipfix: Option<NatLogIpfix>,
}

/// Somebody who takes syslog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatLogSyslog {
    /// Where messages are sent.
    pub to: Place,
    /// What they are sent as.
    pub facility: String,
}

/// Somebody who takes IPFIX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatLogIpfix {
    /// Where messages are sent.
    pub to: Place,
    /// Observation domain.
    pub domain: u32,
}

/// A file that is rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatLogFile {
    /// The newest file.
    pub path: PathBuf,
    /// Bytes of each file.
    pub most_bytes: u64,
    /// Files that are kept besides the newest.
    pub kept: u32,
}

/// A log of translations: who was behind an egress address and port. Nothing is logged unless one of the sections below
/// names something to write to.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    /// Sessions that begin and end, or the blocks of 64 ports that workers take and give back: these tell the tenant, never
    /// the pod.
    #[serde(default)]
    records: RecordsWord,
    /// Whether records hold the other end too (RFC 6888 REQ-12: not unless it is needed).
    #[serde(default)]
    destinations: bool,
    /// The most that is written in a second, 1 to 1,000,000; what is over it is counted.
    #[serde(default = "usual_rate")]
    max_per_second: u32,
    /// JSON lines in a file.
    file: Option<FileSection>,
    /// Syslog (RFC 5424).
    syslog: Option<SyslogSection>,
    /// IPFIX (RFC 7011, events of RFC 8158).
    ipfix: Option<IpfixSection>,
}

/// What is logged.
#[derive(Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum RecordsWord {
    #[default]
    Sessions,
    Blocks,
}

/// JSON lines in a file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileSection {
    /// The newest file; older ones have a number behind its name.
    path: PathBuf,
    /// Size of each file, in megabytes (10^6 bytes).
    #[serde(default = "usual_megabytes")]
    megabytes: u32,
    /// Files at most, the newest included.
    #[serde(default = "usual_files")]
    files: u32,
}

/// Syslog (RFC 5424).
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SyslogSection {
    /// `unix:/PATH`, `udp:ADDRESS:PORT`, or `tcp:ADDRESS:PORT` behind octet counts (RFC 6587).
    #[serde(default = "usual_syslog")]
    to: String,
    /// What messages are sent as.
    #[serde(default = "usual_facility")]
    facility: String,
}

/// IPFIX (RFC 7011, events of RFC 8158).
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct IpfixSection {
    /// `udp:ADDRESS:PORT` or `tcp:ADDRESS:PORT`.
    to: String,
    /// Observation domain.
    #[serde(default = "usual_domain")]
    domain: u32,
}

fn usual_rate() -> u32 {
    DEFAULT_PER_SECOND
}

fn usual_megabytes() -> u32 {
    DEFAULT_MEGABYTES
}

fn usual_files() -> u32 {
    DEFAULT_FILES
}

fn usual_domain() -> u32 {
    DEFAULT_DOMAIN
}

fn usual_syslog() -> String {
    "unix:/dev/log".to_owned()
}

fn usual_facility() -> String {
    "local0".to_owned()
}

pub(super) fn check(section: Section) -> Result<NatLog, ConfigError> {
    let file = section.file.map(check_file).transpose()?;
    let syslog = section.syslog.map(check_syslog).transpose()?;
    let ipfix = section.ipfix.as_ref().map(check_ipfix).transpose()?;
    if file.is_none() && syslog.is_none() && ipfix.is_none() {
        let message = "names nothing to write to; add [nat_log.file], [nat_log.syslog] or [nat_log.ipfix], or leave the \
                       section out";
        return Err(ConfigError::value("nat_log", message));
    }
    Ok(NatLog {
        records: match section.records {
            RecordsWord::Sessions => Records::Sessions,
            RecordsWord::Blocks => Records::Blocks,
        },
        has_destinations: section.destinations,
        most_per_second: bounded("nat_log.max_per_second", section.max_per_second, 1, MAX_PER_SECOND)?,
        file,
        syslog,
        ipfix,
    })
}

fn check_file(section: FileSection) -> Result<NatLogFile, ConfigError> {
    let FileSection { path, megabytes, files } = section;
    let megabytes = bounded("nat_log.file.megabytes", megabytes, 1, MAX_MEGABYTES)?;
    let files = bounded("nat_log.file.files", files, 2, MAX_FILES)?;
    Ok(NatLogFile {
        path: super::check::absolute("nat_log.file.path", path)?,
        most_bytes: u64::from(megabytes) * 1_000_000,
        kept: files - 1,
    })
}

fn check_syslog(section: SyslogSection) -> Result<NatLogSyslog, ConfigError> {
    let SyslogSection { to, facility } = section;
    if !FACILITIES.iter().any(|(name, _)| *name == facility) {
        let names: Vec<_> = FACILITIES.iter().map(|(name, _)| *name).collect();
        let message = format!("{facility:?} is none of {}", names.join(", "));
        return Err(ConfigError::value("nat_log.syslog.facility", message));
    }
    let to = read_place("nat_log.syslog.to", &to)?;
    Ok(NatLogSyslog { to, facility })
}

fn check_ipfix(section: &IpfixSection) -> Result<NatLogIpfix, ConfigError> {
    let to = read_place("nat_log.ipfix.to", &section.to)?;
    if let Place::Unix(_) = to {
        let message =
            format!("{:?} is a unix socket; give \"udp:ADDRESS:PORT\" or \"tcp:ADDRESS:PORT\"", section.to);
        return Err(ConfigError::value("nat_log.ipfix.to", message));
    }
    Ok(NatLogIpfix { to, domain: section.domain })
}

fn read_place(key: &str, text: &str) -> Result<Place, ConfigError> {
    text.parse().map_err(|message: String| ConfigError::value(key, message))
}

fn bounded(key: &str, value: u32, least: u32, most: u32) -> Result<u32, ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::value(key, format!("{value} is not between {least} and {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(section: &str) -> Result<Option<NatLog>, String> {
        let text = format!("inside.interface = \"a\"\noutside.interface = \"b\"\n{section}");
        Config::parse(&text, &[0]).map(|config| config.nat_log).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_logged_unless_it_is_asked_for() {
        assert_eq!(parse(""), Ok(None));
    }

    #[test]
    fn a_file_is_enough() {
        let log = parse("[nat_log.file]\npath = \"/var/log/spillway/nat.jsonl\"").unwrap().unwrap();
        let file =
            NatLogFile { path: "/var/log/spillway/nat.jsonl".into(), most_bytes: 100_000_000, kept: 9 };
        let expected = NatLog {
            records: Records::Sessions,
            has_destinations: false,
            most_per_second: 20_000,
            file: Some(file),
            syslog: None,
            ipfix: None,
        };
        assert_eq!(log, expected);
    }

    #[test]
    fn syslog_goes_to_the_hosts_own_unless_it_is_told() {
        let syslog = parse("[nat_log.syslog]").unwrap().unwrap().syslog.unwrap();
        assert_eq!((syslog.to.to_string().as_str(), syslog.facility.as_str()), ("unix:/dev/log", "local0"));
        let text = "[nat_log.syslog]\nto = \"tcp:192.0.2.7:601\"\nfacility = \"local7\"\n\
                    [nat_log.ipfix]\nto = \"udp:192.0.2.8:4739\"\ndomain = 9";
        let log = parse(text).unwrap().unwrap();
        assert_eq!(log.syslog.unwrap().facility, "local7");
        assert_eq!(
            log.ipfix.map(|ipfix| (ipfix.to.to_string(), ipfix.domain)),
            Some(("udp:192.0.2.8:4739".into(), 9))
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_key_and_value() {
        let file = "[nat_log.file]\npath = \"/l\"\n";
        let table = [
            ("[nat_log]".to_owned(), "nat_log: names nothing to write to"),
            ("[nat_log.file]\npath = \"l\"".to_owned(), "nat_log.file.path: \"l\" is not an absolute path"),
            (format!("{file}megabytes = 0"), "nat_log.file.megabytes: 0 is not between 1 and 1048576"),
            (format!("{file}files = 1"), "nat_log.file.files: 1 is not between 2 and 1000"),
            ("[nat_log.syslog]\nto = \"log\"".to_owned(), "nat_log.syslog.to: \"log\" is nothing to send to"),
            (
                "[nat_log.syslog]\nfacility = \"mail\"".to_owned(),
                "nat_log.syslog.facility: \"mail\" is none of",
            ),
            (
                "[nat_log.ipfix]\nto = \"unix:/l\"".to_owned(),
                "nat_log.ipfix.to: \"unix:/l\" is a unix socket",
            ),
            (format!("[nat_log]\nmax_per_second = 0\n{file}"), "nat_log.max_per_second: 0 is not between 1"),
            (format!("[nat_log]\nrecords = \"all\"\n{file}"), "expected `sessions` or `blocks`"),
            (format!("[nat_log]\ndestination = true\n{file}"), "unknown field `destination`"),
        ];
        for (text, expected) in table {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
