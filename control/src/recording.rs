//! Samples as a capture file: pcapng, with what was decided as comments (draft-ietf-opsawg-pcapng).

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use fastpath::snapshot::Side;
use fastpath::tap::{Copied, Sample};
use fastpath::verdict::Verdict;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::{DataLink, Endianness, PcapResult};

use crate::explanation::Explainer;

/// Time stamps count 10^-9 s.
const NANOSECONDS: u8 = 9;

/// `epb_flags` of a packet that came, and of one that left.
const CAME: u32 = 0b01;
const LEFT: u32 = 0b10;

/// A capture file that is being written.
pub struct Recording {
    writer: PcapNgWriter<Vec<u8>>,
    sides: Vec<Side>,
    packets: u64,
}

impl Recording {
    /// Begins a file with an interface for each of `sides`, which have these names.
    ///
    /// # Errors
    /// When a name cannot be written.
    pub fn begin(sides: &[Side], name: impl Fn(Side) -> String) -> PcapResult<Self> {
        let application = format!("spillway {}", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(application.into())],
            ..SectionHeaderBlock::default()
        };
        let mut writer = PcapNgWriter::with_section_header(Vec::new(), section)?;
        for side in sides {
            let options = vec![
                InterfaceDescriptionOption::IfName(name(*side).into()),
                InterfaceDescriptionOption::IfDescription(side.name().into()),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ];
            let interface = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options };
            writer.write_block(&interface.into_block())?;
        }
        Ok(Self { writer, sides: sides.to_vec(), packets: 0 })
    }

    /// Writes what a sample shows of the sides: the frame as it came, and as it left. What another worker decides about
    /// is that worker's to show.
    ///
    /// # Errors
    /// When a block cannot be written.
    pub fn write(&mut self, sample: &Sample, explainer: &Explainer<'_>) -> PcapResult<()> {
        if matches!(sample.outcome.verdict, Verdict::HandOver(..)) {
            return Ok(());
        }
        let comment = explainer.summary(sample);
        if sample.is_first || sample.dropped().is_some() {
            self.put(sample.at, sample.side, (&sample.before, CAME), &comment)?;
        }
        if let Some(side) = sample.leaves_by() {
            self.put(sample.at, side, (&sample.after, LEFT), &comment)?;
        }
        Ok(())
    }

    fn put(
        &mut self,
        at: SystemTime,
        side: Side,
        (frame, flags): (&Copied, u32),
        comment: &str,
    ) -> PcapResult<()> {
        let Some(interface) = self.sides.iter().position(|shown| *shown == side) else { return Ok(()) };
        let packet = EnhancedPacketBlock {
            interface_id: u32::try_from(interface).unwrap_or_default(),
            timestamp: since_epoch(at),
            original_len: u32::try_from(frame.frame_bytes).unwrap_or(u32::MAX),
            data: Cow::Borrowed(&frame.bytes),
            options: vec![EnhancedPacketOption::Comment(comment.into()), EnhancedPacketOption::Flags(flags)],
        };
        self.writer.write_block(&packet.into_block())?;
        self.packets += 1;
        Ok(())
    }

    /// Ends the file: says how many packets it has and how many frames were missed.
    ///
    /// # Errors
    /// When a block cannot be written.
    pub fn end(&mut self, missed: u64) -> PcapResult<()> {
        let timestamp = u64::try_from(since_epoch(SystemTime::now()).as_nanos()).unwrap_or(u64::MAX);
        let options = vec![
            InterfaceStatisticsOption::IsbIfRecv(self.packets + missed),
            InterfaceStatisticsOption::IsbIfDrop(missed),
        ];
        // Frames that were missed are not told apart by side.
        let statistics = InterfaceStatisticsBlock { interface_id: 0, timestamp, options };
        self.writer.write_block(&statistics.into_block())?;
        Ok(())
    }

    /// Returns how many packets were written.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Takes what was written since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
