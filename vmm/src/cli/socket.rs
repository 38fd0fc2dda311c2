//! The API's socket in the file system.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use thiserror::Error;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another VMM serves it.
    #[error("API socket {path} is in use by another process")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// Something else has the name.
    #[error("API socket {path}: there is a file that is no socket")]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// The host refuses.
    #[error("API socket {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Listens at `path`, for this user only. A socket that a process left behind is replaced.
///
/// # Errors
/// [`SocketError`].
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::Foreign {
                path: path.to_owned(),
            });
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
            Ok(_) => {
                return Err(SocketError::InUse {
                    path: path.to_owned(),
                });
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // Whoever can connect owns the guest. No other thread makes files yet.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener.map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn socket_is_private_replaced_when_stale_and_refused_when_served() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api");
        let listener = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(listen(&path), Err(SocketError::InUse { .. })));
        drop(listener);
        let _again = listen(&path).unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(listen(&file), Err(SocketError::Foreign { .. })));
        let nowhere = directory.path().join("no/where");
        assert!(matches!(listen(&nowhere), Err(SocketError::Io { .. })));
    }
}
