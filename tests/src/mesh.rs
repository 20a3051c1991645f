//! A mesh and nothing else: form-state on the first machine, formnet on each, as processes of their own.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::cloud::Said;
use crate::place::Place;
use crate::{eventually, form};

pub struct Mesh {
    places: Vec<Place>,
    state: Option<Child>,
    nets: Vec<Option<Child>>,
    dir: tempfile::TempDir,
}

impl Mesh {
    pub(crate) fn new(places: Vec<Place>) -> Self {
        let dir = tempfile::Builder::new().prefix("formation-mesh-").tempdir().expect("a directory");
        let mut mesh = Self { nets: places.iter().map(|_| None).collect(), places, state: None, dir };
        for node in 0..mesh.places.len() {
            // One authority, and each machine's identities out of it.
            let home = mesh.home(node);
            std::fs::create_dir_all(&home).expect("a directory");
            if node > 0 {
                let pki = mesh.home(0).join("pki");
                assert!(Command::new("cp").arg("-r").arg(pki).arg(&home).status().expect("cp").success());
            }
            let address = mesh.places[node].address().to_string();
            let init = Command::new(form())
                .args(["init", "--node", &Self::name(node), "--address", &address])
                .arg(&home)
                .output();
            Said::new("form init".into(), init.expect("form")).done();
        }
        mesh.start_state();
        for node in 0..mesh.places.len() {
            mesh.start(node);
        }
        for node in 0..mesh.places.len() {
            let words = ["get", "node", &Self::name(node), "-o", "json"];
            eventually("the node has its prefixes", || (mesh.form(&words).code == Some(0)).then_some(()));
        }
        mesh
    }

    /// How node `node`, counted from 0, is called.
    pub fn name(node: usize) -> String {
        format!("n{}", node + 1)
    }

    pub fn start_state(&mut self) {
        let (home, address) = (self.home(0), self.places[0].address());
        let set = [
            format!("listen=\"{address}:3004\""),
            format!("data_dir={:?}", home.join("state")),
            format!("identity_dir={:?}", home.join("form-state")),
        ];
        self.state = Some(self.daemon(0, "form-state", &set));
        let token = home.join("state/admin.token");
        let token = eventually("the first admin's token", || std::fs::read_to_string(&token).ok());
        let ca = std::fs::read_to_string(home.join("pki/ca.pem")).expect("the CA");
        let context = format!(
            "state = \"{address}:3004\"\ntoken = {:?}\nca = {ca:?}\nzone = \"formation.internal\"\n",
            token.trim()
        );
        let path = self.context();
        std::fs::write(&path, context).expect("a context");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).expect("a mode");
        eventually("form-state answers", || (self.form(&["get", "nodes"]).code == Some(0)).then_some(()));
    }

    pub fn kill_state(&mut self) {
        end(self.state.take());
    }

    /// Starts node `node`'s formnet.
    pub fn start(&mut self, node: usize) {
        let (home, address, state) = (self.home(node), self.address(node), self.places[0].address());
        let set = [
            format!("node=\"{}\"", Self::name(node)),
            format!("listen=\"{address}:3001\""),
            format!("public_url=\"https://{address}:3001\""),
            format!("state=\"{state}:3004\""),
            format!("data_dir={:?}", home.join("net")),
            format!("identity_dir={:?}", home.join("formnet")),
        ];
        end(self.nets[node].take());
        self.nets[node] = Some(self.daemon(node, "formnet", &set));
    }

    /// Ends it in the middle of whatever it does.
    pub fn kill(&mut self, node: usize) {
        end(self.nets[node].take());
    }

    /// The machine's address in the Ethernet, as it is now.
    pub fn address(&self, node: usize) -> IpAddr {
        let text = self.run(node, &["ip", "-oneline", "-4", "address", "show", "dev", "eth0"]).done();
        let address = text.split_whitespace().nth(3).and_then(|net| net.split('/').next());
        address.and_then(|address| address.parse().ok()).expect("an address")
    }

    /// Any program, on a machine.
    pub fn run(&self, node: usize, words: &[&str]) -> Said {
        let (program, rest) = words.split_first().expect("a program");
        Said::new(words.join(" "), self.places[node].command(program).args(rest).output().expect("a program"))
    }

    /// The same, and it goes on.
    pub fn spawn(&self, node: usize, words: &[&str]) -> Child {
        let (program, rest) = words.split_first().expect("a program");
        let mut command = self.places[node].command(program);
        command.args(rest).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a program")
    }

    /// An operator's command, on the first machine.
    pub fn form(&self, words: &[&str]) -> Said {
        let mut command = self.places[0].command(form());
        command.args(words).env("FORM_CONTEXT", self.context()).env("HOME", self.dir.path());
        Said::new(words.join(" "), command.output().expect("form"))
    }

    pub fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.form(&["get", kind, name, "-o", "json"]).done()).expect("JSON")
    }

    /// The node's own address in the mesh.
    pub fn inner(&self, node: usize) -> IpAddr {
        let prefix = self.get("node", &Self::name(node))["spec"]["ipv4_prefix"].as_str().expect("a prefix").to_owned();
        let base: std::net::Ipv4Addr = prefix.split('/').next().and_then(|it| it.parse().ok()).expect("a prefix");
        std::net::Ipv4Addr::from(u32::from(base) + 1).into()
    }

    /// Whether one packet gets through the mesh and back.
    pub fn reaches(&self, from: usize, to: IpAddr) -> bool {
        self.run(from, &["ping", "-n", "-c", "1", "-W", "1", &to.to_string()]).code == Some(0)
    }

    #[track_caller]
    pub fn eventually_reaches(&self, from: usize, to: IpAddr) {
        eventually(&format!("{} reaches {to}", Self::name(from)), || self.reaches(from, to).then_some(()));
    }

    pub fn context(&self) -> PathBuf {
        self.dir.path().join("context.toml")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn home(&self, node: usize) -> PathBuf {
        self.dir.path().join(Self::name(node))
    }

    fn daemon(&self, node: usize, program: &str, set: &[String]) -> Child {
        let log = File::options().create(true).append(true).open(self.home(node).join(format!("{program}.log")));
        let mut command = self.places[node].command(form().with_file_name(program));
        command.args(set.iter().map(|set| format!("--set={set}")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("a log")).spawn().expect("a daemon")
    }
}

fn end(daemon: Option<Child>) {
    if let Some(mut daemon) = daemon {
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in 0..self.places.len() {
                for program in ["form-state", "formnet"] {
                    let log = self.home(node).join(format!("{program}.log"));
                    let text = std::fs::read_to_string(&log).unwrap_or_default();
                    let lines: Vec<&str> = text.lines().collect();
                    if !lines.is_empty() {
                        let last = lines[lines.len().saturating_sub(15)..].join("\n");
                        println!("the last that {program} of {} said:\n{last}", Self::name(node));
                    }
                }
            }
        }
        end(self.state.take());
        self.nets.iter_mut().for_each(|net| end(net.take()));
    }
}
