//! Where the API is and who we are there: the kubeconfig and the files that it names, read anew as often as they change.
//!
//! No error tells a secret: files are named, their contents never quoted.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use secrecy::ExposeSecret;

use super::trouble::describe;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than a watch may be silent, which ends after 290 s at the server's side.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where credentials come from.
#[derive(Clone, Debug)]
pub struct Credentials {
    kubeconfig: Option<PathBuf>,
}

/// A client, and the server that it speaks to.
pub struct Connected {
    /// The client.
    pub client: Client,
    /// Scheme, host and port of the server.
    pub server: String,
}

impl Credentials {
    /// Returns credentials from this kubeconfig; none: `KUBECONFIG`, `~/.kube/config`, or the service account of a pod.
    pub fn new(kubeconfig: Option<PathBuf>) -> Self {
        Self { kubeconfig }
    }

    /// Returns a number that changes with the content of any file that the credentials come from. Blocks.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for path in self.files() {
            path.hash(&mut hasher);
            std::fs::read(&path).ok().hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Makes a client of what the files hold now. Blocks: the kubeconfig may name a program to run.
    ///
    /// # Errors
    /// When a file is missing or broken: which one, and why, without its content.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect(&self) -> Result<Connected, String> {
        let mut config = self.config()?;
        config.auth_info.token = match (config.auth_info.token.take(), config.auth_info.token_file.take()) {
            (Some(token), _) => Some(check_token(token.expose_secret(), "users[].user.token")?.into()),
            (None, Some(file)) => Some(read_token(Path::new(&file))?.into()),
            (None, None) => None,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.write_timeout = Some(WRITE_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        config.default_retry = false; // each attempt is counted and bounded in time: the connection retries
        let server = server_of(&config);
        let client = Client::try_from(config).map_err(|error| describe(&error))?;
        Ok(Connected { client, server })
    }

    fn config(&self) -> Result<Config, String> {
        let path = self.kubeconfig.as_deref();
        match self.read() {
            Ok(kubeconfig) => Config::try_from(kubeconfig).map_err(|error| name(path, &error)),
            Err(error) if path.is_some() => Err(name(path, &error)),
            Err(error) => Config::incluster().map_err(|_| {
                format!(
                    "{}, nor is there a pod's service account; set kubernetes.kubeconfig",
                    name(path, &error)
                )
            }),
        }
    }

    /// Returns whether a program gives the credentials, which may give others although no file changed. Blocks.
    pub fn are_from_a_program(&self) -> bool {
        let users = self.read().map(|kubeconfig| kubeconfig.auth_infos).unwrap_or_default();
        let mut users = users.into_iter().filter_map(|named| named.auth_info);
        users.any(|user| user.exec.is_some() || user.auth_provider.is_some())
    }

    fn read(&self) -> Result<Kubeconfig, KubeconfigError> {
        match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        }
    }

    /// Returns every file that the credentials come from.
    fn files(&self) -> BTreeSet<PathBuf> {
        let mut files: BTreeSet<PathBuf> = self.kubeconfig.iter().cloned().collect();
        if self.kubeconfig.is_none() {
            files.extend(["token", "ca.crt"].map(|file| Path::new(SERVICE_ACCOUNT).join(file)));
            files.extend(inferred_kubeconfigs());
        }
        let Ok(kubeconfig) = self.read() else { return files };
        let clusters = kubeconfig.clusters.into_iter().filter_map(|named| named.cluster);
        files.extend(clusters.filter_map(|cluster| cluster.certificate_authority).map(PathBuf::from));
        for user in kubeconfig.auth_infos.into_iter().filter_map(|named| named.auth_info) {
            let named = [user.token_file, user.client_certificate, user.client_key];
            files.extend(named.into_iter().flatten().map(PathBuf::from));
        }
        files
    }
}

fn inferred_kubeconfigs() -> Vec<PathBuf> {
    match std::env::var_os("KUBECONFIG") {
        Some(paths) => std::env::split_paths(&paths).collect(),
        None => std::env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect(),
    }
}

fn read_token(path: &Path) -> Result<String, String> {
    let file = format!("token file {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| format!("{file}: {error}"))?;
    check_token(&text, &file)
}

/// Returns a token as `kubectl` takes it, without the white space around it. The client would panic at what does not
/// fit into a header.
fn check_token(text: &str, place: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err(format!("{place} is empty")),
        token if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(token.to_owned()),
        _ => Err(format!("{place} holds what is no bearer token: white space, or no ASCII")),
    }
}

fn server_of(config: &Config) -> String {
    let url = &config.cluster_url;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme_str().unwrap_or("https"), url.host().unwrap_or_default())
}

/// Tells what is wrong with a kubeconfig. The parser's own message would quote the lines around the mistake.
fn name(path: Option<&Path>, error: &KubeconfigError) -> String {
    let file = path.map_or_else(|| "kubeconfig".to_owned(), |path| format!("kubeconfig {}", path.display()));
    match error {
        KubeconfigError::Parse(error) => match error.location() {
            Some(place) => format!("{file}: line {}, column {}: no kubeconfig", place.line(), place.column()),
            None => format!("{file}: no kubeconfig"),
        },
        KubeconfigError::ReadConfig(error, _) => format!("{file}: {error}"),
        KubeconfigError::ParseClusterUrl(_) => format!("{file}: server is no URL"),
        KubeconfigError::ParseProxyUrl(_) => format!("{file}: proxy-url is no URL"),
        error => format!("{file}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::write;

    use super::*;

    const TOKEN: &str = "eyJhbGciOi.secret";

    #[tokio::test]
    async fn a_kubeconfig_becomes_a_client_for_its_server() {
        let directory = tempfile::tempdir().unwrap();
        let credentials = of(directory.path(), &format!("token: {TOKEN}"));
        assert_eq!(credentials.connect().map(|connected| connected.server).unwrap(), "http://127.0.0.1:6443");
    }

    #[tokio::test]
    async fn a_token_file_that_ends_in_a_new_line_is_accepted() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let credentials = of(directory.path(), "tokenFile: token");
        assert!(credentials.connect().is_ok());
        assert_eq!(read_token(&directory.path().join("token")).unwrap(), TOKEN);
    }

    #[tokio::test]
    async fn what_is_wrong_is_named_without_any_secret() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        write(at.join("empty"), " \n").unwrap();
        for (user, expected) in [
            (format!("token: [{TOKEN}"), "config: line"),
            (format!("token: {{a: {TOKEN}}}"), "config: line"),
            ("tokenFile: missing".to_owned(), "missing: No such file"),
            ("tokenFile: empty".to_owned(), "empty is empty"),
            (format!("token: \"{TOKEN}\\nx\""), "users[].user.token holds what is no bearer token"),
        ] {
            let Err(message) = of(at, &user).connect() else { panic!("{user} must be refused") };
            assert!(message.contains(expected), "{message}");
            assert!(!message.contains("eyJ") && !message.contains("secret"), "{message}");
        }
        let missing = Credentials::new(Some(at.join("nothing"))).connect().err().unwrap();
        assert!(missing.contains("nothing: No such file"), "{missing}");
    }

    #[test]
    fn the_fingerprint_follows_every_file_that_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let credentials = of(at, "{tokenFile: token, client-certificate: tls.crt, client-key: tls.key}");
        let mut seen = BTreeSet::from([credentials.fingerprint()]);
        for file in ["token", "tls.crt", "tls.key", "ca.crt", "config"] {
            assert!(!seen.insert(credentials.fingerprint()), "the same files, the same number");
            let text = std::fs::read_to_string(at.join(file)).unwrap_or_default();
            write(at.join(file), format!("{text}\n# new\n")).unwrap();
            assert!(seen.insert(credentials.fingerprint()), "{file} changed");
        }
    }

    fn of(directory: &Path, user: &str) -> Credentials {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:6443/'}}}}, {{name: d, cluster: {{certificate-authority: ca.crt}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             users:\n- name: u\n  user:\n    {user}\n"
        );
        write(directory.join("config"), text).unwrap();
        Credentials::new(Some(directory.join("config")))
    }
}
