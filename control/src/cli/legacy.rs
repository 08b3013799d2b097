//! `spillway add-tenant` and `spillway remove-tenant`: the flags of the Python gateway, so that scripts keep
//! working.

use std::net::Ipv4Addr;

use clap::Args;
use ipnet::Ipv4Net;

use super::tenant::{AddressArguments, put_tenant, remove_tenant};
use crate::api::types::Status;
use crate::client::Client;
use crate::output;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  spillway add-tenant --name ns-blue --gw-ip 192.168.99.13 --egress-ip 192.168.55.113 \
                  --mark 0x10 \\\n    --dev enp1s0 --out-dev enp7s0 --pod-cidr 10.132.0.0/14\n\nThe same with the \
                  new flags:\n  spillway tenant add ns-blue --gw-ip 192.168.99.13 --egress-ip 192.168.55.113 \
                  --pod-cidr 10.132.0.0/14"
)]
pub(super) struct AddArguments {
    /// Name of the tenant
    #[arg(long)]
    name: String,

    #[command(flatten)]
    addresses: AddressArguments,

    #[command(flatten)]
    obsolete: ObsoleteArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway remove-tenant --name ns-blue")]
pub(super) struct RemoveArguments {
    /// Name of the tenant
    #[arg(long)]
    name: String,

    /// Accepted, not needed: the daemon knows it
    #[arg(long, value_name = "ADDRESS")]
    gw_ip: Option<Ipv4Addr>,

    /// Accepted, not needed: the daemon knows it
    #[arg(long, value_name = "ADDRESS", num_args = 1..)]
    egress_ip: Vec<Ipv4Addr>,

    /// Accepted, not needed: the daemon knows it
    #[arg(long, value_name = "CIDR", num_args = 1..)]
    pod_cidr: Vec<Ipv4Net>,

    #[command(flatten)]
    obsolete: ObsoleteArguments,
}

#[derive(Debug, Args)]
struct ObsoleteArguments {
    /// Accepted, without effect: tenants are told apart by destination MAC
    #[arg(long, value_name = "MARK")]
    mark: Option<String>,

    /// Inside interface; must be the daemon's
    #[arg(long, value_name = "INTERFACE")]
    dev: Option<String>,

    /// Outside interface; must be the daemon's
    #[arg(long, value_name = "INTERFACE")]
    out_dev: Option<String>,
}

impl AddArguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        self.obsolete.check(client).await?;
        let view = put_tenant(client, &self.addresses.into_tenant(self.name)).await?;
        Ok(output::print(&format!("tenant {} added", view.tenant.name))?)
    }
}

impl RemoveArguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        self.obsolete.check(client).await?;
        remove_tenant(client, &self.name).await
    }
}

impl ObsoleteArguments {
    async fn check(&self, client: &Client) -> anyhow::Result<()> {
        if let Some(mark) = &self.mark {
            output::print_warning(&format!(
                "--mark {mark} has no effect: tenants are told apart by destination MAC"
            ));
        }
        let asked = [("--dev", "inside", &self.dev), ("--out-dev", "outside", &self.out_dev)];
        if asked.iter().all(|(_, _, device)| device.is_none()) {
            return Ok(());
        }
        let status: Status = client.get("/v1/status").await?;
        for (flag, side, device) in asked {
            let interface = status.interfaces.iter().find(|interface| interface.side == side);
            let (Some(device), Some(interface)) = (device, interface) else { continue };
            if *device != interface.name {
                anyhow::bail!(
                    "{flag}: {device:?} is not the daemon's {side} interface; use {:?}",
                    interface.name
                );
            }
        }
        Ok(())
    }
}
