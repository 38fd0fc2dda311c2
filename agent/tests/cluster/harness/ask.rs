//! What a node of the site is asked: by `pindah`, and by its API.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::Site;
use crate::programs::pindah;

/// Events of a node, as they come.
pub struct Listener {
    path: PathBuf,
    process: Child,
}

impl Listener {
    /// All until now.
    pub fn heard(&self) -> String {
        fs::read_to_string(&self.path).unwrap_or_default()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What `pindah` printed, if it did what it was asked to; else why not.
pub type Said = Result<String, String>;

impl Site {
    /// `pindah`, as root on the node.
    pub fn command(&self, number: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.node(number).namespace])
            .arg(pindah())
            .args(arguments)
            .env("PINDAH_CONTEXT", self.state(number, "admin.json"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `pindah` on the node.
    pub fn pindah(&self, number: usize, arguments: &[&str]) -> Said {
        let output = self.command(number, arguments).output();
        let output = output.expect("pindah starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    /// Runs `pindah` on the node, until it does what it is asked to.
    pub fn must(&self, number: usize, arguments: &[&str]) -> String {
        match self.pindah(number, arguments) {
            Ok(said) => said,
            Err(error) => panic!("{arguments:?}: {error}\n{}", self.log(number)),
        }
    }

    /// What `pindah` prints as JSON; null if it refuses.
    pub fn json(&self, number: usize, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let said = self.pindah(number, &all).unwrap_or_default();
        serde_json::from_str(&said).unwrap_or(Value::Null)
    }

    /// `curl` as root on the node, of a path of its API.
    fn curl(&self, number: usize, path: &str) -> Command {
        let context = fs::read(self.state(number, "admin.json")).expect("a context");
        let context: Value = serde_json::from_slice(&context).expect("a context");
        let text = |name: &str| context[name].as_str().expect("a text").to_owned();
        let authority = self.node(number).directory.join("ca.pem");
        fs::write(&authority, text("authority")).expect("a file");
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.node(number).namespace])
            .args(["curl", "--silent", "--no-buffer", "--cacert"])
            .arg(authority)
            .args([
                "--header",
                &format!("Authorization: Bearer {}", text("token")),
            ])
            .arg(format!("{}/api/v1{path}", text("server")))
            .stdin(Stdio::null());
        command
    }

    /// Status and body of an answer of the node's API; null if it is no JSON.
    pub fn get(&self, number: usize, path: &str) -> (u16, Value) {
        let mut command = self.curl(number, path);
        let output = command.args(["--write-out", "\n%{http_code}"]).output();
        let output = String::from_utf8_lossy(&output.expect("curl starts").stdout).into_owned();
        let (body, status) = output.rsplit_once('\n').unwrap_or_default();
        let body = serde_json::from_str(body).unwrap_or(Value::Null);
        (status.parse().unwrap_or(0), body)
    }

    /// Listens to a node's events.
    pub fn listen(&self, number: usize) -> Listener {
        let path = self.node(number).directory.join("events");
        let process = self
            .curl(number, "/events")
            .stdout(File::create(&path).expect("a file"))
            .spawn()
            .expect("curl starts");
        Listener { path, process }
    }
}
