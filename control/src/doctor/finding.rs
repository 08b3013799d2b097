//! What a check says.

use serde::{Deserialize, Serialize};

/// How much a finding matters, most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Traffic is lost, or will be.
    Broken,
    /// It works, but not as well or not as surely as it could.
    Warning,
    /// The check could not be made; the summary says why.
    Skipped,
    /// As it should be.
    Fine,
}

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Group {
    /// The config file.
    Config,
    /// The daemon's process.
    Daemon,
    /// The two interfaces.
    Interfaces,
    /// Networks and routes.
    Networks,
    /// Settings of the kernel.
    Kernel,
    /// Addresses that only the gateway may answer for.
    Addresses,
    /// What tenants send.
    Tenants,
    /// The Kubernetes API.
    Kubernetes,
    /// The host's clock.
    Clock,
}

impl Group {
    /// All of them, in the order of the report.
    pub const ALL: [Self; 9] = [
        Self::Config,
        Self::Daemon,
        Self::Interfaces,
        Self::Networks,
        Self::Kernel,
        Self::Addresses,
        Self::Tenants,
        Self::Kubernetes,
        Self::Clock,
    ];

    /// Returns the heading in the report.
    pub fn title(self) -> &'static str {
        match self {
            Self::Config => "Config file",
            Self::Daemon => "Daemon",
            Self::Interfaces => "Interfaces",
            Self::Networks => "Networks and routes",
            Self::Kernel => "Kernel settings",
            Self::Addresses => "Addresses on the wire",
            Self::Tenants => "Tenants' sources",
            Self::Kubernetes => "Kubernetes API",
            Self::Clock => "Clock",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What it is about.
    pub group: Group,
    /// Stable name of the check.
    pub id: String,
    /// How much it matters.
    pub severity: Severity,
    /// What there is, with the values.
    pub summary: String,
    /// Why that matters; empty where nothing is wrong.
    pub why: String,
    /// How to put it right; empty where nothing is wrong.
    pub fix: String,
    /// A command that does so, or shows more; null when there is none.
    pub command: Option<String>,
}

impl Finding {
    /// Returns it with the reason why it matters.
    #[must_use]
    pub fn because(self, why: impl Into<String>) -> Self {
        Self { why: why.into(), ..self }
    }

    /// Returns it with how to put it right.
    #[must_use]
    pub fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: fix.into(), ..self }
    }

    /// Returns it with a command that puts it right, or shows more.
    #[must_use]
    pub fn run(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }
}

/// A check's stable name, and what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    group: Group,
    id: &'static str,
}

impl Check {
    /// Names a check.
    pub const fn new(group: Group, id: &'static str) -> Self {
        Self { group, id }
    }

    /// Says that traffic is lost, or will be.
    pub fn broken(self, summary: impl Into<String>) -> Finding {
        self.found(Severity::Broken, summary.into())
    }

    /// Says that it could be better.
    pub fn warning(self, summary: impl Into<String>) -> Finding {
        self.found(Severity::Warning, summary.into())
    }

    /// Says why the check could not be made.
    pub fn skipped(self, reason: impl Into<String>) -> Finding {
        self.found(Severity::Skipped, reason.into())
    }

    /// Says that all is well.
    pub fn fine(self, summary: impl Into<String>) -> Finding {
        self.found(Severity::Fine, summary.into())
    }

    /// Returns what was found, or that all is well when that is nothing.
    pub fn or_fine(self, found: Vec<Finding>, summary: impl Into<String>) -> Vec<Finding> {
        if found.is_empty() { vec![self.fine(summary)] } else { found }
    }

    fn found(self, severity: Severity, summary: String) -> Finding {
        let id = self.id.to_owned();
        Finding {
            group: self.group,
            id,
            severity,
            summary,
            why: String::new(),
            fix: String::new(),
            command: None,
        }
    }
}

/// Everything that was found: the body of `spillway doctor --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// How many findings are broken.
    pub broken: usize,
    /// How many are warnings.
    pub warnings: usize,
    /// How many checks could not be made.
    pub skipped: usize,
    /// All findings, by group, worst first.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    /// Sorts and counts findings.
    pub fn of(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| (finding.group, finding.severity));
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        Self {
            broken: count(Severity::Broken),
            warnings: count(Severity::Warning),
            skipped: count(Severity::Skipped),
            findings,
        }
    }
}
