//! One daemon for each interface, each control socket and each directory.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{Backlog, listen};
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
    /// Another daemon has the directory.
    #[error("{key}: {path} is in use by a spillway daemon; stop it first, or give another directory")]
    DirectoryTaken {
        /// Key of the config file that names the directory.
        key: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// A directory cannot be made or locked.
    #[error("{key}: cannot lock {path}")]
    Lock {
        /// Key of the config file that names the directory.
        key: &'static str,
        /// The directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
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

/// Tells whether another daemon in this network namespace has an interface that this process has not taken.
pub fn is_held(interface: &str) -> bool {
    matches!(InterfaceGuard::take(interface), Err(GuardError::InterfaceTaken(_)))
}

/// Holds a directory for this process, from every network namespace. The kernel lets go when the process ends.
#[derive(Debug)]
pub struct DirectoryGuard {
    _lock: Flock<File>,
}

impl DirectoryGuard {
    /// Takes the directory that `key` of the config file names, and makes it if it is missing.
    ///
    /// # Errors
    /// When another daemon has it, or it cannot be made.
    pub fn take(key: &'static str, path: &Path) -> Result<Self, GuardError> {
        let failed = |source| GuardError::Lock { key, path: path.to_owned(), source };
        loop {
            std::fs::create_dir_all(path).map_err(failed)?;
            let directory = File::open(path).map_err(failed)?;
            let lock = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(GuardError::DirectoryTaken { key, path: path.to_owned() });
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // Whoever had it may have removed it, and a third one may have made it again.
            if is_at(&lock, path) {
                return Ok(Self { _lock: lock });
            }
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
    /// Returns where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

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
        // The standard library has room for 128 that wait.
        listen(&socket.listener, Backlog::MAXCONN).map_err(|errno| failed(errno.into()))?;
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

fn is_at(file: &File, path: &Path) -> bool {
    let inode = |metadata: &std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata(), path.metadata()), (Ok(one), Ok(other)) if inode(&one) == inode(&other))
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

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
        soon(|| ControlSocket::listen(&path));
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
        assert!(is_held(&name));
        drop(first);
        soon(|| InterfaceGuard::take(&name));
    }

    #[test]
    fn a_directory_is_made_and_held_once() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("pins");
        let first = DirectoryGuard::take("xdp.pin_dir", &path).unwrap();
        let error = DirectoryGuard::take("xdp.pin_dir", &path).unwrap_err().to_string();
        assert!(error.starts_with("xdp.pin_dir: ") && error.contains("is in use"), "{error}");
        drop(first);
        soon(|| DirectoryGuard::take("xdp.pin_dir", &path));
    }

    /// Takes what was let go. A program that another test starts holds it a moment longer, until it is executed.
    fn soon<T>(take: impl Fn() -> Result<T, GuardError>) -> T {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match take() {
                Ok(taken) => return taken,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::yield_now();
        }
    }
}
