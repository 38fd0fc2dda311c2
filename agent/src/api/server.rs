//! HTTPS, and nothing else.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use hyper_util::rt::TokioTimer;
use rustls::ServerConfig;
use thiserror::Error;

/// How long a client may take for its headers.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Size of a request's head, in bytes.
const HEAD_MAX: usize = 32 << 10;
/// How long answers that are under way may take when the agent ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why nobody can connect.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address.
    #[error("cannot listen on {address}; is another agent running, or listen set wrongly?")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server has ended.
    #[error("the API has ended")]
    Ended(#[source] io::Error),
}

/// An API that listens, and whose certificate can be changed while it serves.
pub struct Server {
    address: SocketAddr,
    listener: TcpListener,
    tls: RustlsConfig,
}

/// An API that serves.
pub struct Running {
    address: SocketAddr,
    handle: Handle<SocketAddr>,
    server: tokio::task::JoinHandle<io::Result<()>>,
}

impl Server {
    /// Listens on `listen`, and proves itself as `tls` says.
    ///
    /// # Errors
    /// [`ServeError::Listen`].
    pub fn listen(listen: SocketAddr, tls: Arc<ServerConfig>) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen {
            address: listen,
            source,
        };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let tls = RustlsConfig::from_config(tls);
        Ok(Self {
            address,
            listener,
            tls,
        })
    }

    /// Where its certificate can be changed.
    pub fn tls(&self) -> RustlsConfig {
        self.tls.clone()
    }

    /// Serves these paths.
    ///
    /// # Errors
    /// [`ServeError::Listen`].
    pub fn serve(self, router: Router) -> Result<Running, ServeError> {
        let address = self.address;
        let failed = |source| ServeError::Listen { address, source };
        let handle = Handle::new();
        let server = axum_server::from_tcp_rustls(self.listener, self.tls).map_err(failed)?;
        let mut server = server.handle(handle.clone());
        server
            .http_builder()
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_DEADLINE)
            .max_buf_size(HEAD_MAX);
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        Ok(Running {
            address,
            handle,
            server: tokio::spawn(server.serve(service)),
        })
    }
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until `end` does.
    ///
    /// # Errors
    /// [`ServeError::Ended`]: it ended by itself.
    pub async fn until(mut self, end: impl Future<Output = ()>) -> Result<(), ServeError> {
        tokio::select! {
            ended = &mut self.server => {
                let ended = ended.unwrap_or_else(|error| Err(io::Error::other(error)));
                ended.map_err(ServeError::Ended)
            }
            () = end => {
                self.handle.graceful_shutdown(Some(FAREWELL));
                let _ = tokio::time::timeout(FAREWELL * 2, self.server).await;
                Ok(())
            }
        }
    }
}
