use super::*;

fn reading(at: Instant, millis: u64, sent: u64, completed: u64) -> Reading {
    Reading {
        at: at + Duration::from_millis(millis),
        progress: Progress { sent, probes: 0, waits: millis },
        counts: Counts { completed, translated: completed, ..Counts::default() },
    }
}

#[test]
fn handshakes_are_given_up_only_when_they_are_old() {
    let at = Instant::now();
    let mut readings = vec![reading(at, 0, 100, 0), reading(at, 100, 150, 90)];
    assert_eq!(given_up(&readings), 0, "none is old");
    readings.push(reading(at, 260, 160, 90));
    assert_eq!(given_up(&readings), 10, "the first hundred are");
    readings.push(reading(at, 600, 160, 160));
    assert_eq!(given_up(&readings), 0, "all were answered");
}

#[test]
fn the_rate_is_of_the_time_after_the_ramp() {
    let at = Instant::now();
    let readings = [(0, 0, 0), (100, 5000, 1000), (600, 30_000, 2000), (1100, 55_000, 3000)];
    let readings = readings.map(|(millis, sent, completed)| reading(at, millis, sent, completed));
    let sample = sum_up(Kind::Handshakes, &readings, &reading(at, 1400, 55_000, 3500), 7, 5.0).unwrap();
    assert_eq!((sample.offered, sample.made, sample.held), (50_000, 2000, 7));
    assert!((sample.seconds - 1.0).abs() < 1e-9 && (sample.rate() - 2.0).abs() < 1e-9);
    assert_eq!((sample.lost, sample.sender_waited), (51_500, true));
    assert!(sum_up(Kind::Handshakes, &readings[..2], &readings[1], 0, 0.0).is_none(), "only the ramp");
}

#[test]
fn a_sample_is_doubted_only_for_a_reason() {
    let good = Sample {
        seconds: 1.0,
        offered: 1000,
        made: 500,
        held: 500,
        refused: 0,
        lost: 0,
        damaged: 0,
        untranslated: 0,
        sender_waited: true,
        gateway_idle: 0.0,
    };
    let cases = [
        (Kind::Datagrams, good, 0),
        (Kind::Handshakes, good, 0),
        (Kind::Datagrams, Sample { made: 990, ..good }, 1),
        (Kind::Handshakes, Sample { sender_waited: false, ..good }, 1),
        (Kind::Handshakes, Sample { gateway_idle: 50.0, ..good }, 1),
        (Kind::Handshakes, Sample { damaged: 1, untranslated: 1, ..good }, 2),
    ];
    for (kind, sample, expected) in cases {
        assert_eq!(doubts(kind, System::Spillway, &sample).len(), expected, "{sample:?}");
    }
}

#[test]
fn ratios_compare_rounds_with_the_same_round_of_the_first_system() {
    let sample = |made| Sample {
        seconds: 1.0,
        offered: 4000,
        made,
        held: made,
        refused: 0,
        lost: 0,
        damaged: 0,
        untranslated: 0,
        sender_waited: true,
        gateway_idle: 0.0,
    };
    let first = [sample(1000), sample(500)];
    let row = Row::of(Kind::Datagrams, System::Spillway, vec![sample(2000), sample(1500)], &first);
    assert_eq!(row.ratio, Summary::of(&[2.0, 3.0]));
    assert_eq!(row.cells()[4], "2000");
}

#[test]
fn a_core_is_idle_for_its_share_of_the_time() {
    let idle = CoreTime { idle: 100, all: 1000 }.idle_until(CoreTime { idle: 150, all: 1200 });
    assert!((idle - 25.0).abs() < 1e-9, "{idle}");
    assert!(CoreTime::read(0).unwrap().all > 0 && CoreTime::read(4096).is_err());
}
