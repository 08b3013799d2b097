//! Times as people write them: RFC 3339, a time of today, a date and a time, or so long ago.

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

use super::who::Window;

/// The clock of sessions goes by tenths of a second.
const GRAIN: SignedDuration = SignedDuration::from_millis(100);

/// Reads a time as people write it. One without seconds is the whole minute.
///
/// # Errors
/// When it is none, or has not come yet; the message says what would be.
pub fn read(text: &str, now: &Zoned) -> Result<Window, String> {
    let (from, until) = span(text.trim(), now).ok_or_else(|| {
        format!(
            "{text:?} is no time; write 14:03, \"2026-01-31 14:03:05\", 2026-01-31T14:03:05Z or \"10m ago\""
        )
    })?;
    if from > now.timestamp() {
        return Err(format!("{text:?} is {from}, which has not come yet; add the date, or a zone such as Z"));
    }
    Ok(around(from, until))
}

/// Returns the window of a span of time, as wide as clocks are rough.
pub fn around(from: Timestamp, until: Timestamp) -> Window {
    Window { from: from.checked_sub(GRAIN).unwrap_or(from), until: until.checked_add(GRAIN).unwrap_or(until) }
}

fn span(text: &str, now: &Zoned) -> Option<(Timestamp, Timestamp)> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some((moment, moment));
    }
    if let Some(age) = text.strip_suffix("ago").map(str::trim).filter(|age| !age.starts_with('-')) {
        let age: jiff::Span = age.parse().ok()?;
        let moment = now.checked_sub(age).ok()?.timestamp();
        return (moment <= now.timestamp()).then_some((moment, moment));
    }
    let local = match text.parse::<DateTime>() {
        Ok(local) => local,
        Err(_) => now.date().to_datetime(text.parse::<Time>().ok()?),
    };
    let from = zoned(local, now.time_zone())?;
    let colons = text.matches(':').count();
    let is_minute = colons == 1;
    if colons == 0 {
        return None; // a day, or an hour
    }
    let until = if is_minute { zoned(local.checked_add(1.minute()).ok()?, now.time_zone())? } else { from };
    Some((from, until))
}

fn zoned(local: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    Some(local.to_zoned(zone.clone()).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-03-04T15:30:00+01:00[+01:00]".parse().unwrap()
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let table = [
            ("2026-03-04T13:03:05Z", "2026-03-04T13:03:05Z", 0),
            ("2026-03-04T14:03:05.25+01:00", "2026-03-04T13:03:05.25Z", 0),
            ("14:03", "2026-03-04T13:03:00Z", 60),
            (" 14:03:07 ", "2026-03-04T13:03:07Z", 0),
            ("2026-03-03 23:10", "2026-03-03T22:10:00Z", 60),
            ("2026-03-03T23:10:05", "2026-03-03T22:10:05Z", 0),
            ("10m ago", "2026-03-04T14:20:00Z", 0),
            ("2h 5m ago", "2026-03-04T12:25:00Z", 0),
            ("3 days ago", "2026-03-01T14:30:00Z", 0),
        ];
        for (text, from, seconds) in table {
            let from = time(from);
            let until = from.checked_add(seconds.seconds()).unwrap();
            assert_eq!(read(text, &now()), Ok(around(from, until)), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused_with_what_would_be() {
        for text in ["", "soon", "25:00", "ago", "-5m ago", "2026-13-01 10:00", "14"] {
            let refusal = read(text, &now()).unwrap_err();
            assert!(refusal.contains("is no time; write 14:03"), "{text}: {refusal}");
        }
        let later = read("16:00", &now()).unwrap_err();
        assert!(later.contains("has not come yet"), "{later}");
    }
}
