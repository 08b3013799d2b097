//! `spillway capture`: frames as they come and leave, with what was decided about them, in a capture file.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
use pcap_file::pcapng::{Block, PcapNgReader};

use crate::client::Client;
use crate::output;
use crate::query::look::Look;

#[derive(Debug, Args)]
#[command(
    after_help = "Verdict and reason stand in each packet's comment (frame.comment). What XDP drops, and what the \
    kernel never gave to a worker, is not seen here: `spillway status` counts it.\n\n\
    Examples:\n  \
    spillway capture --tenant ns-blue --drops -w drops.pcapng\n  \
    spillway capture --pod 10.132.0.5 --for 10s -w - | tshark -r - -T fields -e frame.comment"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    look: Look,

    /// File to write pcapng to; - for stdout
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    file: PathBuf,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let path = format!("/v1/capture?{}", serde_urlencoded::to_string(&self.look)?);
        if self.file == Path::new("-") {
            let mut out = io::stdout();
            return Ok(client.stream(&path, |bytes| out.write_all(bytes).and_then(|()| out.flush())).await?);
        }
        let written = || self.file.display().to_string();
        let mut file = None;
        // The file is made when the daemon has agreed.
        let write = |bytes: &[u8]| match &mut file {
            Some(file) => File::write_all(file, bytes),
            none => none.insert(File::create(&self.file)?).write_all(bytes),
        };
        client.stream(&path, write).await.with_context(written)?;
        let (packets, missed) = count(&self.file).with_context(written)?;
        let missed = match missed {
            0 => String::new(),
            missed => format!(", {missed} frames missed: raise --rate, or ask for less"),
        };
        output::print_note(&format!("{packets} packets in {}{missed}", self.file.display()));
        Ok(())
    }
}

/// Counts the packets of a file, and returns how many frames were missed.
fn count(path: &Path) -> anyhow::Result<(u64, u64)> {
    let mut reader = PcapNgReader::new(BufReader::new(File::open(path)?))?;
    let (mut packets, mut missed) = (0, 0);
    while let Some(block) = reader.next_block() {
        match block? {
            Block::EnhancedPacket(_) => packets += 1,
            Block::InterfaceStatistics(statistics) => {
                for option in statistics.options {
                    if let InterfaceStatisticsOption::IsbIfDrop(count) = option {
                        missed = count;
                    }
                }
            }
            _ => {}
        }
    }
    Ok((packets, missed))
}
