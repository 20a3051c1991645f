//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// One private cloud out of a few Linux machines.
#[derive(Parser)]
#[command(name = "form", version, long_about = FIRST_WALK, after_long_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// The file that says where the cloud is and who you are [default: the one that `form up` wrote]
    #[arg(long, global = true, env = "FORM_CONTEXT", value_name = "FILE")]
    pub(crate) context: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

// Not a doc comment: of those, clap makes one line out of lines that follow each other.
const FIRST_WALK: &str = "\
One private cloud out of a few Linux machines.

A first walk:

  # a one-node cloud on this machine, in the foreground
  form up
  # in another terminal: Formfile -> package -> VM -> name
  form run examples/hello --name hello
  curl http://hello.default.formation.internal:8080/";

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 it failed; 2 the command or a file was wrong; 3 not found; 4 it exists already, or was changed by \
someone else; 5 not allowed; 6 the cloud cannot be reached, or not now.";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the whole cloud on this machine, or its part of the one that it joined, in one process, until it is stopped
    Up(Up),
    /// Make the identities of services that run as processes of their own, in containers for example
    Init(Init),
    /// Stop the cloud on this machine. Its machines run on, and the next `form up` finds them
    Down(Down),
    /// Show how the cloud is
    Status(Output),
    /// Say what this machine lacks, and the command that installs it
    Doctor {
        #[command(flatten)]
        up: Up,
    },
    /// Create resources, or change them, as files say (YAML or JSON; - is standard input)
    Apply(Apply),
    /// Show resources
    Get(Get),
    /// Delete a resource
    Delete(Delete),
    /// Explain a kind and its fields: form explain instance.spec
    Explain {
        /// A kind, and fields after it with dots
        path: String,
    },
    /// Build a directory with a Formfile and run it as an instance
    Run(Run),
    /// Show what an instance writes to its console
    Logs(Logs),
    /// Start, stop, restart or delete an instance
    #[command(subcommand)]
    Instance(Instance),
    /// Build and look at packages
    #[command(subcommand)]
    Pack(Pack),
    /// Make, list and revoke tokens
    #[command(subcommand)]
    Token(Token),
    /// Invite machines to be nodes, join, list and remove them
    #[command(subcommand)]
    Node(Node),
    /// The network: machines outside of the cluster that are let into it
    #[command(subcommand)]
    Net(Net),
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
}

#[derive(Args)]
pub(crate) struct Up {
    /// The configuration file [default: /etc/formation/form-up/config.toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where everything is kept [default: /var/lib/formation]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the guest's vmlinuz and initramfs are [default: /var/lib/formation/kernel]
    #[arg(long, value_name = "DIR")]
    pub(crate) guest_dir: Option<PathBuf>,
    /// Set one key of the configuration
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print each key with where its value came from, and exit
    #[arg(long)]
    pub(crate) check_config: bool,
}

#[derive(Args)]
pub(crate) struct Init {
    /// Where they go: DIR/SERVICE for each, and DIR/pki for the CA, which no service needs
    pub(crate) dir: PathBuf,
    /// The node that they are for
    #[arg(long, default_value = "node")]
    pub(crate) node: String,
    /// A host's name that clients use, beside the services' own
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Vec<String>,
    /// An address that clients use, beside loopback
    #[arg(long, value_name = "IP")]
    pub(crate) address: Vec<std::net::IpAddr>,
    /// Where all IPv4 addresses of instances are out of; decided once, with the CA [default: 100.64.0.0/10]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) ipv4_range: Option<ipnet::Ipv4Net>,
}

#[derive(Args)]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) up: Up,
    /// Stop the machines too, in good order; the next `form up` starts them again
    #[arg(long)]
    pub(crate) machines: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Args)]
pub(crate) struct Output {
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Args)]
pub(crate) struct InProject {
    /// The project
    #[arg(short, long, env = "FORM_PROJECT", default_value = "default")]
    pub(crate) project: String,
}

#[derive(Args)]
pub(crate) struct Apply {
    /// Files; a YAML file may hold several resources, with --- between them
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) project: InProject,
}

#[derive(Args)]
pub(crate) struct Get {
    /// A kind: instances, packages, nodes, records, ...
    pub(crate) kind: String,
    /// One of them; all, where it is left out
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) project: InProject,
    /// Of all projects
    #[arg(short = 'A', long)]
    pub(crate) all_projects: bool,
    /// Only those with these labels: app=web,tier!=db,debug,!old
    #[arg(short = 'l', long, default_value = "")]
    pub(crate) selector: String,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Then show every change, until interrupted
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Args)]
pub(crate) struct Delete {
    /// A kind: instances, packages, records, ...
    pub(crate) kind: String,
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) project: InProject,
    /// Do not wait until its owner has cleaned up
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Args)]
pub(crate) struct Run {
    /// A directory with a Formfile
    pub(crate) dir: PathBuf,
    /// The instance's name [default: the directory's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) project: InProject,
    /// An environment variable for the workload
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<String>,
    /// What happens when the workload ends by itself [default: what the Formfile says, else always]
    #[arg(long, value_enum)]
    pub(crate) restart: Option<Restart>,
    /// Have a port of it answer at its node's own addresses, from outside too: 8080:80, 5353:53/udp
    #[arg(long, value_name = "HOST_PORT:PORT[/udp]")]
    pub(crate) publish: Vec<String>,
    /// How many of it: NAME-1, NAME-2 and so on, which share NAME; run it again to have more or fewer [default: what
    /// the Formfile says, else one that is called NAME]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) replicas: Option<u32>,
    /// Do not wait until it runs
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

#[derive(Args)]
pub(crate) struct Logs {
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) project: InProject,
    /// Go on with what comes
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    pub(crate) tail: Option<u32>,
}

#[derive(Subcommand)]
pub(crate) enum Instance {
    /// Have it run
    Start(Named),
    /// Have it shut down in good order, and stay off
    Stop(Named),
    /// Have it shut down and run again
    Restart(Named),
    /// Have it shut down, and all of it removed
    Delete(Named),
}

#[derive(Args)]
pub(crate) struct Named {
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) project: InProject,
    /// Do not wait until it is so
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Subcommand)]
pub(crate) enum Pack {
    /// Build a directory with a Formfile, or an image, into a package
    Build(Build),
    /// Show what a build wrote
    Log {
        /// The build
        name: String,
        /// Go on until it has ended
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        project: InProject,
    },
    /// Stop a build
    Cancel {
        /// The build
        name: String,
        #[command(flatten)]
        project: InProject,
    },
    /// Say what is wrong with a Formfile, and what could be better
    Lint(Lint),
    /// Lay a Formfile out in its canonical form
    Fmt(Layout),
    /// List packages
    List {
        #[command(flatten)]
        project: InProject,
        #[command(flatten)]
        output: Output,
    },
    /// Show a package whole
    Inspect {
        name: String,
        #[command(flatten)]
        project: InProject,
    },
    /// Copy an image from the cloud to another registry
    #[command(after_help = LOGINS)]
    Push {
        /// `NAME[:TAG]` or NAME@DIGEST [default tag: latest]
        image: String,
        /// `HOST/REPOSITORY[:TAG]` [default tag: the image's]
        to: String,
        #[command(flatten)]
        outside: Outside,
        #[command(flatten)]
        project: InProject,
    },
    /// Copy an image from another registry into the cloud
    #[command(after_help = LOGINS)]
    Pull {
        /// `HOST/REPOSITORY[:TAG|@DIGEST]`
        from: String,
        /// `NAME[:TAG]` [default: the repository's last part, and the same tag]
        image: Option<String>,
        #[command(flatten)]
        outside: Outside,
        #[command(flatten)]
        project: InProject,
    },
    /// Give an image more tags
    Tag {
        /// `NAME[:TAG]` or NAME@DIGEST [default tag: latest]
        image: String,
        #[arg(required = true)]
        tags: Vec<String>,
        #[command(flatten)]
        project: InProject,
    },
    /// Remove a package, or one tag of an image
    ///
    /// Without a tag, the package goes, and the image `latest` that it is. What is reached from nowhere any more is freed
    /// by a later sweep (form pack gc).
    Rm {
        /// NAME, NAME:TAG or NAME@DIGEST
        image: String,
        #[command(flatten)]
        project: InProject,
    },
    /// Free what no tag and no package reaches any more, and is older than the grace time
    Gc,
    /// Show the steps that an image was made by
    History {
        /// `NAME[:TAG]` or NAME@DIGEST [default tag: latest]
        image: String,
        #[command(flatten)]
        project: InProject,
    },
    /// Read an image whole, and compare each part with its digest
    ///
    /// The root disk is not read: the node that starts an instance does that each time it fetches one.
    Verify {
        /// `NAME[:TAG]` or NAME@DIGEST [default tag: latest]
        image: String,
        #[command(flatten)]
        project: InProject,
    },
}

const LOGINS: &str = "Logins are those of docker: ~/.docker/config.json, or config.json in DOCKER_CONFIG.";

/// How another registry is reached.
#[derive(Args)]
pub(crate) struct Outside {
    /// A certificate authority to trust beside the system's, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Ask without TLS
    #[arg(long)]
    pub(crate) plain_http: bool,
}

#[derive(Args)]
pub(crate) struct Build {
    /// A directory with a Formfile
    #[arg(required_unless_present = "image")]
    pub(crate) dir: Option<PathBuf>,
    /// The package's name [default: the directory's, or the image's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// An image of the project instead of a directory: `NAME[:TAG]`
    #[arg(long, conflicts_with = "dir")]
    pub(crate) image: Option<String>,
    /// A value of one of the Formfile's ARGs
    #[arg(long = "arg", value_name = "NAME=VALUE")]
    pub(crate) args: Vec<String>,
    /// The stage that becomes the package [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// What RUN reaches; INSTALL and FROM debian:SUITE need the host's network
    #[arg(long, value_enum, default_value_t = BuildNetwork::None)]
    pub(crate) network: BuildNetwork,
    /// Seconds after which it has failed [default: an hour]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
    /// Run every RUN again
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// A secret of RUN, out of a file; it is kept nowhere
    #[arg(long = "secret", value_name = "id=ID,src=FILE")]
    pub(crate) secrets: Vec<String>,
    /// Show what the build writes, also where no terminal is
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) project: InProject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BuildNetwork {
    None,
    Host,
}

#[derive(Args)]
pub(crate) struct Lint {
    /// A Formfile, or a directory with one
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// Fail on warnings too
    #[arg(long, value_parser = ["warnings"])]
    pub(crate) deny: Option<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args)]
pub(crate) struct Layout {
    /// A Formfile, or a directory with one
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// Change nothing; fail if there is something to change
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Subcommand)]
pub(crate) enum Token {
    /// Make a token and print it, this once
    Create {
        name: String,
        /// viewer reads; editor writes too; admin makes tokens too
        #[arg(long, value_parser = ["viewer", "editor", "admin"])]
        role: String,
        /// The project that it is good for [default: all]
        #[arg(short, long)]
        project: Option<String>,
        /// Who has it, for people
        #[arg(long, default_value = "")]
        description: String,
        /// When it stops working: 2027-01-31T00:00:00Z [default: never]
        #[arg(long)]
        expires_at: Option<String>,
    },
    /// List tokens, without their secrets
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Have a token work no longer
    Revoke { name: String },
}

#[derive(Subcommand)]
pub(crate) enum Node {
    /// Print a word that lets one machine in, once
    #[command(after_help = INVITING)]
    Invite(Invite),
    /// Make this machine a node of the cluster that it was invited to
    #[command(after_help = JOINING)]
    Join(NodeJoin),
    /// List the nodes
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Place no new instance on a node; those that are there run on
    Cordon { name: String },
    /// Place instances on a node again
    Uncordon { name: String },
    /// Take a node out of the cluster, once no instance is on it: what its services show opens nothing any more
    ///
    /// The same machine may come back later, under the same name too: it is invited and joins as any other.
    #[command(visible_alias = "rm")]
    Remove { name: String },
}

const INVITING: &str = "\
The new machine has to reach form-state, which `form up` has listen on loopback: start it with --set address=ADDRESS.

  # on a machine of the cluster
  form node invite --name two
  # on the new one
  form node join formation1-...
  form up";

const JOINING: &str = "\
Its keys are made here and stay here. Repeat the same command if it was interrupted: it goes on where it was.

  form node join formation1-...
  # from standard input, where no list of processes shows it
  form node join - < word";

#[derive(Args)]
pub(crate) struct Invite {
    /// The name that the node will have [default: what it calls itself]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How long the word is good for: 30m, 1h, 2d
    #[arg(long, value_name = "SPAN", value_parser = span, default_value = "1h")]
    pub(crate) expires: Duration,
    /// Where the new machine reaches form-state [default: where it is reached from here]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
}

#[derive(Args)]
pub(crate) struct NodeJoin {
    /// The word that `form node invite` printed; - is standard input
    #[arg(value_name = "WORD")]
    pub(crate) token: String,
    /// This node's name [default: the one it was invited by, or else the host's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) up: Up,
}

#[derive(Subcommand)]
pub(crate) enum Net {
    /// Who is there, by which endpoint, how long ago, RTT and loss; and where somebody is not, why not
    Status(NetStatus),
    /// Send probes through the mesh to a node, from another or from all others
    Ping(NetPing),
    /// Follow a packet's way from one instance or address to another, and say where it ends
    Trace(NetTrace),
    /// Check every node and every way between two of them, with packets as large as the mesh takes
    Doctor,
    /// List what formnet made in the kernels of the nodes
    Ls(NetStatus),
    /// Machines outside of the cluster, a laptop for example, that are let into one of its networks
    #[command(subcommand)]
    Peer(Peer),
}

#[derive(Args)]
pub(crate) struct NetStatus {
    /// One node's end of it [default: every node's]
    pub(crate) node: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct NetPing {
    /// The node that is to answer
    pub(crate) node: String,
    /// The node that asks [default: every other]
    #[arg(long)]
    pub(crate) from: Option<String>,
    /// How many probes
    #[arg(long, short, default_value_t = 3)]
    pub(crate) count: usize,
    /// How large a packet is, with its headers, bytes
    #[arg(long, short, default_value_t = 64)]
    pub(crate) size: usize,
}

#[derive(Args)]
pub(crate) struct NetTrace {
    /// An instance, as NAME or PROJECT/NAME, or an address
    pub(crate) from: String,
    /// The same
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) project: InProject,
}

#[derive(Subcommand)]
pub(crate) enum Peer {
    /// Let a machine in, and print the file that its WireGuard reads
    #[command(after_help = ADDING_A_PEER)]
    Add(PeerAdd),
    /// List them
    List {
        #[command(flatten)]
        project: InProject,
        #[command(flatten)]
        output: Output,
    },
    /// Let a machine in no more
    Revoke {
        name: String,
        #[command(flatten)]
        project: InProject,
    },
}

const ADDING_A_PEER: &str = "\
The private key is made here and is in what is printed; it is kept nowhere. On a terminal there is a picture of it too, \
for WireGuard on a telephone.

  umask 077; form net peer add laptop > formation.conf
  wg-quick up ./formation.conf
  # a key that was made elsewhere
  form net peer add laptop --public-key \"$(wg pubkey < private.key)\"";

#[derive(Args)]
pub(crate) struct PeerAdd {
    pub(crate) name: String,
    /// The network that it is on [default: default]
    #[arg(long)]
    pub(crate) network: Option<String>,
    /// How long it is let in: 12h, 30d [default: until it is revoked]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(crate) expires: Option<Duration>,
    /// Its WireGuard key, if it has one already
    #[arg(long, value_name = "KEY")]
    pub(crate) public_key: Option<String>,
    /// Whose it is, for people
    #[arg(long, default_value = "")]
    pub(crate) description: String,
    #[command(flatten)]
    pub(crate) project: InProject,
}

/// `90s`, `30m`, `1h`, `2d`: at most ten years of it.
fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no span of time; it should be like 90s, 30m, 1h or 2d");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text.strip_suffix(unit).and_then(|count| count.parse().ok()).ok_or_else(wrong)?;
    let seconds = count.checked_mul(seconds).filter(|seconds| (1..=3650 * 86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| format!("{text} is not between 1s and 3650d"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn a_span_of_time_has_a_number_and_a_unit() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)));
        }
        for wrong in ["", "h", "1", "1w", "-1h", "0s", "1.5h", "99999999999999999999d", "4000d", "1ü"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_help_shows_each_step_on_a_line_of_its_own() {
        let help = Cli::command().render_long_help().to_string();
        for line in FIRST_WALK.lines() {
            assert!(help.lines().any(|shown| shown == line), "{line:?} is not in {help}");
        }
    }
}
