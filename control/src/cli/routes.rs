//! `spillway routes`: the routes that the fast path uses.

use clap::Args;

use crate::api::types::RouteView;
use crate::client::Client;
use crate::output;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway routes")]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let routes: Vec<RouteView> = client.get("/v1/routes").await?;
        if self.json {
            return Ok(output::print_json(&routes)?);
        }
        let rows = routes.iter().map(|route| {
            let unresolved = if route.gateway.is_some() { "unresolved" } else { "" };
            vec![
                route.prefix.to_string(),
                route.gateway.map_or("on the link".to_owned(), |gateway| gateway.to_string()),
                route.gateway_mac.clone().unwrap_or_else(|| unresolved.to_owned()),
                route.side.clone(),
                route.interface.clone(),
                if route.own { "spillway" } else { "kernel" }.to_owned(),
            ]
        });
        let header = ["DESTINATION", "NEXT HOP", "MAC", "SIDE", "INTERFACE", "MADE BY"];
        Ok(output::print(&output::table(&header, &[], rows))?)
    }
}
