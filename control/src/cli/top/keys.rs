//! What the keys do.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Model, Sort, Tab};

/// What `?` shows.
pub(super) const HELP: &[(&str, &str)] = &[
    ("1 2 3 4", "tenants, workers, drops, ports"),
    ("Tab, ← →", "the next or previous of them"),
    ("↑ ↓, k j", "move by a row"),
    ("PgUp PgDn", "move by a page"),
    ("Home End", "to the first or last row"),
    ("/", "show what has these letters; Enter keeps them, Esc drops them"),
    ("r o i", "sort tenants by rate, out, in"),
    ("s n d a", "sort by sessions, new sessions, drops, name"),
    ("R", "the other way round"),
    ("Space", "pause, and go on"),
    ("q, Ctrl-C", "end"),
];

impl Model {
    /// Does what a key asks for; tells whether it asks for the end.
    pub(super) fn press(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return false;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return matches!(key.code, KeyCode::Char('c' | 'd'));
        }
        if self.is_typing {
            self.type_filter(key.code);
        } else if std::mem::take(&mut self.shows_help) {
            return key.code == KeyCode::Char('q');
        } else {
            match key.code {
                KeyCode::Char('q') => return true,
                code => self.choose(code),
            }
        }
        self.keep_row();
        false
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => {}
        }
    }

    fn choose(&mut self, code: KeyCode) {
        let (tab, tabs) = (Tab::ALL.iter().position(|tab| *tab == self.tab).unwrap_or(0), Tab::ALL.len());
        match code {
            KeyCode::Char(number @ '1'..='4') => self.open(number as usize - '1' as usize),
            KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => self.open((tab + 1) % tabs),
            KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => self.open((tab + tabs - 1) % tabs),
            KeyCode::Up | KeyCode::Char('k') => self.row = self.row.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.row += 1,
            KeyCode::PageUp => self.row = self.row.saturating_sub(self.page),
            KeyCode::PageDown => self.row += self.page,
            KeyCode::Home | KeyCode::Char('g') => self.row = 0,
            KeyCode::End | KeyCode::Char('G') => self.row = usize::MAX,
            KeyCode::Char(' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('?') => self.shows_help = true,
            KeyCode::Char('R') => self.is_reversed = !self.is_reversed,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char(letter) => self.sort_by(letter),
            _ => {}
        }
    }

    fn open(&mut self, tab: usize) {
        self.tab = Tab::ALL[tab];
        self.row = 0;
    }

    fn sort_by(&mut self, letter: char) {
        let sort = match letter {
            'r' => Sort::Rate,
            'o' => Sort::Out,
            'i' => Sort::In,
            's' => Sort::Sessions,
            'n' => Sort::New,
            'd' => Sort::Drops,
            'a' => Sort::Name,
            _ => return,
        };
        (self.sort, self.is_reversed) = (sort, false);
    }
}
