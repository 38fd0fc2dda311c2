//! Rows that a person fills in.

/// A key, whatever the terminal calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// To the row above.
    Up,
    /// To the row below.
    Down,
    /// The choice before.
    Left,
    /// The choice after.
    Right,
    /// On.
    Enter,
    /// Back.
    Escape,
    /// The last character goes.
    Backspace,
    /// A character.
    Char(char),
}

/// What a row holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Text; hidden if it is a secret.
    Text { text: String, hidden: bool },
    /// One of several.
    Choice { options: Vec<String>, chosen: usize },
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) label: &'static str,
    pub(super) value: Value,
}

impl Row {
    pub(super) fn text(label: &'static str, text: &str) -> Self {
        let text = text.to_owned();
        let hidden = false;
        let value = Value::Text { text, hidden };
        Self { label, value }
    }

    pub(super) fn secret(label: &'static str) -> Self {
        let text = String::new();
        let hidden = true;
        let value = Value::Text { text, hidden };
        Self { label, value }
    }

    pub(super) fn choice(label: &'static str, options: Vec<String>, chosen: usize) -> Self {
        let value = Value::Choice { options, chosen };
        Self { label, value }
    }

    /// What is shown.
    pub(super) fn shown(&self) -> String {
        match &self.value {
            Value::Text { text, hidden: true } => "*".repeat(text.chars().count()),
            Value::Text { text, .. } => text.clone(),
            Value::Choice { options, chosen } => {
                let option = options.get(*chosen).map_or("none", |option| option);
                format!("< {option} >")
            }
        }
    }
}

/// Rows, of which one has the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) rows: Vec<Row>,
    pub(super) focus: usize,
}

/// Longest text that a row takes, in characters: a join token, or a key of RSA.
const TEXT_MAX: usize = 1000;

impl Form {
    pub(super) fn new(rows: Vec<Row>) -> Self {
        Self { rows, focus: 0 }
    }

    /// The text of a row.
    pub(super) fn text_of(&self, row: usize) -> &str {
        match self.rows.get(row).map(|row| &row.value) {
            Some(Value::Text { text, .. }) => text,
            _ => "",
        }
    }

    /// The number of a row's choice.
    pub(super) fn choice_of(&self, row: usize) -> usize {
        match self.rows.get(row).map(|row| &row.value) {
            Some(Value::Choice { chosen, .. }) => *chosen,
            _ => 0,
        }
    }

    /// Takes a key; true if the person is through with the form.
    pub(super) fn key(&mut self, key: Key) -> bool {
        let last = self.rows.len().saturating_sub(1);
        match key {
            Key::Up => self.focus = self.focus.saturating_sub(1),
            Key::Down => self.focus = (self.focus + 1).min(last),
            Key::Enter if self.focus == last => return true,
            Key::Enter => self.focus += 1,
            key => {
                if let Some(row) = self.rows.get_mut(self.focus) {
                    edit(&mut row.value, key);
                }
            }
        }
        false
    }
}

fn edit(value: &mut Value, key: Key) {
    match (value, key) {
        (Value::Text { text, .. }, Key::Char(c))
            if !c.is_control() && text.chars().count() < TEXT_MAX =>
        {
            text.push(c);
        }
        (Value::Text { text, .. }, Key::Backspace) => {
            text.pop();
        }
        (Value::Choice { chosen, .. }, Key::Left) => *chosen = chosen.saturating_sub(1),
        (Value::Choice { options, chosen }, Key::Right | Key::Char(' ')) => {
            *chosen = (*chosen + 1).min(options.len().saturating_sub(1));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fill_in_rows_and_leave_after_the_last() {
        let options = vec!["DHCP".to_owned(), "fixed".to_owned()];
        let rows = vec![
            Row::text("a", "x"),
            Row::choice("b", options, 0),
            Row::secret("c"),
        ];
        let mut form = Form::new(rows);
        for key in [Key::Backspace, Key::Char('n'), Key::Char('1'), Key::Enter] {
            assert!(!form.key(key));
        }
        for key in [
            Key::Right,
            Key::Right,
            Key::Down,
            Key::Char('p'),
            Key::Char('w'),
        ] {
            assert!(!form.key(key));
        }
        assert_eq!(
            (form.text_of(0), form.choice_of(1), form.text_of(2)),
            ("n1", 1, "pw")
        );
        assert_eq!(form.rows[1].shown(), "< fixed >");
        assert_eq!(form.rows[2].shown(), "**");
        assert!(form.key(Key::Enter));
        assert!(!form.key(Key::Up) && form.focus == 1);
    }
}
