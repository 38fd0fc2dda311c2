//! Denies every path, TCP port, abstract socket and foreign process (landlock(7)).

use std::fmt::{Display, Formatter};

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest rights that we know; older kernels enforce what they have of them.
const NEWEST: ABI = ABI::V10;

/// What the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// All that we know to deny.
    Full,
    /// What this kernel's version of Landlock can deny: paths at least.
    Partial,
    /// Nothing: the kernel has no Landlock, or it is not among the active security modules.
    Missing,
}

impl Display for Landlock {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full => "on",
            Self::Partial => "on as far as this kernel has it",
            Self::Missing => "missing in this kernel: paths are guarded by seccomp alone",
        })
    }
}

/// Handles every right, and grants none by any rule.
///
/// # Errors
/// The kernel has Landlock and refuses the rules all the same.
pub(super) fn deny_all() -> Result<Landlock, RulesetError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::Missing,
    })
}
