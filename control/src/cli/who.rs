//! `spillway who`: who is, or was, behind an egress address and port.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use jiff::{Timestamp, Zoned};

use crate::client::Client;
use crate::nat_log::entry::protocol_number;
use crate::nat_log::read::search;
use crate::nat_log::when;
use crate::nat_log::who::{Answer, Holder, Question, Window, answer};
use crate::output;

/// Exit code when nobody was there.
const NOBODY: u8 = 1;

#[derive(Debug, Args)]
#[command(after_help = "Without --at: who is there now. With it: who was, from the log of translations.\n\n\
    Examples:\n  \
    spillway who 192.168.55.113:40123\n  \
    spillway who 192.168.55.113:40123 --proto tcp --at 14:03\n  \
    spillway who 192.168.55.113:40123 --at \"10m ago\" --json\n  \
    spillway who 192.168.55.113:40123 --at 2026-01-31T14:03:05Z --file nat.jsonl\n\n\
    Exit code: 0 if somebody is or was there, 1 if nobody, or if it cannot be told.")]
pub(super) struct Arguments {
    /// Egress address and outside port; of ICMP the identifier
    #[arg(value_name = "ADDRESS:PORT")]
    outside: SocketAddrV4,

    /// Of this protocol only: tcp, udp or icmp
    #[arg(long = "proto", value_name = "PROTOCOL", value_parser = read_protocol)]
    protocol: Option<String>,

    /// When: 14:03, "2026-01-31 14:03:05", 2026-01-31T14:03:05Z or "10m ago"
    #[arg(long, value_name = "TIME", value_parser = read_window)]
    at: Option<Window>,

    /// Sessions towards this address and port only
    #[arg(long, value_name = "ADDRESS:PORT")]
    remote: Option<SocketAddrV4>,

    /// Read this log, and those that it was before, instead of asking the daemon
    #[arg(long, value_name = "PATH", requires = "at")]
    file: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn read_protocol(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    protocol_number(&name).ok_or_else(|| "give tcp, udp or icmp".to_owned())?;
    Ok(name)
}

fn read_window(text: &str) -> Result<Window, String> {
    when::read(text, &Zoned::now())
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<ExitCode> {
        let Self { outside, protocol, at, remote, file, json } = self;
        let question = Question { outside, protocol, remote, window: at };
        let answer = match (file, at) {
            (Some(path), Some(window)) => {
                let found = search(&path, &question, window);
                let found = found.with_context(|| format!("--file: {} cannot be read", path.display()))?;
                answer(&question, Vec::new(), Some((path, found)))
            }
            _ => client.get(&path_of(&question)).await?,
        };
        if json {
            output::print_json(&answer)?;
        } else if !answer.holders.is_empty() {
            output::print(&table(&answer.holders))?;
        }
        if !json {
            warnings(&question, &answer).iter().for_each(|warning| output::print_warning(warning));
        }
        if answer.holders.is_empty() {
            output::print_error(&nobody(&question));
            return Ok(ExitCode::from(NOBODY));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn path_of(question: &Question) -> String {
    let Question { outside, protocol, remote, window } = question;
    let mut path = format!("/v1/who?outside={outside}");
    if let Some(protocol) = protocol {
        path += &format!("&protocol={protocol}");
    }
    if let Some(remote) = remote {
        path += &format!("&remote={remote}");
    }
    if let Some(Window { from, until }) = window {
        path += &format!("&from={from}&until={until}");
    }
    path
}

fn table(holders: &[Holder]) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = holders.iter().map(|holder| {
        let pod = holder.pod.as_ref();
        vec![
            or_dash(holder.tenant.clone()),
            or_dash(holder.protocol.clone()),
            or_dash(holder.inside().map(|inside| inside.to_string())),
            or_dash(pod.map(|pod| format!("{}/{}", pod.namespace, pod.pod))),
            or_dash(pod.and_then(|pod| pod.node.clone())),
            or_dash(holder.remote().map(|remote| remote.to_string())),
            or_dash(holder.began.map(second)),
            match (holder.ended, holder.is_live) {
                (Some(ended), _) => {
                    format!("{} ({})", second(ended), holder.reason.as_deref().unwrap_or("end"))
                }
                (None, true) => "now".to_owned(),
                (None, false) => "-".to_owned(),
            },
        ]
    });
    let header = ["TENANT", "PROTOCOL", "POD", "NAME", "NODE", "REMOTE", "FROM", "UNTIL"];
    output::table(&header, &[], rows)
}

fn second(time: Timestamp) -> String {
    format!("{time:.1}")
}

fn nobody(question: &Question) -> String {
    let outside = question.outside;
    match question.window {
        None => format!("nobody is behind {outside} now; --at TIME asks who was"),
        Some(Window { from, until }) => format!("nobody was behind {outside} from {from:.1} to {until:.1}"),
    }
}

/// Says what may be wrong with an answer.
fn warnings(question: &Question, answer: &Answer) -> Vec<String> {
    let (Some(log), Some(window)) = (&answer.log, question.window) else { return Vec::new() };
    let path = log.path.display();
    let mut warnings = Vec::new();
    match log.begins {
        None => warnings.push(format!("{path} is empty")),
        Some(begins) if begins > window.from => {
            warnings.push(format!("{path} begins only at {begins:.1}, so somebody may be missing"));
        }
        Some(_) => {}
    }
    if log.not_written > 0 {
        warnings.push(format!(
            "{} records before that were not written: somebody may be missing, or named who had left",
            log.not_written
        ));
    }
    if answer.holders.len() > 1 && question.remote.is_none() {
        warnings.push(
            "several had this port, towards different destinations; --remote ADDRESS:PORT tells them apart where the \
             log has destinations"
                .to_owned(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::state::PodName;
    use crate::nat_log::who::Extent;

    fn question(window: Option<Window>) -> Question {
        Question {
            outside: "192.168.55.113:40123".parse().unwrap(),
            protocol: Some("tcp".into()),
            remote: None,
            window,
        }
    }

    fn window() -> Window {
        let time = |text: &str| text.parse().unwrap();
        Window { from: time("2026-01-31T14:03:00Z"), until: time("2026-01-31T14:04:00Z") }
    }

    #[test]
    fn the_daemon_is_asked_for_what_was_given() {
        assert_eq!(path_of(&question(None)), "/v1/who?outside=192.168.55.113:40123&protocol=tcp");
        let asked =
            Question { remote: Some("198.51.100.7:443".parse().unwrap()), ..question(Some(window())) };
        let expected = "/v1/who?outside=192.168.55.113:40123&protocol=tcp&remote=198.51.100.7:443\
                        &from=2026-01-31T14:03:00Z&until=2026-01-31T14:04:00Z";
        assert_eq!(path_of(&asked), expected);
    }

    #[test]
    fn holders_are_shown_with_what_is_known_of_them() {
        let pod = PodName { namespace: "ns-blue".into(), pod: "web-0".into(), node: Some("w1".into()) };
        let holder = Holder {
            tenant: Some("ns-blue".into()),
            protocol: Some("tcp".into()),
            inside_address: Some([10, 132, 0, 5].into()),
            inside_port: Some(40_000),
            pod: Some(pod),
            began: Some(window().from),
            ended: Some(window().until),
            reason: Some("closed".into()),
            ..Holder::default()
        };
        let text = table(&[holder, Holder { is_live: true, ..Holder::default() }]);
        let rows: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let expected = "ns-blue tcp 10.132.0.5:40000 ns-blue/web-0 w1 - 2026-01-31T14:03:00.0Z 2026-01-31T14:04:00.0Z (closed)";
        assert_eq!(rows[1].join(" "), expected);
        assert_eq!(rows[2], ["-", "-", "-", "-", "-", "-", "-", "now"]);
    }

    #[test]
    fn what_the_log_does_not_know_is_said() {
        let log = |begins: Option<&str>, not_written| Answer {
            holders: Vec::new(),
            log: Some(Extent {
                path: "/l".into(),
                begins: begins.map(|text| text.parse().unwrap()),
                not_written,
            }),
        };
        let asked = question(Some(window()));
        assert_eq!(warnings(&asked, &log(Some("2026-01-31T14:00:00Z"), 0)), Vec::<String>::new());
        assert_eq!(warnings(&asked, &log(None, 0)), ["/l is empty"]);
        let said = warnings(&asked, &log(Some("2026-01-31T14:03:30Z"), 7));
        assert!(
            said[0].contains("begins only at 2026-01-31T14:03:30.0Z") && said[1].starts_with("7 records")
        );
    }
}
