//! Whether the gateway serves as it should.

use fastpath::snapshot::Side;

use super::gateway::Gateway;

impl Gateway {
    /// Returns what keeps the gateway from serving as it should; nothing: it is ready.
    pub fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        for side in Side::BOTH {
            if let Some(trouble) = self.attachments[side.index()].trouble() {
                obstacles.push(format!("the {} interface is away: {trouble}", side.name()));
            }
        }
        let (wanted, applied) = (self.publication.wanted().0, self.data_plane.applied_epoch().0);
        if wanted != applied {
            obstacles.push(format!("snapshot {wanted} is not applied by all workers, {applied} is"));
        }
        if self.constants.has_kubernetes && !self.cluster.is_known() {
            obstacles.push(
                "the cluster has not been listed yet, and nothing that was saved tells of it".to_owned(),
            );
        }
        for path in &self.tenants_set_aside {
            obstacles.push(format!(
                "tenants of the control socket are lost: their file was damaged and is kept as {}; add them again, or \
                 correct it, put it back as tenants.json and restart; remove it then",
                path.display()
            ));
        }
        obstacles
    }
}
