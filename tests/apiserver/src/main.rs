//! Runs the stand-in API server until it is told to stop.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use spillway_apiserver::{ApiServer, Credentials, Options};

/// A stand-in for the Kubernetes API server, for tests.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Where to offer the fault switches over plain HTTP (GET / there lists them).
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    faults: SocketAddr,
    /// Where to write a kubeconfig for clients.
    #[arg(long, value_name = "FILE")]
    kubeconfig_out: Option<PathBuf>,
    /// Where to write the token that the kubeconfig then names, instead of holding it.
    #[arg(long, value_name = "FILE", requires = "kubeconfig_out")]
    token_file: Option<PathBuf>,
    /// The token that clients must show.
    #[arg(long, value_name = "TOKEN", default_value = "spillway")]
    token: String,
    /// Speak plain HTTP (kubectl then shows no token: it would be refused).
    #[arg(long)]
    plain: bool,
    /// Seconds between the bookmarks of a watch.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    bookmarks: u64,
    /// YAML files of objects to begin with.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    load: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let server = ApiServer::start(Options {
        listen: arguments.listen,
        switches: Some(arguments.faults),
        tls: !arguments.plain,
        token: Some(arguments.token),
        bookmark_interval: Duration::from_secs(arguments.bookmarks.max(1)),
        ..Options::default()
    })?;
    for path in &arguments.load {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        server.load(&text).with_context(|| format!("load {}", path.display()))?;
    }
    if let Some(path) = &arguments.kubeconfig_out {
        let credentials = arguments.token_file.map_or(Credentials::Inline, Credentials::TokenFile);
        server.kubeconfig(path, &credentials)?;
    }
    let switches = server.switch_address().map(|address| format!("http://{address}/")).unwrap_or_default();
    println!("serving {}, fault switches at {switches}", server.url());
    wait_for_stop()
}

fn wait_for_stop() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
