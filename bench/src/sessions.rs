use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use control::client::BlockingClient;
use control::demo::wait;
use serde_json::Value;

use crate::system::Gateway;
use crate::topology::Topology;

const SLABS: &str = "/proc/slabinfo";
const CONNTRACK: &str = "nf_conntrack";
const PAGE_BYTES: u64 = 4096;
const FREED_WITHIN: Duration = Duration::from_secs(60);
/// Sessions of the machine's own that do not disturb.
const FEW: u64 = 4096;

/// What the kernel takes for objects of one kind, in all namespaces together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slab {
    /// Objects in use.
    pub(crate) objects: u64,
    /// Pages taken for them, in bytes.
    pub(crate) bytes: u64,
}

impl Slab {
    /// Reads what the kernel's sessions take.
    pub(crate) fn of_conntrack() -> Result<Self> {
        let text = fs::read_to_string(SLABS).with_context(|| SLABS.to_owned())?;
        Self::parse(&text, CONNTRACK)
    }

    fn parse(slabinfo: &str, name: &str) -> Result<Self> {
        let fields = slabinfo.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let Some(fields) = fields.into_iter().find(|fields| fields.first() == Some(&name)) else {
            return Ok(Self { objects: 0, bytes: 0 }); // the module is loaded with the first rule that needs it
        };
        // name active_objs num_objs objsize objperslab pagesperslab : tunables … : slabdata active num shared
        let number = |index: usize| -> Result<u64> {
            let field = fields.get(index).with_context(|| format!("{SLABS}: {name} has no field {index}"))?;
            field.parse().with_context(|| format!("{SLABS}: {name}: {field:?} is no number"))
        };
        Ok(Self { objects: number(1)?, bytes: number(14)? * number(5)? * PAGE_BYTES })
    }
}

/// Waits until the kernel has freed the sessions of namespaces that are gone, which takes a core while it lasts.
pub(crate) fn wait_until_freed() -> Result<()> {
    wait::until("the kernel frees the sessions of an earlier round", FREED_WITHIN, || {
        Ok((Slab::of_conntrack()?.objects <= FEW).then_some(()))
    })
}

/// Returns how many sessions the gateway holds.
pub(crate) fn count(gateway: &Gateway, topology: &Topology) -> Result<u64> {
    match gateway {
        Gateway::Kernel { .. } => {
            let count = topology.gateway.run("cat /proc/sys/net/netfilter/nf_conntrack_count")?;
            count.trim().parse().with_context(|| format!("nf_conntrack_count is {count:?}"))
        }
        Gateway::Raw { .. } => Ok(0),
        Gateway::Spillway(daemon) => {
            let status: Value = BlockingClient::new(&daemon.socket())?.get("/v1/status")?;
            status["sessions"].as_u64().context("the daemon's status has no number of sessions")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLABINFO: &str = "slabinfo - version: 2.1\n\
        # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables\n\
        nf_conntrack_expect      0      0    208   39    2 : tunables 0 0 0 : slabdata      0      0      0\n\
        nf_conntrack         120    128    256   16    1 : tunables    0    0    0 : slabdata      8      8      0\n";

    #[test]
    fn a_slab_is_found_by_its_whole_name() {
        let slab = Slab::parse(SLABINFO, CONNTRACK).unwrap();
        assert_eq!(slab, Slab { objects: 120, bytes: 8 * 4096 });
    }

    #[test]
    fn a_slab_that_is_not_there_is_empty_and_a_broken_one_is_refused() {
        assert_eq!(Slab::parse(SLABINFO, "nothing").unwrap(), Slab { objects: 0, bytes: 0 });
        assert!(Slab::parse("nf_conntrack 1 x", CONNTRACK).is_err());
    }
}
