//! One daemon for each interface and each control socket.

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why this daemon may not run.
#[derive(Debug, Error)]
pub enum GuardError {
    /// Another daemon has the interface.
    #[error("another spillway daemon runs on interface {0}; stop it first")]
    InterfaceTaken(String),
    /// Another daemon answers on the socket.
    #[error("another spillway daemon answers on {0}; stop it, or give another control.socket")]
    SocketTaken(PathBuf),
    /// A socket cannot be made.
    #[error("cannot listen on {name}")]
    Listen {
        /// Name of the socket.
        name: String,
        /// Cause.
        source: io::Error,
    },
}

/// Holds an interface for this process, in its network namespace. The kernel lets go when the process ends.
#[derive(Debug)]
pub struct InterfaceGuard {
    _listener: UnixListener,
}

impl InterfaceGuard {
    /// Takes an interface.
    ///
    /// # Errors
    /// When another daemon in this network namespace has it.
    pub fn take(interface: &str) -> Result<Self, GuardError> {
        let name = format!("spillway/interface/{interface}");
        let bound =
            SocketAddr::from_abstract_name(&name).and_then(|address| UnixListener::bind_addr(&address));
        match bound {
            Ok(listener) => Ok(Self { _listener: listener }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                Err(GuardError::InterfaceTaken(interface.to_owned()))
            }
            Err(source) => Err(GuardError::Listen { name, source }),
        }
    }
}

/// The control socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Makes the socket and its directory. A file that a dead daemon left is replaced.
    ///
    /// # Errors
    /// When another daemon answers on it, or it cannot be made.
    pub fn listen(path: &Path) -> Result<Self, GuardError> {
        let name = path.display().to_string();
        let failed = |source| GuardError::Listen { name: name.clone(), source };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        match UnixStream::connect(path) {
            Ok(_) => return Err(GuardError::SocketTaken(path.to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && is_socket(path) => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = Self { listener, path: path.to_owned() };
        std::fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
        socket.listener.set_nonblocking(true).map_err(failed)?;
        Ok(socket)
    }

    /// Returns a listener for the runtime.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Nothing is lost if it stays: the next daemon replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/spillway.sock");
        let first = ControlSocket::listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(ControlSocket::listen(&path), Err(GuardError::SocketTaken(_))));
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap()); // as SIGKILL leaves it
        assert!(path.exists());
        ControlSocket::listen(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.txt");
        std::fs::write(&path, "keep me").unwrap();
        assert!(matches!(ControlSocket::listen(&path), Err(GuardError::Listen { .. })));
        assert_eq!(std::fs::read_to_string(path).unwrap(), "keep me");
    }

    #[test]
    fn an_interface_is_held_once() {
        let name = format!("t{}", std::process::id());
        let first = InterfaceGuard::take(&name).unwrap();
        assert!(matches!(InterfaceGuard::take(&name), Err(GuardError::InterfaceTaken(_))));
        drop(first);
        InterfaceGuard::take(&name).unwrap();
    }
}
