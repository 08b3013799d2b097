//! What answers questions about sessions and frames without the control loop.

use std::collections::HashMap;
use std::sync::Arc;

use conntrack::TenantId;
use fastpath::snapshot::Snapshot;
use fastpath::survey::{SessionFilter, Surveyor};
use fastpath::tap::TapBoard;

use crate::query::selection::Selection;
use crate::refusal::Refusal;

/// What tells of the workers without the control loop: who asks them, and what their tenants are called.
#[derive(Clone, Debug)]
pub struct Desk {
    /// Asks the workers about sessions.
    pub surveyor: Surveyor,
    /// Has the workers show frames.
    pub taps: TapBoard,
    /// The newest snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Names of the interfaces, inside first.
    pub interfaces: [String; 2],
    /// Names of the tenants.
    pub tenants: HashMap<TenantId, String>,
}

impl Desk {
    /// Returns the filter for a selection.
    ///
    /// # Errors
    /// When the selection means nothing, or a tenant that does not exist.
    pub fn filter(&self, selection: &Selection) -> Result<SessionFilter, Refusal> {
        selection.filter(|name| self.tenant(name))
    }

    /// Returns a tenant by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn tenant(&self, name: &str) -> Result<TenantId, Refusal> {
        let mut tenants = self.tenants.iter();
        let found = tenants.find(|(_, tenant)| *tenant == name).map(|(id, _)| *id);
        found.ok_or_else(|| Refusal::UnknownTenant { name: name.to_owned() })
    }
}
