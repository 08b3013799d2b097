//! Changes of tenants that come together.

use std::thread;

use anyhow::{Context, Result};
use control::client::{BlockingClient, ClientError};
use control::demo::topology::{Host, PODS};
use serde_json::{Value, json};
use spillway_tests::fixture::Fixture;

const TENANTS: u8 = 40;
/// Has a gateway address whose link's name is taken by somebody else.
const WITHOUT_LINK: u8 = 7;
/// Want the same egress address.
const RIVALS: [u8; 2] = [11, 12];

#[test]
fn of_changes_that_come_together_each_succeeds_or_fails_by_itself() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let gateway = fixture.lab.namespace(Host::Gateway);
    gateway.ip(&format!("link add {} type veth peer other-end", link(WITHOUT_LINK)))?;
    let socket = &fixture.gateway.installation().socket;
    let outcomes: Vec<Result<Value, ClientError>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..TENANTS)
            .map(|number| {
                scope.spawn(move || {
                    let client = BlockingClient::new(socket).expect("there are descriptors left");
                    client.put(&format!("/v1/tenants/{}", name(number)), &body(number))
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("no client panics")).collect()
    });
    let listed = fixture.gateway.installation().json(&["tenant", "list"])?.to_string();
    let (links, addresses) = (gateway.ip("-brief link show type macvlan")?, gateway.ip("-4 address show")?);
    let mut rivals_refused = 0;
    for (number, outcome) in (0..TENANTS).zip(&outcomes) {
        let is_refused = match outcome {
            Ok(view) => {
                assert_eq!(view["tenant"]["name"], name(number));
                false
            }
            Err(error) => {
                rivals_refused += usize::from(RIVALS.contains(&number));
                assert!(RIVALS.contains(&number) || number == WITHOUT_LINK, "{}: {error}", name(number));
                true
            }
        };
        assert_eq!(listed.contains(&name(number)), !is_refused, "{}: {listed}", name(number));
        assert_eq!(links.contains(&link(number)), !is_refused, "{}: {links}", name(number));
        if !RIVALS.contains(&number) {
            let egress = format!("{}/32", egress(number));
            assert_eq!(addresses.contains(&egress), !is_refused, "{egress}: {addresses}");
        }
    }
    assert!(outcomes[usize::from(WITHOUT_LINK)].is_err() && rivals_refused == 1, "{outcomes:?}");
    fixture.seen_as(&PODS[0]).context("the tenants that were there have lost their service").map(drop)
}

fn name(number: u8) -> String {
    format!("crowd-{number:02}")
}

fn link(number: u8) -> String {
    format!("spw-c0a863{:02x}", 100 + number)
}

fn egress(number: u8) -> String {
    let number = if number == RIVALS[1] { RIVALS[0] } else { number };
    format!("192.168.55.{}", 150 + number)
}

fn body(number: u8) -> Value {
    json!({ "gatewayIP": format!("192.168.99.{}", 100 + number), "egressIPs": [egress(number)] })
}
