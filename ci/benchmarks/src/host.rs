//! What the figures were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::artifacts::Artifacts;
use crate::subject::Subject;

const UNKNOWN: &str = "unknown";

/// Prints host, date and subjects.
pub fn describe(artifacts: &Artifacts, subjects: &[Box<dyn Subject>]) -> Result<()> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpus = std::thread::available_parallelism()?;
    let model = field(&cpuinfo, "model name").unwrap_or(UNKNOWN);
    let kernel = first_line("/proc/sys/kernel/osrelease");
    let load = first_line("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or(UNKNOWN);
    println!("date      {}", said(&["date", "--iso-8601=seconds"]));
    println!("kernel    Linux {kernel}");
    println!("CPU       {cpus} × {model}, {}", flavour(&cpuinfo));
    println!("load      {load}{}", warning(load, cpus.get()));
    println!("commit    {}", commit(artifacts));
    for subject in subjects {
        match subject.version() {
            Ok(version) => println!("{:<14} {version}", subject.name()),
            Err(error) => println!("{:<14} {error:#}", subject.name()),
        }
    }
    Ok(())
}

/// Other work takes the CPUs from what is measured.
fn warning(load: &str, cpus: usize) -> &'static str {
    match load.parse::<f64>() {
        Ok(load) if load > 0.5 * cpus as f64 => " (this host is busy: expect bad figures)",
        _ => "",
    }
}

/// Which module of Linux is behind /dev/kvm.
fn flavour(cpuinfo: &str) -> String {
    let flags = field(cpuinfo, "flags").unwrap_or_default();
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    // Both are there where they are built into the kernel: the CPU decides.
    if has("vmx") {
        return "kvm_intel".to_owned();
    }
    if has("svm") {
        return "kvm_amd".to_owned();
    }
    let Ok(modules) = fs::read_dir("/sys/module") else {
        return UNKNOWN.to_owned();
    };
    let names = modules
        .flatten()
        .map(|module| module.file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.filter(|name| name.starts_with("kvm_")).collect();
    if names.is_empty() {
        return "no KVM module that we know".to_owned();
    }
    names.join(" ")
}

/// The source that was built.
fn commit(artifacts: &Artifacts) -> String {
    let directory = artifacts.directory.display().to_string();
    said(&["git", "-C", &directory, "describe", "--always", "--dirty"])
}

/// First value of a field of /proc/cpuinfo.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(Path::new(path)).unwrap_or_default();
    text.lines().next().unwrap_or(UNKNOWN).to_owned()
}

fn said(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.map(|output| output.stdout).unwrap_or_default();
    match String::from_utf8_lossy(&output).trim() {
        "" => UNKNOWN.to_owned(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu svm\n";

    #[test]
    fn field_is_read() {
        assert_eq!(field(CPUINFO, "model name"), Some("Some CPU @ 3 GHz"));
        assert_eq!(field(CPUINFO, "bugs"), None);
    }

    #[test]
    fn flavour_of_cpu_with_svm_is_kvm_amd() {
        assert_eq!(flavour(CPUINFO), "kvm_amd");
    }

    #[test]
    fn warning_of_idle_host_is_empty() {
        assert_eq!(warning("0.30", 2), "");
        assert_ne!(warning("5.00", 2), "");
    }
}
