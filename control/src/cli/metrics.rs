//! `spillway metrics`: the metrics that Prometheus reads.

use clap::Args;

use crate::client::Client;
use crate::output;

/// Prints the metrics as Prometheus reads them, whether they are served over TCP or not.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  spillway metrics | grep spillway_tenant_bytes_total\n  spillway metrics | promtool check metrics"
)]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        Ok(output::print(client.get_text("/v1/metrics").await?.trim_end())?)
    }
}
