//! What a character device needs from the host, opened before the sandbox closes.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use pindah_vmm_api::SerialConfig;
use thiserror::Error;

use super::terminal;

/// Open descriptors behind a character device.
pub enum ChardevResources {
    /// Nowhere: only clients that are attached later.
    Off,
    /// The VMM's standard input and output.
    Stdio(StdioResources),
    /// Output is appended.
    File(File),
    /// Clients connect.
    Socket(SocketResources),
}

/// Standard input and output.
pub struct StdioResources {
    /// Where keys come from.
    pub input: File,
    /// Where output goes.
    pub output: File,
}

/// A listening Unix socket.
pub struct SocketResources {
    /// Bound and listening.
    pub listener: UnixListener,
    /// Removed at the end, if the sandbox lets us; `None` if it belongs to somebody else.
    pub path: Option<PathBuf>,
}

impl ChardevResources {
    /// Columns and rows of the terminal behind it; `None` if there is no terminal.
    pub fn terminal_size(&self) -> Option<(u16, u16)> {
        match self {
            Self::Stdio(stdio) => terminal::size(stdio.output.as_raw_fd()),
            _ => None,
        }
    }
}

/// Why the host side of a character device cannot be opened.
#[derive(Debug, Error)]
pub enum OpenChardevError {
    /// Standard input or output cannot be duplicated.
    #[error("cannot use standard input and output")]
    Stdio(#[source] io::Error),
    /// The file cannot be opened for appending.
    #[error("cannot append to {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process listens on the socket.
    #[error("{} is in use: another process listens on it", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is at the socket's path, and it is not ours to remove.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens what `config` names. A socket that a dead process left behind is replaced.
///
/// # Errors
/// [`OpenChardevError`].
pub fn open(config: &SerialConfig) -> Result<ChardevResources, OpenChardevError> {
    match config {
        SerialConfig::Off => Ok(ChardevResources::Off),
        SerialConfig::Stdio => open_stdio()
            .map(ChardevResources::Stdio)
            .map_err(OpenChardevError::Stdio),
        SerialConfig::File(path) => OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map(ChardevResources::File)
            .map_err(|source| OpenChardevError::File {
                path: path.clone(),
                source,
            }),
        SerialConfig::Socket(path) => listen(path).map(|listener| {
            ChardevResources::Socket(SocketResources {
                listener,
                path: Some(path.clone()),
            })
        }),
    }
}

fn open_stdio() -> io::Result<StdioResources> {
    Ok(StdioResources {
        input: open_own(io::stdin().as_fd(), OpenOptions::new().read(true))?,
        output: open_own(io::stdout().as_fd(), OpenOptions::new().write(true))?,
    })
}

/// Opens a terminal or pipe a second time, so that O_NONBLOCK does not reach the processes that
/// share the first file description. What cannot be reopened is duplicated.
fn open_own(fd: BorrowedFd<'_>, how: &mut OpenOptions) -> io::Result<File> {
    let file = File::from(fd.try_clone_to_owned()?);
    let kind = file.metadata()?.file_type();
    if !kind.is_fifo() && !kind.is_char_device() {
        return Ok(file);
    }
    let own = how
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    Ok(own.unwrap_or(file))
}

fn listen(path: &Path) -> Result<UnixListener, OpenChardevError> {
    let failed = |source| OpenChardevError::Socket {
        path: path.to_owned(),
        source,
    };
    if let Some(kind) = kind_at(path).map_err(failed)? {
        if !kind.is_socket() {
            return Err(OpenChardevError::NotASocket {
                path: path.to_owned(),
            });
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(failed(source)),
            Ok(_) => {
                return Err(OpenChardevError::SocketInUse {
                    path: path.to_owned(),
                });
            }
        }
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

fn kind_at(path: &Path) -> io::Result<Option<FileType>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.file_type())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
