//! How well the gateway knows the cluster, for people and metrics, and the log lines when that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::connection::State;
use super::trouble::Trouble;
use super::view::{Kind, Notice};

/// How well the gateway knows the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// Scheme, host and port of the API server; none until credentials were read.
    pub server: Option<String>,
    /// Why credentials cannot be read.
    pub credentials: Option<String>,
    /// Whether the API answers; none until it was asked.
    pub is_answering: Option<bool>,
    /// When it last answered, refreshed every few seconds.
    pub last_contact: Option<Instant>,
    /// Each kind of object.
    pub kinds: BTreeMap<Kind, KindHealth>,
    /// Why statuses or events cannot be written.
    pub reports: Option<String>,
    /// What people should hear of.
    pub notices: Vec<Notice>,
}

/// How well objects of one kind are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KindHealth {
    /// Whether all of them were listed since the daemon started.
    pub is_listed: bool,
    /// Whether the cluster lacks this kind.
    pub is_missing: bool,
    /// Objects.
    pub objects: usize,
    /// Objects that the last list lacks although nobody saw them deleted.
    pub doubtful: usize,
    /// What keeps them from being followed.
    pub trouble: Option<Trouble>,
}

/// A log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Something is wrong.
    Warn(String),
    /// Something is well, or well again.
    Info(String),
}

impl Health {
    /// Returns the time since the API last answered; none when it never did.
    pub fn contact_age(&self, now: Instant) -> Option<Duration> {
        self.last_contact.map(|last| now.saturating_duration_since(last))
    }

    /// Takes over what is known of the connection.
    pub fn set_connection(&mut self, state: &State) {
        self.server.clone_from(&state.server);
        self.credentials.clone_from(&state.trouble);
        self.is_answering = state.is_answering;
        self.last_contact = state.last_contact.map(|last| last.into_std());
    }

    /// Returns what is to be logged when this health follows another: each beginning and each end, once.
    pub fn lines_since(&self, before: &Self) -> Vec<Line> {
        let mut lines = Vec::new();
        for (kind, health) in &self.kinds {
            let unknown = KindHealth::default();
            health.tell(*kind, before.kinds.get(kind).unwrap_or(&unknown), &mut lines);
        }
        let (known, matters) = (before.notices.iter().collect::<BTreeSet<_>>(), matters(&self.notices));
        for notice in self.notices.iter().filter(|notice| !known.contains(notice)) {
            lines.push(Line::Warn(format!("{}: {}", head(notice), notice.message)));
        }
        for notice in before.notices.iter().filter(|notice| !matters.contains(&matter(notice))) {
            lines.push(Line::Info(format!("{} is over", head(notice))));
        }
        match (&before.reports, &self.reports) {
            (None, Some(trouble)) => lines.push(Line::Warn(trouble.clone())),
            (Some(_), None) => lines.push(Line::Info("statuses and events are written again".to_owned())),
            (None, None) | (Some(_), Some(_)) => {}
        }
        lines
    }
}

impl KindHealth {
    fn tell(&self, kind: Kind, before: &Self, lines: &mut Vec<Line>) {
        let resource = kind.resource();
        let cause = |health: &Self| health.trouble.as_ref().map(|trouble| trouble.cause);
        if self.trouble.is_none() && before.trouble.is_some() {
            lines.push(Line::Info(format!("{resource} are followed again")));
        }
        if let Some(trouble) = self.trouble.as_ref().filter(|trouble| Some(trouble.cause) != cause(before)) {
            lines.push(Line::Warn(trouble.message.clone()));
        }
        if self.is_missing && !before.is_missing {
            lines.push(Line::Info(format!("the cluster has no {resource}; they are looked for again")));
        }
        let is_first = self.is_listed && (!before.is_listed || before.is_missing);
        if is_first && !self.is_missing && kind != Kind::Pod {
            lines.push(Line::Info(format!("{resource}: {} listed", self.objects)));
        }
        if self.doubtful > 0 && before.doubtful == 0 {
            let what = format!("a list of {resource} lacks {} that nobody saw deleted", self.doubtful);
            lines.push(Line::Warn(format!("{what}; they are kept until a second list lacks them too")));
        }
    }
}

fn head(notice: &Notice) -> String {
    format!("{} {}: {}", notice.kind.name(), notice.name, notice.reason)
}

/// Returns what a notice is about, whatever it says of it.
fn matter(notice: &Notice) -> (Kind, &str, &str) {
    (notice.kind, &notice.name, notice.reason)
}

fn matters(notices: &[Notice]) -> BTreeSet<(Kind, &str, &str)> {
    notices.iter().map(matter).collect()
}

#[cfg(test)]
mod tests {
    use super::super::trouble::Cause;
    use super::*;

    #[test]
    fn trouble_is_told_when_it_begins_and_when_it_ends() {
        let well = health(KindHealth { is_listed: true, objects: 2, ..KindHealth::default() });
        let troubled = |cause, message: &str| {
            let trouble = Trouble { cause, message: message.to_owned(), since: Instant::now() };
            health(KindHealth {
                is_listed: true,
                objects: 2,
                trouble: Some(trouble),
                ..KindHealth::default()
            })
        };
        let refused = troubled(Cause::Unreachable, "connection refused");
        let slow = troubled(Cause::Unreachable, "no answer");
        let forbidden = troubled(Cause::Forbidden, "grant list");
        for (before, after, expected) in [
            (&Health::default(), &well, vec![Line::Info("nodes: 2 listed".to_owned())]),
            (&well, &well, vec![]),
            (&well, &refused, vec![Line::Warn("connection refused".to_owned())]),
            (&refused, &slow, vec![]),
            (&slow, &forbidden, vec![Line::Warn("grant list".to_owned())]),
            (&forbidden, &well, vec![Line::Info("nodes are followed again".to_owned())]),
        ] {
            assert_eq!(after.lines_since(before), expected);
        }
    }

    #[test]
    fn a_notice_is_told_when_it_begins_changes_and_ends() {
        let notice = |message: &str| Health {
            notices: vec![Notice {
                kind: Kind::Node,
                name: "w1".to_owned(),
                uid: "u".to_owned(),
                reason: "OverlappingPodCIDR",
                message: message.to_owned(),
            }],
            ..Health::default()
        };
        let none = Health::default();
        let warning = |message: &str| vec![Line::Warn(format!("Node w1: OverlappingPodCIDR: {message}"))];
        assert_eq!(notice("a").lines_since(&none), warning("a"));
        assert_eq!(notice("a").lines_since(&notice("a")), []);
        assert_eq!(notice("b").lines_since(&notice("a")), warning("b"));
        assert_eq!(
            none.lines_since(&notice("b")),
            [Line::Info("Node w1: OverlappingPodCIDR is over".to_owned())]
        );
    }

    #[test]
    fn objects_in_doubt_are_told_once() {
        let doubt = |doubtful| health(KindHealth { is_listed: true, doubtful, ..KindHealth::default() });
        assert_eq!(doubt(2).lines_since(&doubt(0)).len(), 1);
        assert_eq!(doubt(3).lines_since(&doubt(2)), []);
        assert_eq!(doubt(0).lines_since(&doubt(3)), []);
    }

    fn health(nodes: KindHealth) -> Health {
        Health { kinds: BTreeMap::from([(Kind::Node, nodes)]), ..Health::default() }
    }
}
