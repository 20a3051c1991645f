//! Who may reach whom, as rules of nftables.
//!
//! The rules are a file (`rules/rules.nft`), and always the same; what there is of instances, networks and nodes are
//! elements of its sets.
//!
//! ```text
//!   change ─┐
//!   change ─┼─▶ queue ──▶ one worker ──▶ one nft: all that waits, as one transaction
//!   install ┘                            refused? then each change alone, against what the kernel has
//! ```

mod element;
mod nft;

use std::collections::{HashMap, HashSet};

use futures::Stream;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use crate::changes;
use crate::error::{Error, Result, system};
use crate::links::check_name;

use self::element::{Command, Script};
pub use self::element::{Element, Protocol};

/// What the rules have to know of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// What all of the cluster's addresses are out of, IPv4 first.
    pub cluster: [IpNet; 2],
    /// What this node's addresses are out of, IPv4 first.
    pub own: [IpNet; 2],
    /// The interface that leads to the other nodes.
    pub mesh: String,
}

/// The rules, installed, in the network namespace of who installed them.
#[derive(Clone, Debug)]
pub struct Rules {
    jobs: mpsc::Sender<Job>,
}

impl Rules {
    /// Makes tables, chains and rules what they should be, in one transaction: there is no moment without rules, and sets
    /// keep what they hold.
    ///
    /// # Errors
    /// [`Error::Ranges`] and [`Error::Name`] for ranges that are none; [`Error::Nft`] if nft refuses.
    pub async fn install(ranges: &Ranges) -> Result<Self> {
        let installed = install(ranges).await?;
        let (jobs, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(work(waiting, installed));
        Ok(Self { jobs })
    }

    /// As [`Rules::install`], for rules that somebody broke, or ranges that changed. Between the changes before it and
    /// those after it.
    ///
    /// # Errors
    /// As [`Rules::install`].
    pub async fn reinstall(&self, ranges: &Ranges) -> Result<()> {
        self.ask(|done| Job::Install(ranges.clone(), done)).await
    }

    /// Removes elements, then adds elements, as one transaction. To add what is there, or to remove what is not, is fine.
    ///
    /// # Errors
    /// [`Error::Nft`] if nft refuses, as when a port leads elsewhere already; then nothing of this change was done.
    pub async fn change(&self, add: &[Element], remove: &[Element]) -> Result<()> {
        let (add, remove) = (add.to_vec(), remove.to_vec());
        self.ask(|done| Job::Change(Change { add, remove }, done)).await
    }

    /// Whether tables, chains and rules are as they were installed.
    ///
    /// # Errors
    /// None of nft's: what cannot be listed is not whole.
    pub async fn are_whole(&self) -> Result<bool> {
        self.ask(Job::AreWhole).await
    }

    /// What the kernel's sets hold.
    ///
    /// # Errors
    /// If nft does not list them.
    pub async fn elements(&self) -> Result<HashSet<Element>> {
        elements().await
    }

    /// Removes the tables that are ours, and all that is in them.
    ///
    /// # Errors
    /// If nft refuses.
    pub async fn remove() -> Result<()> {
        let script = "add table inet formation\ndelete table inet formation\n\
                      add table bridge formation\ndelete table bridge formation\n";
        nft::run("remove the rules", nft::SCRIPT, script).await.map(drop)
    }

    /// An item whenever somebody else changed something of nftables.
    ///
    /// # Errors
    /// If the kernel gives no netlink socket.
    pub fn changes() -> Result<impl Stream<Item = ()> + Send> {
        const NETFILTER: isize = rtnetlink::sys::protocols::NETLINK_NETFILTER;
        // NFNLGRP_NFTABLES
        changes::subscribe(NETFILTER, &[7], nft::is_by_another).map_err(system("listen for changes of nftables"))
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let (done, answer) = oneshot::channel();
        let gone = || Error::Nft { action: "change rules", message: "the runtime ends".into() };
        self.jobs.send(job(done)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Our tables.
pub(crate) const TABLES: [&str; 2] = ["bridge formation", "inet formation"];
/// Callers that may wait; the next one waits to be let in.
const QUEUE: usize = 64;

#[derive(Debug)]
enum Job {
    Install(Ranges, oneshot::Sender<Result<()>>),
    Change(Change, oneshot::Sender<Result<()>>),
    AreWhole(oneshot::Sender<Result<bool>>),
}

#[derive(Debug)]
struct Change {
    add: Vec<Element>,
    remove: Vec<Element>,
}

/// Does what is asked, in order. `installed` is what nft showed after the rules were made.
async fn work(mut jobs: mpsc::Receiver<Job>, mut installed: String) {
    let mut next = None;
    loop {
        let job = match next.take() {
            Some(job) => job,
            None => match jobs.recv().await {
                Some(job) => job,
                None => return,
            },
        };
        // Who asked may be gone; what was asked is done all the same.
        match job {
            Job::Install(ranges, done) => {
                let result = install(&ranges).await.map(|shown| installed = shown);
                let _ = done.send(result);
            }
            Job::AreWhole(done) => {
                let _ = done.send(Ok(show().await.is_ok_and(|shown| shown == installed)));
            }
            Job::Change(change, done) => {
                let (mut changes, mut waiting) = (vec![change], vec![done]);
                loop {
                    match jobs.try_recv() {
                        Ok(Job::Change(change, done)) => {
                            changes.push(change);
                            waiting.push(done);
                        }
                        Ok(other) => break next = Some(other),
                        Err(_) => break,
                    }
                }
                commit(&changes, waiting).await;
            }
        }
    }
}

async fn install(ranges: &Ranges) -> Result<String> {
    let [cluster4, cluster6] = element::prefixes("the cluster's ranges", ranges.cluster)?;
    let [own4, own6] = element::prefixes("the node's prefixes", ranges.own)?;
    let mesh = check_name(&ranges.mesh)?;
    let definitions = format!(
        "define cluster4 = {cluster4}\ndefine cluster6 = {cluster6}\n\
         define own4 = {own4}\ndefine own6 = {own6}\ndefine mesh = \"{mesh}\"\n"
    );
    nft::run("install the rules", nft::SCRIPT, &(definitions + include_str!("rules/rules.nft"))).await?;
    show().await
}

/// All of our tables but what sets hold. A rule has a number that no other ever gets, so equal text means the same rules.
async fn show() -> Result<String> {
    list("list the rules", &["--terse", "--handle", "--numeric"]).await.map(|shown| shown.concat())
}

/// Both tables, each by an nft of its own: one that is asked for two families looks into the last one only (1.0.6).
async fn list(action: &'static str, arguments: &[&str]) -> Result<[String; 2]> {
    let table = |family| [arguments, &["list", "table", family, "formation"]].concat();
    Ok([nft::run(action, &table("inet"), "").await?, nft::run(action, &table("bridge"), "").await?])
}

async fn elements() -> Result<HashSet<Element>> {
    let mut found = HashSet::new();
    for text in list("list what the sets hold", &["--json", "--numeric"]).await? {
        let listing = serde_json::from_str(&text)
            .map_err(|error| Error::Nft { action: "list what the sets hold", message: error.to_string() })?;
        found.extend(element::parse(&listing));
    }
    Ok(found)
}

async fn commit(changes: &[Change], waiting: Vec<oneshot::Sender<Result<()>>>) {
    let together = together(changes).await;
    for (change, done) in changes.iter().zip(waiting) {
        let result = match &together {
            Ok(()) => Ok(()),
            Err(_) => exactly(change).await,
        };
        let _ = done.send(result);
    }
}

/// What all `changes` come to, one after the other.
async fn together(changes: &[Change]) -> Result<()> {
    let mut there = HashMap::new();
    for change in changes {
        there.extend(change.remove.iter().map(|element| (element, false)));
        there.extend(change.add.iter().map(|element| (element, true)));
    }
    let (mut add, mut remove) = (Script::default(), Script::default());
    for (element, there) in there {
        if there { add.push(element) } else { remove.push(element) }?;
    }
    // Almost always, what is removed is there.
    match apply(remove.claims().chain(remove.deletes()).chain(add.adds())).await {
        // Else it cannot be deleted; and to add what is there is no error.
        Err(_) if !remove.is_empty() => apply(remove.adds().chain(remove.deletes()).chain(add.adds())).await,
        result => result,
    }
}

/// One change, and of it only what makes a difference: a port that leads elsewhere by now cannot be added to be deleted.
async fn exactly(change: &Change) -> Result<()> {
    let have = elements().await?;
    let wanted: HashSet<&Element> = change.add.iter().collect();
    let (mut add, mut remove) = (Script::default(), Script::default());
    for element in change.remove.iter().filter(|element| have.contains(element) && !wanted.contains(element)) {
        remove.push(element)?;
    }
    for element in change.add.iter().filter(|element| !have.contains(element)) {
        add.push(element)?;
    }
    apply(remove.deletes().chain(add.adds())).await
}

/// Commands as one transaction.
async fn apply(commands: impl Iterator<Item = Command<'_>>) -> Result<()> {
    let action = "change the sets";
    let commands: Vec<_> = commands.collect();
    if commands.is_empty() {
        return Ok(());
    }
    let script = serde_json::to_string(&HashMap::from([("nftables", commands)]))
        .map_err(|error| Error::Nft { action, message: error.to_string() })?;
    nft::run(action, nft::JSON, &script).await.map(drop)
}
