use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::form::Key;
use super::state::{Command, State, View};
use super::view::draw;
use crate::answers::{Cluster, End};
use crate::disks::Disk;
use crate::first_boot::FirstBoot;
use crate::hardware::{Finding, Hardware, Level, Link, Virtualization};
use crate::install::{Plan, Step};
use crate::machine::Machine;

const TOKEN: &str = "pindah-join.0123456789abcdef.\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.10.0.0.1:7480";

fn disk(path: &str, content: &[&str]) -> Disk {
    Disk {
        path: path.to_owned(),
        size_bytes: 320 << 30,
        model: "LOGICAL VOLUME".to_owned(),
        sector_bytes: 512,
        content: content.iter().map(|line| (*line).to_owned()).collect(),
        ..Disk::default()
    }
}

fn machine(findings: Vec<Finding>) -> Machine {
    let link = |name: &str, mac: &str, carrier| Link {
        name: name.to_owned(),
        mac: mac.to_owned(),
        driver: "tg3".to_owned(),
        carrier,
        speed_mbit_s: Some(1000),
    };
    Machine {
        root: "/nonexistent".into(),
        squashfs: "/nonexistent/x.squashfs".into(),
        disks: vec![
            disk("/dev/sda", &["partition 1: ntfs \"Windows\""]),
            disk("/dev/sdb", &[]),
        ],
        hardware: Hardware {
            machine: "HP ProLiant DL380 G4".to_owned(),
            virtualization: Virtualization::Missing("Xeon".to_owned()),
            links: vec![
                link("eno1", "00:00:00:00:00:01", false),
                link("eno2", "00:00:00:00:00:02", true),
            ],
            findings,
        },
    }
}

fn finding(level: Level) -> Finding {
    let text = "512 MiB are too little".to_owned();
    Finding {
        level,
        subject: "Memory",
        text,
    }
}

/// What a terminal of 80 by 24 shows.
fn screen(state: &State) -> String {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| draw(frame, state)).unwrap();
    let text = terminal.backend().to_string();
    assert!(text.is_ascii(), "{text}");
    text
}

fn type_in(state: &mut State, text: &str) {
    for c in text.chars() {
        assert!(matches!(state.key(Key::Char(c)), Command::Nothing));
    }
}

/// Presses Enter and returns the plan, if that is all.
fn enter(state: &mut State) -> Option<Box<Plan>> {
    match state.key(Key::Enter) {
        Command::Install(plan) => Some(plan),
        Command::Nothing => None,
        Command::End(end) => panic!("ends by {end:?}"),
    }
}

#[track_caller]
fn shows(state: &State, parts: &[&str]) {
    let shown = screen(state);
    for part in parts {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
}

/// A state whose next page is the one with this number.
fn at(page: usize) -> State {
    let mut state = State::new(machine(vec![finding(Level::Good)]));
    state.view = View::Page(page);
    state
}

#[test]
fn person_goes_through_all_pages_and_gets_what_was_typed() {
    let mut state = State::new(machine(vec![finding(Level::Good)]));
    shows(
        &state,
        &[
            "This machine (1 of 7)",
            "HP ProLiant DL380 G4",
            "ok Memory: 512 MiB",
        ],
    );
    enter(&mut state);
    shows(
        &state,
        &[
            "Disk (2 of 7)",
            "/dev/sda (320.0 GiB, LOGICAL VOLUME)",
            "ntfs \"Windows\"",
        ],
    );
    state.key(Key::Right);
    shows(&state, &["/dev/sdb", "Nothing is on it."]);
    enter(&mut state);
    enter(&mut state);
    // The interface with a link is offered.
    shows(
        &state,
        &[
            "Network (3 of 7)",
            "< eno2 (00:00:00:00:00:02, tg3, 1000 Mbit/s) >",
        ],
    );
    enter(&mut state);
    type_in(&mut state, "20");
    enter(&mut state);
    state.key(Key::Right);
    enter(&mut state);
    type_in(&mut state, "10.0.0.7/24");
    enter(&mut state);
    type_in(&mut state, "10.0.0.1");
    enter(&mut state);
    type_in(&mut state, "10.0.0.1, 9.9.9.9");
    enter(&mut state);
    shows(&state, &["Name and place (4 of 7)", "UTC"]);
    type_in(&mut state, "node7");
    enter(&mut state);
    enter(&mut state);
    for _ in 0..2 {
        type_in(&mut state, "long enough");
        enter(&mut state);
    }
    shows(&state, &["Access (5 of 7)", "***********"]);
    assert!(!screen(&state).contains("long enough"));
    enter(&mut state);
    state.key(Key::Right);
    state.key(Key::Right);
    enter(&mut state);
    type_in(&mut state, "10.0.0.1");
    enter(&mut state);
    type_in(&mut state, TOKEN);
    shows(
        &state,
        &["Cluster (6 of 7)", "< join one >", "10.0.0.1:7480"],
    );
    enter(&mut state);
    enter(&mut state);
    shows(
        &state,
        &[
            "Summary (7 of 7)",
            "disk: /dev/sdb (320.0 GiB, LOGICAL VOLUME), which is blank",
            "network: 10.0.0.7 in VLAN 20 on eno2",
            "joins the cluster of 10.0.0.1 as a witness, without guests",
            "Enter: INSTALL",
        ],
    );
    state.key(Key::Right);
    let plan = enter(&mut state).unwrap();
    assert_eq!(plan.answers.end, End::PowerOff);
    assert_eq!(plan.disk.path, "/dev/sdb");
    assert_eq!(plan.answers.network.dns.len(), 2);
    assert!(plan.answers.root.password_hash.is_some());
    assert!(matches!(plan.answers.cluster, Cluster::Join { .. }));
    assert!(matches!(
        plan.first_boot,
        Some(FirstBoot::Join { witness: true, .. })
    ));
}

#[test]
fn disk_with_something_on_it_wants_the_word() {
    let mut state = at(1);
    enter(&mut state);
    type_in(&mut state, "erase");
    assert!(enter(&mut state).is_none());
    shows(
        &state,
        &["Disk (2 of 7)", "! /dev/sda is not blank: type ERASE"],
    );
    for _ in 0..5 {
        state.key(Key::Backspace);
    }
    type_in(&mut state, "ERASE");
    enter(&mut state);
    shows(&state, &["Network (3 of 7)"]);
}

#[test]
fn disk_in_use_is_told_before_and_refused_after() {
    let mut state = at(1);
    state.machine.disks[0].used_by = Some("/dev/sda1 is swap (swapoff /dev/sda1)".to_owned());
    shows(&state, &["It is in use: /dev/sda1 is swap"]);
    enter(&mut state);
    type_in(&mut state, "ERASE");
    enter(&mut state);
    shows(
        &state,
        &["! /dev/sda (320.0 GiB, LOGICAL VOLUME) is in use"],
    );
}

#[test]
fn wrong_answers_are_refused_where_they_are() {
    for (page, keys, message) in [
        (2, "\n\n>\n10.0.0.7\n\n\n", "as \"192.168.0.11/24\""),
        (
            2,
            "\n\n>\n10.0.0.7/24\n10.9.0.1\n\n",
            "is not in the network of",
        ),
        (2, "\n5000\n\n\n\n\n", "a number from 1 to 4094"),
        (2, "\n\n\n\n\nnobody\n", "IP address"),
        (3, "Node\n\n", "host name \"Node\""),
        (3, "node\n/../x\n", "no such zone"),
        (4, "\n\n\n", "nobody could log in"),
        (4, "one\ntwo\n\n", "the two passwords differ"),
        (4, "short\nshort\n\n", "at least 8 characters"),
        (4, "\n\nssh-dss AAAA\n", "no public key"),
        (5, ">>\n10.0.0.1\nabc\n\n", "no join token"),
        (5, ">>\n\nabc\n\n", "a node's address"),
    ] {
        let mut state = at(page);
        for c in keys.chars() {
            let key = match c {
                '\n' => Key::Enter,
                '>' => Key::Right,
                c => Key::Char(c),
            };
            assert!(matches!(state.key(key), Command::Nothing));
        }
        assert!(
            matches!(state.view, View::Page(now) if now == page),
            "{keys:?}"
        );
        shows(&state, &["! "]);
        assert!(
            state.message.as_ref().unwrap().contains(message),
            "{:?}",
            state.message
        );
        state.key(Key::Up);
        assert_eq!(state.message, None);
    }
}

#[test]
fn machine_that_is_too_small_goes_no_further_than_the_first_page() {
    let mut state = State::new(machine(vec![finding(Level::Bad)]));
    enter(&mut state);
    shows(
        &state,
        &["This machine (1 of 7)", "! Memory: 512 MiB are too little"],
    );
    assert!(matches!(state.key(Key::Escape), Command::End(End::Shell)));
}

#[test]
fn progress_is_a_bar_and_the_end_is_told() {
    let mut state = at(6);
    state.begin();
    state.step(Step::Root);
    state.bytes(50, 200);
    shows(
        &state,
        &[
            "Copying the system",
            "[###############  ",
            "] 25 %",
            "Do not turn",
        ],
    );
    assert!(matches!(state.key(Key::Escape), Command::Nothing));
    state.end(Ok("node7 is installed".to_owned()));
    shows(&state, &["Done", "node7 is installed"]);
    assert!(matches!(state.key(Key::Enter), Command::End(End::Reboot)));
    state.end(Err("cannot write to /dev/sda".to_owned()));
    shows(&state, &["has failed", "cannot write to /dev/sda"]);
    assert!(matches!(state.key(Key::Escape), Command::Nothing));
    shows(&state, &["Disk (2 of 7)"]);
}

#[test]
fn long_token_and_many_findings_stay_on_the_screen() {
    let many = (0..40).map(|_| finding(Level::Warning)).collect();
    let mut state = State::new(machine(many));
    for _ in 0..3 {
        state.key(Key::Down);
    }
    assert!(!screen(&state).contains("HP ProLiant"));
    for _ in 0..3 {
        state.key(Key::Up);
    }
    shows(&state, &["HP ProLiant", "!! Memory"]);
}
