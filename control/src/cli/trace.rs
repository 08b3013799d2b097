//! `spillway trace`: the packets of a flow, stage by stage, as they come.

use std::io;

use clap::Args;

use super::explain::in_words;
use crate::client::Client;
use crate::explanation::Explanation;
use crate::output::{self, HEADING, styled};
use crate::query::look::Look;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    spillway trace --tenant ns-blue --proto tcp --pod 10.132.0.5:40000 --remote 198.51.100.7:443\n  \
    spillway trace --drops --count 5")]
pub(super) struct Arguments {
    #[command(flatten)]
    look: Look,

    /// Print JSON, a packet on each line
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let path = format!("/v1/trace?{}", serde_urlencoded::to_string(&self.look)?);
        let mut rest = Vec::new();
        let show = |bytes: &[u8]| {
            rest.extend_from_slice(bytes);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                self.show(&line)?;
            }
            Ok(())
        };
        Ok(client.stream(&path, show).await?)
    }

    fn show(&self, line: &[u8]) -> io::Result<()> {
        if self.json {
            return output::print(String::from_utf8_lossy(line).trim_end());
        }
        let Ok(explanation) = serde_json::from_slice::<Explanation>(line) else {
            let end: serde_json::Value = serde_json::from_slice(line)?;
            if end["missed"] != 0 {
                output::print_note(&format!(
                    "{} frames missed: raise --rate, or ask for less",
                    end["missed"]
                ));
            }
            return Ok(());
        };
        let worker = explanation.worker.map(|worker| format!(", worker {worker}")).unwrap_or_default();
        let heading = format!("{} {}{worker}", explanation.time, explanation.side);
        output::print(&format!("{}\n{}\n", styled(HEADING, heading), in_words(&explanation)))
    }
}
