//! `pindah man`: a manual page for each command.

use std::path::Path;

use anyhow::Context;

/// Writes `pindah.1`, `pindah-guest.1`, `pindah-guest-create.1`, … into `directory`.
pub(super) fn write(command: clap::Command, directory: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write manual pages to {}", directory.display());
    std::fs::create_dir_all(directory).with_context(failed)?;
    clap_mangen::generate_to(command, directory).with_context(failed)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Arguments;
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        write(Arguments::command(), directory.path()).unwrap();
        let mut checked = 0;
        for noun in Arguments::command().get_subcommands() {
            let verbs = noun.get_subcommands();
            let names =
                verbs.map(|verb| format!("pindah-{}-{}.1", noun.get_name(), verb.get_name()));
            let own = format!("pindah-{}.1", noun.get_name());
            for name in names.chain([own, "pindah.1".to_owned()]) {
                let page = std::fs::read_to_string(directory.path().join(&name));
                assert!(page.is_ok_and(|page| page.contains(".SH NAME")), "{name}");
                checked += 1;
            }
        }
        assert!(checked > 20);
    }
}
