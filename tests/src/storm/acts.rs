//! What is done to the gateway, and how it is undone.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use control::client::ClientError;
use control::demo::command;
use control::demo::gateway::Gateway;
use control::demo::topology::{Host, INSIDE, NODES, OUTSIDE, ROUTER, SERVER};
use control::demo::wait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::schedule::Act;
use super::tenants::{Slot, TENANTS};
use super::world::{World, last_lines};
use crate::fixture::LIMIT;

/// Events for which something stays undone.
const LASTING: std::ops::Range<u64> = 100..3000;
/// Time in which the daemon has to put back what was taken.
const PUT_BACK: Duration = Duration::from_secs(10);

/// What makes an act good again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Undo {
    LinkUp(&'static str),
    NameBack(&'static str),
    MtuBack(&'static str),
    RightNeighbour,
    ServerMac,
    DefaultRoute,
    /// Somebody's own route to a pod network goes.
    ReturnRoute(&'static str),
    /// The daemon does it; it had noticed so many disturbances before.
    PutBack(&'static str, u64),
    StartDaemon,
}

impl Undo {
    fn device(&self) -> Option<&'static str> {
        match self {
            Self::LinkUp(device)
            | Self::NameBack(device)
            | Self::MtuBack(device)
            | Self::PutBack(device, _) => Some(device),
            Self::RightNeighbour | Self::ServerMac | Self::DefaultRoute => Some(OUTSIDE),
            Self::ReturnRoute(_) | Self::StartDaemon => None,
        }
    }
}

/// What became of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// The daemon said no, as it may.
    Refused,
    /// It makes no sense now.
    Skipped,
}

/// What is to be undone, and when.
#[derive(Debug, Default)]
pub(crate) struct Pending(Vec<(u64, Undo)>);

impl Pending {
    /// Undoes what is due.
    pub(crate) fn settle(&mut self, world: &mut World, now: u64) -> Result<()> {
        self.finish(world, |due, _| due <= now)
    }

    /// Undoes everything.
    pub(crate) fn settle_all(&mut self, world: &mut World) -> Result<()> {
        self.finish(world, |_, undo| *undo != Undo::StartDaemon)?;
        self.finish(world, |_, _| true)
    }

    fn finish(&mut self, world: &mut World, wanted: impl Fn(u64, &Undo) -> bool) -> Result<()> {
        let (due, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.0).into_iter().partition(|(due, undo)| wanted(*due, undo));
        // The daemon does not start before its interfaces are there and up.
        let is_start = |(_, undo): &(u64, Undo)| *undo == Undo::StartDaemon;
        let needs_links = due.iter().any(is_start);
        let is_link =
            |(_, undo): &(u64, Undo)| needs_links && matches!(undo, Undo::NameBack(_) | Undo::LinkUp(_));
        let (links, kept): (Vec<_>, Vec<_>) = kept.into_iter().partition(is_link);
        self.0 = kept;
        let (starts, others): (Vec<_>, Vec<_>) = due.into_iter().partition(is_start);
        for (_, undo) in links.into_iter().chain(others).chain(starts) {
            carry_out(world, &undo).with_context(|| format!("{undo:?}"))?;
        }
        Ok(())
    }

    /// Does something. What lies upon the same interface is undone before.
    pub(crate) fn act(&mut self, world: &mut World, act: Act, dice: u64, now: u64) -> Result<Outcome> {
        let mut rng = StdRng::seed_from_u64(dice);
        let device = if rng.random() { INSIDE } else { OUTSIDE };
        let slot = Slot(rng.random_range(0..TENANTS));
        let due = now + rng.random_range(LASTING);
        let undo = match act {
            Act::AddTenant | Act::ChangeTenant | Act::ChangeEgress | Act::RemoveTenant => {
                return change_tenant(world, act, slot, &mut rng);
            }
            Act::DetachProgram | Act::DetachGuard | Act::ReplaceProgram | Act::RemovePins => {
                if world.gateway.is_none() && act != Act::DetachProgram {
                    return Ok(Outcome::Skipped); // nobody would put back the last line
                }
                self.finish(world, |_, undo| undo.device() == Some(device))?;
                disturb(world, act, device)?
            }
            Act::LinkDown | Act::Rename | Act::Mtu => {
                self.finish(world, |_, undo| undo.device() == Some(device))?;
                Some(change_link(world, act, device, &mut rng)?)
            }
            Act::FlushNeighbours
            | Act::WrongNeighbour
            | Act::ServerMac
            | Act::WithdrawDefault
            | Act::WithdrawReturn => {
                self.finish(world, |_, undo| undo.device() == Some(OUTSIDE))?;
                change_network(world, act, &mut rng)?
            }
            Act::Restart | Act::Kill => {
                self.finish(world, |_, undo| matches!(undo, Undo::PutBack(..)))?;
                let Some(gateway) = world.gateway.take() else { return Ok(Outcome::Skipped) };
                end_daemon(gateway, act)?;
                Some(Undo::StartDaemon)
            }
        };
        self.0.extend(undo.map(|undo| (due, undo)));
        Ok(Outcome::Done)
    }
}

fn change_tenant(world: &mut World, act: Act, slot: Slot, rng: &mut StdRng) -> Result<Outcome> {
    if world.gateway.is_none() || (act != Act::AddTenant && !world.tenants.has(slot)) {
        return Ok(Outcome::Skipped);
    }
    let outcome = match act {
        Act::RemoveTenant => world.remove(slot).map(|()| world.tenants.note_removed(slot)),
        _ => {
            let body = world.tenants.draw(slot, act == Act::ChangeEgress, rng);
            world.put(slot, &body).map(|_| world.tenants.note_put(slot, body))
        }
    };
    match outcome {
        Ok(()) => Ok(Outcome::Done),
        // While an interface is away, and nothing else.
        Err(ClientError::Refused { .. }) => Ok(Outcome::Refused),
        Err(error) => Err(error).with_context(|| world.describe()),
    }
}

/// Takes something from an interface, as somebody with the kernel's own tools would.
fn disturb(world: &World, act: Act, device: &'static str) -> Result<Option<Undo>> {
    let pins = pins(world, device)?;
    let before = match &world.gateway {
        Some(_) => Some(world.disturbances(device)?.0),
        None => None,
    };
    match act {
        Act::DetachGuard => detach(world, &pins.join("guard"))?,
        Act::RemovePins => std::fs::remove_dir_all(&pins)?,
        Act::ReplaceProgram => {
            let other = self::pins(world, if device == INSIDE { OUTSIDE } else { INSIDE })?.join("program");
            let other = other.to_str().context("a path")?.to_owned();
            detach(world, &pins.join("link"))?;
            // The daemon may be faster.
            bpftool(world, &["net", "attach", "xdp", "pinned", &other, "dev", device])?;
        }
        _ => {
            // One that nobody attached again is detached already.
            let is_detached = detach(world, &pins.join("link"));
            is_detached.or_else(|error| if before.is_none() { Ok(()) } else { Err(error) })?;
        }
    }
    Ok(before.map(|before| Undo::PutBack(device, before)))
}

fn change_link(world: &World, act: Act, device: &'static str, rng: &mut StdRng) -> Result<Undo> {
    let gateway = world.lab.namespace(Host::Gateway);
    let (line, undo) = match act {
        Act::Rename => (format!("link set {device} name {device}x"), Undo::NameBack(device)),
        Act::Mtu => {
            let mtu = [1280, 1400, 1450][rng.random_range(0..3)];
            (format!("link set {device} mtu {mtu}"), Undo::MtuBack(device))
        }
        _ => (format!("link set {device} down"), Undo::LinkUp(device)),
    };
    gateway.ip(&line)?;
    Ok(undo)
}

fn change_network(world: &World, act: Act, rng: &mut StdRng) -> Result<Option<Undo>> {
    let gateway = world.lab.namespace(Host::Gateway);
    let wrong = format!("02:00:00:00:99:{:02x}", rng.random::<u8>());
    let (line, undo) = match act {
        Act::WrongNeighbour => (
            format!("neigh replace {SERVER} lladdr {wrong} dev {OUTSIDE} nud reachable"),
            Some(Undo::RightNeighbour),
        ),
        Act::WithdrawDefault => {
            (format!("route del default via {ROUTER} dev {OUTSIDE}"), Some(Undo::DefaultRoute))
        }
        Act::WithdrawReturn => {
            let (network, node) = World::return_route(rng.random_range(0..2));
            let other = NODES.iter().map(|it| it.address).find(|address| *address != node).unwrap_or(node);
            let (line, undo) = match rng.random() {
                true => (format!("route del {network} dev {INSIDE}"), None),
                false => (
                    format!("route replace {network} via {other} dev {INSIDE} proto static"),
                    Some(Undo::ReturnRoute(network)),
                ),
            };
            // The daemon may not have made it yet, or the interface may be away.
            let _ = gateway.ip(&line);
            return Ok(undo);
        }
        Act::ServerMac => {
            let line = format!("link set eth0 address {wrong}");
            world.lab.namespace(Host::Server).ip(&line)?;
            return Ok(Some(Undo::ServerMac));
        }
        _ => {
            let _ = gateway.ip("neigh flush all");
            return Ok(None);
        }
    };
    gateway.ip(&line)?;
    Ok(undo)
}

fn end_daemon(mut gateway: Gateway, act: Act) -> Result<()> {
    if act == Act::Kill {
        return gateway.kill().map(drop);
    }
    let status = gateway.stop()?;
    ensure!(status.success(), "the daemon ended with {status}:\n{}", last_lines(&gateway.log()));
    Ok(())
}

fn carry_out(world: &mut World, undo: &Undo) -> Result<()> {
    let gateway = world.lab.namespace(Host::Gateway);
    let default = format!("route replace default via {ROUTER} dev {OUTSIDE}");
    match undo {
        Undo::LinkUp(device) => {
            gateway.ip(&format!("link set {device} up"))?;
            if *device == OUTSIDE {
                gateway.ip(&default)?;
            }
        }
        Undo::NameBack(device) => drop(gateway.ip(&format!("link set {device}x name {device}"))?),
        Undo::MtuBack(device) => drop(gateway.ip(&format!("link set {device} mtu 1500"))?),
        Undo::RightNeighbour => world.right_neighbour()?,
        Undo::ServerMac => {
            let mac = world.frames.macs.server.map(|byte| format!("{byte:02x}")).join(":");
            world.lab.namespace(Host::Server).ip(&format!("link set eth0 address {mac}"))?;
        }
        Undo::DefaultRoute => drop(gateway.ip(&default)?),
        Undo::ReturnRoute(network) => {
            // It went with the interface, if that was down.
            let _ = gateway.ip(&format!("route del {network} proto static"));
        }
        Undo::PutBack(device, before) => wait::until("what was taken is put back", PUT_BACK, || {
            let (count, trouble) = world.disturbances(device)?;
            Ok((count > *before && trouble.is_none()).then_some(()))
        })
        .with_context(|| world.describe())?,
        Undo::StartDaemon => {
            world.gateway = Some(Gateway::start(&world.lab, world.installation.clone())?);
        }
    }
    Ok(())
}

/// Returns the directory of an interface's pins.
fn pins(world: &World, device: &str) -> Result<PathBuf> {
    let side = if device == INSIDE { "inside-" } else { "outside-" };
    for entry in std::fs::read_dir(world.lab.pin_dir())? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(side)) {
            return Ok(path);
        }
    }
    bail!("no pins of {device}")
}

fn detach(world: &World, pin: &std::path::Path) -> Result<()> {
    let pin = pin.to_str().context("a path")?;
    ensure!(bpftool(world, &["link", "detach", "pinned", pin])?, "{pin} is not detached");
    Ok(())
}

/// Runs bpftool in the gateway's namespace; tells whether it succeeded.
fn bpftool(world: &World, arguments: &[&str]) -> Result<bool> {
    let mut bpftool = world.lab.namespace(Host::Gateway).command("bpftool");
    Ok(command::run(bpftool.args(arguments), LIMIT)?.status.success())
}
