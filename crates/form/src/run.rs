//! From a directory with a Formfile to a package, and on to an instance that runs.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use form_pack_manager::context::pack_context;
use form_types::v1::build_spec::Network;
use form_types::v1::build_status::Phase as BuildPhase;
use form_types::v1::instance_spec::Power;
use form_types::v1::instance_status::Phase;
use form_types::v1::package_spec::Restart;
use form_types::v1::port::Protocol;
use form_types::v1::{BuildSpec, InstanceSpec, InstanceStatus, PublishedPort};
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

pub(crate) async fn build_package(api: Api, args: cli::Build) -> Result<(), Error> {
    let project = args.project.project.clone();
    let name = match (&args.name, &args.dir, &args.image) {
        (Some(name), ..) => name.clone(),
        (None, Some(dir), _) => name_of(dir)?,
        (None, None, image) => name_of_image(image.as_deref().unwrap_or_default())?,
    };
    let mut spec = BuildSpec {
        package: name.clone(),
        target: args.target.unwrap_or_default(),
        timeout_seconds: args.timeout.unwrap_or_default(),
        no_cache: args.no_cache,
        image: args.image.unwrap_or_default(),
        ..Default::default()
    };
    if args.network == cli::BuildNetwork::Host {
        spec.set_network(Network::Host);
    }
    for arg in &args.args {
        let (key, value) =
            arg.split_once('=').ok_or_else(|| Error::Usage(format!("--arg {arg}: not of the form NAME=VALUE")))?;
        spec.args.insert(key.to_owned(), value.to_owned());
    }
    for secret in &args.secrets {
        let parts =
            secret.split_once(',').and_then(|(id, file)| Some((id.strip_prefix("id=")?, file.strip_prefix("src=")?)));
        let (id, file) =
            parts.ok_or_else(|| Error::Usage(format!("--secret {secret}: not of the form id=ID,src=FILE")))?;
        let contents = std::fs::read(file).map_err(Error::file(Path::new(file)))?;
        let answer = pack::store(&api).await?.post(&format!("/v1/projects/{project}/secrets"), contents.into()).await?;
        spec.secrets.insert(id.to_owned(), told(answer, "handle").await?);
    }
    if let Some(dir) = &args.dir {
        spec.context = upload(&api, dir, &project).await?;
    }
    let shows = args.follow || std::io::IsTerminal::is_terminal(&std::io::stderr());
    let digest = build(&api, spec, &project, shows).await?;
    say(format_args!("{name} {digest}"))
}

/// Prints what a build wrote.
pub(crate) async fn log(api: &Api, project: &str, name: &str, follow: bool) -> Result<(), Error> {
    print_log(api, project, name, follow, &mut std::io::stdout()).await
}

async fn print_log(
    api: &Api,
    project: &str,
    name: &str,
    follow: bool,
    out: &mut dyn std::io::Write,
) -> Result<(), Error> {
    let path = format!("/v1/projects/{project}/builds/{name}/log");
    let answer = pack::store(api).await?.get(&path, &[("follow", follow.to_string())]).await?;
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.try_next().await.map_err(|error| Error::Answer(error.to_string()))? {
        out.write_all(&piece).and_then(|()| out.flush()).map_err(|error| Error::Failed(error.to_string()))?;
    }
    Ok(())
}

/// Says that a build is not wanted any more.
pub(crate) async fn cancel(api: &Api, project: &str, name: &str) -> Result<(), Error> {
    let mut build = api.get_object::<kinds::Build>(project, name).await?;
    build.spec.cancel = true;
    api.apply_object(Object::<kinds::Build>::new(project, name, build.spec)).await?;
    say(format_args!("build {name} is to be cancelled"))
}

pub(crate) async fn run(api: Api, args: cli::Run) -> Result<(), Error> {
    // What is not a directory here may be an image there.
    let image = args.dir.to_str().filter(|text| !args.dir.exists() && !text.starts_with(['.', '/'])).map(str::to_owned);
    let name = match (args.name, &image) {
        (Some(name), _) => name,
        (None, Some(image)) => name_of_image(image)?,
        (None, None) => name_of(&args.dir)?,
    };
    let project = args.project.project;
    // Judged before anything is built.
    let mut asked = InstanceSpec { package: name.clone(), ..Default::default() };
    for setting in &args.env {
        let (key, value) = setting
            .split_once('=')
            .ok_or_else(|| Error::Usage(format!("--env {setting}: not of the form KEY=VALUE")))?;
        asked.env.insert(key.to_owned(), value.to_owned());
    }
    asked.publish = args.publish.iter().map(|text| published(text)).collect::<Result<_, _>>()?;
    let draft = Object::<kinds::Instance>::new(&project, &name, asked.clone());
    validate(&draft.into()).map_err(|invalid| Error::Usage(invalid.to_string()))?;
    let mut wanted = BuildSpec { package: name.clone(), ..Default::default() };
    match image {
        Some(image) => wanted.image = image,
        None => wanted.context = upload(&api, &args.dir, &project).await?,
    }
    let digest = build(&api, wanted, &project, false).await?;

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

/// `8080:80`, `5353:53/udp`.
fn published(text: &str) -> Result<PublishedPort, Error> {
    let wrong =
        || Error::Usage(format!("--publish {text}: not of the form HOST_PORT:PORT, with /udp where it is not TCP"));
    let (ports, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return Err(wrong()),
    };
    let (host, port) = ports.split_once(':').ok_or_else(wrong)?;
    let number =
        |text: &str| text.parse::<std::num::NonZeroU16>().map(|port| u32::from(port.get())).map_err(|_| wrong());
    Ok(PublishedPort { host_port: number(host)?, port: number(port)?, protocol: protocol.into() })
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
    if !asked.publish.is_empty() {
        spec.publish.clone_from(&asked.publish);
    }
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

/// Has it built, and answers with the package's digest.
async fn build(api: &Api, spec: BuildSpec, project: &str, shows: bool) -> Result<String, Error> {
    let name = spec.package.clone();
    let id = uuid::Uuid::new_v4().simple().to_string();
    let build = format!("{}-{}", name.get(..54).unwrap_or(&name), id.get(..8).unwrap_or(&id));
    api.apply_object(Object::<kinds::Build>::new(project, &build, spec)).await?;
    let bar = if shows { indicatif::ProgressBar::hidden() } else { progress::waiting(format!("building {name}")) };
    let ended = api.wait_for(project, &build, |build: Option<&Object<kinds::Build>>| {
        let Some(build) = build else { return Some(Err(Error::Failed("the build was deleted".to_owned()))) };
        match build.status.phase() {
            BuildPhase::Succeeded => Some(Ok(build.status.digest.clone())),
            BuildPhase::Failed => {
                let step =
                    if build.status.step.is_empty() { String::new() } else { format!("{}:\n", build.status.step) };
                Some(Err(Error::Failed(format!("{step}{}", build.status.message))))
            }
            BuildPhase::Cancelled => Some(Err(Error::Failed("the build was cancelled".to_owned()))),
            BuildPhase::Queued => {
                bar.set_message(format!("building {name}: others are built before"));
                None
            }
            _ => {
                bar.set_message(format!("building {name}: {}", build.status.step));
                None
            }
        }
    });
    if !shows {
        let ended = ended.await?;
        bar.finish_and_clear();
        return ended;
    }
    // A log that breaks off does not end the build.
    let mut errors = std::io::stderr();
    let (ended, _) = tokio::join!(ended, print_log(api, project, &build, true, &mut errors));
    ended?
}

/// A text of an answer of the package store.
async fn told(answer: reqwest::Response, key: &str) -> Result<String, Error> {
    let answer: Value = answer.json().await.map_err(|error| Error::Answer(error.to_string()))?;
    let text = answer.get(key).and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| Error::Answer(format!("the package store gave no {key}")))
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
    told(answer, "digest").await
}

/// The last part of an image's name, without its tag.
fn name_of_image(image: &str) -> Result<String, Error> {
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split([':', '@']).next() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Error::Usage(format!("{image:?}: give it a name with --name"))),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_published_as_it_is_written() {
        let of = |text: &str| published(text).map(|port| (port.host_port, port.port, port.protocol()));
        assert_eq!(of("8080:80").unwrap(), (8080, 80, Protocol::Tcp));
        assert_eq!(of("8080:80/tcp").unwrap(), (8080, 80, Protocol::Tcp));
        assert_eq!(of("5353:53/udp").unwrap(), (5353, 53, Protocol::Udp));
        for wrong in ["", "80", "80:", ":80", "0:80", "80:65536", "80:80/sctp", "1:2:3", "80:80/tcp/udp"] {
            assert!(of(wrong).unwrap_err().to_string().contains("HOST_PORT:PORT"), "{wrong}");
        }
    }
}
