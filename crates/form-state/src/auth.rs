//! Who asks, and what they may do. Every rule is in this file.

use std::time::SystemTime;

use form_service::Peer;
use form_types::KindInfo;
use form_types::v1::token_spec;

use crate::Error;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A service, by its certificate.
    Service {
        name: String,
        node: String,
        /// When the certificate was made.
        issued: SystemTime,
    },
    /// Whoever showed a token.
    Person {
        /// The token's name.
        token: String,
        /// The one project that it is good for; `None`: all, and the cluster's own kinds.
        project: Option<String>,
        role: Role,
    },
}

/// What a token is good for, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Viewer,
    Editor,
    Admin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Read,
    /// To create or to change what is wanted.
    Write,
    Delete,
    Status,
    Finalize,
}

impl Role {
    pub(crate) fn of(role: token_spec::Role) -> Option<Self> {
        match role {
            token_spec::Role::Unset => None,
            token_spec::Role::Viewer => Some(Role::Viewer),
            token_spec::Role::Editor => Some(Role::Editor),
            token_spec::Role::Admin => Some(Role::Admin),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Editor => "editor",
            Role::Admin => "admin",
        }
    }
}

impl From<Peer> for Identity {
    fn from(peer: Peer) -> Self {
        Identity::Service { name: peer.service, node: peer.node, issued: peer.issued }
    }
}

impl Identity {
    /// form-state itself.
    pub(crate) fn myself() -> Self {
        Identity::Service { name: "form-state".to_owned(), node: String::new(), issued: SystemTime::UNIX_EPOCH }
    }

    /// A name for logs and for keeping one asker's things apart from another's.
    pub(crate) fn subject(&self) -> String {
        match self {
            Identity::Service { name, node, .. } => format!("service-{name}-{node}"),
            Identity::Person { token, .. } => format!("token-{token}"),
        }
    }

    /// Whether this identity may do `verb` to resources of `kind` in `project` (empty: a cluster's kind, or all projects).
    pub(crate) fn may(&self, verb: Verb, kind: &KindInfo, project: &str) -> Result<(), Error> {
        let allowed = match self {
            Identity::Service { name, .. } => service_may(name, verb, kind),
            Identity::Person { project: Some(own), role, .. } => {
                // Of the cluster's kinds, a project's people see their project and the nodes (which say where services
                // answer), and its admins its tokens; which of them is judged where the resource is known.
                let here = match kind.name {
                    "Project" | "Node" => verb == Verb::Read,
                    "Token" => true,
                    _ => own == project,
                };
                here && person_may(*role, verb, kind)
            }
            Identity::Person { project: None, role, .. } => {
                let cluster = kind.is_cluster_scoped() && !matches!(verb, Verb::Read);
                person_may(*role, verb, kind) && (!cluster || *role == Role::Admin)
            }
        };
        if allowed { Ok(()) } else { Err(self.denied(verb, kind, project)) }
    }

    /// Where the rule depends on the resource: `name` is its name, `of` the project or the node that it is about.
    pub(crate) fn may_touch(&self, verb: Verb, kind: &KindInfo, name: &str, of: &str) -> Result<(), Error> {
        let allowed = match (self, kind.name) {
            (Identity::Person { project: Some(own), .. }, "Project") => own == name,
            (Identity::Person { project: Some(own), .. }, "Token") => own == of,
            // A node's agents speak for their own node, and for the instances that were placed there.
            (Identity::Service { name: service, node, .. }, "Node") if is_agent(service) => {
                verb == Verb::Read || node == name
            }
            (Identity::Service { name: service, node, .. }, "Instance") if is_agent(service) => {
                verb == Verb::Read || node == of
            }
            _ => true,
        };
        if allowed { Ok(()) } else { Err(self.denied(verb, kind, of)) }
    }

    /// Whether this identity may hand out tokens of `role`: nobody gives more than they have.
    pub(crate) fn may_grant(&self, role: Role) -> Result<(), Error> {
        match self {
            Identity::Person { role: own, .. } if *own < role => {
                Err(Error::Denied(format!("a token of role {} cannot make one of role {}", own.name(), role.name())))
            }
            _ => Ok(()),
        }
    }

    fn denied(&self, verb: Verb, kind: &KindInfo, project: &str) -> Error {
        let what = match verb {
            Verb::Read => "read",
            Verb::Write => "write",
            Verb::Delete => "delete",
            Verb::Status => "write the status of",
            Verb::Finalize => "finalize",
        };
        let place = if project.is_empty() { "the cluster".to_owned() } else { format!("project {project}") };
        let who = match self {
            Identity::Service { name, node, .. } => format!("{name} on {node}"),
            Identity::Person { token, project, role } => {
                let reach = project.as_ref().map_or("all projects".to_owned(), |project| format!("project {project}"));
                format!("token {token} ({} in {reach})", role.name())
            }
        };
        Error::Denied(format!("{who} may not {what} {} in {place}", kind.plural))
    }
}

/// Whether each node has its own of this service.
fn is_agent(service: &str) -> bool {
    matches!(service, "vmm-service" | "formnet")
}

/// Whoever reads or writes these lets others in.
fn is_for_admins(kind: &KindInfo) -> bool {
    matches!(kind.name, "Token" | "JoinToken")
}

fn service_may(name: &str, verb: Verb, kind: &KindInfo) -> bool {
    match verb {
        // No service has a use for tokens' descriptions; it asks form-state who shows one.
        Verb::Read => !is_for_admins(kind) || name == "form-state",
        Verb::Write => kind.writers.contains(&name) || name == "form-state",
        Verb::Delete => kind.writers.contains(&name) || name == "form-state",
        Verb::Status => kind.owners.contains(&name),
        Verb::Finalize => kind.finalized && kind.owners.first() == Some(&name),
    }
}

fn person_may(role: Role, verb: Verb, kind: &KindInfo) -> bool {
    let least = if is_for_admins(kind) { Role::Admin } else { Role::Editor };
    match verb {
        Verb::Read => !is_for_admins(kind) || role >= Role::Admin,
        Verb::Write => role >= least && !kind.internal,
        Verb::Delete => role >= least && kind.name != "Event",
        Verb::Status | Verb::Finalize => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> &'static KindInfo {
        KindInfo::find(name).unwrap()
    }

    fn person(project: Option<&str>, role: Role) -> Identity {
        Identity::Person { token: "t".into(), project: project.map(str::to_owned), role }
    }

    fn service(name: &str) -> Identity {
        Identity::Service { name: name.into(), node: "one".into(), issued: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn a_viewer_reads_and_nothing_more() {
        let viewer = person(Some("p"), Role::Viewer);
        assert!(viewer.may(Verb::Read, kind("Instance"), "p").is_ok());
        assert!(viewer.may(Verb::Write, kind("Instance"), "p").is_err());
        assert!(viewer.may(Verb::Read, kind("Instance"), "q").is_err());
        assert!(viewer.may(Verb::Read, kind("Instance"), "").is_err(), "not all projects");
        assert!(viewer.may(Verb::Read, kind("Token"), "").is_err());
        assert!(viewer.may(Verb::Read, kind("Node"), "").is_ok());
    }

    #[test]
    fn an_editor_writes_in_its_project_what_users_write() {
        let editor = person(Some("p"), Role::Editor);
        assert!(editor.may(Verb::Write, kind("Instance"), "p").is_ok());
        assert!(editor.may(Verb::Write, kind("Package"), "p").is_err(), "packages come from builds");
        assert!(editor.may(Verb::Delete, kind("Package"), "p").is_ok());
        assert!(editor.may(Verb::Status, kind("Instance"), "p").is_err());
        assert!(editor.may(Verb::Write, kind("Project"), "").is_err());
        assert!(editor.may(Verb::Write, kind("Token"), "").is_err());
    }

    #[test]
    fn the_clusters_own_kinds_are_for_its_admins() {
        assert!(person(None, Role::Editor).may(Verb::Write, kind("Project"), "").is_err());
        assert!(person(None, Role::Admin).may(Verb::Write, kind("Project"), "").is_ok());
        assert!(person(Some("p"), Role::Admin).may(Verb::Write, kind("Node"), "").is_err());
    }

    #[test]
    fn an_admin_of_a_project_makes_tokens_of_that_project_alone() {
        let admin = person(Some("p"), Role::Admin);
        assert!(admin.may(Verb::Write, kind("Token"), "").is_ok());
        assert!(admin.may_touch(Verb::Write, kind("Token"), "t", "p").is_ok());
        assert!(admin.may_touch(Verb::Write, kind("Token"), "t", "").is_err());
        assert!(person(None, Role::Editor).may_grant(Role::Admin).is_err());
    }

    #[test]
    fn a_service_writes_what_it_owns() {
        assert!(service("form-dns").may(Verb::Status, kind("Record"), "p").is_ok());
        assert!(service("form-dns").may(Verb::Status, kind("Instance"), "p").is_err());
        assert!(service("form-dns").may(Verb::Write, kind("Instance"), "p").is_err());
        assert!(service("form-dns").may(Verb::Read, kind("Token"), "").is_err());
    }

    #[test]
    fn the_agents_of_a_node_speak_for_that_node() {
        for agent in ["vmm-service", "formnet"] {
            let agent = service(agent);
            for verb in [Verb::Write, Verb::Status] {
                assert!(agent.may_touch(verb, kind("Node"), "one", "one").is_ok());
                assert!(agent.may_touch(verb, kind("Node"), "two", "two").is_err());
            }
            assert!(agent.may_touch(Verb::Status, kind("Instance"), "web", "one").is_ok());
            assert!(agent.may_touch(Verb::Status, kind("Instance"), "web", "two").is_err());
            assert!(agent.may(Verb::Read, kind("Peer"), "p").is_ok());
            assert!(agent.may(Verb::Read, kind("Token"), "").is_err());
            assert!(agent.may(Verb::Read, kind("JoinToken"), "").is_err());
        }
        assert!(service("formnet").may(Verb::Finalize, kind("Instance"), "p").is_err());
    }

    #[test]
    fn who_joins_is_a_matter_of_the_clusters_admins() {
        for verb in [Verb::Read, Verb::Write, Verb::Delete] {
            assert!(person(None, Role::Admin).may(verb, kind("JoinToken"), "").is_ok());
            assert!(person(None, Role::Editor).may(verb, kind("JoinToken"), "").is_err());
            assert!(person(Some("p"), Role::Admin).may(verb, kind("JoinToken"), "").is_err());
        }
    }
}
