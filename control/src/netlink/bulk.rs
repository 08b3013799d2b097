//! Many requests at once: the kernel carries them out one after the other without anybody being woken for each.

use futures_util::StreamExt;
use rtnetlink::Error;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::proto::{ConnectionHandle, new_connection};
use rtnetlink::sys::SocketAddr;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::NetlinkError;

/// Requests in one datagram. The socket's buffer has room for several times as many answers.
const AT_ONCE: usize = 64;

/// A connection to the kernel, for many requests.
#[derive(Clone, Debug)]
pub(super) struct Bulk(ConnectionHandle<RouteNetlinkMessage>);

impl Bulk {
    /// Opens a connection in the calling thread's network namespace; needs a tokio runtime.
    pub(super) fn connect() -> Result<Self, NetlinkError> {
        let (mut connection, handle, _) = new_connection(NETLINK_ROUTE).map_err(NetlinkError::Connect)?;
        connection.set_forward_ack(true);
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Has the kernel make several things, in order, and returns what became of each.
    pub(super) async fn make(&self, wanted: Vec<RouteNetlinkMessage>) -> Vec<Result<(), Error>> {
        let mut outcomes = Vec::with_capacity(wanted.len());
        let mut wanted = wanted.into_iter().map(request).peekable();
        while wanted.peek().is_some() {
            let requests: Vec<_> = wanted.by_ref().take(AT_ONCE).collect();
            let until = outcomes.len() + requests.len();
            if let Ok(mut answers) = self.0.request_batch(requests, SocketAddr::new(0, 0)) {
                while let Some(answer) = answers.next().await {
                    outcomes.push(outcome(answer));
                }
            }
            outcomes.resize_with(until, || Err(Error::RequestFailed));
        }
        outcomes
    }
}

fn request(message: RouteNetlinkMessage) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE;
    request
}

fn outcome(answer: NetlinkMessage<RouteNetlinkMessage>) -> Result<(), Error> {
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(Error::NetlinkError(error)),
        _ => Err(Error::UnexpectedMessage(answer)),
    }
}
