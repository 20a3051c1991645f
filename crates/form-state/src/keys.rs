//! Where things are in the store.
//!
//! ```text
//!   resource/<Kind>/<project>/<name>     an encoded formation.v1.Resource; a kind of the cluster has an empty project
//!   claim/<what>/<value>                 who has an address, a domain, a key, a port, a prefix: one owner each
//!   token/<name>                         the SHA-256 of a token's secret
//!   jointoken/<name>                     the same of a JoinToken's
//!   joined/<name of a JoinToken>         what used it: the hash of its keys, and its Node's uid
//!   removed/<node>                       when the node was removed: its certificates from before count no more
//!   placed/<node>                        written with every placement there: it and the node's removal are about one another
//!   presence/<node>                      hangs on the lease of the node's vmm-service
//!   idempotency/<who>/<hash>             what a creation with this Idempotency-Key made
//!   cluster/…                            what was decided once
//! ```

use form_types::v1::Key;

pub(crate) const PRESENCE: &str = "presence/";
pub(crate) const REMOVED: &str = "removed/";
pub(crate) const CLAIM_PREFIX: &str = "claim/prefix/";
/// Written with every claim of a prefix: prefixes overlap without being equal, so each claim is about all of them.
pub(crate) const PREFIXES: &str = "cluster/prefixes";
pub(crate) const CLUSTER_IPV4: &str = "cluster/ipv4";
pub(crate) const CLUSTER_IPV6: &str = "cluster/ipv6";

pub(crate) fn resource(key: &Key) -> String {
    format!("resource/{}/{}/{}", key.kind, key.project, key.name)
}

/// All of a kind; of one project, where one is given.
pub(crate) fn kind(kind: &str, project: &str) -> String {
    if project.is_empty() { format!("resource/{kind}/") } else { format!("resource/{kind}/{project}/") }
}

pub(crate) fn token(name: &str) -> String {
    format!("token/{name}")
}

pub(crate) fn join_token(name: &str) -> String {
    format!("jointoken/{name}")
}

pub(crate) fn joined(join_token: &str) -> String {
    format!("joined/{join_token}")
}

pub(crate) fn removed(node: &str) -> String {
    format!("{REMOVED}{node}")
}

pub(crate) fn placed(node: &str) -> String {
    format!("placed/{node}")
}

pub(crate) fn presence(node: &str) -> String {
    format!("{PRESENCE}{node}")
}

pub(crate) fn claim(what: &str, value: &str) -> String {
    format!("claim/{what}/{value}")
}

pub(crate) fn idempotency(subject: &str, hash: &str) -> String {
    format!("idempotency/{subject}/{hash}")
}
