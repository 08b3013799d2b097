use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use aya::maps::{MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TcAttachType, tc};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};

use crate::flows::DESTINATION_PORT;
use crate::topology::{EGRESS, Topology};

static PROGRAM: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sink.bpf.o"));

/// A program that counts and drops what a gateway sends outside; dropped, it is detached.
pub(crate) struct Sink {
    received: PerCpuArray<MapData, u64>,
    // Holds the attachment.
    _object: Ebpf,
}

/// What arrived so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// Datagrams with the egress address as their source.
    pub(crate) translated: u64,
    /// Datagrams that kept another source.
    pub(crate) untranslated: u64,
}

impl Sink {
    /// Counts at the topology's far end.
    pub(crate) fn attach(topology: &Topology) -> Result<Self> {
        let egress = u32::from(EGRESS.parse::<Ipv4Addr>()?);
        let mut object = EbpfLoader::new()
            .override_global("egress_address", &egress, true)
            .override_global("destination_port", &DESTINATION_PORT, true)
            .load(PROGRAM)
            .context("the sink's program does not load")?;
        let device = topology.sink_device();
        topology.sink.enter(|| {
            tc::qdisc_add_clsact(&device).with_context(|| format!("{device} takes no classifier"))?;
            let program: &mut SchedClassifier =
                object.program_mut("sink").context("the sink's object has no program `sink`")?.try_into()?;
            program.load()?;
            program.attach(&device, TcAttachType::Ingress)?;
            Ok(())
        })?;
        let received = object.take_map("received").context("the sink's object has no map `received`")?;
        Ok(Self { received: PerCpuArray::try_from(received)?, _object: object })
    }

    pub(crate) fn arrived(&self) -> Result<Arrived> {
        Ok(Arrived { translated: self.count(0)?, untranslated: self.count(1)? })
    }

    fn count(&self, counter: u32) -> Result<u64> {
        Ok(self.received.get(&counter, 0)?.iter().sum())
    }
}
