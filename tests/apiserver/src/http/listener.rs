//! Connections: accepted while the switches say so, and broken when they say otherwise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use super::{Server, answer, switches};

/// How long to wait before trying again to listen on a port that something else holds.
const RETRY: Duration = Duration::from_millis(20);

/// The sockets that a server listens on.
pub(crate) struct Listening {
    pub(crate) api: std::net::TcpListener,
    pub(crate) switches: Option<std::net::TcpListener>,
    pub(crate) tls: Option<TlsAcceptor>,
}

/// Serves until `stop` changes or its sender is gone.
///
/// # Errors
/// When a socket cannot be handed to the runtime.
pub(crate) async fn serve(
    server: Arc<Server>,
    listening: Listening,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let Listening { api, switches, tls } = listening;
    api.set_nonblocking(true)?;
    let address = api.local_addr()?;
    let listener = TcpListener::from_std(api)?;
    if let Some(switches) = switches {
        switches.set_nonblocking(true)?;
        tokio::spawn(switches::serve(server.clone(), TcpListener::from_std(switches)?));
    }
    tokio::select! {
        _ = stop.changed() => {}
        () = accept(&server, listener, address, tls) => {}
    }
    Ok(())
}

async fn accept(server: &Arc<Server>, first: TcpListener, address: SocketAddr, tls: Option<TlsAcceptor>) {
    let mut refusing = server.faults.signals().refusing;
    let mut listener = Some(first);
    loop {
        let refused = *refusing.borrow_and_update();
        match listener.take().filter(|_| !refused) {
            Some(open) => {
                tokio::select! {
                    _ = refusing.changed() => {}
                    Ok((stream, _)) = open.accept() => {
                        let broken = server.faults.signals().broken;
                        tokio::spawn(connection(server.clone(), stream, tls.clone(), broken));
                    }
                }
                listener = Some(open);
            }
            None if refused => {
                if refusing.changed().await.is_err() {
                    return;
                }
            }
            None => {
                listener = TcpListener::bind(address).await.ok();
                if listener.is_none() {
                    sleep(RETRY).await;
                }
            }
        }
    }
}

async fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    mut broken: watch::Receiver<u64>,
) {
    // Without delay: events are small, and a client that waits for one must not wait for an acknowledgement.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let served = async {
        match tls {
            None => exchange(server, stream).await,
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    exchange(server, stream).await;
                }
            }
        }
    };
    tokio::select! {
        _ = broken.changed() => {}
        () = served => {}
    }
}

async fn exchange(server: Arc<Server>, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(move |request| answer(server.clone(), request));
    // A client that breaks off, or a connection broken on purpose, is the end of it: nobody is left to tell.
    let _ended =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}
