//! `pindah cluster …`.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use reqwest::Method;

use super::balance;
use super::output::{Output, properties, table};
use super::update::RolloutArguments;
use crate::api::{Data, JoinTokenCreated, NewJoinToken, NodeView};
use crate::client::{Client, Context};
use crate::cluster::{Admission, ClusterView, CpuView, InitRequest};
use crate::names::some_of;

/// How long a node that begins anew may take to answer.
const BEGIN_DEADLINE: Duration = Duration::from_secs(60);
/// How often it is asked.
const BEGIN_POLL: Duration = Duration::from_millis(300);

/// Several nodes that act as one.
#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Make this node the first of a cluster. Its guests run on.
    Init {
        /// Where other nodes find this one [default: its first address].
        #[arg(long)]
        address: Option<IpAddr>,
    },
    /// Show the cluster, and what to know about it.
    Show,
    /// Show the nodes' processors beside what new guests may see.
    Cpu {
        /// From now on new guests see what all nodes have in common.
        #[arg(long)]
        adopt: bool,
    },
    /// Show which guests should move so that the nodes share their load.
    Balance {
        /// Move them, one after the other.
        #[arg(long)]
        apply: bool,
    },
    /// Update all nodes, one after the other; the first that fails ends it.
    Update(RolloutArguments),
    /// Print a token by which one node may join.
    Token {
        /// How long it is good, in minutes.
        #[arg(long, value_name = "MINUTES", default_value_t = 60)]
        lifetime: u64,
    },
    /// Take this node into a cluster.
    Join {
        /// A node of the cluster, with a port if that is not 7480.
        address: String,
        /// What `pindah cluster token` printed there.
        token: String,
        /// Where other nodes find this one [default: its first address].
        #[arg(long = "own-address")]
        own_address: Option<IpAddr>,
        /// Vote, and run no guests.
        #[arg(long)]
        witness: bool,
    },
    /// Take this node, which has no guests any more, out of its cluster.
    Leave,
    /// Save all records in a file, which is as secret as the nodes themselves.
    Backup {
        /// The file; it must not be there.
        file: PathBuf,
    },
    /// Make this node the only one of its cluster, which has lost its majority for good.
    Recover {
        /// A backup [default: what this node has seen last].
        file: Option<PathBuf>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

impl ClusterCommand {
    /// `path`: where the node writes the context that root uses.
    pub(super) async fn run(
        self,
        client: &Client,
        path: &std::path::Path,
        output: Output,
    ) -> anyhow::Result<()> {
        match self {
            Self::Init { address } => {
                let request = InitRequest { address };
                let _: ClusterView = client.post("/cluster/init", &request).await?;
                show(&wait_until_it_serves(path).await?, output).await
            }
            Self::Show => show(client, output).await,
            Self::Cpu { adopt } => {
                let view: CpuView = if adopt {
                    client.post("/cluster/cpu/adopt", &()).await?
                } else {
                    client.get("/cluster/cpu").await?
                };
                output.show(&view, cpus)
            }
            Self::Balance { apply } => balance::run(client, apply, output).await,
            Self::Update(arguments) => arguments.run(client, output).await,
            Self::Token { lifetime } => {
                let new = NewJoinToken {
                    lifetime_s: Some(lifetime.saturating_mul(60)),
                };
                let created: JoinTokenCreated = client.post("/cluster/tokens", &new).await?;
                output.show(&created, |created| created.text.clone())
            }
            Self::Join {
                address,
                token,
                own_address,
                witness,
            } => {
                let order = Admission {
                    server: Some(address),
                    token,
                    address: own_address,
                    witness,
                };
                let request = client.request(Method::POST, "/cluster/join");
                client.send(request.json(&order)).await?;
                show(&wait_until_it_serves(path).await?, output).await
            }
            Self::Leave => {
                client
                    .send(client.request(Method::POST, "/cluster/leave"))
                    .await?;
                wait_until_it_serves(path).await?;
                Ok(())
            }
            Self::Backup { file } => backup(client, &file).await,
            Self::Recover { file, yes } => {
                if !yes {
                    bail!(
                        "the other nodes' votes are lost by this; say --yes if most of them never \
                         come back"
                    );
                }
                let mut request = client.request(Method::POST, "/cluster/recover");
                if let Some(file) = file {
                    let bytes = std::fs::read(&file);
                    request = request
                        .body(bytes.with_context(|| format!("cannot read {}", file.display()))?);
                }
                let answer = client.send(request).await?;
                let _: Data<ClusterView> = answer.json().await?;
                show(&wait_until_it_serves(path).await?, output).await
            }
        }
    }
}

async fn backup(client: &Client, file: &std::path::Path) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(file);
    let mut opened = opened.with_context(|| format!("cannot create {}", file.display()))?;
    let request = client.request(Method::GET, "/cluster/backup");
    let fetched = async { anyhow::Ok(client.send(request).await?.bytes().await?) };
    let written = match fetched.await {
        Ok(bytes) => opened
            .write_all(&bytes)
            .and_then(|()| opened.sync_all())
            .with_context(|| format!("cannot write {}", file.display())),
        Err(error) => Err(error),
    };
    if written.is_err() {
        // Half a backup is none.
        let _ = std::fs::remove_file(file);
    }
    written
}

/// The node's API, when it has begun anew: its context may be another one then.
async fn wait_until_it_serves(path: &std::path::Path) -> anyhow::Result<Client> {
    let end = Instant::now() + BEGIN_DEADLINE;
    // What answers before that is the node that is about to end.
    tokio::time::sleep(Duration::from_secs(1)).await;
    loop {
        let tried = async {
            let client = Client::new(Context::load(path)?)?;
            let _: Vec<NodeView> = client.list("/nodes").await?;
            anyhow::Ok(client)
        };
        match tried.await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > end => {
                return Err(error.context("the node does not answer as it should"));
            }
            Err(_) => tokio::time::sleep(BEGIN_POLL).await,
        }
    }
}

async fn show(client: &Client, output: Output) -> anyhow::Result<()> {
    let cluster: ClusterView = client.get("/cluster").await?;
    output.show(&cluster, |cluster| {
        let majority = if cluster.majority { "yes" } else { "no" };
        let head = properties(&[
            ("cluster", cluster.id.to_string()),
            ("this node", cluster.node.clone()),
            ("majority", majority.to_owned()),
            ("warning", cluster.warnings.join("; ")),
        ]);
        let members = cluster.members.iter().map(|member| {
            let votes = if member.votes { "yes" } else { "not yet" };
            vec![member.node.clone(), member.url.clone(), votes.to_owned()]
        });
        let members = table(&["MEMBER", "ADDRESS", "VOTES"], members);
        format!("{head}\n\n{members}")
    })
}

fn cpus(view: &CpuView) -> String {
    let or_nothing = |features: &[String]| match features {
        [] => "nothing".to_owned(),
        some => some_of(some),
    };
    let head = ["NODE", "VENDOR", "LACKS", "HAS IN VAIN"];
    let rows = view.nodes.iter().map(|node| {
        let (lacks, unused) = (or_nothing(&node.lacks), or_nothing(&node.unused));
        vec![node.node.clone(), node.vendor.clone(), lacks, unused]
    });
    table(&head, rows)
}
