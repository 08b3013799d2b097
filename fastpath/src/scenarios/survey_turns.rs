//! Several ask a worker at once, and it looks at no more of its table in a turn than if one did.

use std::time::Duration;

use conntrack::TenantId;
use crossbeam::channel::{Receiver, bounded};

use super::leave;
use super::surveys::ask;
use crate::snapshot::Side::{Inside, Outside};
use crate::survey::{Act, Answer, Cursor, Question, SessionFilter, SurveyError, Surveyor};
use crate::testing::rig::Rig;
use crate::testing::{gateway, udp_frame};

const ENTRIES: u32 = 16 * 1024;
const SPAN: u32 = 128;
/// Turns in which a worker goes through its table.
const WHOLE: u32 = ENTRIES / SPAN;

/// Asks a worker for something that it does not find, so that it looks at everything.
fn ask_for(rig: &Rig, act: Act) -> Receiver<Answer> {
    let (reply, answers) = bounded(1);
    let filter = SessionFilter { tenant: Some(TenantId(77)), ..SessionFilter::default() };
    assert!(rig.mailboxes[0].ask(Question { filter, act, from: 0, reply }));
    answers
}

/// Asks for ports, and does as if others were still to come behind those that there are.
fn ask_for_all_ports(rig: &Rig) -> Receiver<Answer> {
    let (reply, answers) = bounded(1);
    let act = Act::Ports { uses: Vec::with_capacity(300), seen: 0 };
    let question = Question { filter: SessionFilter::default(), act, from: SPAN, reply };
    assert!(rig.mailboxes[0].ask(question));
    answers
}

fn ports() -> Act {
    Act::Ports { uses: Vec::with_capacity(300), seen: 0 }
}

fn turns_until(rig: &mut Rig, answers: &Receiver<Answer>) -> u32 {
    let turns = (1..10_000).find(|_| {
        rig.turn(0);
        !answers.is_empty()
    });
    turns.expect("it is answered")
}

/// Makes one worker with a session in a table that has room for many.
fn rig() -> Rig {
    let mut rig = Rig::with_room_for(ENTRIES, gateway().spec());
    leave(&mut rig, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x"));
    rig
}

#[test]
fn a_turn_looks_at_a_bounded_piece_of_the_table_whether_frames_come_or_not() {
    let mut rig = rig();
    let answers = ask_for(&rig, Act::End(0));
    assert_eq!(turns_until(&mut rig, &answers), WHOLE);
    let (answers, mut turns) = (ask_for(&rig, Act::End(0)), 0);
    while answers.is_empty() {
        rig.inject(0, Inside, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x"));
        assert_eq!(rig.turn(0), 1);
        assert_eq!(rig.take(Outside).len(), 1);
        turns += 1;
    }
    assert_eq!(turns, WHOLE);
}

#[test]
fn surveys_of_every_kind_take_turns() {
    let mut rig = rig();
    let asked = [
        ask_for(&rig, Act::List(Vec::with_capacity(10))),
        ask_for(&rig, Act::Copy(Vec::with_capacity(10))),
        ask_for(&rig, Act::End(0)),
        ask_for_all_ports(&rig),
    ];
    (0..4 * (WHOLE - 1) - 1).for_each(|_| {
        rig.turn(0);
    });
    assert!(asked.iter().all(Receiver::is_empty), "none is done long before the others");
    (0..4).for_each(|_| {
        rig.turn(0);
    });
    assert!(asked.iter().all(|answers| answers.try_recv().is_ok_and(|answer| answer.next.is_none())));
    assert!(rig.is_at_rest());
}

#[test]
fn ports_are_found_in_the_midst_of_long_lists() {
    let mut rig = rig();
    let lists: Vec<_> = (0..3).map(|_| ask_for(&rig, Act::List(Vec::with_capacity(10)))).collect();
    (0..10).for_each(|_| {
        rig.turn(0);
    });
    let answers = ask_for(&rig, ports());
    assert!(turns_until(&mut rig, &answers) <= 4);
    let Ok(Answer { act: Act::Ports { uses, .. }, next: None }) = answers.try_recv() else {
        panic!("one look finds them all");
    };
    assert_eq!(uses.len(), 1);
    assert!(lists.iter().all(Receiver::is_empty));
}

#[test]
fn the_ports_of_an_empty_table_are_one_look() {
    let mut rig = Rig::with_room_for(ENTRIES, gateway().spec());
    let answers = ask_for(&rig, ports());
    assert_eq!(turns_until(&mut rig, &answers), 1);
    assert_eq!(answers.try_recv().unwrap().next, None);
}

#[test]
fn a_list_goes_on_while_ports_are_asked_for_without_a_pause() {
    let mut rig = rig();
    let list = ask_for(&rig, Act::List(Vec::with_capacity(10)));
    let (mut asked, mut turns) = (ask_for(&rig, ports()), 0);
    while list.is_empty() {
        rig.turn(0);
        turns += 1;
        if asked.try_recv().is_ok() {
            asked = ask_for(&rig, ports());
        }
    }
    assert!(turns <= 2 * WHOLE, "every other turn is the list's, but it took {turns}");
}

#[test]
fn a_worker_with_a_huge_table_answers_before_its_end() {
    let mut rig = Rig::with_room_for(100_000, gateway().spec());
    let answers = ask_for(&rig, Act::List(Vec::with_capacity(10)));
    assert_eq!(turns_until(&mut rig, &answers), 512);
    assert_eq!(answers.try_recv().unwrap().next, Some(512 * SPAN));
}

#[test]
fn where_many_ask_a_list_is_refused_and_ports_are_counted_when_there_is_room() {
    let mut rig = rig();
    let asked: Vec<_> = (0..4).map(|_| ask_for(&rig, Act::End(0))).collect();
    let surveyor = Surveyor { mailboxes: rig.mailboxes.clone() };
    let refused = surveyor.list(&SessionFilter::default(), Cursor::default(), 10);
    assert_eq!(refused, Err(SurveyError::Busy(0)));
    let mut ports = 0;
    assert_eq!(ask(&mut rig, |surveyor| surveyor.count_ports(|_| ports += 1)), Ok(()));
    assert_eq!(ports, 1);
    rig.wait(Duration::ZERO);
    assert!(asked.iter().all(|answers| !answers.is_empty()));
}
