//! A cloud as its operator has it: a command, names, pages, and processes that can be killed.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::place::Place;
use crate::{Answer, eventually, form, guest};

/// `form up` with a data directory of its own, on a machine of its own.
pub struct Cloud {
    place: Place,
    up: Option<Child>,
    guest: PathBuf,
    set: Vec<String>,
    dir: tempfile::TempDir,
}

/// What a command said, and its exit code.
#[derive(Debug)]
pub struct Said {
    pub command: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub(crate) fn new(command: String, output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { command, code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// What it printed, for it did what it was told.
    #[track_caller]
    pub fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.out
    }

    /// Why it did not, with this exit code.
    #[track_caller]
    pub fn refused(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self.err
    }
}

impl Cloud {
    pub(crate) fn new(place: Place) -> Self {
        let dir = tempfile::Builder::new().prefix("formation-story-").tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("data")).expect("a directory");
        Self { place, up: None, guest: guest(), set: Vec::new(), dir }
    }

    /// Any program, on this cloud's machine.
    pub fn run(&self, words: &[&str]) -> Said {
        let (program, rest) = words.split_first().expect("a program");
        Said::new(words.join(" "), self.place.command(program).args(rest).output().expect("a program"))
    }

    /// The address of its machine, as the others know it.
    pub fn address(&self) -> Ipv4Addr {
        self.place.address()
    }

    /// Starts `form up`, and waits until it says that it is up.
    #[track_caller]
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log");
        // One that was killed is waited for.
        let _ = self.up.take().map(|mut up| up.wait());
        let seen = self.times_up();
        let up = self.command(&[]).arg("up").args(self.flags()).stdout(Stdio::null()).stderr(log).spawn();
        self.up = Some(up.expect("form up"));
        eventually("the cloud is up", || {
            let ended = self.up.as_mut().and_then(|up| up.try_wait().expect("form up"));
            assert!(ended.is_none(), "form up ended: {ended:?}\n{}", self.log_text());
            (self.times_up() > seen).then_some(())
        });
    }

    /// Ends `form up` in the middle of whatever it does.
    pub fn kill(&mut self) {
        self.kill_now();
        self.up.take().expect("a cloud that was up").wait().expect("an end");
    }

    /// The same, while others use it.
    pub fn kill_now(&self) {
        let up = self.up.as_ref().expect("a cloud that is up");
        kill(Pid::from_raw(up.id().try_into().expect("a process id")), Signal::SIGKILL).expect("a kill");
    }

    /// From its next start on, what guests boot is looked for in an empty directory of the story.
    pub fn without_kernel(&mut self) -> PathBuf {
        self.guest = self.dir().join("guest");
        std::fs::create_dir_all(&self.guest).expect("a directory");
        self.guest.clone()
    }

    /// From its next start on, it has a disk of its own of so many MiB, and nothing on it.
    #[track_caller]
    pub fn on_a_disk_of(&mut self, mib: u32) {
        let size = format!("size={mib}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "story"]).arg(self.data());
        assert!(mount.status().expect("mount").success(), "a small disk");
    }

    /// From its next start on, this key of its configuration has this value.
    pub fn set(&mut self, setting: &str) {
        self.set.push(setting.to_owned());
    }

    /// Waits until `form up` has ended by itself.
    #[track_caller]
    pub fn ended(&mut self) {
        let mut up = self.up.take().expect("a cloud that was up");
        let status = eventually("form up has ended", || up.try_wait().expect("form up"));
        assert!(status.success(), "form up: {status}\n{}", self.log_text());
    }

    /// The end of a story: nothing of it may be left.
    pub(crate) fn end(mut self) {
        self.kill_all();
    }

    fn kill_all(&mut self) {
        if let Some(mut up) = self.up.take() {
            let _ = up.kill();
            let _ = up.wait();
        }
        for machine in self.machines() {
            self.kill_machine(machine);
        }
    }

    /// Ends a QEMU in the middle of whatever its guest does.
    #[track_caller]
    pub fn kill_machine(&self, machine: i32) {
        kill(Pid::from_raw(machine), Signal::SIGKILL).expect("a QEMU");
        eventually("the QEMU has ended", || (!self.machines().contains(&machine)).then_some(()));
    }

    fn flags(&self) -> Vec<String> {
        let (data, guest) = (self.data().display().to_string(), self.guest.display().to_string());
        let set = self.set.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]);
        ["--data-dir", &data, "--guest-dir", &guest].map(str::to_owned).into_iter().chain(set).collect()
    }

    /// `form`, with nothing of this machine's own configuration. It may not take for ever.
    fn command(&self, limit: &[&str]) -> Command {
        let mut command = match limit.split_first() {
            Some((program, words)) => {
                let mut command = self.place.command(program);
                command.args(words).arg(form());
                command
            }
            None => self.place.command(form()),
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).env("HOME", self.dir()).env("FORM_CONTEXT", self.context_file());
        command.stdin(Stdio::null()).current_dir(self.dir());
        command
    }

    /// An operator's command, to its end.
    pub fn form(&self, words: &[&str]) -> Said {
        self.form_with(&[], words, "")
    }

    /// The same, with environment variables and standard input.
    pub fn form_with(&self, env: &[(&str, &str)], words: &[&str], stdin: &str) -> Said {
        let mut command = self.command(&["timeout", "--signal=KILL", "120"]);
        command.args(words).envs(env.iter().copied());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("form");
        // A command that does not read what it is given is no failure of ours.
        let _ = child.stdin.take().expect("its input").write_all(stdin.as_bytes());
        Said::new(words.join(" "), child.wait_with_output().expect("form"))
    }

    /// The same, with the flags that `form up` was started with.
    pub fn form_here(&self, words: &[&str]) -> Said {
        let flags = self.flags();
        let words: Vec<&str> = words.iter().copied().chain(flags.iter().map(String::as_str)).collect();
        self.form(&words)
    }

    /// A command that goes on; its output is `stdout`. The caller ends it.
    pub fn form_that_goes_on(&self, words: &[&str]) -> Child {
        let mut command = self.command(&[]);
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("form")
    }

    /// Resources, in YAML.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        self.form_with(&[], &["apply", "-f", "-"], yaml).done();
    }

    #[track_caller]
    pub fn get(&self, kind: &str, name: &str) -> Value {
        let text = self.form(&["get", kind, name, "-o", "json"]).done();
        serde_json::from_str(&text).expect("JSON")
    }

    #[track_caller]
    pub fn list(&self, kind: &str) -> Vec<Value> {
        let text = self.form(&["get", kind, "-o", "json"]).done();
        serde_json::from_str(&text).expect("JSON")
    }

    /// Waits until the resource is as `found` wants it.
    #[track_caller]
    pub fn eventually(&self, kind: &str, name: &str, found: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let what = format!("{kind} {name} is as the story says");
        let start = std::time::Instant::now();
        eventually(&what, || {
            last = self.get(kind, name);
            assert!(start.elapsed() < crate::PATIENCE * 9 / 10, "{what}; it is {last:#}");
            found(&last).then(|| last.clone())
        })
    }

    /// An answer of the cloud's names; `words` as on dig's command line.
    #[track_caller]
    pub fn dig(&self, words: &[&str]) -> Answer {
        Answer::of(self.place.command("dig"), words)
    }

    /// The page that `name` serves at port 8080; `None`: it has no address, or does not answer.
    pub fn page(&self, name: &str) -> Option<String> {
        // Of an alias, the answer has the alias too.
        let address = self.dig(&[name, "A"]).data.iter().find_map(|data| data.parse().ok());
        self.page_at(address?)
    }

    pub fn page_at(&self, address: IpAddr) -> Option<String> {
        let url = format!("http://{}/", SocketAddr::new(address, 8080));
        let said = self.run(&["curl", "--silent", "--fail", "--connect-timeout", "5", "--max-time", "10", &url]);
        (said.code == Some(0)).then_some(said.out)
    }

    /// The process ids of all QEMUs. The namespace has none but this cloud's.
    pub fn machines(&self) -> Vec<i32> {
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let zombie = stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X']));
            stat.contains("(qemu-system") && !zombie
        })
        .collect()
    }

    /// The taps that machines have. Not `ip tuntap`: it reads /sys, which is another namespace's.
    pub fn taps(&self) -> Vec<String> {
        let text = self.run(&["ip", "-oneline", "link", "show", "type", "tun"]).done();
        let names = text.lines().filter_map(|line| Some(line.split(": ").nth(1)?.to_owned()));
        // The mesh's own interface is one, too.
        names.filter(|name| name.starts_with("fmt")).collect()
    }

    /// A directory of the story, with what goes into a package.
    pub fn package(&self, name: &str, formfile: &str, files: &[(&str, &[u8])]) -> String {
        let dir = self.dir().join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join("Formfile"), formfile).expect("a Formfile");
        for (file, bytes) in files {
            std::fs::write(dir.join(file), bytes).expect("a file");
            std::fs::set_permissions(dir.join(file), std::fs::Permissions::from_mode(0o755)).expect("a mode");
        }
        dir.display().to_string()
    }

    /// The directory of the example that greets.
    pub fn hello(&self) -> String {
        guest().join("examples/hello").display().to_string()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> PathBuf {
        self.dir().join("data")
    }

    pub fn context_file(&self) -> PathBuf {
        self.data().join("context.toml")
    }

    fn log(&self) -> PathBuf {
        self.dir().join("up.log")
    }

    fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// How often a `form up` has said that all of it serves.
    fn times_up(&self) -> usize {
        self.log_text().matches("the cloud is up").count()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // A disk that was put there, or nothing: then it says so, to nobody.
        let _ = Command::new("umount").arg("--lazy").arg(self.data()).stderr(Stdio::null()).status();
        if std::thread::panicking() {
            let text = self.log_text();
            let lines: Vec<&str> = text.lines().collect();
            println!("the last that form up said:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
            if let Some(mut up) = self.up.take() {
                let _ = up.kill();
            }
        }
    }
}
