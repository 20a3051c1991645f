use std::collections::HashSet;

use crate::ast::{Arg, Command, Formfile, Op, Source, Stage, Step};
use crate::diagnostic::{Diagnostic, Fault, Report};
use crate::template::Template;

/// A warning that [`lint`] may give: its stable name, and what it is about.
pub const LINTS: &[(&str, &str)] = &[
    ("add-copies", "`ADD` of what is no archive does what `COPY` does"),
    ("apt-in-run", "`RUN apt-get install` where `INSTALL` would do"),
    ("cache-lost", "everything is copied before an `INSTALL` or `RUN`, so that any change builds these anew"),
    ("moving-tag", "an image reference without a tag, or with `latest`"),
    ("port-twice", "a port that is exposed already"),
    ("relative-workdir", "a `WORKDIR` that depends on the one before"),
    ("runs-as-root", "no `USER` in the last stage"),
    ("secret-in-env", "an `ENV` or `ARG` whose name says that it is a secret"),
    ("shell-entrypoint", "an `ENTRYPOINT` that a shell stands in front of"),
    ("small-memory", "less than 128 MiB of memory for what is not made from scratch"),
    ("unused-arg", "an `ARG` that nothing asks for"),
    ("unused-stage", "a stage that nothing is taken from"),
];

/// What could be better in the Formfile `name`, which reads `text`: warnings in the order of the file. Where it has
/// errors, these are what it is.
pub fn lint(name: &str, text: &[u8]) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
    let formfile = Formfile::parse(name, text)?;
    let mut report = Report::new(name, text);
    for (index, stage) in formfile.stages.iter().enumerate() {
        base(stage, &formfile, index, &mut report);
        steps(stage, &mut report);
        unused_args(stage, &mut report);
        unused_stage(&formfile, index, &mut report);
    }
    unused_global_args(&formfile, &mut report);
    whole(&formfile, &mut report);
    Ok(report.found())
}

fn base(stage: &Stage, formfile: &Formfile, index: usize, report: &mut Report<'_>) {
    let Some(from) = stage.from.literal() else { return };
    let earlier = formfile.stages.iter().take(index).any(|stage| stage.name.as_deref() == Some(from));
    if earlier || from.starts_with("oci:") || from.contains('@') {
        return;
    }
    let last = from.rsplit('/').next().unwrap_or(from);
    if last.ends_with(":latest") || (from.contains('/') && !last.contains(':')) {
        let message = format!("what `{from}` is may change from build to build");
        let hint = "name a tag that stays, or a digest: `name@sha256:...`";
        report.warning("moving-tag", Fault::new(stage.from.span, message, hint));
    }
}

fn steps(stage: &Stage, report: &mut Report<'_>) {
    let mut ports = HashSet::new();
    for (index, step) in stage.steps.iter().enumerate() {
        match &step.op {
            Op::Entrypoint(Command::Shell(_)) => {
                let message = "the entrypoint is a shell's child, and gets no signal when the machine stops";
                let hint = "write the JSON form: `ENTRYPOINT [\"/hello\", \"--port\", \"8080\"]`";
                report.warning("shell-entrypoint", Fault::new(step.span, message, hint));
            }
            Op::Env(pairs) => pairs.iter().for_each(|(name, value)| secret(name, value.span, report)),
            Op::Arg(arg) => secret(&arg.name, arg.span, report),
            Op::Expose(words) => {
                for word in words {
                    let Some(text) = word.literal().map(str::to_ascii_lowercase) else { continue };
                    let key = text.strip_suffix("/tcp").unwrap_or(&text).to_owned();
                    if !ports.insert(key) {
                        let message = format!("the port {text} is exposed already");
                        report.warning("port-twice", Fault::new(word.span, message, "leave it out"));
                    }
                }
            }
            Op::Workdir(path) if path.literal().is_some_and(|path| !path.starts_with('/')) => {
                let message = "where this is depends on the WORKDIR before it, maybe that of the base";
                report.warning("relative-workdir", Fault::new(path.span, message, "write the whole path"));
            }
            Op::Copy(copy) => {
                let path = |source: &Source| match source {
                    Source::Path(path) => path.literal().map(str::to_owned),
                    Source::Inline { .. } => None,
                };
                let paths: Option<Vec<String>> = copy.sources.iter().map(path).collect();
                let is_archive = |path: &String| path.contains(".tar") || path.ends_with(".tgz") || path.contains('*');
                if copy.add && paths.as_ref().is_some_and(|paths| !paths.iter().any(is_archive)) {
                    let message = "nothing here is an archive, so nothing is unpacked";
                    report.warning("add-copies", Fault::new(step.span, message, "write `COPY`"));
                }
                let all = |path: &String| matches!(path.as_str(), "." | "./" | "*");
                let builds = |step: &Step| matches!(step.op, Op::Run(_) | Op::Install(_));
                let after = stage.steps.get(index.saturating_add(1)..).unwrap_or_default();
                if copy.from.is_none() && paths.iter().flatten().any(all) {
                    if let Some(later) = after.iter().find(|step| matches!(step.op, Op::Install(_))) {
                        lost(step, later, report);
                    } else if after.iter().filter(|step| builds(step)).count() > 1 {
                        after.iter().find(|step| builds(step)).into_iter().for_each(|later| lost(step, later, report));
                    }
                }
            }
            Op::Run(run) => {
                if let Command::Shell(text) | Command::Script(text) = &run.command {
                    if text.contains("apt-get install") || text.contains("apt install") {
                        let message = "packages that RUN installs are fetched anew whenever a step before it changes";
                        let hint = "write `INSTALL` and the packages: it fetches once, and leaves no lists behind";
                        report.warning("apt-in-run", Fault::new(step.span, message, hint));
                    }
                }
            }
            _ => {}
        }
    }
}

fn lost(copy: &Step, later: &Step, report: &mut Report<'_>) {
    let keyword = later.text.split(' ').next().unwrap_or_default();
    let message = format!("any change of the build context has the {keyword} after it done again");
    let hint = format!("put the {keyword} first, or copy before it only what it needs");
    report.warning("cache-lost", Fault::new(copy.span, message, hint));
}

fn secret(name: &str, span: crate::Span, report: &mut Report<'_>) {
    let upper = name.to_ascii_uppercase();
    let words = ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "API_KEY", "APIKEY", "PRIVATE_KEY", "CREDENTIAL"];
    if words.iter().any(|word| upper.contains(word)) && !upper.ends_with("_FILE") {
        let message = format!("`{name}` looks like a secret, and the package keeps it for everyone to read");
        let hint = "for a build: `RUN --mount=type=secret,id=...`; for an instance: `form run --env`";
        report.warning("secret-in-env", Fault::new(span, message, hint));
    }
}

fn unused_args(stage: &Stage, report: &mut Report<'_>) {
    for (index, step) in stage.steps.iter().enumerate() {
        let Op::Arg(arg) = &step.op else { continue };
        let after = stage.steps.get(index.saturating_add(1)..).unwrap_or_default();
        if !after.iter().any(|step| asks(&step.op, &arg.name)) {
            unused(arg, report);
        }
    }
}

fn unused_global_args(formfile: &Formfile, report: &mut Report<'_>) {
    for (index, arg) in formfile.args.iter().enumerate() {
        let bases = formfile.stages.iter().any(|stage| stage.from.names().contains(&arg.name.as_str()));
        let steps = formfile.stages.iter().flat_map(|stage| &stage.steps);
        let again = steps.map(|step| &step.op).any(|op| matches!(op, Op::Arg(other) if other.name == arg.name));
        let later = formfile.args.get(index.saturating_add(1)..).unwrap_or_default();
        let defaults = later.iter().filter_map(|arg| arg.default.as_ref());
        if !bases && !again && !defaults.flat_map(Template::names).any(|name| name == arg.name) {
            unused(arg, report);
        }
    }
}

fn unused(arg: &Arg, report: &mut Report<'_>) {
    let message = format!("nothing after it asks for `{}`", arg.name);
    report.warning("unused-arg", Fault::new(arg.span, message, "remove it, or use it"));
}

/// Whether the instruction holds the variable; a shell has it in its environment.
fn asks(op: &Op, name: &str) -> bool {
    let holds = |template: &Template| template.names().contains(&name);
    match op {
        Op::Arg(arg) => arg.default.as_ref().is_some_and(holds),
        Op::Env(pairs) => pairs.iter().any(|(_, value)| holds(value)),
        Op::Label(pairs) => pairs.iter().any(|(key, value)| holds(key) || holds(value)),
        Op::Workdir(word) | Op::User(word) | Op::Stopsignal(word) => holds(word),
        Op::Install(words) | Op::Expose(words) | Op::Volume(words) => words.iter().any(holds),
        Op::Copy(copy) => {
            let sources = copy.sources.iter().map(|source| match source {
                Source::Path(path) => path,
                Source::Inline { contents, .. } => contents,
            });
            let flags = copy.from.iter().chain(&copy.chown);
            sources.chain(flags).chain([&copy.destination]).any(holds)
        }
        Op::Run(run) => match &run.command {
            Command::Shell(text) | Command::Script(text) => text.contains(name),
            // What it runs may read its environment, and nobody can see whether it does.
            Command::Exec(_) => true,
        },
        Op::Entrypoint(_) | Op::Cmd(_) | Op::Healthcheck(_) => false,
    }
}

fn unused_stage(formfile: &Formfile, index: usize, report: &mut Report<'_>) {
    let Some(stage) = formfile.stages.get(index) else { return };
    let later = formfile.stages.get(index.saturating_add(1)..).unwrap_or_default();
    let copies = |stage: &Stage| {
        stage
            .steps
            .iter()
            .filter_map(|step| if let Op::Copy(copy) = &step.op { copy.from.clone() } else { None })
            .collect()
    };
    let mut asked: Vec<Template> = later.iter().map(|stage| stage.from.clone()).collect();
    asked.extend(later.iter().flat_map(|stage| -> Vec<Template> { copies(stage) }));
    let number = index.to_string();
    let used = asked.iter().any(|word| match word.literal() {
        Some(text) => stage.name.as_deref() == Some(text.to_lowercase().as_str()) || text == number,
        // Which one it is, the build decides.
        None => true,
    });
    if !later.is_empty() && !used {
        let message = "nothing is taken from this stage, so it is not built";
        report.warning(
            "unused-stage",
            Fault::new(stage.from.span, message, "remove it, or copy from it: `COPY --from=...`"),
        );
    }
}

fn whole(formfile: &Formfile, report: &mut Report<'_>) {
    let Some(last) = formfile.stages.last() else { return };
    let scratch = last.from.literal() == Some("scratch");
    if !last.steps.iter().any(|step| matches!(step.op, Op::User(_))) {
        let message = if scratch {
            "no USER says otherwise, so the workload runs as root"
        } else {
            "no USER says otherwise, so the workload runs as root, or as the base has it"
        };
        let hint = "for example `USER 1000:1000` at the end";
        report.warning("runs-as-root", Fault::new(last.from.span, message, hint));
    }
    if let Some(memory) = formfile.settings.memory_mib.as_ref().filter(|memory| memory.value < 128 && !scratch) {
        let message = format!("{} MiB is little for a system that is not made from scratch", memory.value);
        report.warning("small-memory", Fault::new(memory.span, message, "give it 128 MiB or more"));
    }
}
