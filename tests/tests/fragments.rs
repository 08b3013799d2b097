//! Packets that are larger than a link come through in fragments, both ways.

use anyhow::{Context, Result};
use control::demo::command::text;
use control::demo::topology::{PODS, SERVER};
use spillway_tests::fixture::{Fixture, received};
use spillway_tests::peers::{Peer, exchange, noise};

#[test]
fn every_large_ping_is_answered() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let target = SERVER.to_string();
    for pod in &PODS {
        let ping =
            fixture.in_pod(pod, "ping", &["-n", "-c", "3", "-i", "0.2", "-W", "2", "-s", "4000", &target])?;
        let status = fixture.gateway.status()?;
        assert_eq!(received(&ping)?, 3, "pod {}: {}{}", pod.address, text(&ping.stdout), status["drops"]);
    }
    Ok(())
}

#[test]
fn large_datagrams_come_back_unchanged() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    for pod in &PODS {
        for length in [1373, 1473, 4000, 9000] {
            let sent = noise(length);
            let (client, got) = exchange(&fixture.lab, pod.host, &peer, &sent)
                .with_context(|| format!("{length} bytes from pod {}", pod.address))?;
            assert_eq!(client, pod.tenant.egress, "pod {}", pod.address);
            assert!(got == sent, "{length} bytes from pod {} came back changed", pod.address);
        }
    }
    Ok(())
}
