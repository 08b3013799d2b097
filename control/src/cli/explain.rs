//! `spillway explain`: what would happen to a packet.

use clap::Args;

use crate::client::Client;
use crate::explanation::Explanation;
use crate::output::{self, BAD, FAINT, GOOD, WARN, styled};
use crate::query::imagined::ImaginedPacket;

#[derive(Debug, Args)]
#[command(after_help = "Nothing is sent, and nothing is left behind: the packet goes through a copy.\n\n\
    Examples:\n  \
    spillway explain --tenant ns-blue --proto tcp 10.132.0.5:40000 198.51.100.7:443\n  \
    spillway explain --outside --proto udp 198.51.100.7:53 192.168.55.113:40123")]
pub(super) struct Arguments {
    #[command(flatten)]
    packet: ImaginedPacket,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let query = serde_urlencoded::to_string(&self.packet)?;
        let explanation: Explanation = client.get(&format!("/v1/explain?{query}")).await?;
        if self.json {
            return Ok(output::print_json(&explanation)?);
        }
        Ok(output::print(&in_words(&explanation))?)
    }
}

/// Returns an explanation as lines, one for each stage.
pub(super) fn in_words(explanation: &Explanation) -> String {
    let mut lines = Vec::new();
    for stage in &explanation.stages {
        let (mark, style) = match (stage.passed, &*explanation.verdict) {
            (false, _) => ("✗", BAD),
            (true, "wait" | "hold") if stage.stage == "send" => ("…", WARN),
            (true, _) => ("✓", GOOD),
        };
        lines.push(format!("{} {:<10} {}", styled(style, mark), stage.stage, stage.decision));
    }
    if let Some(remark) = &explanation.remark {
        lines.push(styled(FAINT, remark));
    }
    lines.join("\n")
}
