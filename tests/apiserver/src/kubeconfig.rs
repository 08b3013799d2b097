//! Kubeconfig files, for clients of the server.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// How a kubeconfig names the client's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The token that is valid now, in the kubeconfig itself.
    Inline,
    /// A file that holds the token; it is written once, with the one that is valid now.
    TokenFile(PathBuf),
}

/// Returns a kubeconfig: JSON, which is YAML too.
pub(crate) fn text(server: &str, certificate: Option<&str>, user: &Value) -> String {
    let mut cluster = json!({"server": server});
    if let Some(pem) = certificate {
        cluster["certificate-authority-data"] = base64(pem.as_bytes()).into();
    }
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "spillway",
        "clusters": [{"name": "spillway", "cluster": cluster}],
        "users": [{"name": "spillway", "user": user}],
        "contexts": [{"name": "spillway", "context": {"cluster": "spillway", "user": "spillway"}}],
    });
    format!("{config:#}\n")
}

/// Writes a file that its owner alone can read.
pub(crate) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

fn base64(bytes: &[u8]) -> String {
    let encoded = serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec()));
    encoded.ok().and_then(|value| value.as_str().map(str::to_owned)).expect("bytes are written as a text")
}
