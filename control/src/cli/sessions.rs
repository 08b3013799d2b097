//! `spillway sessions`: translated sessions.

use clap::Args;

use crate::api::types::SessionView;
use crate::client::Client;
use crate::output;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway sessions --tenant ns-blue --limit 20")]
pub(super) struct Arguments {
    /// Show this tenant's only
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,

    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let tenant = self.tenant.map(|name| format!("&tenant={}", escape(&name))).unwrap_or_default();
        let path = format!("/v1/sessions?limit={}{tenant}", self.limit);
        let sessions: Vec<SessionView> = client.get(&path).await?;
        if self.json {
            return Ok(output::print_json(&sessions)?);
        }
        let rows = sessions.iter().map(|session| {
            vec![
                session.tenant.clone(),
                session.protocol.clone(),
                format!("{}:{}", session.inside_address, session.inside_port),
                format!("{}:{}", session.outside_address, session.outside_port),
                format!("{}:{}", session.remote_address, session.remote_port),
                session.state.clone(),
                output::seconds(session.idle_seconds),
                output::seconds(session.expires_seconds),
            ]
        });
        let header = ["TENANT", "PROTOCOL", "POD", "EGRESS", "REMOTE", "STATE", "IDLE", "EXPIRES IN"];
        Ok(output::print(&output::table(&header, &[], rows))?)
    }
}

/// Returns text as it may stand in a query (RFC 3986 section 2.1).
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let escaped = |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escaped).collect()
}
