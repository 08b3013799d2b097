//! Runs the demo on the executable named by the first argument.
fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let executable = arguments.next().map(Into::into);
    let second = arguments.next();
    let options = control::demo::Options {
        executable,
        keep: second.as_deref() == Some("--keep"),
        clean: second.as_deref() == Some("--clean"),
    };
    control::demo::run(&options)
}
