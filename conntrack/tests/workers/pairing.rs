//! Paired pooling: pods spread evenly over egress addresses, and each keeps its own.

use std::net::Ipv4Addr;

use crate::gateway::{Ask, At, Workers, tick};
use conntrack::{Direction, FiveTuple, Policy, Protocol, TenantId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const BLUE: TenantId = TenantId(0);

fn random_addresses(random: &mut StdRng, network: u32, mask: u32, count: usize) -> Vec<Ipv4Addr> {
    let mut addresses = Vec::new();
    while addresses.len() < count {
        let address = Ipv4Addr::from_bits(network | random.random::<u32>() & mask);
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

fn admit(gateway: &mut Workers, pool: &[Ipv4Addr], pod: Ipv4Addr, port: u16) -> At {
    let tuple = FiveTuple {
        source: pod,
        destination: Ipv4Addr::new(198, 51, 100, 1),
        source_port: port,
        destination_port: 53,
        protocol: Protocol::Udp,
    };
    let policy = &Policy::default();
    let ask = Ask { tenant: BLUE, tuple, opened_by: Direction::Outbound, pool, policy };
    let at = gateway.admit(&ask, tick(0)).unwrap();
    assert_eq!(gateway.find_outbound(BLUE, &tuple), Some(at));
    assert_eq!(gateway.find_inbound(BLUE, &outside(gateway, at).reversed()), Some(at));
    at
}

fn outside(gateway: &Workers, at: At) -> FiveTuple {
    gateway.tables[at.worker].session(at.id).outside_tuple()
}

/// Returns the variance of the pods on an address in parts of their mean.
fn relative_variance(gateway: &Workers, pool: &[Ipv4Addr]) -> f64 {
    let pods = pool.iter().map(|egress| f64::from(gateway.shared.ports(*egress).unwrap().pods()));
    let (sum, squares) = pods.fold((0.0, 0.0), |(sum, squares), pods| (sum + pods, squares + pods * pods));
    let addresses = f64::from(u32::try_from(pool.len()).unwrap());
    let mean = sum / addresses;
    (squares / addresses - mean * mean) / mean
}

#[test]
fn a_hundred_pods_spread_evenly_over_64_addresses() {
    let mut random = StdRng::seed_from_u64(1);
    let mut most = 0.0f64;
    for round in 0..1000 {
        let workers = [1, 2, 3, 8][round % 4];
        let pool = random_addresses(&mut random, 0xc633_0000, 0xffff, 64);
        let pods = random_addresses(&mut random, 0x0a84_0000, 0x3_ffff, 100);
        let mut gateway = Workers::new(workers, 400, &pool, 1);
        for pod in pods {
            admit(&mut gateway, &pool, pod, 40_000);
        }
        most = most.max(relative_variance(&gateway, &pool));
    }
    assert!(most < 0.30, "{most}");
}

#[test]
fn a_pod_keeps_its_address_among_others_that_come_and_go() {
    let mut random = StdRng::seed_from_u64(2);
    let pool = random_addresses(&mut random, 0xc633_0000, 0xffff, 64);
    let pods = random_addresses(&mut random, 0x0a84_0000, 0x3_ffff, 300);
    let mut gateway = Workers::new(3, 4000, &pool, 1);
    let kept: Vec<_> = pods[..20]
        .iter()
        .map(|pod| {
            let at = admit(&mut gateway, &pool[..40], *pod, 40_000);
            (*pod, outside(&gateway, at).source)
        })
        .collect();
    for (port, others) in (40_001..).zip(pods[20..].chunks(40)) {
        let others: Vec<_> =
            others.iter().map(|pod| admit(&mut gateway, &pool[..40], *pod, 40_000)).collect();
        for (pod, egress) in &kept {
            let at = admit(&mut gateway, &pool, *pod, port);
            assert_eq!(outside(&gateway, at).source, *egress);
        }
        for at in others {
            gateway.tables[at.worker].remove(at.id, tick(0));
        }
    }
    assert_eq!(gateway.sessions(), 20 * 8);
    gateway.expire(tick(1_000_000));
    gateway.assert_empty(&pool, 1);
}
