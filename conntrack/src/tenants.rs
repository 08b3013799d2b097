//! One value for each tenant that there ever was, found by its slot in two steps: most slots are never used, and
//! what nobody uses takes no memory.

use std::sync::OnceLock;

use crate::flow::TenantId;

/// Slots that are found by one first step.
const PAGE: usize = 256;

type Page<T> = Box<[OnceLock<Box<T>>; PAGE]>;

/// Values by tenant. One is made when its tenant is first named, and stays.
#[derive(Debug)]
pub struct ByTenant<T> {
    pages: Box<[OnceLock<Page<T>>; PAGE]>,
}

impl<T> Default for ByTenant<T> {
    fn default() -> Self {
        Self { pages: empty() }
    }
}

impl<T> ByTenant<T> {
    /// Returns the value of a tenant.
    pub fn get(&self, tenant: TenantId) -> Option<&T> {
        let (page, slot) = place(tenant);
        self.pages[page].get()?[slot].get().map(AsRef::as_ref)
    }

    /// Returns all values, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (TenantId, &T)> {
        let used = |tenant: TenantId| self.pages[place(tenant).0].get().is_some();
        let firsts = (0..=u16::MAX).step_by(PAGE).filter(move |first| used(TenantId(*first)));
        let tenants = firsts.flat_map(|first| (first..=u16::MAX).take(PAGE).map(TenantId));
        tenants.filter_map(|tenant| Some((tenant, self.get(tenant)?)))
    }
}

impl<T: Default> ByTenant<T> {
    /// Returns the value of a tenant, which is made if it is not there. Allocates then.
    pub fn make(&self, tenant: TenantId) -> &T {
        let (page, slot) = place(tenant);
        self.pages[page].get_or_init(empty)[slot].get_or_init(Box::default)
    }
}

fn empty<T>() -> Box<[OnceLock<T>; PAGE]> {
    Box::new(std::array::from_fn(|_| OnceLock::new()))
}

fn place(tenant: TenantId) -> (usize, usize) {
    let slot = usize::from(tenant.0);
    (slot / PAGE, slot % PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenant_has_a_value_of_its_own_that_stays() {
        let tenants = ByTenant::<OnceLock<u16>>::default();
        let named = [0, 1, 255, 256, 511, 0x1234, u16::MAX];
        for slot in named {
            assert_eq!(tenants.get(TenantId(slot)), None, "{slot}");
            tenants.make(TenantId(slot)).set(slot).unwrap();
        }
        let values: Vec<_> =
            tenants.iter().map(|(tenant, value)| (tenant.0, *value.get().unwrap())).collect();
        assert_eq!(values, named.map(|slot| (slot, slot)));
        assert!(named.iter().all(|slot| tenants.make(TenantId(*slot)).get() == Some(slot)));
    }
}
