//! Where records are sent: a unix socket, or a UDP or TCP port.

use std::fmt;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// How long a connection may take, and a peer that takes nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where records are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To a socket of this host.
    Unix(PathBuf),
    /// In datagrams.
    Udp(SocketAddr),
    /// Over a connection.
    Tcp(SocketAddr),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Some(Self::Unix(path.into())),
            Some(("udp", address)) => address.parse().ok().map(Self::Udp),
            Some(("tcp", address)) => address.parse().ok().map(Self::Tcp),
            Some(_) | None => None,
        };
        place.ok_or_else(|| {
            format!("{text:?} is nothing to send to; write \"udp:ADDRESS:PORT\", \"tcp:ADDRESS:PORT\" or \"unix:/PATH\"")
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Udp(address) => write!(formatter, "udp:{address}"),
            Self::Tcp(address) => write!(formatter, "tcp:{address}"),
        }
    }
}

/// An open way to a place.
#[derive(Debug)]
pub(super) enum Line {
    Unix(UnixDatagram),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Line {
    pub(super) fn open(place: &Place) -> io::Result<Self> {
        Ok(match place {
            Place::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Self::Unix(socket)
            }
            Place::Udp(address) => {
                let any = match address {
                    SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                    SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(address)?;
                Self::Udp(socket)
            }
            Place::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Self::Tcp(stream)
            }
        })
    }

    /// Sends a message, which is one datagram where there are datagrams.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.send(message).map(drop),
            Self::Udp(socket) => socket.send(message).map(drop),
            Self::Tcp(stream) => stream.write_all(message),
        }
    }

    /// Tells whether messages follow each other without an end of their own.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_shown_alike() {
        for text in ["unix:/dev/log", "udp:192.0.2.7:514", "tcp:[2001:db8::7]:6514"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["", "/dev/log", "unix:log", "udp:192.0.2.7", "tls:192.0.2.7:514", "tcp:host:514"] {
            let refusal = text.parse::<Place>().unwrap_err();
            assert!(refusal.starts_with(&format!("{text:?} is nothing to send to; write")), "{refusal}");
        }
    }
}
