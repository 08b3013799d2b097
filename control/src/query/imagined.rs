//! A packet that is only imagined: what `spillway explain` is asked about.

use std::net::Ipv4Addr;

use clap::Args;
use conntrack::{Portless, Protocol};
use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
use fastpath::snapshot::{NextHop, Side, Snapshot, TenantSpec};
use macaddr::MacAddr6;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::query::selection::{parse_end, parse_protocol};
use crate::refusal::Refusal;

/// Most bytes of a packet that can be asked about.
const MOST_BYTES: u16 = 1778;

/// A packet, as people describe it.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImaginedPacket {
    /// Where it comes from: ADDRESS:PORT, or ADDRESS where the protocol has no ports
    #[arg(value_name = "SOURCE")]
    pub source: String,

    /// Where it goes
    #[arg(value_name = "DESTINATION")]
    pub destination: String,

    /// Tenant whose MAC it comes to, from a pod
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,

    /// It comes from the world instead, to an egress address
    #[arg(long, conflicts_with_all = ["tenant", "mac"])]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outside: bool,

    /// MAC that it comes to, in place of a tenant's
    #[arg(long, value_name = "MAC", conflicts_with = "tenant")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,

    /// Protocol: tcp, udp, icmp, gre, esp, sctp, udplite or ipip
    #[arg(long, visible_alias = "proto", value_name = "PROTOCOL", default_value = "tcp")]
    pub protocol: String,

    /// TCP flags: syn, ack, fin and rst, with commas between them
    #[arg(long, value_name = "FLAGS", default_value = "syn")]
    #[serde(default = "syn")]
    pub flags: String,

    /// Time to live
    #[arg(long, value_name = "HOPS", default_value_t = 64)]
    #[serde(default = "usual_ttl")]
    pub ttl: u8,

    /// Length of the packet, in bytes; the shortest that there is unless told
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u16>,

    /// It may not be fragmented
    #[arg(long)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dont_fragment: bool,
}

fn syn() -> String {
    "syn".to_owned()
}

fn usual_ttl() -> u8 {
    64
}

impl ImaginedPacket {
    /// Returns the side that it comes from.
    pub fn side(&self) -> Side {
        if self.outside { Side::Outside } else { Side::Inside }
    }

    /// Returns the frame that it would come in, under a snapshot; `tenant` is whose MAC it comes to.
    ///
    /// # Errors
    /// When something is said of it that means nothing.
    pub fn frame(&self, snapshot: &Snapshot, tenant: Option<&TenantSpec>) -> Result<Vec<u8>, Refusal> {
        let protocol = parse_protocol(&self.protocol)?;
        let (source, source_port) = end("source", &self.source, protocol)?;
        let (destination, destination_port) = end("destination", &self.destination, protocol)?;
        let macs = self.macs(snapshot, tenant, source)?;
        let mut ip = etherparse::Ipv4Header {
            time_to_live: self.ttl,
            source: source.octets(),
            destination: destination.octets(),
            dont_fragment: self.dont_fragment,
            ..etherparse::Ipv4Header::default()
        };
        ip.protocol = IpNumber(protocol.number());
        let builder = PacketBuilder::ethernet2(macs[0].into_array(), macs[1].into_array())
            .ip(IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()));
        self.write(builder, protocol, (source_port, destination_port))
    }

    fn macs(
        &self,
        snapshot: &Snapshot,
        tenant: Option<&TenantSpec>,
        source: Ipv4Addr,
    ) -> Result<[MacAddr6; 2], Refusal> {
        let own = snapshot.link(self.side()).mac;
        let to = match (&self.mac, tenant) {
            (Some(mac), _) => mac.parse().map_err(|_| {
                Refusal::invalid("mac", format!("{mac:?} is no MAC such as 02:53:c0:a8:63:0d"))
            })?,
            (None, Some(tenant)) if !self.outside => tenant.gateway_mac,
            (None, _) => own,
        };
        let from = match snapshot.next_hop(self.side(), source) {
            NextHop::Resolved(id) => snapshot.neighbour(id).mac,
            NextHop::Unresolved(_) | NextHop::NoRoute => MacAddr6::nil(),
        };
        Ok([from, to])
    }

    fn write(
        &self,
        builder: PacketBuilderStep<IpHeaders>,
        protocol: Protocol,
        (source_port, destination_port): (u16, u16),
    ) -> Result<Vec<u8>, Refusal> {
        let mut frame = Vec::new();
        let written = match protocol {
            Protocol::Tcp => {
                let mut step = builder.tcp(source_port, destination_port, 1, 64_000);
                for flag in self.flags.split(',').map(str::trim).filter(|flag| !flag.is_empty()) {
                    step = match &*flag.to_ascii_lowercase() {
                        "syn" => step.syn(),
                        "ack" => step.ack(1),
                        "fin" => step.fin(),
                        "rst" => step.rst(),
                        _ => {
                            let message = format!("{flag:?} is none of syn, ack, fin and rst");
                            return Err(Refusal::invalid("flags", message));
                        }
                    };
                }
                step.write(&mut frame, &self.payload(40)?)
            }
            Protocol::Udp => builder.udp(source_port, destination_port).write(&mut frame, &self.payload(28)?),
            Protocol::Icmp if self.outside => {
                builder.icmpv4_echo_reply(destination_port, 1).write(&mut frame, &self.payload(28)?)
            }
            Protocol::Icmp => {
                builder.icmpv4_echo_request(source_port, 1).write(&mut frame, &self.payload(28)?)
            }
            Protocol::Portless(kind) => {
                let header = if kind == Portless::IpIp { 20 } else { 8 };
                let mut payload = vec![0; header];
                payload.extend(self.payload(20 + u16::try_from(header).unwrap_or(0))?);
                builder.write(&mut frame, IpNumber(protocol.number()), &payload)
            }
        };
        written.map_err(|error| Refusal::invalid("packet", error.to_string()))?;
        Ok(frame)
    }

    /// Returns as many bytes as make the packet as long as it should be.
    fn payload(&self, headers: u16) -> Result<Vec<u8>, Refusal> {
        let bytes = self.bytes.unwrap_or(headers);
        if !(headers..=MOST_BYTES).contains(&bytes) {
            let message = format!("{bytes} bytes cannot be asked about; use {headers} to {MOST_BYTES}");
            return Err(Refusal::invalid("bytes", message));
        }
        Ok(vec![0; usize::from(bytes - headers)])
    }
}

/// Reads one end: with a port where the protocol has ports, for ICMP an identifier that may be left out.
fn end(field: &str, text: &str, protocol: Protocol) -> Result<(Ipv4Addr, u16), Refusal> {
    let parsed = parse_end(field, text)?;
    let address = parsed.network.filter(|network| network.prefix_len() == 32).map(|network| network.addr());
    let address = address
        .ok_or_else(|| Refusal::invalid(field, format!("{text:?} is no address, as 10.132.0.5 is")))?;
    match (protocol, parsed.port) {
        (Protocol::Tcp | Protocol::Udp, None) => Err(Refusal::invalid(
            field,
            format!("{text:?} has no port; {} has them, as in {address}:443", protocol.name()),
        )),
        (Protocol::Portless(_), Some(_)) => {
            Err(Refusal::invalid(field, format!("{text:?} has a port; {} has none", protocol.name())))
        }
        (Protocol::Icmp, None) => Ok((address, 1)),
        (_, port) => Ok((address, port.unwrap_or_default())),
    }
}
