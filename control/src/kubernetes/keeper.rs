//! Keeps what the cluster asked for last, so that the gateway forwards by it when it starts while the API is away.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use super::state::ClusterState;
use crate::state::StateDir;

const SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// Returns the state that was saved last; an empty one when there is none. A file that cannot be used is set aside.
pub(super) fn load(directory: &StateDir) -> ClusterState {
    match directory.load_cluster() {
        Ok(Some((state, saved))) => {
            let saved = humantime::format_rfc3339_seconds(saved);
            info!("Kubernetes: starting from the state of {saved}; the API is asked");
            state
        }
        Ok(None) => ClusterState::default(),
        Err(error) => {
            warn!("Kubernetes: {:#}", anyhow::Error::from(error));
            match directory.set_cluster_aside() {
                Ok(path) => warn!("Kubernetes: starting without it; it is kept as {}", path.display()),
                Err(error) => warn!("Kubernetes: starting without it; {:#}", anyhow::Error::from(error)),
            }
            ClusterState::default()
        }
    }
}

/// Saves the state whenever it has changed, at most every few seconds, and a last time when its sender is gone.
pub(super) async fn keep(directory: StateDir, mut states: watch::Receiver<Arc<ClusterState>>) {
    let mut is_failing = false;
    while states.changed().await.is_ok() {
        let (state, directory) = (states.borrow_and_update().clone(), directory.clone());
        let saved = spawn_blocking(move || directory.save_cluster(&state).map_err(anyhow::Error::from)).await;
        let failure = saved.map_err(anyhow::Error::from).flatten().err();
        match &failure {
            Some(error) if !is_failing => error!("Kubernetes: {error:#}"),
            None if is_failing => info!("Kubernetes: the last state is saved again"),
            Some(_) | None => {}
        }
        is_failing = failure.is_some();
        rest(&mut states).await;
    }
}

/// Waits until the next save may be, or the sender is gone.
async fn rest(states: &mut watch::Receiver<Arc<ClusterState>>) {
    let end = Instant::now() + SAVE_INTERVAL;
    let mut is_changed = false;
    while let Ok(Ok(())) = timeout_at(end, states.changed()).await {
        is_changed = true;
    }
    if is_changed {
        states.mark_changed();
    }
}
