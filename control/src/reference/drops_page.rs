//! The page about dropped packets, with the diagram of where each is counted.

use fastpath::snapshot::Side;
use fastpath::stage::Stage;
use fastpath::steer::ROWS;

use super::drops::{PLACES, Place, help, row_help};
use super::{head, table};

/// Returns the page.
pub(super) fn page() -> String {
    let sections: String = Stage::ALL.into_iter().map(section).collect();
    head("Dropped packets", "`fastpath/src/verdict.rs` and `control/src/reference/drops.rs`")
        + INTRODUCTION
        + "\n## Where each is counted\n\n```mermaid\n"
        + &diagram()
        + "```\n"
        + &sections
        + &rows_of_xdp()
}

const INTRODUCTION: &str = "
Every packet that is not forwarded has a reason, and each reason is a counter: `spillway status` has them for the gateway,
`spillway tenant show NAME` for a tenant, both with `--json`. A packet is counted once, at the stage that drops it, for its
tenant where that is known, also when its sender gets an answer (RST or ICMP).
";

/// Returns the diagram: stages in the order in which a packet sees them, and the reasons that each counts.
pub(super) fn diagram() -> String {
    let mut lines = vec!["flowchart TD".to_owned(), "    wire([frame from a NIC]) --> s0".to_owned()];
    for (number, stage) in Stage::ALL.into_iter().enumerate() {
        lines.push(format!("    s{number}[{:?}]", stage.name()));
        let reasons: Vec<_> = places_of(stage).map(|place| place.reason.name()).collect();
        if !reasons.is_empty() {
            lines.push(format!("    s{number} -. dropped .-> d{number}{{{{{:?}}}}}", reasons.join("<br>")));
        }
    }
    lines.extend(WAYS.iter().map(|way| format!("    {way}")));
    lines.join("\n") + "\n"
}

/// How the stages follow each other, by their places in [`Stage::ALL`].
const WAYS: [&str; 6] = [
    "s0 -- to the worker of the queue --> s1",
    "s0 -- not a tenant's --> kernel([kernel])",
    "s1 --> s2 --> s3 --> s4 --> s5 --> s6 --> s7 --> s8",
    "s3 -- another worker has its datagram, or its session --> s8",
    "s8 -- taken up there --> s1",
    "s8 --> out([frame to a NIC])",
];

fn places_of(stage: Stage) -> impl Iterator<Item = &'static Place> {
    PLACES.iter().filter(move |place| place.reason.stage() == stage)
}

fn section(stage: Stage) -> String {
    let row = |place: &Place| {
        let (name, meaning) = (format!("`{}`", place.reason.name()), place.reason.help().to_owned());
        vec![name, place.origin.name().to_owned(), meaning, place.remedy.to_owned()]
    };
    if places_of(stage).next().is_none() {
        return format!("\n## Stage: {}\n\n{}\n", stage.name(), help(stage));
    }
    let rows = table(&["reason", "side", "meaning", "what to do"], places_of(stage).map(row));
    format!("\n## Stage: {}\n\n{}\n\n{rows}", stage.name(), help(stage))
}

fn rows_of_xdp() -> String {
    let row = |(side, name): &(Side, &str)| {
        vec![format!("`{name}`"), side.name().to_owned(), row_help(name).unwrap_or_default().to_owned()]
    };
    "\n## What the XDP program counts\n\nFrames by what the program of each interface decided, in `spillway status` under \
     the interface's name.\n\n"
        .to_owned()
        + &table(&["row", "side", "frames"], ROWS.iter().map(row))
}

#[cfg(test)]
mod tests {
    use fastpath::verdict::DropReason;

    use super::*;

    #[test]
    fn every_reason_is_in_the_diagram_once_at_its_stage() {
        let diagram = diagram();
        for reason in DropReason::ALL {
            let place = Stage::ALL.iter().position(|stage| *stage == reason.stage()).unwrap();
            let drops: Vec<_> = diagram
                .lines()
                .filter(|line| line.split(['"', '<', '>']).any(|word| word == reason.name()))
                .collect();
            assert_eq!(drops.len(), 1, "{reason:?} in {diagram}");
            assert!(drops[0].contains(&format!("-> d{place}{{{{")), "{reason:?}: {}", drops[0]);
        }
    }
}
