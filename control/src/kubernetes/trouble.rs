//! What may be wrong between the gateway and the API, in words that say what would help.

use std::time::Instant;

use kube::client::AuthError;
use kube::core::ApiResource;

use super::view::Kind;

/// What keeps objects of one kind from being listed and watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What kind of trouble.
    pub cause: Cause,
    /// What failed, and what would help.
    pub message: String,
    /// When it began.
    pub since: Instant,
}

/// Kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The API does not answer.
    Unreachable,
    /// The API does not accept the credentials (401).
    Unauthorized,
    /// The role lacks a permission (403).
    Forbidden,
    /// The cluster does not have this kind (404).
    NotInstalled,
    /// The API answers with an error of its own, or with something that cannot be read.
    Failing,
}

/// What is done with objects of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// They are listed.
    List,
    /// They are watched.
    Watch,
}

impl Trouble {
    /// Returns what an error means for objects of this kind, of this namespace if there is one.
    pub fn new(kind: Kind, namespace: Option<&str>, verb: Verb, error: &kube::Error, now: Instant) -> Self {
        let resource = kind.resource();
        let verb = match verb {
            Verb::List => "list",
            Verb::Watch => "watch",
        };
        let whose = namespace.map(|namespace| format!(" of namespace {namespace}")).unwrap_or_default();
        let what = format!("cannot {verb} {resource}{whose}: {}", describe(error));
        let cause = cause_of(error);
        let message = match cause {
            Cause::Unreachable | Cause::Failing => what,
            Cause::Unauthorized => {
                format!("{what}; renew the token or certificate that the kubeconfig names")
            }
            Cause::Forbidden => {
                let group = kind.group();
                format!("{what}; grant get, list and watch on {resource} of API group {group:?}")
            }
            Cause::NotInstalled => {
                format!("{what}; install its definition: `spillway crd | kubectl apply -f -`")
            }
        };
        Self { cause, message, since: now }
    }
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Node, Self::EgressTenant, Self::ExternalRoute, Self::Namespace, Self::Pod];

    /// Returns the resource's name in URLs and roles.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::EgressTenant => "egresstenants",
            Self::ExternalRoute => "adminpolicybasedexternalroutes",
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
        }
    }

    /// Returns the API group; empty for the core.
    pub fn group(self) -> &'static str {
        match self {
            Self::EgressTenant => "spillway.dev",
            Self::ExternalRoute => "k8s.ovn.org",
            Self::Node | Self::Namespace | Self::Pod => "",
        }
    }

    /// Returns the API group and version, as objects have it.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::EgressTenant => "spillway.dev/v1alpha1",
            Self::ExternalRoute => "k8s.ovn.org/v1",
            Self::Node | Self::Namespace | Self::Pod => "v1",
        }
    }

    /// Returns the resource, for objects that are read as they are.
    pub fn api_resource(self) -> ApiResource {
        ApiResource {
            group: self.group().to_owned(),
            version: self.api_version().rsplit('/').next().unwrap_or_default().to_owned(),
            api_version: self.api_version().to_owned(),
            kind: self.name().to_owned(),
            plural: self.resource().to_owned(),
        }
    }

    /// Returns the kind's name, as objects have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::EgressTenant => "EgressTenant",
            Self::ExternalRoute => "AdminPolicyBasedExternalRoute",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
        }
    }
}

/// Returns the HTTP status of an error that the API answered with.
pub fn status_code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None, // an enum of another crate, which grows with its features
    }
}

fn cause_of(error: &kube::Error) -> Cause {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => Cause::Unauthorized,
            403 => Cause::Forbidden,
            404 => Cause::NotInstalled,
            _ => Cause::Failing,
        },
        kube::Error::Auth(_) => Cause::Unauthorized,
        kube::Error::Service(error) if error.is::<AuthError>() => Cause::Unauthorized,
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => Cause::Failing,
        _ => Cause::Unreachable,
    }
}

/// Tells an error with its causes, without anything that may hold a secret: what a credential program prints, and
/// proxy URLs.
pub fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.message.is_empty() => format!("HTTP {}", status.code),
        kube::Error::Api(status) => status.message.clone(),
        kube::Error::ProxyProtocolUnsupported { .. } | kube::Error::ProxyProtocolDisabled { .. } => {
            "proxy-url has a scheme that is not supported; use http".to_owned()
        }
        kube::Error::SerdeError(error) => format!("the answer cannot be read: {error}"),
        error => innermost(error),
    }
}

fn innermost(error: &kube::Error) -> String {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(AuthError::AuthExecRun { .. } | AuthError::AuthExecParse(_)) = cause.downcast_ref() {
            return "the credential program of the kubeconfig failed".to_owned();
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return cause.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn each_error_says_what_would_help() {
        for (code, kind, cause, helps) in [
            (401, Kind::Node, Cause::Unauthorized, "renew the token"),
            (403, Kind::Pod, Cause::Forbidden, "grant get, list and watch on pods of API group \"\""),
            (
                403,
                Kind::ExternalRoute,
                Cause::Forbidden,
                "adminpolicybasedexternalroutes of API group \"k8s.ovn.org\"",
            ),
            (404, Kind::EgressTenant, Cause::NotInstalled, "spillway crd"),
            (500, Kind::Node, Cause::Failing, "cannot watch nodes: etcd is away"),
        ] {
            let error = kube::Error::Api(Status::failure("etcd is away", "X").with_code(code).boxed());
            let trouble = Trouble::new(kind, None, Verb::Watch, &error, Instant::now());
            assert_eq!(trouble.cause, cause);
            assert!(trouble.message.contains(helps), "{}", trouble.message);
        }
    }

    #[test]
    fn a_connection_that_is_refused_is_told_by_its_innermost_cause() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = kube::Error::Service(Box::new(refused));
        let trouble = Trouble::new(Kind::Pod, Some("ns-blue"), Verb::List, &error, Instant::now());
        assert_eq!(trouble.cause, Cause::Unreachable);
        assert_eq!(trouble.message, "cannot list pods of namespace ns-blue: connection refused");
    }

    #[test]
    fn what_a_credential_program_prints_is_not_told() {
        let out = std::process::Command::new("/bin/echo").arg("eyJsecret").output().unwrap();
        let error = AuthError::AuthExecRun { cmd: "login".into(), out: Box::new(out) };
        let error = kube::Error::Service(Box::new(error));
        let trouble = Trouble::new(Kind::Node, None, Verb::List, &error, Instant::now());
        assert_eq!(trouble.cause, Cause::Unauthorized);
        assert!(
            trouble
                .message
                .starts_with("cannot list nodes: the credential program of the kubeconfig failed;")
        );
    }
}
