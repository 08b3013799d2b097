//! Who was behind an address and port: the question, and the answers from sessions and from the log.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::entry::SessionEntry;
use crate::kubernetes::state::PodName;

/// Who was behind an address and port?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Egress address and outside port.
    pub outside: SocketAddrV4,
    /// Sessions of this protocol only, by name.
    pub protocol: Option<String>,
    /// Sessions towards this address and port only.
    pub remote: Option<SocketAddrV4>,
    /// When; none: now.
    pub window: Option<Window>,
}

/// A span of time, both ends in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its begin.
    pub from: Timestamp,
    /// Its end.
    pub until: Timestamp,
}

/// Answer of `GET /v1/who`.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "WhoAnswer")]
pub struct Answer {
    /// All who were behind it. Sessions towards different destinations may share a port.
    pub holders: Vec<Holder>,
    /// The log that was looked through; null when the question was about now.
    pub log: Option<Extent>,
}

/// The part of a log that is there.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Extent {
    /// Its newest file.
    pub path: PathBuf,
    /// Time of its first record; null when it is empty.
    pub begins: Option<Timestamp>,
    /// Records until then that were not written: somebody may be missing, or named who had left.
    pub not_written: u64,
}

/// Somebody who was behind an address and port.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Name of the tenant; null if it is not known any more.
    pub tenant: Option<String>,
    /// Protocol; null where the log holds blocks of ports.
    pub protocol: Option<String>,
    /// The pod's address; null where the log holds blocks of ports.
    pub inside_address: Option<Ipv4Addr>,
    /// The pod's port, or ICMP identifier.
    pub inside_port: Option<u16>,
    /// The address that the pod talked to; null where the log has no destinations.
    pub remote_address: Option<Ipv4Addr>,
    /// The port that the pod talked to.
    pub remote_port: Option<u16>,
    /// The pod by name, where Kubernetes knew it.
    #[serde(flatten)]
    pub pod: Option<PodName>,
    /// When it began; null if the log does not tell.
    pub began: Option<Timestamp>,
    /// When it ended; null if it has not, or the log does not tell.
    pub ended: Option<Timestamp>,
    /// Why it ended.
    pub reason: Option<String>,
    /// Whether it is a session now.
    pub is_live: bool,
}

/// What makes two records those of one session, as far as the log tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    protocol: String,
    inside: SocketAddrV4,
    remote: Option<SocketAddrV4>,
}

impl Key {
    pub(super) fn of(session: &SessionEntry) -> Self {
        Self {
            protocol: session.protocol.clone(),
            inside: SocketAddrV4::new(session.inside_address, session.inside_port),
            remote: session
                .remote_address
                .zip(session.remote_port)
                .map(|(ip, port)| SocketAddrV4::new(ip, port)),
        }
    }

    /// Tells whether a session has the key; one that does not know its other end may be any of several.
    fn is_of(&self, holder: &Holder) -> bool {
        let remote = holder.remote();
        holder.protocol.as_ref() == Some(&self.protocol)
            && holder.inside() == Some(self.inside)
            && (self.remote.is_none() || remote.is_none() || self.remote == remote)
    }
}

impl Holder {
    /// Returns the pod's address and port.
    pub fn inside(&self) -> Option<SocketAddrV4> {
        self.inside_address.zip(self.inside_port).map(|(address, port)| SocketAddrV4::new(address, port))
    }

    /// Returns the address and port that the pod talked to.
    pub fn remote(&self) -> Option<SocketAddrV4> {
        self.remote_address.zip(self.remote_port).map(|(address, port)| SocketAddrV4::new(address, port))
    }

    fn is_same(&self, other: &Self) -> bool {
        let key = self.protocol.clone().zip(self.inside());
        key.is_some_and(|(protocol, inside)| Key { protocol, inside, remote: self.remote() }.is_of(other))
    }
}

impl Question {
    /// Tells whether a session is one that is asked for, apart from its time.
    pub fn is_about(&self, holder: &Holder) -> bool {
        let has_protocol = self.protocol.is_none() || self.protocol == holder.protocol;
        let has_remote = self.remote.is_none() || holder.remote().is_none() || holder.remote() == self.remote;
        has_protocol && has_remote
    }
}

/// Somebody who is behind an address and port now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Who it is.
    pub holder: Holder,
    /// When the session began, or was taken up from the process before.
    pub known_since: Timestamp,
}

/// What was found in a log.
#[derive(Debug, Default)]
pub struct Found {
    /// Who was behind it then.
    pub holders: Vec<Holder>,
    /// Time of the first record.
    pub begins: Option<Timestamp>,
    /// Records until then that were not written.
    pub not_written: u64,
    /// Sessions whose begin is in the log, whenever it was.
    pub(super) begun: HashSet<Key>,
}

/// Makes an answer of the sessions that there are now, and of what the log says of then.
pub fn answer(question: &Question, live: Vec<Live>, log: Option<(PathBuf, Found)>) -> Answer {
    let live = live.into_iter().filter(|live| question.is_about(&live.holder));
    let (Some(window), Some((path, found))) = (question.window, log) else {
        return Answer { holders: live.map(|live| live.holder).collect(), log: None };
    };
    let Found { mut holders, begins, not_written, begun } = found;
    let is_covered = begins.is_some_and(|begins| begins <= window.until);
    for Live { holder: session, known_since } in live {
        // It was there before the log began, or its begin was not written.
        let was_there = || is_covered && !begun.iter().any(|key| key.is_of(&session));
        let mut open = holders.iter_mut().filter(|holder| holder.ended.is_none() && !holder.is_live);
        if let Some(holder) = open.find(|holder| holder.is_same(&session)) {
            holder.is_live = true;
        } else if known_since <= window.until || was_there() {
            holders.push(session);
        }
    }
    Answer { holders, log: Some(Extent { path, begins, not_written }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat_log::entry::tests::time;

    fn holder(inside_port: u16, remote_port: Option<u16>) -> Holder {
        Holder {
            protocol: Some("tcp".into()),
            inside_address: Some([10, 132, 0, 5].into()),
            inside_port: Some(inside_port),
            remote_address: remote_port.map(|_| [198, 51, 100, 7].into()),
            remote_port,
            ..Holder::default()
        }
    }

    fn live(inside_port: u16) -> Holder {
        Holder { is_live: true, ..holder(inside_port, Some(443)) }
    }

    fn since(inside_port: u16, second: i64) -> Live {
        Live { holder: live(inside_port), known_since: time(second) }
    }

    fn question(window: Option<Window>) -> Question {
        let outside = "192.168.55.113:40123".parse().unwrap();
        Question { outside, protocol: None, remote: None, window }
    }

    #[test]
    fn now_is_answered_from_sessions() {
        let asked = Question { remote: Some("198.51.100.7:443".parse().unwrap()), ..question(None) };
        let other = Holder { remote_port: Some(80), ..live(2) };
        let answer = answer(&asked, vec![since(1, 9), Live { holder: other, known_since: time(9) }], None);
        assert_eq!((answer.holders, answer.log), (vec![live(1)], None));
    }

    #[test]
    fn what_the_log_has_as_open_is_live_or_not_and_older_sessions_are_added() {
        let window = Some(Window { from: time(5), until: time(6) });
        let key = |port| Key {
            protocol: "tcp".into(),
            inside: SocketAddrV4::new([10, 132, 0, 5].into(), port),
            remote: None,
        };
        let found = || Found {
            holders: vec![holder(1, None), holder(2, None)],
            begins: Some(time(0)),
            not_written: 3,
            begun: [key(1), key(2), key(3)].into(),
        };
        let asked = question(window);
        // 1 is in both; 2 is in the log alone; 3 began later; 4 was taken up, and began before the log; 5 is that old.
        let told = answer(
            &asked,
            vec![since(1, 9), since(3, 9), since(4, 9), since(5, 2)],
            Some(("/log".into(), found())),
        );
        let ports: Vec<_> =
            told.holders.iter().map(|holder| (holder.inside_port.unwrap(), holder.is_live)).collect();
        assert_eq!(ports, [(1, true), (2, false), (4, true), (5, true)]);
        assert_eq!(told.log.unwrap().not_written, 3);
        let young = Found { begins: Some(time(7)), holders: Vec::new(), ..found() };
        let told = answer(&asked, vec![since(4, 9)], Some(("/log".into(), young)));
        assert_eq!(told.holders, [], "whether it was there before the log, nobody knows");
    }
}
