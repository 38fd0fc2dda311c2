//! Where the answer file is.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::hardware::{self, Link};
use crate::program;

/// The kernel's word for it.
const WORD: &str = "pindah.answer=";
/// What stands in a URL for the MAC address of a network card of the machine.
const MAC: &str = "{mac}";
/// The file system that has it.
const LABEL: &str = "PINDAH";
/// Its name there.
const FILE: &str = "pindah.toml";
/// More is no answer file.
const LIMIT: u64 = 1 << 20;
/// How long the network may take to come up, and how often it is tried.
const DEADLINE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_secs(3);
/// Debian's certificate authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where the answer file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// On a web server.
    Url(String),
    /// In a file.
    File(PathBuf),
    /// On a device with the label `PINDAH`.
    Device(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => formatter.write_str(url),
            Self::File(path) => write!(formatter, "{}", path.display()),
            Self::Device(device) => write!(formatter, "{} on {}", FILE, device.display()),
        }
    }
}

impl Source {
    /// What a person or the kernel's command line calls it.
    pub fn parse(text: &str) -> Self {
        if text.starts_with("http://") || text.starts_with("https://") {
            Self::Url(text.to_owned())
        } else {
            Self::File(text.into())
        }
    }

    /// The one that the kernel's command line names, or a stick with its label.
    ///
    /// # Errors
    /// The command line does not read.
    pub fn find(command_line: &Path) -> anyhow::Result<Option<Self>> {
        let text = std::fs::read_to_string(command_line)
            .with_context(|| format!("cannot read {}", command_line.display()))?;
        if let Some(named) = of_command_line(&text) {
            return Ok(Some(named));
        }
        // A stick takes a moment.
        let _ = program::run("udevadm", &["settle", "--timeout=10"], b"");
        let arguments = ["--cache-file", "/dev/null", "--label", LABEL];
        let device = program::run("blkid", &arguments, b"").unwrap_or_default();
        let device = device.trim();
        Ok((!device.is_empty()).then(|| Self::Device(device.into())))
    }

    /// The answers' text; none if a device has no such file.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn read(&self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Url(url) => fetch(url).map(Some),
            Self::File(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.with_context(|| format!("cannot read {}", path.display()))?;
                Ok(Some(text))
            }
            Self::Device(device) => read_from(device),
        }
    }
}

fn of_command_line(text: &str) -> Option<Source> {
    let mut words = text.split_whitespace();
    let value = words.find_map(|word| word.strip_prefix(WORD))?;
    (!value.is_empty()).then(|| Source::parse(value))
}

fn read_from(device: &Path) -> anyhow::Result<Option<String>> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let (from, to) = (device.as_os_str(), directory.path().as_os_str());
    program::run("mount", &["-o".as_ref(), "ro".as_ref(), from, to], b"")?;
    let read = std::fs::read_to_string(directory.path().join(FILE));
    program::run("umount", &[to], b"")?;
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(read.with_context(|| {
            format!("cannot read {FILE} on {}", device.display())
        })?)),
    }
}

/// Tries until the network is up. A server that has answers for none of the machine's cards has
/// spoken too.
fn fetch(url: &str) -> anyhow::Result<String> {
    let agent = agent();
    let end = Instant::now() + DEADLINE;
    loop {
        let urls = for_cards(url, &hardware::links("/".as_ref()));
        let mut refused = Vec::new();
        for url in &urls {
            match agent.get(url).call() {
                Ok(answer) => return text_of(url, answer),
                Err(ureq::Error::StatusCode(status)) => {
                    refused.push(format!("{url}: the server answers {status}"));
                }
                Err(error) if Instant::now() > end => {
                    return Err(error).with_context(|| {
                        format!("cannot reach {url}: check cable, DHCP and the server")
                    });
                }
                Err(_) => {}
            }
        }
        if !refused.is_empty() && refused.len() == urls.len() {
            bail!("{}; is the address right?", refused.join(", "));
        }
        if urls.is_empty() && Instant::now() > end {
            bail!("{url} needs a network card, and none is seen");
        }
        std::thread::sleep(PAUSE);
    }
}

/// `url` with the MAC address of each card in the place of `{mac}`: those that have a link first.
fn for_cards(url: &str, links: &[Link]) -> Vec<String> {
    if !url.contains(MAC) {
        return vec![url.to_owned()];
    }
    let (linked, others): (Vec<&Link>, Vec<&Link>) = links.iter().partition(|link| link.carrier);
    let cards = linked.into_iter().chain(others);
    cards.map(|card| url.replace(MAC, &card.mac)).collect()
}

fn text_of(url: &str, mut answer: ureq::http::Response<ureq::Body>) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut body = answer.body_mut().as_reader().take(LIMIT + 1);
    body.read_to_string(&mut text)
        .with_context(|| format!("cannot read {url}"))?;
    if text.len() as u64 > LIMIT {
        bail!("{url} has more than {LIMIT} bytes, which is no answer file");
    }
    Ok(text)
}

fn agent() -> ureq::Agent {
    let mut config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(30)));
    // What a site has added to the image counts, too.
    if let Ok(text) = std::fs::read(AUTHORITIES) {
        let authorities = parse_pem(&text).filter_map(Result::ok);
        let authorities: Vec<Certificate<'static>> = authorities
            .filter_map(|item| match item {
                PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            })
            .collect();
        let roots = RootCerts::from(authorities);
        config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
    }
    config.build().into()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn kernel_names_a_url_or_a_path_or_nothing() {
        let url = Source::Url("https://x/a.toml".to_owned());
        let line = "BOOT_IMAGE=/x boot=live pindah.answer=https://x/a.toml quiet\n";
        assert_eq!(of_command_line(line), Some(url));
        let file = Source::File("/run/live/medium/a.toml".into());
        let line = "pindah.answer=/run/live/medium/a.toml";
        assert_eq!(of_command_line(line), Some(file));
        for line in ["boot=live", "pindah.answer=", "xpindah.answer=/a"] {
            assert_eq!(of_command_line(line), None);
        }
    }

    #[test]
    fn url_has_the_address_of_each_card_and_that_of_a_linked_one_first() {
        let link = |mac: &str, carrier| Link {
            name: "eno1".to_owned(),
            mac: mac.to_owned(),
            driver: "tg3".to_owned(),
            carrier,
            speed_mbit_s: None,
        };
        let links = [
            link("00:00:00:00:00:01", false),
            link("00:00:00:00:00:02", true),
        ];
        let expected = [
            "http://x/00:00:00:00:00:02.toml",
            "http://x/00:00:00:00:00:01.toml",
        ];
        assert_eq!(for_cards("http://x/{mac}.toml", &links), expected);
        assert_eq!(for_cards("http://x/a.toml", &links), ["http://x/a.toml"]);
    }

    /// A web server that answers once.
    fn serve(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        format!("http://{address}/node.toml")
    }

    #[test]
    fn answers_come_from_a_web_server() {
        let url = serve("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\na=1");
        assert_eq!(Source::parse(&url).read().unwrap().unwrap(), "a=1");
        let url = serve("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let error = Source::parse(&url).read().unwrap_err().to_string();
        assert!(error.contains("the server answers 404"), "{error}");
    }
}
