//! `spillway crd`: the custom resource definition.

use clap::Args;

use crate::kubernetes::egress_tenant;
use crate::output;

/// Prints the custom resource definition of EgressTenants, as YAML.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway crd | kubectl apply --server-side -f -")]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        Ok(output::print(egress_tenant::crd_yaml()?.trim_end())?)
    }
}
