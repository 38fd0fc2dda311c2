//! Builds the web page, which `src/web.rs` embeds.
//!
//! All of it happens in `OUT_DIR`. Where Node.js or npm is missing, or npm cannot fetch what the
//! page is made of, a page that says so is embedded instead: never one of an earlier build.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// Oldest Node.js that builds the page: Debian 12's.
const NODE_MAJOR: u32 = 18;
/// What the page is made of, in `web`.
const SOURCES: &[&str] = &[
    "compress.js",
    "index.html",
    "package-lock.json",
    "package.json",
    "public",
    "src",
    "svelte.config.js",
    "tsconfig.json",
    "vite.config.ts",
];
/// What its types are made of.
const OPENAPI: &str = "api/openapi.json";

fn main() {
    if let Err(error) = build() {
        eprintln!("the web page: {error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for source in SOURCES {
        println!("cargo::rerun-if-changed=web/{source}");
    }
    println!("cargo::rerun-if-changed={OPENAPI}");

    let page = out.join("page");
    remove(&page)?;
    copy_sources(&here, &out)?;
    match node_and_npm().and_then(|()| install(&out.join("web"))) {
        Ok(()) => {
            run(&out.join("web"), &["run", "build"])?;
            fs::rename(out.join("web/dist"), &page)?;
        }
        Err(missing) => {
            // What is not there has always changed: the next build tries again.
            println!("cargo::rerun-if-changed=web/built-without-npm");
            println!("cargo::warning=pindahd is built without its web page: {missing}");
            fs::create_dir(&page)?;
            fs::write(page.join("index.html"), placeholder(&missing))?;
        }
    }
    Ok(())
}

fn placeholder(missing: &str) -> String {
    let missing = missing.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html><html lang=\"en\"><title>Pindah</title>\
         <h1>This pindahd was built without its web page</h1>\
         <p>{missing}</p><p>The command line <code>pindah</code> and the API work.</p></html>\n"
    )
}

/// Says what is to be installed.
fn node_and_npm() -> Result<(), String> {
    let install =
        format!("install Node.js {NODE_MAJOR} or newer and npm (Debian: apt install npm)");
    let version = Command::new("node").arg("--version").output();
    let version = version.map_err(|_| format!("there is no node: {install}, then build again"))?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let major = version.trim_start_matches('v').split('.').next();
    let major = major.and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < NODE_MAJOR) {
        return Err(format!("node is {version}: {install}, then build again"));
    }
    let npm = Command::new("npm").arg("--version").output();
    npm.map_err(|_| format!("there is no npm: {install}, then build again"))?;
    Ok(())
}

/// What `package-lock.json` names, unless it is there already.
fn install(web: &Path) -> Result<(), String> {
    let lock = web.join("package-lock.json");
    let installed = web.join("node_modules/pindah-installed.json");
    let failed = |error: &dyn std::fmt::Display| {
        format!("npm cannot fetch what it is made of ({error}): is registry.npmjs.org reachable?")
    };
    let wanted = fs::read(&lock).map_err(|error| failed(&error))?;
    if fs::read(&installed).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    let fetch = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
    run(web, &fetch).map_err(|error| failed(&error))?;
    fs::write(&installed, wanted).map_err(|error| failed(&error))
}

fn run(web: &Path, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let output = Command::new("npm")
        .args(arguments)
        .current_dir(web)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Err(format!("npm {}: {}\n{text}", arguments.join(" "), output.status).into())
}

/// What is gone from the sources is gone from the copy too.
fn copy_sources(here: &Path, out: &Path) -> io::Result<()> {
    fs::create_dir_all(out.join("web"))?;
    fs::create_dir_all(out.join("api"))?;
    fs::copy(here.join(OPENAPI), out.join(OPENAPI))?;
    for source in SOURCES {
        let to = out.join("web").join(source);
        remove(&to)?;
        copy(&here.join("web").join(source), &to)?;
    }
    remove(&out.join("web/dist"))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(|_| ());
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
