//! The fault switches over HTTP, for scripts: plain, without a token, on a port of their own.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::Server;
use super::request::Query;
use crate::requests::Verb;

/// Every switch, with its parameters.
const USAGE: &str = "\
POST /fault/refuse                                 stop listening, break every connection
POST /fault/accept                                 listen again
POST /fault/hang | /fault/resume                   accept and never answer | answer again
POST /fault/drop-watches | /fault/expire-watches   break open watches | end them with 410
POST /fault/refuse-expired?on=true                 HTTP 410, not an event, to watches from old versions
POST /fault/compact                                forget all history: older versions are 410
POST /fault/token?value=TOKEN                      401 to every other token
POST /fault/deny?verb=VERB&resource=RESOURCE       403; RESOURCE such as egresstenants.spillway.dev/status
POST /fault/allow?verb=VERB&resource=RESOURCE      takes it back
POST /fault/throttle?requests=N&seconds=S          429 with Retry-After to the next N
POST /fault/fail?requests=N                        500 to the next N
POST /fault/slow?ms=N                              wait before each answer
POST /fault/slow-chunks?ms=N                       wait before each further chunk of a list
POST /fault/break-lists?chunks=N&lists=N           break the connection after so many chunks
POST /fault/omit?resource=R&names=A,B&lists=N      the next lists of R lack these objects
POST /fault/clear                                  takes every fault back
GET  /fault/requests                               counts by verb and resource
POST /fault/forget-requests                        counts from zero again
";

pub(super) async fn serve(server: Arc<Server>, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let server = server.clone();
        let service = service_fn(move |request| {
            let response = respond(&server, &request);
            async { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn respond(server: &Server, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let query = Query::parse(request.uri().query());
    let path = request.uri().path();
    let (code, text) = match (request.method(), path.strip_prefix("/fault/")) {
        (&Method::GET, Some("requests")) => (StatusCode::OK, format!("{}\n", counts(server))),
        (&Method::POST, Some(switch)) => match turn(server, switch, &query) {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
        },
        _ => (StatusCode::NOT_FOUND, USAGE.to_owned()),
    };
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = code;
    response
}

fn turn(server: &Server, switch: &str, query: &Query) -> Result<(), String> {
    let faults = &server.faults;
    let number = |key: &str| -> Result<u32, String> {
        query.text(key).parse().map_err(|_| format!("{key}: {:?} is no number", query.text(key)))
    };
    let rule =
        || -> Result<(Verb, &str), String> { Ok((query.text("verb").parse()?, query.text("resource"))) };
    match switch {
        "refuse" => faults.refuse_connections(),
        "accept" => faults.accept_connections(),
        "hang" => faults.hang(true),
        "resume" => faults.hang(false),
        "drop-watches" => faults.drop_watches(),
        "expire-watches" => faults.expire_watches(),
        "refuse-expired" => faults.refuse_expired_watches(query.flag("on")),
        "compact" => server.cluster().store.compact(),
        "token" => faults.rotate_token(query.text("value")),
        "deny" => rule().map(|(verb, resource)| faults.deny(verb, resource))?,
        "allow" => rule().map(|(verb, resource)| faults.allow(verb, resource))?,
        "throttle" => faults.throttle(number("requests")?, number("seconds")?),
        "fail" => faults.fail(number("requests")?),
        "slow" => faults.delay_answers(Duration::from_millis(number("ms")?.into())),
        "slow-chunks" => faults.delay_chunks(Duration::from_millis(number("ms")?.into())),
        "break-lists" => faults.break_lists(number("chunks")?, number("lists")?),
        "omit" => {
            let names: Vec<_> = query.text("names").split(',').collect();
            faults.omit_from_lists(query.text("resource"), &names, number("lists")?);
        }
        "clear" => faults.clear(),
        "forget-requests" => faults.forget_requests(),
        other => return Err(format!("{other:?} is no switch:\n{USAGE}")),
    }
    Ok(())
}

fn counts(server: &Server) -> Value {
    let requests = server.faults.requests();
    requests
        .iter()
        .map(
            |(verb, resource, count)| json!({"verb": verb.to_string(), "resource": resource, "count": count}),
        )
        .collect()
}
