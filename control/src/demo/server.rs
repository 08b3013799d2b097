//! Real programs on the server: nginx for pages, dnsmasq for names. Both write down which clients they see.

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::lab::Lab;
use super::process::Process;
use super::topology::{Host, SERVER};

const START: Duration = Duration::from_secs(10);

/// Name that the server's DNS knows; its address is the server's.
pub const NAME: &str = "page.example";

/// The server's programs; ended when dropped.
#[derive(Debug)]
pub struct Server {
    nginx: Process,
    dnsmasq: Process,
    directory: PathBuf,
}

/// A request that a program of the server noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Address and port that it came from.
    pub client: SocketAddrV4,
    /// Path or name that was asked for.
    pub request: String,
}

impl Server {
    /// Starts both and waits until they answer.
    ///
    /// # Errors
    /// When one is not installed or does not come up.
    pub fn start(lab: &Lab) -> Result<Self> {
        let directory = lab.directory().join("server");
        std::fs::create_dir_all(directory.join("www"))?;
        let nginx = start_nginx(lab, &directory)?;
        let dnsmasq = start_dnsmasq(lab, &directory)?;
        Ok(Self { nginx, dnsmasq, directory })
    }

    /// Puts a file among the pages and returns its URL.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn publish(&self, name: &str, content: &[u8]) -> Result<String> {
        std::fs::write(self.directory.join("www").join(name), content)?;
        Ok(url(name))
    }

    /// Returns the requests that nginx has noted so far.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn pages_seen(&self) -> Result<Vec<Seen>> {
        let log = std::fs::read_to_string(self.directory.join("access.log"))?;
        log.lines().map(|line| parse_page(line).with_context(|| format!("nginx noted `{line}`"))).collect()
    }

    /// Returns the queries that dnsmasq has noted so far.
    pub fn queries_seen(&self) -> Vec<Seen> {
        self.dnsmasq.output().lines().filter_map(parse_query).collect()
    }

    /// Lets both run on when this is dropped.
    pub fn leave(&mut self) {
        self.nginx.leave();
        self.dnsmasq.leave();
    }
}

/// Returns the URL of a page; `whoami` tells the client its own address, as the server sees it.
pub fn url(name: &str) -> String {
    format!("http://{SERVER}/{name}")
}

fn start_nginx(lab: &Lab, directory: &Path) -> Result<Process> {
    let config = directory.join("nginx.conf");
    std::fs::write(&config, nginx_config(directory))?;
    let mut command = lab.namespace(Host::Server).command("nginx");
    command.arg("-e").arg("stderr").arg("-p").arg(directory).arg("-c").arg(&config);
    let mut nginx = lab.start(&mut command, &directory.join("nginx.log"))?;
    let address = SocketAddrV4::new(SERVER, 80).into();
    let namespace = lab.namespace(Host::Server);
    nginx.until("nginx accepts connections", START, || {
        Ok(namespace.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)))?.ok())
    })?;
    Ok(nginx)
}

fn nginx_config(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "daemon off;\nmaster_process off;\npid {directory}/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  log_format seen '$remote_addr $remote_port $request_uri';\n  \
         access_log {directory}/access.log seen;\n  \
         server {{\n    listen {SERVER}:80;\n    root {directory}/www;\n    \
         location = /whoami {{ return 200 \"$remote_addr:$remote_port\\n\"; }}\n  }}\n}}\n"
    )
}

fn start_dnsmasq(lab: &Lab, directory: &Path) -> Result<Process> {
    let mut command = lab.namespace(Host::Server).command("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]);
    // A change of user or group would clear the signal that it gets when this process is killed.
    command.args(["--user=root", "--group=root"]);
    command.args(["--no-resolv", "--no-hosts", "--bind-interfaces"]);
    command.arg(format!("--listen-address={SERVER}")).arg(format!("--address=/{NAME}/{SERVER}"));
    command.args(["--log-queries=extra", "--log-facility=-"]);
    let mut dnsmasq = lab.start(&mut command, &directory.join("dnsmasq.log"))?;
    dnsmasq.until_printed("started", START)?;
    Ok(dnsmasq)
}

fn parse_page(line: &str) -> Option<Seen> {
    let mut words = line.split_whitespace();
    let client = SocketAddrV4::new(words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Seen { client, request: words.next()?.to_owned() })
}

/// Reads `dnsmasq: 1 192.168.55.113/40000 query[A] page.example from 192.168.55.113`.
fn parse_query(line: &str) -> Option<Seen> {
    let (head, tail) = line.split_once(" query[A] ")?;
    let (address, port) = head.rsplit(' ').next()?.split_once('/')?;
    let client = SocketAddrV4::new(address.parse::<Ipv4Addr>().ok()?, port.parse().ok()?);
    Some(Seen { client, request: tail.split_whitespace().next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logged_clients_are_read_with_their_ports() {
        let client = SocketAddrV4::new(Ipv4Addr::new(192, 168, 55, 113), 40000);
        let page = Seen { client, request: "/whoami".to_owned() };
        assert_eq!(parse_page("192.168.55.113 40000 /whoami"), Some(page));
        let query = Seen { client, request: "page.example".to_owned() };
        let line = "dnsmasq: 1 192.168.55.113/40000 query[A] page.example from 192.168.55.113";
        assert_eq!(parse_query(line), Some(query));
        assert_eq!(parse_query("dnsmasq: started, version 2.90"), None);
    }
}
