//! The config file, the daemon's process, and what it needs of the host.

use super::evidence::{Evidence, Known, Process, Silence};
use super::finding::{Check, Finding, Group};

const CONFIG: Check = Check::new(Group::Config, "config-refused");
const RUNNING: Check = Check::new(Group::Daemon, "daemon-not-running");
const NO_ANSWER: Check = Check::new(Group::Daemon, "daemon-not-answering");
const OTHER: Check = Check::new(Group::Daemon, "interface-held-by-another-daemon");
const ORPHANED: Check = Check::new(Group::Daemon, "programs-without-daemon");
const NAMESPACE: Check = Check::new(Group::Daemon, "other-network-namespace");
const BEHIND: Check = Check::new(Group::Daemon, "snapshot-not-applied");
const CAPABILITY: Check = Check::new(Group::Daemon, "capability-missing");
const MEMORY: Check = Check::new(Group::Daemon, "memory-lock-limited");
const BPFFS: Check = Check::new(Group::Daemon, "bpffs-missing");
const STATE: Check = Check::new(Group::Daemon, "state-not-writable");

/// Capabilities that the daemon needs, by their bit (linux/capability.h), and what for.
const CAPABILITIES: [(u32, &str, &str); 6] = [
    (12, "CAP_NET_ADMIN", "links, addresses, routes, kernel settings and attaching XDP"),
    (13, "CAP_NET_RAW", "AF_XDP sockets"),
    (21, "CAP_SYS_ADMIN", "finding the attached program's socket map by its number"),
    (23, "CAP_SYS_NICE", "workers that go before the threads that receive for them"),
    (38, "CAP_PERFMON", "loading the XDP program"),
    (39, "CAP_BPF", "loading the XDP program and its maps"),
];

/// With one of these the limit on locked memory does not hold: CAP_IPC_LOCK passes it, CAP_SYS_RESOURCE lifts it.
const LIFTS_LIMIT: [u32; 2] = [14, 24];

/// Judges the config file and the daemon.
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = vec![config(evidence), running(evidence), other(evidence), orphaned(evidence)];
    match &evidence.process {
        Ok(process) => {
            findings.push(namespace(process));
            findings.extend(capabilities(process));
            findings.push(memory(process));
        }
        Err(reason) => findings.extend([NAMESPACE, CAPABILITY, MEMORY].map(|check| check.skipped(reason))),
    }
    findings.push(behind(evidence));
    findings.push(bpffs(evidence));
    findings.push(state(evidence));
    findings
}

fn config(evidence: &Evidence) -> Finding {
    let path = evidence.config_path.display();
    match &evidence.config {
        Ok(_) => CONFIG.fine(format!("{path} is accepted")),
        Err(reason) => CONFIG
            .broken(format!("{path}: {reason}"))
            .because("The daemon does not start with it, and most checks here need it.")
            .fix("Correct the key that is named, or give another file with --config.")
            .run(format!("spillway doctor --config {path}")),
    }
}

fn running(evidence: &Evidence) -> Finding {
    match &evidence.status {
        Ok(status) => RUNNING.fine(format!("version {}, process {}", status.version, status.pid)),
        Err(Silence::Forbidden(reason)) => RUNNING.skipped(reason),
        Err(Silence::NoAnswer(reason)) => NO_ANSWER
            .broken(reason.clone())
            .because("It can be neither asked nor told anything; whether it forwards is not known.")
            .fix(
                "Read its log; restart it when it hangs, or when it is of another version than this command.",
            )
            .run("journalctl -u spillway -n 20"),
        Err(Silence::NoDaemon(reason)) => RUNNING
            .broken(reason.clone())
            .because("Nothing is translated, and tenants' traffic is dropped.")
            .fix("Start it, and read its log when it ends.")
            .run("systemctl start spillway; journalctl -u spillway -n 20"),
    }
}

fn other(evidence: &Evidence) -> Finding {
    let held = &evidence.host.held;
    let judged = || -> Known<Finding> {
        let interfaces = evidence.interfaces()?;
        let named = |name: &&str| held.iter().any(|held| held == name);
        let held = [interfaces.inside.as_str(), &interfaces.outside].into_iter().find(named);
        let own: Vec<&str> = match &evidence.status {
            Ok(status) => status.interfaces.iter().map(|interface| interface.name.as_str()).collect(),
            Err(Silence::NoDaemon(_)) => Vec::new(),
            Err(Silence::Forbidden(reason) | Silence::NoAnswer(reason)) => return Err(reason.clone()),
        };
        Ok(match held.filter(|held| !own.contains(held)) {
            None => OTHER.fine("no other daemon has one of the interfaces"),
            Some(held) => OTHER
                .broken(format!("a daemon that does not answer on this control socket has {held}"))
                .because(
                    "One daemon serves an interface; another one, with this config file, does not start.",
                )
                .fix("Stop it, or ask it by its own socket (--socket).")
                .run("pgrep -a spillway"),
        })
    };
    judged().unwrap_or_else(|reason| OTHER.skipped(reason))
}

fn orphaned(evidence: &Evidence) -> Finding {
    let pins = match &evidence.host.pins {
        Ok(pins) => pins,
        Err(reason) => return ORPHANED.skipped(reason),
    };
    let is_away = matches!(evidence.status, Err(Silence::NoDaemon(_)));
    if !is_away || !evidence.host.held.is_empty() || pins.is_empty() {
        return ORPHANED.fine("no XDP program is pinned without a daemon");
    }
    ORPHANED
        .broken(format!("XDP programs are pinned ({}), but no daemon runs", pins.join(", ")))
        .because("They go on dropping tenants' traffic, so that nothing leaves untranslated.")
        .fix("Start the daemon, or detach the programs when the gateway is to be none any more.")
        .run(format!("spillway detach --config {}", evidence.config_path.display()))
}

fn namespace(process: &Process) -> Finding {
    if process.shares_network {
        return NAMESPACE.fine("the daemon's network namespace is looked at");
    }
    NAMESPACE
        .broken(format!(
            "the daemon, process {}, is in another network namespace than this command",
            process.pid
        ))
        .because("Interfaces, routes and settings here are not those that the daemon has.")
        .fix("Run the command where the daemon runs.")
        .run(format!("nsenter --net=/proc/{}/ns/net spillway doctor", process.pid))
}

fn behind(evidence: &Evidence) -> Finding {
    let later = evidence.later.as_ref().map_err(|_| "the daemon ended meanwhile".to_owned());
    match evidence.status().and(later).map(|status| status.epoch) {
        Err(reason) => BEHIND.skipped(reason),
        Ok(epoch) if epoch.wanted == epoch.applied => {
            BEHIND.fine(format!("all workers use snapshot {}", epoch.applied))
        }
        Ok(epoch) => BEHIND
            .warning(format!("snapshot {} is wanted, but workers use {}", epoch.wanted, epoch.applied))
            .because("A worker that does not take up changes forwards by what was before.")
            .fix("Ask again; if it stays, read the daemon's log and restart it.")
            .run("spillway status; journalctl -u spillway -n 20"),
    }
}

fn capabilities(process: &Process) -> Vec<Finding> {
    let lacking: Vec<_> = CAPABILITIES.iter().filter(|(bit, ..)| !has(process, *bit)).collect();
    if !process.is_daemon && !lacking.is_empty() {
        let names: Vec<&str> = lacking.iter().map(|(_, name, _)| *name).collect();
        let finding = CAPABILITY
            .warning(format!("this command has no {}", names.join(", ")))
            .because(
                "Checks that need them are skipped, and a daemon that is started the same way does not run.",
            )
            .fix("Run it as root.")
            .run("sudo spillway doctor");
        return vec![finding];
    }
    let found = lacking.into_iter().map(|(_, name, purpose)| {
        CAPABILITY
            .broken(format!("the daemon, process {}, has no {name}", process.pid))
            .because(format!("It needs it for {purpose}."))
            .fix("Add it to CapabilityBoundingSet of the unit, as deploy/spillway.service.")
            .run("systemctl edit spillway")
    });
    let whose = if process.is_daemon { "the daemon" } else { "this command" };
    CAPABILITY.or_fine(found.collect(), format!("{whose} has all that are needed"))
}

fn has(process: &Process, bit: u32) -> bool {
    process.capabilities >> bit & 1 == 1
}

fn memory(process: &Process) -> Finding {
    if !process.is_daemon && !has(process, CAPABILITIES[0].0) {
        return MEMORY.skipped("no daemon answers, and this user could not run it");
    }
    let lifted = LIFTS_LIMIT.iter().any(|bit| has(process, *bit));
    match process.lockable.filter(|_| !lifted) {
        None => MEMORY.fine("locked memory is not limited"),
        Some(limit) => MEMORY
            .warning(format!("process {} may lock {} at most", process.pid, crate::output::bytes(limit)))
            .because("Rings and packet memory count as locked: a start with more queues may fail.")
            .fix("Set LimitMEMLOCK=infinity in the unit, as deploy/spillway.service.")
            .run("systemctl edit spillway"),
    }
}

fn bpffs(evidence: &Evidence) -> Finding {
    let path =
        evidence.config.iter().map(|config| config.pin_dir.display().to_string()).next().unwrap_or_default();
    match &evidence.host.is_bpffs {
        Err(reason) => BPFFS.skipped(reason),
        Ok(true) => BPFFS.fine(format!("{path} is on a bpffs")),
        Ok(false) => BPFFS
            .broken(format!("xdp.pin_dir: {path} is not on a bpffs"))
            .because(
                "XDP programs cannot be pinned. The daemon mounts /sys/fs/bpf itself where it may, which the service unit \
                 does not allow; else it does not start.",
            )
            .fix("Mount a bpffs, or name a directory on one.")
            .run("mount -t bpf bpf /sys/fs/bpf"),
    }
}

fn state(evidence: &Evidence) -> Finding {
    match &evidence.host.state {
        Err(reason) => STATE.skipped(reason),
        Ok(None) => STATE.fine("the state directory can be written to"),
        Ok(Some(problem)) => STATE
            .broken(format!("control.state_dir: {problem}"))
            .because(
                "Tenants that are added over the socket are lost at a restart, and kernel settings are not restored; the \
                 daemon does not start.",
            )
            .fix("Make the directory writable for the daemon, or name another.")
            .run("ls -ld /var/lib/spillway; df /var/lib/spillway"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::super::testing::{healthy, ids};
    use super::*;

    #[test]
    fn a_healthy_daemon_has_no_findings() {
        assert_eq!(ids(&judge(&healthy())), [""; 0]);
    }

    #[test]
    fn a_refused_config_file_is_found_and_skips_what_needs_it() {
        let mut evidence = healthy();
        evidence.config = Err("inside.interface: missing".into());
        assert_eq!(ids(&judge(&evidence)), ["config-refused"]);
    }

    #[test]
    fn a_daemon_that_is_away_is_found_with_what_it_left() {
        let mut evidence = healthy();
        evidence.status = Err(Silence::NoDaemon("no daemon answers on /run/spillway/spillway.sock".into()));
        evidence.later = evidence.status.clone();
        evidence.host.held.clear();
        assert_eq!(ids(&judge(&evidence)), ["daemon-not-running", "programs-without-daemon"]);
        evidence.host.pins = Ok(Vec::new());
        assert_eq!(ids(&judge(&evidence)), ["daemon-not-running"]);
        evidence.host.held = vec!["out0".into()];
        assert_eq!(ids(&judge(&evidence)), ["daemon-not-running", "interface-held-by-another-daemon"]);
    }

    #[test]
    fn a_daemon_that_may_not_be_asked_or_does_not_answer_is_not_taken_for_one_that_is_away() {
        let table = [
            (Silence::Forbidden("may not use the socket".into()), vec![]),
            (Silence::NoAnswer("did not answer within 30 s".into()), vec!["daemon-not-answering"]),
        ];
        for (silence, expected) in table {
            let mut evidence = healthy();
            (evidence.status, evidence.later) = (Err(silence.clone()), Err(silence));
            assert_eq!(ids(&judge(&evidence)), expected);
        }
    }

    #[test]
    fn what_the_process_lacks_is_found() {
        let process = |change: fn(&mut Process)| {
            let mut evidence = healthy();
            change(evidence.process.as_mut().unwrap());
            evidence
        };
        let table = [
            (process(|process| process.capabilities &= !(1 << 39)), vec!["capability-missing"]),
            (process(|process| process.capabilities &= !(1 << 12 | 1 << 21)), vec!["capability-missing"; 2]),
            (process(|process| process.lockable = Some(8 << 20)), vec![]),
            (
                process(|process| {
                    process.lockable = Some(8 << 20);
                    process.capabilities &= !(1 << 14 | 1 << 24);
                }),
                vec!["memory-lock-limited"],
            ),
            (process(|process| process.shares_network = false), vec!["other-network-namespace"]),
        ];
        for (evidence, expected) in table {
            assert_eq!(ids(&judge(&evidence)), expected);
        }
    }

    #[test]
    fn a_missing_capability_of_this_command_is_a_warning_only() {
        let mut evidence = healthy();
        let process = evidence.process.as_mut().unwrap();
        (process.capabilities, process.is_daemon) = (1 << 24, false);
        let findings = judge(&evidence);
        assert_eq!(ids(&findings), ["capability-missing"]);
        assert!(findings.iter().all(|finding| finding.severity != Severity::Broken), "{findings:?}");
    }

    #[test]
    fn what_the_host_lacks_is_found() {
        let mut evidence = healthy();
        evidence.host.is_bpffs = Ok(false);
        evidence.host.state = Ok(Some("/var/lib/spillway cannot be written to".into()));
        evidence.later.as_mut().unwrap().epoch.wanted = 4;
        let expected = ["snapshot-not-applied", "bpffs-missing", "state-not-writable"];
        assert_eq!(ids(&judge(&evidence)), expected);
    }
}
