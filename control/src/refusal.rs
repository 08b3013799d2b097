//! Why input from people was refused: the field, the value, and what would be accepted.

use thiserror::Error;

/// Why a tenant or a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The request is not JSON of the right shape.
    #[error("{field}: {message}")]
    Malformed {
        /// Field at which reading stopped.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// A value is out of its bounds or contradicts another.
    #[error("{field}: {message}")]
    Invalid {
        /// Field that holds the value.
        field: String,
        /// The value, and what would be accepted.
        message: String,
    },
    /// A value is taken already.
    #[error("{field}: {message}")]
    Conflict {
        /// Field that holds the value.
        field: String,
        /// The value, and who has it.
        message: String,
    },
    /// No tenant has this name.
    #[error("tenant {name:?} does not exist; `spillway tenant list` shows those that do")]
    UnknownTenant {
        /// Name that was asked for.
        name: String,
    },
    /// The request was sound but the gateway could not do it.
    #[error("{message}")]
    Failed {
        /// What failed.
        message: String,
    },
}

impl Refusal {
    /// Returns a refusal of a value that is out of bounds.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    /// Returns a refusal of a value that is taken.
    pub fn conflict(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Conflict { field: field.into(), message: message.into() }
    }

    /// Returns the field that was refused, if the refusal concerns one.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Malformed { field, .. } | Self::Invalid { field, .. } | Self::Conflict { field, .. } => {
                Some(field)
            }
            Self::UnknownTenant { .. } => Some("name"),
            Self::Failed { .. } => None,
        }
    }
}
