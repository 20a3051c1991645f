use std::time::Duration;

use crate::{Span, Template};

/// A Formfile whose every line is understood. What needs the build's arguments, its context or a base is judged later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formfile {
    /// The `ARG`s before the first `FROM`: they hold in the `FROM`s, and in a stage that names them again.
    pub args: Vec<Arg>,
    /// Never empty; the last one becomes the package.
    pub stages: Vec<Stage>,
    /// What is said about the package as a whole.
    pub settings: Settings,
}

/// `FROM`, and what follows it until the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// `scratch`, a package, an image reference, `oci:PATH`, `debian:SUITE`, or the name of a stage before this one.
    pub from: Template,
    /// The name after `AS`, in lower case: no other stage has it.
    pub name: Option<String>,
    /// In the order of the file.
    pub steps: Vec<Step>,
}

/// One instruction of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The instruction, from its keyword to the end of its last argument, without heredocs.
    pub span: Span,
    /// The same on one line, as a log tells it: the keyword in upper case, continuations joined, heredocs left out.
    pub text: String,
    /// What to do.
    pub op: Op,
}

/// What an instruction asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// `ARG`; an instruction with several names becomes several steps.
    Arg(Arg),
    /// Never empty.
    Env(Vec<(String, Template)>),
    /// Absolute, or relative to the one before.
    Workdir(Template),
    /// `user[:group]`
    User(Template),
    /// `COPY` and `ADD`.
    Copy(Copy),
    /// Runs a command in the root that was made so far.
    Run(Run),
    /// Debian packages, `name` or `name=version`; never empty.
    Install(Vec<Template>),
    /// Never empty.
    Label(Vec<(Template, Template)>),
    /// `port[/protocol]`; never empty.
    Expose(Vec<Template>),
    /// Absolute paths; never empty.
    Volume(Vec<Template>),
    /// The last one holds; it also takes away a `CMD` of the base.
    Entrypoint(Command),
    /// The last one holds.
    Cmd(Command),
    /// `None` is `HEALTHCHECK NONE`: there is none, whatever the base has. The last one holds.
    Healthcheck(Option<Healthcheck>),
    /// Name or number of a signal.
    Stopsignal(Template),
}

/// `ARG`: a value that the build may give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// A name as `ENV` has it.
    pub name: String,
    /// What holds if the build does not give it.
    pub default: Option<Template>,
    /// Where it stands.
    pub span: Span,
}

/// `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Never empty.
    pub sources: Vec<Source>,
    /// A directory if it ends in `/` or `/.` or is `.`, or if there are several sources.
    pub destination: Template,
    /// Another stage, by name or number, or an image; absent: the build context.
    pub from: Option<Template>,
    /// `user[:group]`
    pub chown: Option<Template>,
    /// Permission bits of files and directories alike.
    pub chmod: Option<u32>,
    /// Whether local tar archives are unpacked: `ADD`.
    pub add: bool,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path or a glob.
    Path(Template),
    /// A heredoc: a file that stands in the Formfile.
    Inline {
        /// The word after `<<`, which is the file's name in a directory.
        name: String,
        /// Its bytes; where the word was in quotes, they hold no variables.
        contents: Template,
    },
}

/// `RUN`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Variables are the shell's affair; nothing here is expanded.
    pub command: Command,
    /// In the order of the file.
    pub mounts: Vec<Mount>,
    /// Absent: what the build says.
    pub network: Option<Network>,
}

/// How a program is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Given to `/bin/sh -c`.
    Shell(String),
    /// Program and arguments; the program is not empty.
    Exec(Vec<String>),
    /// Only `RUN <<EOF` whose text begins with `#!`: to be written to a file and executed.
    Script(String),
}

/// Whether a `RUN` reaches anything.
#[derive(Debug, Clone, PartialEq, Eq, Copy)]
pub enum Network {
    /// What the build has.
    Default,
    /// Its own loopback.
    None,
}

/// What a `RUN` sees that the package will not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Absolute, or relative to the working directory. Absent only for a secret that is given as a variable alone.
    pub target: Option<String>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Where it stands.
    pub span: Span,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A directory that stays from build to build.
    Cache {
        /// Those with the same one share the directory; the target, if none was given.
        id: String,
        /// What happens when two want it at once.
        sharing: Sharing,
    },
    /// A file, or a variable, that the build was given.
    Secret {
        /// Its name in the build.
        id: String,
        /// Whether the build fails without it.
        required: bool,
        /// The variable that holds it.
        env: Option<String>,
    },
    /// An empty directory in memory.
    Tmpfs {
        /// Most bytes it takes.
        size: Option<u64>,
    },
}

/// What happens when two want the same cache.
#[derive(Debug, Clone, PartialEq, Eq, Copy, Default)]
pub enum Sharing {
    /// Both use it.
    #[default]
    Shared,
    /// The second gets one of its own.
    Private,
    /// The second waits.
    Locked,
}

/// `HEALTHCHECK`; what is absent has the default of [`crate::value`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// Exit code 0 is healthy.
    pub command: Command,
    /// From the end of one check to the start of the next; whole seconds.
    pub interval: Option<Duration>,
    /// After which a check has failed; whole seconds.
    pub timeout: Option<Duration>,
    /// In which failures do not count; whole seconds.
    pub start_period: Option<Duration>,
    /// How many failures in a row are unhealthy.
    pub retries: Option<u32>,
}

/// What is said once, anywhere after the first `FROM`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// A DNS label: what the package is called if nobody says otherwise.
    pub name: Option<Spanned<String>>,
    /// For people.
    pub description: Option<Spanned<String>>,
    /// The model that the workload serves or asks for.
    pub model: Option<Spanned<String>>,
    /// Virtual processors.
    pub vcpu: Option<Spanned<u32>>,
    /// Memory.
    pub memory_mib: Option<Spanned<u32>>,
    /// Root disk.
    pub disk_mib: Option<Spanned<u32>>,
    /// Graphics processors that it needs.
    pub gpu: Option<Spanned<u32>>,
    /// How many instances `form run` makes if nobody says otherwise.
    pub replicas: Option<Spanned<u32>>,
    /// What happens when the workload ends.
    pub restart: Option<Spanned<Restart>>,
}

/// A value, and where the file says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Span,
}

/// `RESTART`
#[derive(Debug, Clone, PartialEq, Eq, Copy)]
pub enum Restart {
    /// However it ended.
    Always,
    /// Unless it ended with exit code 0.
    OnFailure,
    /// It stays ended.
    Never,
}
