//! Compiles the XDP program with clang.

use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "bpf/steer.bpf.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CLANG");
    let clang = std::env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let out_dir = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let object = PathBuf::from(out_dir).join("steer.bpf.o");
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf"]);
    // Debian keeps asm/types.h in a directory of the architecture.
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    command.arg(format!("-I/usr/include/{architecture}-linux-gnu"));
    command.args(["-c", SOURCE, "-o"]).arg(&object);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(_) => fail("clang cannot compile bpf/steer.bpf.c; its errors are above"),
        Err(error) => fail(&format!("clang cannot be run: {error}")),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    eprintln!("The XDP program needs clang and the headers of libbpf and Linux. On Debian:");
    eprintln!(
        "    apt-get install clang libbpf-dev linux-libc-dev libelf-dev zlib1g-dev pkg-config make gcc"
    );
    std::process::exit(1);
}
