//! Network and mount namespaces that vanish with the test.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The namespace across the two wires.
pub(crate) struct World {
    holder: Child,
}

impl World {
    /// Runs a command in the other namespace and returns what it printed.
    pub(crate) fn peer(&self, line: &str) -> String {
        self.peer_words(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs a command, given as words, in the other namespace and returns what it printed.
    pub(crate) fn peer_words(&self, words: &[&str]) -> String {
        let namespace = format!("--net=/proc/{}/ns/net", self.holder.id());
        run(&[&["nsenter", &namespace], words].concat())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}

/// Runs a test in a namespace of its own, wired to another; says SKIPPED without privileges.
pub(crate) fn in_namespace(test: impl AsyncFnOnce(&World) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS) {
            assert!(std::env::var("REQUIRE_NETNS").as_deref() != Ok("1"), "no network namespace: {error}");
            // Not eprintln: what a passing test prints is not shown.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no network namespace: {error}");
            return;
        }
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        // Its threads start in this thread's namespaces.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let world = wire();
        runtime.block_on(test(&world));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in this thread's namespace.
pub(crate) fn ip(line: &str) -> String {
    run(&["ip"].into_iter().chain(line.split_whitespace()).collect::<Vec<_>>())
}

/// Waits until a condition holds; panics after five seconds.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition().await {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn wire() -> World {
    let holder = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let world = World { holder };
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let theirs = format!("/proc/{}/ns/net", world.holder.id());
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::fs::read_link(&theirs).unwrap() == own {
        assert!(Instant::now() < deadline, "the other namespace was not made");
        std::thread::yield_now();
    }
    ip("link set lo up");
    let wires = [
        ("in0", "node0", "192.168.99.12", "192.168.99.21"),
        ("out0", "up0", "192.168.55.12", "192.168.55.1"),
    ];
    for (near, far, near_address, far_address) in wires {
        ip(&format!("link add {near} type veth peer name {far} netns {}", world.holder.id()));
        ip(&format!("address add {near_address}/24 dev {near}"));
        ip(&format!("link set {near} up"));
        world.peer(&format!("ip address add {far_address}/24 dev {far}"));
        world.peer(&format!("ip link set {far} up"));
    }
    // The kernel takes note of a wire's other end a moment later.
    let deadline = Instant::now() + Duration::from_secs(5);
    while ip("route").contains("linkdown") {
        assert!(Instant::now() < deadline, "a wire is not up");
        std::thread::yield_now();
    }
    world
}

fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
