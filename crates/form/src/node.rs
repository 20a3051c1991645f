//! `form node`: who is in the cluster, who comes, who goes.

use std::net::SocketAddr;

use form_client::Endpoint;
use form_service::Problem;
use form_types::{Kind as _, Object, from_now, kinds};
use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::{self, Format};
use crate::error::Error;
use crate::invitation::Invitation;
use crate::output::{say, show, tell};

/// So many are named that are in the way.
const NAMED: usize = 10;

pub(crate) async fn list(api: Api, format: Format) -> Result<(), Error> {
    show(kinds::Node::INFO, &api.list(kinds::Node::INFO, "", "").await?.items, false, format)
}

/// Makes a JoinToken, and the word that has all that a new machine needs.
pub(crate) async fn invite(api: Api, args: cli::Invite) -> Result<(), Error> {
    let state = match args.address {
        Some(address) => Endpoint::try_from(address).map_err(|why| Error::Usage(format!("--address: {why}")))?,
        None => reachable(api.state())?,
    };
    let random = uuid::Uuid::new_v4().simple().to_string();
    let node = args.name.unwrap_or_default();
    let stem = if node.is_empty() { "node" } else { &node };
    let name = format!("{}-{}", stem.get(..54).unwrap_or(stem), random.get(..8).unwrap_or_default());
    let ends = from_now(args.expires).to_string();
    let mut spec = json!({"expires_at": ends});
    if let (false, Some(fields)) = (node.is_empty(), spec.as_object_mut()) {
        fields.insert("node".to_owned(), node.into());
    }
    let made = api.create(kinds::JoinToken::INFO, "", &json!({"name": name, "spec": spec})).await?;
    let secret = made.pointer("/status/secret").and_then(Value::as_str);
    let secret = secret.ok_or_else(|| Error::Answer("the token came without its secret".to_owned()))?;
    let invitation = Invitation::new(state, api.zone().to_owned(), secret.to_owned(), api.ca());
    let word = invitation.and_then(|invitation| invitation.encode());
    let word = word.ok_or_else(|| Error::Usage("the context's CA cannot be used".to_owned()))?;
    tell(format_args!("On the new machine, until {ends}, once:  form node join WORD  and then  form up"));
    tell("Who has this word can be a node of this cloud:");
    say(word)
}

/// Another machine does not reach this one's loopback.
fn reachable(state: SocketAddr) -> Result<Endpoint, Error> {
    if state.ip().is_loopback() {
        return Err(Error::Usage(format!(
            "form-state is known here as {state}, where no other machine reaches it; have it listen on an address of \
             this machine (form up --set address=ADDRESS), or say where it is reached: --address HOST:PORT"
        )));
    }
    Ok(state.into())
}

/// Lets no new instance be placed on a node, or lets it again.
pub(crate) async fn cordon(api: Api, name: &str, cordoned: bool) -> Result<(), Error> {
    // Others change it too: what was read is changed only while it is the last.
    let mut attempts = 0;
    loop {
        let mut node = api.get_object::<kinds::Node>("", name).await?;
        node.spec.cordoned = cordoned;
        match api.apply_object(node).await {
            Err(Error::Refused(problem)) if problem.status == 412 && attempts < 10 => attempts += 1,
            Err(error) => return Err(error),
            Ok(_) if cordoned => return say(format_args!("node {name} gets no new instances; those it has run on")),
            Ok(_) => return say(format_args!("node {name} gets instances again")),
        }
    }
}

pub(crate) async fn remove(api: Api, name: &str) -> Result<(), Error> {
    api.get(kinds::Node::INFO, "", name).await?;
    let there = placed_on(&api, name).await?;
    if !there.is_empty() {
        let more = there.len().saturating_sub(NAMED);
        let named = there.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        let text = format!(
            "node {name} still has the instances {named}{rest}, and with it would go who cleans up after them; `form \
             node cordon {name}` lets no more come, `form instance delete` takes them away"
        );
        return Err(Error::Refused(Problem::new(reqwest::StatusCode::CONFLICT, "not-empty", text)));
    }
    api.delete(kinds::Node::INFO, "", name).await?;
    tell(format_args!("What its services show opens nothing any more. On that machine: form down"));
    say(format_args!("node {name} is removed"))
}

/// `project/name` of the instances that are placed on `node`.
async fn placed_on(api: &Api, node: &str) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for project in api.list(kinds::Project::INFO, "", "").await?.items {
        let project = project.get("name").and_then(Value::as_str).unwrap_or_default();
        for item in api.list(kinds::Instance::INFO, project, "").await?.items {
            let instance = crate::api::object::<kinds::Instance>(item)?;
            found.extend((instance.status.node == node).then(|| path(&instance)));
        }
    }
    Ok(found)
}

fn path(instance: &Object<kinds::Instance>) -> String {
    format!("{}/{}", instance.meta.project, instance.meta.name)
}
