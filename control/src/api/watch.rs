//! What becomes of frames: explained before they come, captured and traced when they do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::RawQuery;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use conntrack::{Record, TenantId};
use fastpath::rehearsal::rehearse;
use fastpath::snapshot::{Side, Snapshot};
use fastpath::survey::{Cursor, EndFilter, SessionFilter, Surveyor};
use fastpath::tap::{MOST_BYTES, OpenTap, Sample, TapFilter, TapLimits};
use futures_util::stream;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::info;

use super::error::ApiError;
use super::handlers::{Answer, Changer, Daemon, ask};
use super::{Desk, Request};
use crate::explanation::{Explainer, Explanation};
use crate::query::imagined::ImaginedPacket;
use crate::query::look::Look;
use crate::recording::Recording;
use crate::refusal::Refusal;

/// Sessions copied for a rehearsal; of a tenant with more only those of the pod are.
const MOST_COPIED: usize = 1 << 20;
/// Sessions of one page of them.
const PAGE: usize = 8192;
/// Samples that may wait to be looked at.
const SAMPLES: usize = 2048;
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Time after which tenants and routes are asked for again.
const REFRESHED_EVERY: Duration = Duration::from_secs(1);
/// Time that a reader has for the end of a stream.
const LINGER: Duration = Duration::from_secs(5);

/// The answer goes on for so long at most: it is a stream, and has more time than others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams(pub(super) Duration);

pub(super) async fn explain(daemon: Daemon, RawQuery(query): RawQuery) -> Answer<Explanation> {
    let packet: ImaginedPacket = read(query.as_deref())?;
    let desk = ask(&daemon, Request::Desk).await?;
    let explained = spawn_blocking(move || explain_on(&desk, &packet)).await;
    explained.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?.map(Json)
}

fn explain_on(desk: &Desk, packet: &ImaginedPacket) -> Result<Explanation, ApiError> {
    let snapshot = &*desk.snapshot;
    let tenant = packet.tenant.as_ref().map(|name| desk.tenant(name)).transpose()?;
    if tenant.is_none() && packet.mac.is_none() && !packet.outside {
        let message = "the destination MAC tells the tenant: say whose it is, or the MAC itself, or outside";
        return Err(Refusal::invalid("tenant", message).into());
    }
    let frame = packet.frame(snapshot, tenant.and_then(|tenant| snapshot.tenant(tenant)))?;
    let side = packet.side();
    let failed = |message: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
    let (sessions, is_whole) = copy_sessions(&desk.surveyor, snapshot, side, &frame).map_err(failed)?;
    let sample = rehearse(snapshot, &sessions, side, &frame).map_err(|error| failed(error.to_string()))?;
    let explanation = Explainer { snapshot, tenants: &desk.tenants }.explain(&sample);
    let remark = if !is_whole {
        Some(format!(
            "the tenant has more than {MOST_COPIED} sessions, and only the pod's were looked at: whether ports and \
             sessions run out is not told"
        ))
    } else {
        let is_example =
            sample.is_new_session && sample.session.is_some_and(|session| session.outside.1 != 0);
        is_example.then(|| "the outside port is an example: it is drawn when the session begins".to_owned())
    };
    Ok(Explanation { worker: None, remark, ..explanation })
}

/// Copies the sessions of the tenants that a frame concerns; tells whether it could copy all.
fn copy_sessions(
    surveyor: &Surveyor,
    snapshot: &Snapshot,
    side: Side,
    frame: &[u8],
) -> Result<(Vec<(TenantId, Record)>, bool), String> {
    let Ok(packet) = fastpath::parse::parse(frame) else { return Ok((Vec::new(), true)) };
    let by_mac = snapshot.tenant_by_mac(packet.destination_mac).filter(|_| side == Side::Inside);
    // A packet to an egress address of this gateway comes back in, to that address's tenant.
    let by_egress = snapshot.tenant_by_egress(packet.ip.destination);
    let (mut sessions, mut is_whole) = (Vec::new(), true);
    for tenant in by_mac.into_iter().chain(by_egress.filter(|tenant| Some(*tenant) != by_mac)) {
        let filter = SessionFilter { tenant: Some(tenant), ..SessionFilter::default() };
        let (mut copied, has_all) = copy(surveyor, &filter)?;
        if !has_all && side == Side::Inside {
            let inside = EndFilter { network: Some(packet.ip.source.into()), port: None };
            copied = copy(surveyor, &SessionFilter { inside, ..filter })?.0;
        }
        is_whole &= has_all;
        sessions.extend(copied.into_iter().map(|record| (tenant, record)));
    }
    Ok((sessions, is_whole))
}

fn copy(surveyor: &Surveyor, filter: &SessionFilter) -> Result<(Vec<Record>, bool), String> {
    let (mut records, mut next) = (Vec::new(), Some(Cursor::default()));
    while let Some(from) = next {
        if records.len() >= MOST_COPIED {
            return Ok((records, false));
        }
        let page = surveyor.copy(filter, from, PAGE).map_err(|error| error.to_string())?;
        records.extend(page.rows);
        next = page.next;
    }
    Ok((records, true))
}

pub(super) async fn capture(
    daemon: Daemon,
    Changer(caller): Changer,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let look: Look = read(query.as_deref())?;
    let (watch, sides) = (open(&daemon, &look).await?, look.sides()?);
    info!(uid = caller.uid, pid = caller.pid, ?look, "a capture begins");
    let name = |side: Side| watch.interfaces[side.index()].clone();
    let recording = Recording::begin(&sides, name).map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the capture cannot begin: {error}"))
    })?;
    let (count, seconds) = (look.count()?, look.duration()?);
    let writer = PacketWriter { recording, count };
    Ok(stream_response("application/x-pcapng", seconds, watch, writer))
}

pub(super) async fn trace(
    daemon: Daemon,
    Changer(caller): Changer,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let look: Look = read(query.as_deref())?;
    let (watch, count, seconds) = (open(&daemon, &look).await?, look.count()?, look.duration()?);
    info!(uid = caller.uid, pid = caller.pid, ?look, "a trace begins");
    let sides = look.sides()?;
    Ok(stream_response(
        "application/x-ndjson",
        seconds,
        watch,
        LineWriter { sides, count, written: 0, lines: Vec::new() },
    ))
}

/// Reads a query whose keys are fields of `T`.
fn read<T: DeserializeOwned>(query: Option<&str>) -> Result<T, ApiError> {
    serde_urlencoded::from_str(query.unwrap_or_default())
        .map_err(|error| ApiError::of_field(StatusCode::BAD_REQUEST, "query", error.to_string()))
}

async fn open(daemon: &Daemon, look: &Look) -> Result<Watch, ApiError> {
    look.sides()?;
    look.duration()?;
    let desk = ask(daemon, Request::Desk).await?;
    let filter: TapFilter = look.filter(|name| desk.tenant(name))?;
    let (bytes, per_second) = (look.bytes(MOST_BYTES)?, look.rate()?);
    let limits = TapLimits { bytes, per_second, samples: SAMPLES };
    let tap = desk.taps.open(filter, limits);
    let tap = tap.map_err(|error| ApiError::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()))?;
    Ok(Watch {
        tap,
        snapshot: desk.snapshot,
        tenants: desk.tenants,
        interfaces: desk.interfaces,
        daemon: daemon.clone(),
    })
}

/// A tap, and what its samples are explained with.
struct Watch {
    tap: OpenTap,
    snapshot: Arc<Snapshot>,
    tenants: HashMap<TenantId, String>,
    interfaces: [String; 2],
    daemon: Daemon,
}

/// What samples are written as.
trait Writer: Send + 'static {
    /// Writes a sample.
    fn write(&mut self, sample: &Sample, explainer: &Explainer<'_>);
    /// Ends, having missed so many.
    fn end(&mut self, missed: u64);
    /// Takes what was written.
    fn take(&mut self) -> Vec<u8>;
    /// Tells whether it has as many as were asked for.
    fn is_full(&self) -> bool;
}

struct PacketWriter {
    recording: Recording,
    count: u64,
}

impl Writer for PacketWriter {
    fn write(&mut self, sample: &Sample, explainer: &Explainer<'_>) {
        // A sample that cannot be written is one less.
        let _ = self.recording.write(sample, explainer);
    }

    fn end(&mut self, missed: u64) {
        let _ = self.recording.end(missed);
    }

    fn take(&mut self) -> Vec<u8> {
        self.recording.take()
    }

    fn is_full(&self) -> bool {
        self.recording.packets() >= self.count
    }
}

struct LineWriter {
    sides: Vec<Side>,
    count: u64,
    written: u64,
    lines: Vec<u8>,
}

impl Writer for LineWriter {
    fn write(&mut self, sample: &Sample, explainer: &Explainer<'_>) {
        if self.sides.contains(&sample.side)
            && let Ok(line) = serde_json::to_vec(&explainer.explain(sample))
        {
            self.lines.extend(line);
            self.lines.push(b'\n');
            self.written += 1;
        }
    }

    fn end(&mut self, missed: u64) {
        let end = serde_json::json!({ "missed": missed });
        self.lines.extend(format!("{end}\n").bytes());
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.lines)
    }

    fn is_full(&self) -> bool {
        self.written >= self.count
    }
}

fn stream_response(kind: &'static str, lasts: Duration, watch: Watch, writer: impl Writer) -> Response {
    let (sender, receiver) = mpsc::channel::<Bytes>(8);
    tokio::spawn(pump(watch, writer, Instant::now() + lasts, sender));
    let chunks = stream::unfold(receiver, async |mut receiver| {
        let chunk = receiver.recv().await?;
        Some((Ok::<_, Infallible>(chunk), receiver))
    });
    let mut response = Body::from_stream(chunks).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.extensions_mut().insert(Streams(lasts + LINGER));
    response
}

/// Writes what the tap shows until enough was written, time is over, or nobody reads any more.
async fn pump(mut watch: Watch, mut writer: impl Writer, until: Instant, sender: mpsc::Sender<Bytes>) {
    let mut refreshed = Instant::now();
    loop {
        let explainer = Explainer { snapshot: &watch.snapshot, tenants: &watch.tenants };
        for _ in 0..SAMPLES {
            if writer.is_full() {
                break;
            }
            let Some(sample) = watch.tap.take() else { break };
            writer.write(&sample, &explainer);
            watch.tap.give_back(sample);
        }
        let is_over = writer.is_full() || Instant::now() >= until;
        if is_over {
            writer.end(watch.tap.missed());
        }
        let written = writer.take();
        if !written.is_empty() {
            // A reader that stands still is given up.
            let sent = timeout_at(until + LINGER, sender.send(written.into())).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
        if is_over {
            return;
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = sender.closed() => return,
        }
        if refreshed.elapsed() >= REFRESHED_EVERY {
            refreshed = Instant::now();
            if let Ok(desk) = ask(&watch.daemon, Request::Desk).await {
                (watch.snapshot, watch.tenants) = (desk.snapshot, desk.tenants);
            }
        }
    }
}
