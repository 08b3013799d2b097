//! Which frames are looked at, and for how long: the same on the command line and in the API.

use std::time::Duration;

use clap::Args;
use conntrack::TenantId;
use fastpath::snapshot::Side;
use fastpath::survey::EndFilter;
use fastpath::tap::TapFilter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::query::selection::{parse_end, parse_protocol, parse_time};
use crate::refusal::Refusal;

/// Longest time that anybody looks.
const LONGEST: Duration = Duration::from_secs(3600);
/// Frames of each worker in a second, unless told.
const USUAL_RATE: u32 = 2000;
/// Most of them.
const MOST_RATE: u32 = 100_000;

/// Which frames, how many, and for how long.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Look {
    /// Of this tenant
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,

    /// On this side: inside, outside or both
    #[arg(long, value_name = "SIDE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,

    /// Of this protocol: tcp, udp, icmp, gre, esp, sctp, udplite or ipip
    #[arg(long, visible_alias = "proto", value_name = "PROTOCOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,

    /// From or to this pod: ADDRESS, ADDRESS:PORT, NETWORK or :PORT
    #[arg(long, value_name = "END")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,

    /// From or to this other end: ADDRESS, ADDRESS:PORT, NETWORK or :PORT
    #[arg(long, value_name = "END")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,

    /// Only what is dropped or rejected
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drops: bool,

    /// Stop after so many packets
    #[arg(long, short = 'c', value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,

    /// Stop after this time, as in 30s; an hour at most [default: 1m]
    #[arg(long = "for", value_name = "TIME")]
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<String>,

    /// Keep so many bytes of each packet [default: all]
    #[arg(long, short = 's', value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,

    /// Look at so many packets of each worker in a second at most, so that forwarding is not slowed [default: 2000]
    #[arg(long, value_name = "PACKETS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
}

impl Look {
    /// Returns the sides that are looked at.
    ///
    /// # Errors
    /// When the side means nothing.
    pub fn sides(&self) -> Result<Vec<Side>, Refusal> {
        match self.side.as_deref() {
            None | Some("both") => Ok(Side::BOTH.to_vec()),
            Some("inside") => Ok(vec![Side::Inside]),
            Some("outside") => Ok(vec![Side::Outside]),
            Some(other) => {
                Err(Refusal::invalid("side", format!("{other:?} is none of inside, outside and both")))
            }
        }
    }

    /// Returns how many packets are wanted.
    ///
    /// # Errors
    /// When it is none.
    pub fn count(&self) -> Result<u64, Refusal> {
        match self.count {
            Some(0) => Err(Refusal::invalid("count", "0 packets cannot be waited for; use 1 or more")),
            count => Ok(count.unwrap_or(u64::MAX)),
        }
    }

    /// Returns how long is looked.
    ///
    /// # Errors
    /// When it is no time, none at all, or too long.
    pub fn duration(&self) -> Result<Duration, Refusal> {
        let Some(text) = &self.lasts else { return Ok(Duration::from_secs(60)) };
        let lasts = parse_time("for", text)?;
        if lasts.is_zero() || lasts > LONGEST {
            return Err(Refusal::invalid("for", format!("{text:?} is not between 1ns and 1h")));
        }
        Ok(lasts)
    }

    /// Returns how many bytes of each packet are kept, `most` unless told.
    ///
    /// # Errors
    /// When they are too few for headers.
    pub fn bytes(&self, most: usize) -> Result<usize, Refusal> {
        match self.bytes {
            Some(bytes) if !(64..=most).contains(&bytes) => {
                Err(Refusal::invalid("bytes", format!("{bytes} bytes are not between 64 and {most}")))
            }
            bytes => Ok(bytes.unwrap_or(most)),
        }
    }

    /// Returns how many packets of each worker are looked at in a second.
    ///
    /// # Errors
    /// When they are none or too many.
    pub fn rate(&self) -> Result<u32, Refusal> {
        match self.rate {
            Some(rate) if !(1..=MOST_RATE).contains(&rate) => Err(Refusal::invalid(
                "rate",
                format!("{rate} packets a second are not between 1 and {MOST_RATE}"),
            )),
            rate => Ok(rate.unwrap_or(USUAL_RATE)),
        }
    }

    /// Returns the filter that the workers heed; `find` finds a tenant by its name.
    ///
    /// # Errors
    /// When something is said that means nothing, or of a tenant that does not exist.
    pub fn filter(&self, find: impl FnOnce(&str) -> Result<TenantId, Refusal>) -> Result<TapFilter, Refusal> {
        let end = |field, text: &Option<String>| {
            text.as_ref().map_or(Ok(EndFilter::default()), |text| parse_end(field, text))
        };
        Ok(TapFilter {
            tenant: self.tenant.as_deref().map(find).transpose()?,
            protocol: self.protocol.as_deref().map(parse_protocol).transpose()?,
            pod: end("pod", &self.pod)?,
            remote: end("remote", &self.remote)?,
            drops_only: self.drops,
        })
    }
}
