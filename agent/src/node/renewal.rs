//! The node's certificate, made anew in time.

use std::time::{Duration, Instant};

use axum_server::tls_rustls::RustlsConfig;

use crate::causes::chain;
use crate::cluster::{ClusterError, Site, own_names};
use crate::config::Config;
use crate::security::Authority;

/// How often it is looked whether the certificate must be made anew, and how long it is used.
const RENEWAL_LOOK: Duration = Duration::from_secs(60);
const RENEWAL_PERIOD: Duration = Duration::from_secs(30 * 24 * 3600);

/// Makes the node's certificate anew in time, and when its addresses change.
pub(super) struct Renewal {
    pub(super) config: Config,
    pub(super) site: Site,
    pub(super) authority: Authority,
    pub(super) names: Vec<String>,
    pub(super) everybody: RustlsConfig,
    pub(super) nodes: Option<RustlsConfig>,
}

impl Renewal {
    /// For ever.
    pub(super) async fn run(mut self) {
        let mut issued = Instant::now();
        loop {
            tokio::time::sleep(RENEWAL_LOOK).await;
            let address = self.site.member.as_ref();
            let address = address.map(|member| member.membership.address);
            let names = own_names(&self.config, address).await;
            if names == self.names && issued.elapsed() < RENEWAL_PERIOD {
                continue;
            }
            match self.renew(&names) {
                Ok(()) => {
                    tracing::info!("this node has a new certificate");
                    issued = Instant::now();
                    self.names = names;
                }
                Err(error) => tracing::error!("no new certificate: {}", chain(&error)),
            }
        }
    }

    fn renew(&self, names: &[String]) -> Result<(), ClusterError> {
        let certificate = self.authority.issue(names)?;
        self.everybody.reload_from_config(certificate.server()?);
        if let Some(nodes) = &self.nodes {
            nodes.reload_from_config(certificate.server_for_nodes()?);
        }
        match &self.site.member {
            Some(member) => member.renew(&certificate),
            None => Ok(()),
        }
    }
}
