//! Who is at the other end of a control socket, and whether changes are taken from there.

use std::io;
use std::os::unix::fs::MetadataExt;

use nix::unistd::Uid;
use tokio::net::UnixStream;

/// Whoever asks, as the kernel knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Process; 0 when it is in another pid namespace.
    pub pid: i32,
    /// Whether changes are taken from them.
    pub may_change: bool,
}

impl Caller {
    /// Returns who has connected.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        let socket = stream.local_addr()?.as_pathname().and_then(|path| std::fs::metadata(path).ok());
        let socket = socket.map(|socket| Access { mode: socket.mode(), gid: socket.gid() });
        Ok(Self {
            uid: peer.uid(),
            pid: peer.pid().unwrap_or_default(),
            may_change: may_change((peer.uid(), peer.gid()), Uid::effective().as_raw(), socket),
        })
    }
}

/// Who the socket's file lets in.
#[derive(Clone, Copy, Debug)]
struct Access {
    mode: u32,
    gid: u32,
}

/// Where the file lets only user and group in, the kernel has seen to it that the peer is one of them. Where it lets
/// everybody in, so that everybody may look, changes are taken from root, the daemon's own user, and those whose
/// primary group is the socket's.
fn may_change((uid, gid): (u32, u32), own: u32, socket: Option<Access>) -> bool {
    const OTHERS_WRITE: u32 = 0o002;
    let is_let_in = |socket: Access| socket.mode & OTHERS_WRITE == 0 || socket.gid == gid;
    uid == 0 || uid == own || socket.is_some_and(is_let_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_taken_from_root_the_own_user_and_the_sockets_group() {
        let (own, group) = (990, 980);
        let socket = |mode: u32| Some(Access { mode: 0o140_000 | mode, gid: group });
        let table = [
            ((0, 0), socket(0o660), true),
            ((0, 0), None, true),
            ((own, 1), socket(0o666), true),
            ((1000, group), socket(0o660), true),
            ((1000, 1000), socket(0o660), true), // by a supplementary group: the kernel let it in
            ((1000, group), socket(0o666), true),
            ((1000, 1000), socket(0o666), false),
            ((1000, 1000), socket(0o662), false),
            ((1000, group), None, false), // the file is gone
        ];
        for (peer, socket, expected) in table {
            assert_eq!(may_change(peer, own, socket), expected, "{peer:?} {socket:?}");
        }
    }
}
