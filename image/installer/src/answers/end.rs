//! What happens when all is done.

/// What happens when the machine is installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// It starts again, from its disk.
    #[default]
    Reboot,
    /// It goes off.
    PowerOff,
    /// A person gets a shell.
    Shell,
}

impl End {
    /// All, with what an answer file calls them.
    pub const ALL: [(&'static str, Self); 3] = [
        ("reboot", Self::Reboot),
        ("power-off", Self::PowerOff),
        ("shell", Self::Shell),
    ];

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == text);
        let (_, end) = found.ok_or_else(|| {
            format!("end = {text:?}: write \"reboot\", \"power-off\" or \"shell\"")
        })?;
        Ok(end)
    }
}
