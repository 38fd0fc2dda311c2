//! Where a person is among the pages, and what follows from a key.

use crate::answers::{Addressing, Answers, Cluster, DiskWish, End, Network, Root};
use crate::hardware::Level;
use crate::install::{Plan, Step};
use crate::machine::Machine;

use super::form::{Form, Key};
use super::page::Page;

/// What is on the screen.
#[derive(Clone, Debug)]
pub(super) enum View {
    /// A page that asks.
    Page(usize),
    /// The installation runs.
    Progress { step: Step, done: u64, total: u64 },
    /// It has ended: well, or with a reason.
    Result(Result<String, String>),
}

/// What the terminal has to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Nothing but show it.
    Nothing,
    /// Install.
    Install(Box<Plan>),
    /// End so.
    End(End),
}

/// Everything that the screens know.
pub(super) struct State {
    pub(super) machine: Machine,
    pub(super) view: View,
    pub(super) forms: Vec<Form>,
    /// How far the list of findings is scrolled.
    pub(super) scroll: u16,
    /// What to correct.
    pub(super) message: Option<String>,
    pub(super) plan: Option<Plan>,
    answers: Answers,
}

impl State {
    pub(super) fn new(machine: Machine) -> Self {
        let forms = Page::ALL.map(|page| page.form(&machine)).to_vec();
        Self {
            machine,
            view: View::Page(0),
            forms,
            scroll: 0,
            message: None,
            plan: None,
            answers: Answers {
                host_name: String::new(),
                time_zone: String::new(),
                disk: DiskWish::default(),
                network: Network {
                    addressing: Addressing::Dhcp,
                    ..Network::default()
                },
                root: Root::default(),
                cluster: Cluster::Single,
                end: End::Reboot,
            },
        }
    }

    /// Takes a key.
    pub(super) fn key(&mut self, key: Key) -> Command {
        match self.view {
            View::Page(page) => self.page_key(page, key),
            View::Result(Ok(_)) if key == Key::Enter => Command::End(self.answers.end),
            View::Result(Err(_)) => match key {
                Key::Enter => Command::End(End::Shell),
                Key::Escape => {
                    self.view = View::Page(1);
                    Command::Nothing
                }
                _ => Command::Nothing,
            },
            View::Progress { .. } | View::Result(Ok(_)) => Command::Nothing,
        }
    }

    fn page_key(&mut self, page: usize, key: Key) -> Command {
        self.message = None;
        if key == Key::Escape {
            if page == 0 {
                return Command::End(End::Shell);
            }
            self.view = View::Page(page - 1);
            return Command::Nothing;
        }
        if Page::ALL[page] == Page::Hardware {
            match key {
                Key::Up => self.scroll = self.scroll.saturating_sub(1),
                Key::Down => self.scroll = self.scroll.saturating_add(1).min(200),
                _ => {}
            }
        }
        if !self.forms[page].key(key) {
            return Command::Nothing;
        }
        match self.leave(page) {
            Ok(command) => command,
            Err(message) => {
                self.message = Some(message);
                Command::Nothing
            }
        }
    }

    fn leave(&mut self, page: usize) -> Result<Command, String> {
        if page == 0 {
            let findings = self.machine.hardware.findings.iter();
            let mut bad = findings.filter(|finding| finding.level == Level::Bad);
            if let Some(finding) = bad.next() {
                return Err(format!("{}: {}", finding.subject, finding.text));
            }
        }
        let form = &self.forms[page];
        Page::ALL[page].read(form, &self.machine, &mut self.answers)?;
        if let Page::Cluster = Page::ALL[page] {
            // All is known: what the next page sums up.
            let plan = self.machine.plan(self.answers.clone());
            self.plan = Some(plan.map_err(|error| error.to_string())?);
        }
        let Some(mut plan) = self.plan.clone().filter(|_| page + 1 == Page::ALL.len()) else {
            self.view = View::Page(page + 1);
            return Ok(Command::Nothing);
        };
        plan.answers.end = self.answers.end;
        Ok(Command::Install(Box::new(plan)))
    }

    /// The installation has begun.
    pub(super) fn begin(&mut self) {
        self.view = View::Progress {
            step: Step::Clear,
            done: 0,
            total: 1,
        };
    }

    /// A step of it begins.
    pub(super) fn step(&mut self, new: Step) {
        if let View::Progress { step, .. } = &mut self.view {
            *step = new;
        }
    }

    /// Bytes were copied.
    pub(super) fn bytes(&mut self, now: u64, of: u64) {
        if let View::Progress { done, total, .. } = &mut self.view {
            (*done, *total) = (now, of.max(1));
        }
    }

    /// It has ended.
    pub(super) fn end(&mut self, result: Result<String, String>) {
        self.view = View::Result(result);
    }
}
