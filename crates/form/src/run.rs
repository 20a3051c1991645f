//! From a directory with a Formfile to a package, and on to an instance that runs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use form_pack_manager::context::pack_context;
use form_types::v1::build_status::Phase as BuildPhase;
use form_types::v1::instance_spec::Power;
use form_types::v1::instance_status::Phase;
use form_types::v1::package_spec::Restart;
use form_types::v1::port::Protocol;
use form_types::v1::{BuildSpec, InstanceSpec, InstanceStatus};
use form_types::{Kind as _, Object, kinds, validate};
use formfile::Formfile;
use futures::TryStreamExt as _;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_util::io::ReaderStream;

use crate::api::Api;
use crate::error::Error;
use crate::formfile::refused;
use crate::output::say;
use crate::{cli, pack, progress, verbs};

/// How long a workload without ports has to hold until it is said to run.
const MOMENT: Duration = Duration::from_secs(1);

pub(crate) async fn build_package(api: Api, dir: PathBuf, name: Option<String>, project: String) -> Result<(), Error> {
    let name = name.map_or_else(|| name_of(&dir), Ok)?;
    let digest = build(&api, &dir, &name, &project).await?;
    say(format_args!("{name} {digest}"))
}

pub(crate) async fn run(api: Api, args: cli::Run) -> Result<(), Error> {
    let name = args.name.map_or_else(|| name_of(&args.dir), Ok)?;
    let project = args.project.project;
    // Judged before anything is built.
    let mut asked = InstanceSpec { package: name.clone(), ..Default::default() };
    for setting in &args.env {
        let (key, value) = setting
            .split_once('=')
            .ok_or_else(|| Error::Usage(format!("--env {setting}: not of the form KEY=VALUE")))?;
        asked.env.insert(key.to_owned(), value.to_owned());
    }
    let draft = Object::<kinds::Instance>::new(&project, &name, asked.clone());
    validate(&draft.into()).map_err(|invalid| Error::Usage(invalid.to_string()))?;
    let digest = build(&api, &args.dir, &name, &project).await?;

    let restart = args.restart.map(|restart| match restart {
        cli::Restart::Always => Restart::Always,
        cli::Restart::OnFailure => Restart::OnFailure,
        cli::Restart::Never => Restart::Never,
    });
    asked.restart = restart.map(Into::into);
    let set = replicas(&api, &project, &name, args.replicas).await?;
    let mut wanted = Vec::new();
    for (name, shared) in &set.wanted {
        wanted.push(want(&api, &project, name, shared.as_deref(), &asked, &digest).await?);
    }
    // Only now, so that the name answers all the while.
    for surplus in &set.surplus {
        api.delete(kinds::Instance::INFO, &project, surplus).await?;
        say(format_args!("instance {surplus} is going"))?;
    }
    for instance in &wanted {
        let name = &instance.meta.name;
        if args.no_wait {
            say(format_args!("instance {name} is wanted"))?;
            continue;
        }
        let running = verbs::wait_until(&api, instance, &[Phase::Running]).await?;
        let running = settle(&api, running).await?;
        if running.status.phase() != Phase::Running {
            say(format_args!("{name} has ended: {}", running.status.message))?;
            continue;
        }
        let addresses = running.status.addresses.join(", ");
        let port = running.status.ports.first().map_or_else(String::new, |port| format!(":{}", port.port));
        say(format_args!("{name} runs at {addresses}; http://{name}.{project}.{}{port}/", api.zone()))?;
    }
    Ok(())
}

/// The label of instances that are one of several, with the name that they share.
const REPLICA_OF: &str = "replica-of";

/// Which instances are to be, each with the name that it shares, and which are too many.
struct Replicas {
    wanted: Vec<(String, Option<String>)>,
    surplus: Vec<String>,
}

/// One instance goes by its own name. As soon as there were several, there is a set, and one of it is `NAME-1`.
async fn replicas(api: &Api, project: &str, name: &str, asked: Option<u32>) -> Result<Replicas, Error> {
    let package = api.get_object::<kinds::Package>(project, name).await?;
    let count = asked.or(package.spec.replicas).unwrap_or(1);
    let there = api.list(kinds::Instance::INFO, project, &format!("{REPLICA_OF}={name}")).await?.items;
    if count == 1 && there.is_empty() {
        return Ok(Replicas { wanted: vec![(name.to_owned(), None)], surplus: Vec::new() });
    }
    match api.get_object::<kinds::Instance>(project, name).await {
        Err(Error::Refused(problem)) if problem.status == 404 => {}
        Err(error) => return Err(error),
        Ok(_) => {
            return Err(Error::Usage(format!(
                "there is an instance {name}, so several cannot share its name; `form instance delete {name}` first, or \
                 give another --name"
            )));
        }
    }
    let wanted: Vec<_> = (1..=count).map(|number| (format!("{name}-{number}"), Some(name.to_owned()))).collect();
    let names = there.iter().filter_map(|item| item.get("name")?.as_str());
    let surplus = names.filter(|there| !wanted.iter().any(|(name, _)| name == there)).map(str::to_owned).collect();
    Ok(Replicas { wanted, surplus })
}

/// Has one instance be as it was asked for.
async fn want(
    api: &Api,
    project: &str,
    name: &str,
    shared: Option<&str>,
    asked: &InstanceSpec,
    digest: &str,
) -> Result<Object<kinds::Instance>, Error> {
    let mut spec = match api.get_object::<kinds::Instance>(project, name).await {
        Ok(instance) => again(&instance, digest),
        Err(Error::Refused(problem)) if problem.status == 404 => InstanceSpec::default(),
        Err(error) => return Err(error),
    };
    spec.package.clone_from(&asked.package);
    spec.set_power(Power::On);
    spec.restart = asked.restart;
    spec.env.extend(asked.env.clone());
    let mut instance = Object::<kinds::Instance>::new(project, name, spec);
    if let Some(shared) = shared {
        instance.spec.aliases = vec![shared.to_owned()];
        instance.meta.labels.insert(REPLICA_OF.to_owned(), shared.to_owned());
    }
    api.apply_object(instance).await
}

/// What an instance that is there already is to be: restarted, where it has another package or does not run.
fn again(instance: &Object<kinds::Instance>, digest: &str) -> InstanceSpec {
    let (mut spec, status) = (instance.spec.clone(), &instance.status);
    let other = !status.package_digest.is_empty() && status.package_digest != digest;
    if other || matches!(status.phase(), Phase::Failed | Phase::BackOff | Phase::Stopped) {
        spec.restart_count = spec.restart_count.wrapping_add(1);
    }
    spec
}

/// Waits until it answers at its first port, or for a moment: a workload that ends as soon as it is started did not run.
async fn settle(api: &Api, running: Object<kinds::Instance>) -> Result<Object<kinds::Instance>, Error> {
    let (project, name) = (&running.meta.project, &running.meta.name);
    let ends = api.wait_for(project, name, |found: Option<&Object<kinds::Instance>>| {
        found.is_none_or(|found| found.status.phase() != Phase::Running).then_some(())
    });
    tokio::select! {
        ended = ends => ended?,
        () = answers(&running.status) => return Ok(running),
        () = tokio::time::sleep(MOMENT) => return Ok(running),
    }
    verbs::wait_until(api, &running, &[Phase::Running]).await
}

/// Ends when somebody listens at the first port; never, if there is none, or it is out of our reach.
async fn answers(status: &InstanceStatus) {
    let port = status.ports.iter().find(|port| port.protocol() == Protocol::Tcp);
    let address = status.addresses.first().and_then(|address| address.parse::<IpAddr>().ok());
    let number = port.and_then(|port| u16::try_from(port.port).ok());
    let (Some(address), Some(number)) = (address, number) else { return std::future::pending().await };
    while TcpStream::connect((address, number)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Uploads the directory, has it built, and answers with the package's digest.
async fn build(api: &Api, dir: &Path, name: &str, project: &str) -> Result<String, Error> {
    let context = upload(api, dir, project).await?;
    let spec = BuildSpec { context, package: name.to_owned(), ..Default::default() };
    let id = uuid::Uuid::new_v4().simple().to_string();
    let build = format!("{}-{}", name.get(..54).unwrap_or(name), id.get(..8).unwrap_or(&id));
    api.apply_object(Object::<kinds::Build>::new(project, &build, spec)).await?;
    let bar = progress::waiting(format!("building {name}"));
    let ended = api.wait_for(project, &build, |build: Option<&Object<kinds::Build>>| {
        let Some(build) = build else { return Some(Err(Error::Failed("the build was deleted".to_owned()))) };
        match build.status.phase() {
            BuildPhase::Succeeded => Some(Ok(build.status.digest.clone())),
            BuildPhase::Failed => Some(Err(Error::Failed(build.status.message.clone()))),
            _ => {
                bar.set_message(format!("building {name}: {}", build.status.step));
                None
            }
        }
    });
    let ended = ended.await?;
    bar.finish_and_clear();
    ended
}

/// Sends the directory to the package store; answers with the digest of what was sent.
async fn upload(api: &Api, dir: &Path, project: &str) -> Result<String, Error> {
    let formfile = dir.join("Formfile");
    if !formfile.is_file() {
        return Err(Error::Usage(format!("{}: there is no Formfile in it", dir.display())));
    }
    // The build would say the same, after everything was sent.
    let text = std::fs::read(&formfile).map_err(Error::file(&formfile))?;
    Formfile::parse("Formfile", &text).map_err(|found| refused(&formfile, &found))?;
    // Into a file first: a directory that changes meanwhile must not break an upload in its middle.
    let directory = dir.to_owned();
    let packed = tokio::task::spawn_blocking(move || -> Result<std::fs::File, Error> {
        let mut file = tempfile::tempfile().map_err(Error::file("a temporary file"))?;
        pack_context(&directory, &mut file).map_err(|error| Error::Usage(form_service::run::chain(&error)))?;
        std::io::Seek::rewind(&mut file).map_err(Error::file("a temporary file"))?;
        Ok(file)
    });
    let file = packed.await.map_err(|error| Error::Failed(error.to_string()))??;
    let size = file.metadata().map_err(Error::file("a temporary file"))?.len();

    let bar = progress::bytes("sending the build context", size);
    let sent = bar.clone();
    let chunks = ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 << 10);
    let body = reqwest::Body::wrap_stream(chunks.inspect_ok(move |chunk| sent.inc(chunk.len() as u64)));
    let answer = pack::store(api).await?.post(&format!("/v1/projects/{project}/contexts"), body).await?;
    bar.finish_and_clear();
    let answer: Value = answer.json().await.map_err(|error| Error::Answer(error.to_string()))?;
    let digest = answer.get("digest").and_then(Value::as_str);
    digest.map(str::to_owned).ok_or_else(|| Error::Answer("the package store gave no digest".to_owned()))
}

/// The directory's own name, made a DNS label.
fn name_of(dir: &Path) -> Result<String, Error> {
    let full = dir.canonicalize().map_err(Error::file(dir))?;
    let name = full.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let label: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    match label.trim_matches('-') {
        "" => Err(Error::Usage(format!("{}: give it a name with --name", dir.display()))),
        label => Ok(label.to_owned()),
    }
}
