//! Counts which outside ports are taken without stopping a worker: a bounded piece of the table each turn.
//!
//! The worker only copies what it finds into a page that whoever asks has brought; counting is done there.

use std::sync::Arc;
use std::time::Duration;

use conntrack::{Conntrack, PortUse};
use crossbeam::channel::{Sender, bounded};

use crate::dataplane::DataPlane;
use crate::mailbox::Mailbox;

/// Table entries looked at in one turn: about two microseconds.
const SPAN: u32 = 256;

/// Ports on one page.
const PAGE: usize = 4096;

/// How long a worker may take for a page.
const PAGE_WITHIN: Duration = Duration::from_secs(1);

/// A piece of a survey, which a worker fills in over some turns.
#[derive(Debug)]
pub struct PortPage {
    /// Ports that were found, up to the capacity, so that the worker allocates nothing.
    uses: Vec<PortUse>,
    /// Table entry to go on with; none: the survey is done.
    next: Option<u32>,
    /// Entries in use that have been seen.
    seen: u32,
    reply: Sender<PortPage>,
}

impl PortPage {
    /// Begins a survey with a page for so many ports.
    fn new(ports: usize, reply: Sender<Self>) -> Self {
        Self { uses: Vec::with_capacity(ports.max(SPAN as usize)), next: Some(0), seen: 0, reply }
    }

    /// Looks at the next piece of the table; returns the page while it is not full, and sends it when it is.
    pub fn go_on(mut self, conntrack: &Conntrack) -> Option<Self> {
        if let Some(from) = self.next {
            self.seen += conntrack.survey_ports(from, SPAN, &mut self.uses);
            let next = from.saturating_add(SPAN);
            // Entries are used from the first on: behind the last one in use there is nothing to see.
            self.next = (next < conntrack.capacity() && self.seen < conntrack.used()).then_some(next);
            if self.next.is_some() && self.uses.len() + SPAN as usize <= self.uses.capacity() {
                return Some(self);
            }
        }
        let reply = self.reply.clone();
        // Whoever asked may have stopped waiting.
        let _ = reply.try_send(self);
        None
    }
}

/// Asks the workers which ports are taken, whoever holds the data plane meanwhile.
#[derive(Clone, Debug)]
pub struct PortSurveyor {
    mailboxes: Vec<Arc<Mailbox>>,
}

impl PortSurveyor {
    /// Shows each port that is taken to `count`, as far as they stay while this goes on; tells whether every worker answered.
    /// Blocks, while the workers do something else most of the time.
    pub fn survey(&self, mut count: impl FnMut(&PortUse)) -> bool {
        self.mailboxes.iter().all(|mailbox| survey_worker(mailbox, &mut count).is_some())
    }
}

fn survey_worker(mailbox: &Mailbox, count: &mut impl FnMut(&PortUse)) -> Option<()> {
    let (reply, pages) = bounded(1);
    let mut page = PortPage::new(PAGE, reply);
    loop {
        if !mailbox.ask_for_ports(page) {
            return None;
        }
        page = pages.recv_timeout(PAGE_WITHIN).ok()?;
        page.uses.drain(..).for_each(|port| count(&port));
        if page.next.is_none() {
            return Some(());
        }
    }
}

impl DataPlane {
    /// Returns who asks the workers which ports are taken.
    pub fn port_surveyor(&self) -> PortSurveyor {
        PortSurveyor { mailboxes: self.workers.iter().map(|worker| Arc::clone(&worker.mailbox)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use conntrack::{Mapping, Policy, Protocol, TcpFlags};

    use super::*;
    use crate::snapshot::Side::{Inside, Outside};
    use crate::testing::rig::Rig;
    use crate::testing::{gateway, tcp_frame, udp_frame};

    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 13);

    /// Counts what a survey of all workers finds, on pages that are smaller than what there is.
    fn count(rig: &mut Rig) -> HashMap<(Protocol, Option<(Ipv4Addr, u16)>), u32> {
        let mut counts = HashMap::new();
        for worker in 0..rig.workers.len() {
            let (reply, pages) = bounded(1);
            let mut page = PortPage::new(300, reply);
            while page.next.is_some() {
                assert!(rig.mailboxes[worker].ask_for_ports(page));
                page = (0..1000)
                    .find_map(|_| {
                        rig.turn(worker);
                        pages.try_recv().ok()
                    })
                    .expect("a page is sent within some turns");
                for port in page.uses.drain(..) {
                    *counts.entry((port.protocol, port.remote)).or_default() += 1;
                }
            }
        }
        counts
    }

    fn open(rig: &mut Rig, frame: &[u8]) {
        rig.inject(0, Inside, frame);
        rig.run();
        assert_eq!(rig.take(Outside).len(), 1);
    }

    #[test]
    fn every_port_is_found_once_towards_where_it_is_taken() {
        let mut rig = Rig::with_workers(2, 3000, gateway().spec());
        for port in 0..700 {
            open(
                &mut rig,
                &udp_frame(&format!("10.132.0.{}:{}", port % 7, 2000 + port), "192.168.55.13:53", b"x"),
            );
        }
        for port in 0..5 {
            let pod = format!("10.132.0.5:{}", 3000 + port);
            open(&mut rig, &tcp_frame(&pod, "192.168.55.13:80", TcpFlags::SYN));
        }
        // Stands for a system port, of which there are others.
        open(&mut rig, &udp_frame("10.132.0.5:53", "192.168.55.13:53", b"x"));
        let expected = [((Protocol::Udp, Some((SERVER, 53))), 700), ((Protocol::Tcp, Some((SERVER, 80))), 5)];
        assert_eq!(count(&mut rig), HashMap::from(expected));
    }

    #[test]
    fn a_mapping_takes_one_port_towards_everybody() {
        let policy = Policy { mapping: Mapping::EndpointIndependent, ..Policy::default() };
        let spec =
            gateway().change(|spec| spec.tenants.iter_mut().for_each(|tenant| tenant.policy = policy)).spec();
        let mut rig = Rig::with_workers(2, 3000, spec);
        for destination in ["192.168.55.13:53", "192.168.55.13:54", "198.51.100.7:53"] {
            open(&mut rig, &udp_frame("10.132.0.5:40000", destination, b"x"));
            open(&mut rig, &udp_frame("10.132.0.6:40000", destination, b"x"));
        }
        assert_eq!(count(&mut rig), HashMap::from([((Protocol::Udp, None), 2)]));
    }

    #[test]
    fn an_empty_table_is_one_look() {
        let mut rig = Rig::with_workers(1, 3000, gateway().spec());
        assert_eq!(count(&mut rig), HashMap::new());
        assert!(rig.workers[0].conntrack().capacity() > SPAN);
    }
}
