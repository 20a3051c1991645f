//! The commands that ask the cloud, or tell it what is wanted.

use std::collections::BTreeMap;
use std::io::Write as _;

use form_types::v1::instance_spec::Power;
use form_types::v1::instance_status::Phase;
use form_types::{Kind, KindInfo, Object, explain as explain_path, from_json, kinds};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::api::{Api, Change, Listed};
use crate::cli::{self, Format};
use crate::error::Error;
use crate::output::{say, show, tell};
use crate::{files, progress};

pub(crate) async fn apply(api: Api, args: cli::Apply) -> Result<(), Error> {
    // All files are judged before the first is sent: a mistake in the last of them changes nothing.
    let mut ready = Vec::new();
    for path in &args.files {
        for mut document in files::read(path)? {
            let wrong = |text: &dyn std::fmt::Display| Error::Usage(format!("{}:\n{text}", document.place));
            let kind = document.value.get("kind").and_then(Value::as_str).unwrap_or_default();
            let kind = KindInfo::find(kind);
            if let (Some(kind), Some(fields)) = (kind, document.value.as_object_mut())
                && !kind.is_cluster_scoped()
                && !fields.contains_key("project")
            {
                fields.insert("project".to_owned(), args.project.project.clone().into());
            }
            let resource = from_json(document.value.clone()).map_err(|invalid| wrong(&invalid))?;
            let kind = form_types::validate(&resource).map_err(|invalid| wrong(&invalid))?;
            ready.push((kind, resource.project, resource.name, document));
        }
    }
    for (kind, project, name, document) in ready {
        let applied = api.apply(kind, &project, &name, &document.value).await?;
        let revision = applied.get("revision").map(Value::to_string).unwrap_or_default();
        say(format_args!("{} {name} is at revision {revision}", kind.name.to_lowercase()))?;
    }
    Ok(())
}

pub(crate) async fn get(api: Api, args: cli::Get) -> Result<(), Error> {
    let kind = kind(&args.kind)?;
    let format = args.output.output;
    let project = if args.all_projects { String::new() } else { args.project.project };
    if let (Some(name), false) = (&args.name, args.watch) {
        let item = api.get(kind, &project, name).await?;
        return show(kind, &[item], true, format);
    }
    if args.all_projects && !kind.is_cluster_scoped() {
        return get_everywhere(&api, kind, &args.selector, format, args.watch).await;
    }
    let wanted =
        |item: &Value| args.name.as_deref().is_none_or(|name| item.get("name").and_then(Value::as_str) == Some(name));
    let mut listed = list(&api, kind, &project, &args.selector).await?;
    listed.items.retain(wanted);
    show(kind, &listed.items, false, format)?;
    if !args.watch {
        return Ok(());
    }
    let mut changes = std::pin::pin!(api.watch(kind, &project, &args.selector, listed.revision).await?);
    while let Some(change) = changes.next().await {
        match change? {
            Change::Put(item) if wanted(&item) => show(kind, &[item], true, format)?,
            Change::Deleted(item) if wanted(&item) => {
                say(format_args!("{} {} is gone", kind.name.to_lowercase(), item.get("name").unwrap_or(&Value::Null)))?;
            }
            _ => {}
        }
    }
    Err(Error::Failed("the watch ended: form-state stopped; ask again".to_owned()))
}

/// All of a kind. form-state has nothing in a project that is not there; to a person that is a mistake.
async fn list(api: &Api, kind: &KindInfo, project: &str, selector: &str) -> Result<Listed, Error> {
    let listed = api.list(kind, project, selector).await?;
    if listed.items.is_empty() && !kind.is_cluster_scoped() {
        api.get(kinds::Project::INFO, "", project).await?;
    }
    Ok(listed)
}

async fn get_everywhere(api: &Api, kind: &KindInfo, selector: &str, format: Format, watch: bool) -> Result<(), Error> {
    if watch {
        return Err(Error::Usage("--watch is for one project; leave out --all-projects".to_owned()));
    }
    let mut items = Vec::new();
    for project in api.list(kinds::Project::INFO, "", "").await?.items {
        let name = project.get("name").and_then(Value::as_str).unwrap_or_default();
        items.extend(api.list(kind, name, selector).await?.items);
    }
    show(kind, &items, false, format)
}

pub(crate) async fn delete(api: Api, args: cli::Delete) -> Result<(), Error> {
    let kind = kind(&args.kind)?;
    let project = if kind.is_cluster_scoped() { "" } else { &args.project.project };
    for name in &args.names {
        let gone = api.delete(kind, project, name).await?;
        if !gone && !args.no_wait && kind.name == kinds::Instance::INFO.name {
            let bar = progress::waiting(format!("{name} is being cleaned up"));
            api.wait_for(project, name, |found: Option<&Object<kinds::Instance>>| found.is_none().then_some(()))
                .await?;
            bar.finish_and_clear();
        }
        say(format_args!(
            "{} {name} is {}",
            kind.name.to_lowercase(),
            if gone || !args.no_wait { "gone" } else { "going" }
        ))?;
    }
    Ok(())
}

pub(crate) fn explain(path: &str) -> Result<(), Error> {
    let unknown = || {
        let kinds = form_types::KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
        Error::Usage(format!("there is no {path:?}; the kinds are {kinds}, and fields follow with dots: instance.spec"))
    };
    let (doc, fields) = explain_path(path).ok_or_else(unknown)?;
    say(format_args!("{doc}\n"))?;
    for field in fields {
        let rules = if field.rules.is_empty() { String::new() } else { format!(" ({})", field.rules) };
        say(format_args!("  {} <{}>{rules}{}", field.name, field.kind, if field.nested { " …" } else { "" }))?;
        if !field.doc.is_empty() {
            say(format_args!("      {}", field.doc))?;
        }
        if !field.values.is_empty() {
            say(format_args!("      one of {}", field.values.join(", ")))?;
        }
    }
    Ok(())
}

pub(crate) async fn status(api: Api, format: Format) -> Result<(), Error> {
    let nodes = api.list(kinds::Node::INFO, "", "").await?.items;
    let mut phases: BTreeMap<String, u64> = BTreeMap::new();
    for project in api.list(kinds::Project::INFO, "", "").await?.items {
        let name = project.get("name").and_then(Value::as_str).unwrap_or_default();
        for instance in api.list(kinds::Instance::INFO, name, "").await?.items {
            let phase = instance.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Pending");
            *phases.entry(phase.to_owned()).or_default() += 1;
        }
    }
    match format {
        Format::Json | Format::Yaml => {
            let whole = json!({"nodes": nodes, "instances": phases});
            show(kinds::Node::INFO, &[whole], true, format)
        }
        Format::Table | Format::Wide => {
            show(kinds::Node::INFO, &nodes, false, format)?;
            let counts: Vec<String> = phases.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
            say(format_args!("\ninstances: {}", if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }))
        }
    }
}

pub(crate) async fn instance(api: Api, args: cli::Instance) -> Result<(), Error> {
    let (named, wanted): (_, &[Phase]) = match &args {
        cli::Instance::Start(named) | cli::Instance::Restart(named) => (named, &[Phase::Running]),
        cli::Instance::Stop(named) => (named, &[Phase::Stopped]),
        cli::Instance::Delete(named) => {
            let cli::Named { name, project, no_wait } = named;
            let (names, project) = (vec![name.clone()], cli::InProject { project: project.project.clone() });
            return delete(api, cli::Delete { kind: "instance".to_owned(), names, project, no_wait: *no_wait }).await;
        }
    };
    // Others change it too: what was read is changed only while it is the last.
    let mut attempts = 0;
    let instance = loop {
        let mut instance = api.get_object::<kinds::Instance>(&named.project.project, &named.name).await?;
        match &args {
            cli::Instance::Stop(_) => instance.spec.set_power(Power::Off),
            cli::Instance::Restart(_) => {
                instance.spec.set_power(Power::On);
                instance.spec.restart_count = instance.spec.restart_count.wrapping_add(1);
            }
            cli::Instance::Start(_) | cli::Instance::Delete(_) => instance.spec.set_power(Power::On),
        }
        match api.apply_object(instance).await {
            Err(Error::Refused(problem)) if problem.status == 412 && attempts < 10 => attempts += 1,
            result => break result?,
        }
    };
    if named.no_wait {
        return say(format_args!("instance {} is told", named.name));
    }
    let now = wait_until(&api, &instance, wanted).await?;
    match now.status.phase() {
        Phase::Running => say(format_args!("instance {} is running", named.name)),
        phase if wanted.contains(&phase) => say(format_args!("instance {} is stopped", named.name)),
        _ => say(format_args!("instance {} has ended: {}", named.name, now.status.message)),
    }
}

/// Waits until the instance has this spec and one of these phases, or its workload has done its work and ended.
///
/// A workload that fails ends it too, also one that is tried again: it may fail for ever.
pub(crate) async fn wait_until(
    api: &Api,
    wanted: &Object<kinds::Instance>,
    phases: &[Phase],
) -> Result<Object<kinds::Instance>, Error> {
    let (name, generation) = (&wanted.meta.name, wanted.meta.generation);
    let bar = progress::waiting(format!("waiting for {name}"));
    let ended = api.wait_for(&wanted.meta.project, name, |found: Option<&Object<kinds::Instance>>| {
        let Some(found) = found else { return Some(Err(Error::Failed(format!("instance {name} was deleted")))) };
        let status = &found.status;
        bar.set_message(format!("{name}: {} {}", status.phase().as_str_name(), status.message));
        if status.observed_generation < generation {
            return None;
        }
        if phases.contains(&status.phase()) {
            return Some(Ok(found.clone()));
        }
        let fails = |then: &str| {
            let said = format!("{}; {then}`form logs {name}` shows what it said", status.message);
            Some(Err(Error::Failed(format!("instance {name} failed: {said}"))))
        };
        match status.phase() {
            Phase::Stopped => Some(Ok(found.clone())),
            Phase::Failed => fails(""),
            // Anything but the workload that is in the way, a disk or a bridge, may come.
            Phase::BackOff if status.reason == "Ended" => fails("it is tried again; "),
            _ => None,
        }
    });
    let ended = ended.await?;
    bar.finish_and_clear();
    ended
}

pub(crate) async fn logs(api: Api, args: cli::Logs) -> Result<(), Error> {
    let project = &args.project.project;
    let instance = api.get_object::<kinds::Instance>(project, &args.name).await?;
    if instance.status.node.is_empty() {
        return Err(Error::Failed(format!("instance {} has no node yet: {}", args.name, instance.status.message)));
    }
    let node = api.get_object::<kinds::Node>("", &instance.status.node).await?;
    let service = api.service("vmm-service", &node.spec.vmm_url)?;
    let mut query = vec![("follow", args.follow.to_string())];
    query.extend(args.tail.map(|tail| ("tail", tail.to_string())));
    let answer = service.get(&format!("/v1/projects/{project}/instances/{}/logs", args.name), &query).await?;
    let mut chunks = answer.bytes_stream();
    let mut out = std::io::stdout();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Error::Failed(format!("the stream of the log broke: {error}")))?;
        match out.write_all(&chunk).and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.map_err(Error::file("standard output"))?,
        }
    }
    Ok(())
}

pub(crate) async fn list_packages(api: Api, project: String, format: Format) -> Result<(), Error> {
    show(kinds::Package::INFO, &list(&api, kinds::Package::INFO, &project, "").await?.items, false, format)
}

pub(crate) async fn inspect_package(api: Api, project: String, name: String) -> Result<(), Error> {
    show(kinds::Package::INFO, &[api.get(kinds::Package::INFO, &project, &name).await?], true, Format::Yaml)
}

pub(crate) async fn create_token(
    api: Api,
    name: String,
    role: String,
    project: Option<String>,
    description: String,
    expires_at: Option<String>,
) -> Result<(), Error> {
    let mut spec = json!({"role": role, "description": description});
    if let Some(fields) = spec.as_object_mut() {
        fields.extend(project.map(|project| ("project".to_owned(), project.into())));
        fields.extend(expires_at.map(|at| ("expires_at".to_owned(), at.into())));
    }
    let made = api.create(kinds::Token::INFO, "", &json!({"name": name, "spec": spec})).await?;
    let secret = made.pointer("/status/secret").and_then(Value::as_str);
    tell("Keep it: it is shown this once.");
    say(secret.ok_or_else(|| Error::Answer("the token came without its secret".to_owned()))?)
}

pub(crate) async fn list_tokens(api: Api, format: Format) -> Result<(), Error> {
    show(kinds::Token::INFO, &api.list(kinds::Token::INFO, "", "").await?.items, false, format)
}

pub(crate) async fn revoke_token(api: Api, name: String) -> Result<(), Error> {
    api.delete(kinds::Token::INFO, "", &name).await?;
    say(format_args!("token {name} is revoked"))
}

fn kind(name: &str) -> Result<&'static KindInfo, Error> {
    KindInfo::find(name).ok_or_else(|| {
        let kinds = form_types::KINDS.iter().map(|kind| kind.plural).collect::<Vec<_>>().join(", ");
        Error::Usage(format!("there are no {name:?}; there are {kinds}"))
    })
}
