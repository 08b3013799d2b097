//! How many entries of a table one tenant may hold, so that whoever comes later finds room.
//!
//! The threshold moves with the room that is left, as those of switches with shared buffers do (Choudhury and Hahne,
//! "Dynamic queue length thresholds for shared-memory packet switches", 1998): nobody takes more who holds [`PARTS`]
//! times what is free. Few entries are free where many tenants hold some; a [`RESERVE`] is therefore for those who hold
//! none yet, and does not count as free to others. One tenant alone can have 98.8 % of a table.

use crate::flow::TenantId;
use crate::table::{Conntrack, Refusal};

/// Entries that a tenant may hold for each that is free.
const PARTS: u64 = 128;

/// Of so many entries one is for tenants that hold none.
const RESERVE: u32 = 256;

impl Conntrack {
    /// Returns the number of entries that a tenant holds: sessions, and what they have in common.
    pub fn held_by(&self, tenant: TenantId) -> u32 {
        self.slab.held_by(tenant)
    }

    /// Tells whether there is room for some more entries, and a tenant may take them.
    pub(crate) fn check_share(&self, tenant: TenantId, entries: u32) -> Result<(), Refusal> {
        let (room, held) = (self.slab.room(), self.slab.held_by(tenant));
        let free = room.saturating_sub(self.slab.capacity() / RESERVE);
        if room < entries {
            Err(Refusal::SessionsFull)
        } else if held > 0 && (free < entries || u64::from(held) >= PARTS * u64::from(free)) {
            Err(Refusal::TenantShare)
        } else {
            Ok(())
        }
    }
}
