//! Whether the machine that was built here is the one that the guest lives in.

use pindah_vmm_api::VmConfig;

use crate::migration::protocol::Hello;

/// Compares what a guest can see of its machine. What stands behind it on the host (paths, taps,
/// kinds of memory) may differ.
///
/// # Errors
/// What differs, for a person.
pub fn check(hello: &Hello, ours: &VmConfig, regions: &[(u64, u64)]) -> Result<(), String> {
    let theirs = &hello.config;
    let same = |what: &str, theirs: &dyn ToString, ours: &dyn ToString| {
        let (theirs, ours) = (theirs.to_string(), ours.to_string());
        if theirs == ours {
            Ok(())
        } else {
            Err(format!("{what} is {theirs} at the source and {ours} here"))
        }
    };
    same("cpus.count", &theirs.cpus.count, &ours.cpus.count)?;
    let cores = |config: &VmConfig| config.cpus.cores_per_socket.unwrap_or(config.cpus.count);
    same("cpus.cores_per_socket", &cores(theirs), &cores(ours))?;
    let threads = |config: &VmConfig| config.cpus.threads_per_core;
    same("cpus.threads_per_core", &threads(theirs), &threads(ours))?;
    let size = |config: &VmConfig| config.memory.size_mib;
    same("memory.size_mib", &size(theirs), &size(ours))?;
    same(
        "the number of disks",
        &theirs.disks.len(),
        &ours.disks.len(),
    )?;
    for (index, (theirs, ours)) in theirs.disks.iter().zip(&ours.disks).enumerate() {
        let of = |field: &str| format!("disks[{index}].{field}");
        same(
            &of("id"),
            &text(theirs.id.as_deref()),
            &text(ours.id.as_deref()),
        )?;
        same(&of("read_only"), &theirs.read_only, &ours.read_only)?;
        same(
            &of("serial"),
            &text(theirs.serial.as_deref()),
            &text(ours.serial.as_deref()),
        )?;
        same(&of("queues"), &theirs.queues, &ours.queues)?;
        same(&of("queue_size"), &theirs.queue_size, &ours.queue_size)?;
    }
    same("the number of nets", &theirs.nets.len(), &ours.nets.len())?;
    for (index, (theirs, ours)) in theirs.nets.iter().zip(&ours.nets).enumerate() {
        let of = |field: &str| format!("nets[{index}].{field}");
        same(
            &of("id"),
            &text(theirs.id.as_deref()),
            &text(ours.id.as_deref()),
        )?;
        same(
            &of("mac"),
            &text(theirs.mac.as_deref()),
            &text(ours.mac.as_deref()),
        )?;
        same(&of("queue_pairs"), &theirs.queue_pairs, &ours.queue_pairs)?;
        same(&of("queue_size"), &theirs.queue_size, &ours.queue_size)?;
    }
    same("rng", &theirs.rng, &ours.rng)?;
    let balloon = |config: &VmConfig| config.balloon.is_some();
    same("a balloon", &balloon(theirs), &balloon(ours))?;
    let console = |config: &VmConfig| config.console.is_some();
    same("a console", &console(theirs), &console(ours))?;
    if hello.regions != regions {
        return Err(
            "guest RAM lies elsewhere: one machine boots by firmware and the other by a \
                    kernel, or by firmware of another size"
                .to_owned(),
        );
    }
    Ok(())
}

fn text(value: Option<&str>) -> &str {
    value.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> VmConfig {
        let text = format!("memory = {{ size_mib = 64 }}\nboot = {{ kernel = '/k' }}\n{toml}");
        let format = crate::config::Format::Toml;
        let config = crate::config::Config::parse(&text, format, "x").unwrap();
        VmConfig::clone(&config)
    }

    fn hello(toml: &str) -> Hello {
        Hello {
            vmm_version: "1".to_owned(),
            config: config(toml),
            regions: vec![(0, 64 << 20)],
            data_connections: 1,
            verify_memory: false,
            may_leave_pages: false,
        }
    }

    #[test]
    fn machine_with_other_host_sides_is_compatible() {
        let net = |tap| format!("[[nets]]\nid = 'a'\nmac = '52:54:00:00:00:01'\ntap = '{tap}'");
        let theirs = hello(&net("t0"));
        assert_eq!(
            check(&theirs, &config(&net("t1")), &[(0, 64 << 20)]),
            Ok(())
        );
    }

    #[test]
    fn unlike_machine_is_refused_by_name() {
        for (theirs, ours, expected) in [
            (
                "cpus = { count = 2 }",
                "",
                "cpus.count is 2 at the source and 1 here",
            ),
            (
                "balloon = {}",
                "",
                "a balloon is true at the source and false here",
            ),
            ("rng = false", "", "rng is false"),
            (
                "[[disks]]\npath = '/a'\nformat = 'raw'",
                "",
                "the number of disks is 1 at the source and 0 here",
            ),
            (
                "[[nets]]\ntap = 'a'\nmac = '52:54:00:00:00:01'",
                "[[nets]]\ntap = 'a'\nmac = '52:54:00:00:00:02'",
                "nets[0].mac is 52:54:00:00:00:01 at the source",
            ),
        ] {
            let refused = check(&hello(theirs), &config(ours), &[(0, 64 << 20)]).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
        let refused = check(&hello(""), &config(""), &[(0, 32 << 20)]).unwrap_err();
        assert!(refused.contains("RAM lies elsewhere"), "{refused}");
    }
}
