//! Compiles the BPF programs: at the ends of what is measured, and the raw forwarder's.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 4] = ["generate", "redirect", "sink", "traffic"];

fn main() {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed=bpf/headers.h");
    for program in PROGRAMS {
        let source = PathBuf::from(format!("bpf/{program}.bpf.c"));
        println!("cargo::rerun-if-changed={}", source.display());
        compile(&source, &out_dir.join(format!("{program}.bpf.o")));
    }
}

/// Runs clang, or stops the build with the command that installs what is missing.
fn compile(source: &Path, object: &Path) {
    // Debian keeps <asm/types.h> in a directory named after the architecture, which the bpf target does not search.
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let status = Command::new("clang")
        .args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf"])
        .arg(format!("-I/usr/include/{architecture}-linux-gnu"))
        .args(["-c".as_ref(), source.as_os_str(), "-o".as_ref(), object.as_os_str()])
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(_) => panic!(
            "clang could not compile bench/{}; the headers come with: apt-get install -y libbpf-dev linux-libc-dev",
            source.display()
        ),
        Err(error) => {
            panic!("clang does not run ({error}); install it with: apt-get install -y clang libbpf-dev")
        }
    }
}
