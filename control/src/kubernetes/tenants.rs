//! Tenants that the cluster names, in the order in which they may claim what they want.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::objects::TenantObject;
use super::state::{ClusterState, ClusterTenant};

/// Returns all tenants that were read, oldest first. One that cannot be read any more stays as it was: a broken edit
/// does not cut a tenant off.
pub(super) fn compile(
    objects: &BTreeMap<String, Arc<TenantObject>>,
    previous: &ClusterState,
) -> Vec<ClusterTenant> {
    let mut oldest_first: Vec<&TenantObject> = objects.values().map(Arc::as_ref).collect();
    oldest_first.sort_by(|one, other| one.identity.age().cmp(&other.identity.age()));
    let last_good: BTreeMap<&str, &ClusterTenant> =
        previous.tenants.iter().map(|tenant| (tenant.uid.as_str(), tenant)).collect();
    let in_force = |object: &&TenantObject| match &object.tenant {
        Ok(tenant) => Some(ClusterTenant {
            uid: object.identity.uid.clone(),
            generation: object.generation,
            tenant: tenant.clone(),
        }),
        Err(_) => last_good.get(object.identity.uid.as_str()).map(|tenant| (*tenant).clone()),
    };
    oldest_first.iter().filter(|object| !object.is_deleted).filter_map(in_force).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::fixtures::{broken_tenant, map, tenant};

    #[test]
    fn tenants_are_listed_oldest_first_then_by_name() {
        let listed = map([tenant("a", 9, 13), tenant("c", 1, 14), tenant("b", 1, 15)]);
        assert_eq!(names(&compile(&listed, &ClusterState::default())), ["b", "c", "a"]);
    }

    #[test]
    fn a_broken_edit_leaves_the_last_good_version_in_force() {
        let listed = map([tenant("a", 1, 13)]);
        let state =
            ClusterState { tenants: compile(&listed, &ClusterState::default()), ..ClusterState::default() };
        let broken = TenantObject { generation: 2, ..broken_tenant("a", 1) };
        assert_eq!(compile(&map([broken.clone()]), &state), state.tenants);

        let mut another = broken;
        another.identity.uid = "another".into();
        assert_eq!(compile(&map([another]), &state), []);
    }

    #[test]
    fn tenants_that_are_being_deleted_or_were_never_read_are_left_out() {
        let deleted = TenantObject { is_deleted: true, ..tenant("a", 1, 13) };
        let listed = map([deleted, broken_tenant("b", 2), tenant("c", 3, 14)]);
        assert_eq!(names(&compile(&listed, &ClusterState::default())), ["c"]);
    }

    fn names(tenants: &[ClusterTenant]) -> Vec<&str> {
        tenants.iter().map(|tenant| tenant.tenant.name.as_str()).collect()
    }
}
