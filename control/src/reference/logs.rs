//! The page about the log.

use super::{head, table};
use crate::logging::Format;
use crate::logging::fields::FIELDS;
use crate::logging::filter::Filter;
use crate::logging::journal::PREFIX;
use crate::logging::limit::{OF_PLACE, OF_WORDS, TOLD_EACH};
use crate::logging::targets::{CRATES, LIBRARIES, QUIET, TARGETS};
use crate::policy::Choice;

/// What each level is for.
const LEVELS: [(&str, &str); 5] = [
    ("error", "Something that should be served is not, or state is lost. Somebody has to look."),
    (
        "warn",
        "Something was refused, or is not as it should be; the gateway goes on, or tries again by itself.",
    ),
    ("info", "The gateway's state changes: start and stop, tenants, links, addresses, routes, interfaces."),
    ("debug", "The steps by which it does that, and what is in order but may be asked for."),
    ("trace", "Nothing of Spillway's own; libraries use it."),
];

/// Returns the page.
pub(super) fn page() -> String {
    head("The log", "`control/src/logging`")
        + "\nThe daemon logs on stderr, or to the journal where stderr is the journal. No line has a token, at any level.\n"
        + &levels()
        + &targets()
        + &forms()
        + &fields()
        + &limits()
}

fn levels() -> String {
    let rows = LEVELS.map(|(level, meaning)| vec![format!("`{level}`"), meaning.to_owned()]);
    "\n## Levels\n\n".to_owned() + &table(&["level", "meaning"], rows)
}

fn targets() -> String {
    let initial = Filter::default();
    let row = |name: &str, meaning: &str| vec![format!("`{name}`"), meaning.to_owned()];
    let rows = TARGETS.iter().map(|target| row(target.name, target.meaning));
    let libraries = row(LIBRARIES, "the libraries that Spillway is made of, such as those below");
    let crates = CRATES.map(|name| format!("`{name}`")).join(", ");
    format!(
        "
## Targets and filters

A filter is a level for all, levels by target, or both: `info,kubernetes=debug`. Without a level for all it is
`{initial}`. The targets, whose names stay when the code changes:

{}
A module of the code may be named too, such as `control::kubernetes::follow`; the nearest name counts. A level for all that is
finer than `info` holds for Spillway's own code only: name `{LIBRARIES}` or one of its parts ({crates}) for more. {} are silent
unless they are named, since the gateway tells of what they tell of once.

The filter at start is that of `--log`, else of the environment's `RUST_LOG`, else of `[log] level` in the
[config file](config.md), else `{initial}`. While the daemon runs:

```sh
spillway log
spillway log set kubernetes=debug
spillway log set info,kubernetes=debug --for 10m
spillway log reset
```

`--for` goes back by itself. A restart goes back to what the start says. Over the [control socket](api.md#logview) it is
`/v1/log`; setting takes the same right as changing tenants.
",
        table(&["target", "tells of"], rows.chain([libraries])),
        QUIET.map(|name| format!("`{name}`")).join(" and "),
    )
}

fn forms() -> String {
    let rows =
        Format::WORDS.iter().map(|(_, word, meaning)| vec![format!("`{word}`"), (*meaning).to_owned()]);
    format!(
        "
## Forms

`[log] format` in the config file, or `--log-format`:

{}
Only a terminal gets colours.

**JSON.** One object on each line; `fields` is left out when there are none:

```json
{{\"time\":\"2026-11-21T12:00:00.000250Z\",\"level\":\"info\",\"target\":\"tenants\",\"message\":\"tenant put\",\"fields\":{{\"pid\":4711,\"tenant\":\"ns-blue\",\"uid\":0}}}}
```

**Journal.** `MESSAGE` is the message with the fields after it, the level `PRIORITY` (3 error, 4 warn, 6 info, 7 debug and trace), each
field also one of the journal's with `{PREFIX}_` before it, and the target `{PREFIX}_TARGET`; the journal adds the time:

```sh
journalctl -u spillway -p warning
journalctl -u spillway {PREFIX}_TENANT=ns-blue
journalctl -u spillway -F {PREFIX}_TARGET
```
",
        table(&["format", "meaning"], rows)
    )
}

fn fields() -> String {
    let rows = FIELDS.iter().map(|(name, meaning)| vec![format!("`{name}`"), (*meaning).to_owned()]);
    "\n## Fields\n\nWhat an event tells beside its message. A name means the same wherever it is.\n\n"
        .to_owned()
        + &table(&["field", "meaning"], rows)
}

fn limits() -> String {
    format!(
        "
## What repeats

A line that says the same to the letter passes {} times at once, then once each {} s. A place in the code, whatever it says, passes
{} times at once, then {} times a second. What is over it is counted, and within {} s a line of the same level says
`N more of these were not logged`, with the count as field. `spillway log` has the sum since the start. New sessions that were
refused are told once a minute for each tenant and reason, with the number of packets.
",
        OF_WORDS.burst,
        OF_WORDS.each.as_secs(),
        OF_PLACE.burst,
        1000 / OF_PLACE.each.as_millis(),
        TOLD_EACH.as_secs(),
    )
}
