//! The program, and a server in another network namespace.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use spillway_apiserver::{ApiServer, Options};

use crate::lab::{PATIENCE, code};

#[tokio::test]
async fn the_program_serves_what_it_loads_and_turns_its_switches() {
    let directory = tempfile::tempdir().unwrap();
    let (config, objects) = (directory.path().join("kubeconfig"), directory.path().join("objects.yaml"));
    std::fs::write(&objects, "{apiVersion: v1, kind: Node, metadata: {name: w1}}\n---\n").unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_spillway-apiserver"))
        .args(["--listen", "127.0.0.1:0", "--kubeconfig-out"])
        .arg(&config)
        .arg("--load")
        .arg(&objects)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let switches = line.trim().split("http://").nth(1).unwrap().trim_end_matches('/').parse().unwrap();

    let kubeconfig = Kubeconfig::read_from(&config).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let nodes: Api<Node> = Api::all(Client::try_from(config).unwrap());
    let before = nodes.list(&ListParams::default()).await.unwrap().items.len();
    let turned = ask(switches, "POST /fault/deny?verb=list&resource=nodes");
    let after = nodes.list(&ListParams::default()).await;
    let wrong = ask(switches, "POST /fault/fail?requests=many");
    let counts = ask(switches, "GET /fault/requests");
    kill(Pid::from_raw(program.id().cast_signed()), Signal::SIGTERM).unwrap();

    assert!(program.wait().unwrap().success());
    assert_eq!((before, code(after)), (1, 403));
    assert!(turned.starts_with("HTTP/1.1 200"), "{turned}");
    assert!(wrong.contains("400") && wrong.contains("requests: \"many\" is no number"), "{wrong}");
    assert!(counts.contains(r#"{"count":2,"resource":"nodes","verb":"list"}"#), "{counts}");
}

#[test]
fn a_server_listens_in_its_callers_network_namespace_also_after_a_restart() {
    if !Uid::effective().is_root() {
        assert!(std::env::var_os("REQUIRE_NETNS").is_none(), "REQUIRE_NETNS is set, and this is not root");
        println!("SKIPPED: a network namespace needs root");
        return;
    }
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let server = ApiServer::start(Options::default()).unwrap();
        wait_for(server.address(), true);
        server.refuse_connections();
        wait_for(server.address(), false);
        server.accept_connections();
        wait_for(server.address(), true);
        server
    };
    let server = std::thread::spawn(inside).join().unwrap();
    assert!(TcpStream::connect(server.address()).is_err(), "nothing listens outside of the namespace");
}

fn wait_for(address: SocketAddr, listens: bool) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_ok() != listens {
        assert!(Instant::now() < deadline, "{address} listens: {listens} was expected in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nhost: switches\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
