//! form-state as a process: killed, flooded, out of disk, told to read its configuration again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Process, instance, network, ready_node, ready_package};
use form_client::{Client, Error};
use form_types::v1::state_client::StateClient;
use form_types::v1::{
    ApplyRequest, ListRequest, NetworkSpec, Operation, Resource, TransactRequest, WatchRequest, operation,
};
use form_types::{Object, kinds};
use futures::future::join_all;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::json;
use tonic::Code;
use tonic::transport::Channel;

const NETWORKS: &str = "/v1/projects/default/networks";

/// Writes `text` into `count` networks at once; answers with the revision.
async fn write(client: &mut StateClient<Channel>, who: usize, count: usize, text: &str) -> Result<u64, tonic::Status> {
    let spec = NetworkSpec { description: text.to_owned() };
    let apply = |part: usize| {
        let resource = Object::<kinds::Network>::new("default", &format!("w{who}-{part}"), spec.clone()).into();
        Operation { operation: Some(operation::Operation::Apply(ApplyRequest { resource: Some(resource) })) }
    };
    let mut request = tonic::Request::new(TransactRequest { operations: (0..count).map(apply).collect() });
    request.set_timeout(Duration::from_secs(5));
    let done = client.transact(request).await?.into_inner().resources;
    assert!(done.iter().all(|resource| resource.revision == done[0].revision));
    Ok(done[0].revision)
}

fn list_networks() -> ListRequest {
    ListRequest { kind: "Network".into(), project: "default".into(), ..Default::default() }
}

fn text_of(resource: Resource) -> (String, u64) {
    let object = Object::<kinds::Network>::try_from(resource).unwrap();
    (object.spec.description, object.meta.revision)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_lose_nothing_that_was_acknowledged_and_leave_nothing_half_done() {
    const WRITERS: usize = 8;
    const KILLS: usize = 100;
    let mut state = Process::start("history = 100000").await;
    let grpc = state.grpc("form-state", "one");
    // By writer: the last that was acknowledged, and the last that was sent.
    let acknowledged: Arc<Mutex<BTreeMap<usize, (u64, u64)>>> = Arc::default();
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..WRITERS).map(|_| AtomicU64::new(0)).collect());
    let writers: Vec<_> = (0..WRITERS)
        .map(|who| {
            let (mut client, acknowledged, sent) = (grpc.clone(), Arc::clone(&acknowledged), Arc::clone(&sent));
            tokio::spawn(async move {
                for step in 1_u64.. {
                    sent[who].store(step, Ordering::SeqCst);
                    match write(&mut client, who, 2, &step.to_string()).await {
                        Ok(revision) => drop(acknowledged.lock().unwrap().insert(who, (step, revision))),
                        Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                    }
                }
            })
        })
        .collect();

    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut seen = 1;
    for kill in 0..KILLS {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        // The point of the kill: after this many more acknowledgements, and a moment into the next write.
        let total = || acknowledged.lock().unwrap().values().map(|(step, _)| *step).sum::<u64>();
        let enough = total() + seed % 60;
        while total() <= enough {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        tokio::time::sleep(Duration::from_micros(seed % 3000)).await;
        let before = acknowledged.lock().unwrap().clone();
        state.kill().await;
        state.is_ready().await;

        // All that was acknowledged before the kill is there, or something newer; both halves alike.
        let list = grpc.clone().list(list_networks()).await.unwrap().into_inner();
        let now: BTreeMap<String, (String, u64)> =
            list.items.into_iter().map(|item| (item.name.clone(), text_of(item))).collect();
        for (who, (step, revision)) in &before {
            let (a, b) = (&now[&format!("w{who}-0")], &now[&format!("w{who}-1")]);
            assert_eq!(a, b, "half-applied after kill {kill}");
            let stored: u64 = a.0.parse().unwrap();
            assert!(stored >= *step, "kill {kill}: writer {who} was told {step} is stored, and {stored} is");
            assert!(stored <= sent[*who].load(Ordering::SeqCst));
            assert!(a.1 >= *revision, "a revision went back");
        }
        assert!(list.revision >= before.values().map(|(_, revision)| *revision).max().unwrap());

        // The watch goes on from what was seen last, and each transaction comes whole.
        if kill % 10 == 0 {
            let after = WatchRequest { kind: "Network".into(), after_revision: seen, ..Default::default() };
            let mut changes = grpc.clone().watch(after).await.unwrap().into_inner();
            while seen < list.revision {
                let batch = changes.message().await.unwrap().unwrap();
                let mut halves: BTreeMap<u64, usize> = BTreeMap::new();
                for change in &batch.changes {
                    let revision = change.resource.as_ref().unwrap().revision;
                    assert!(revision > seen, "told again");
                    *halves.entry(revision).or_default() += 1;
                }
                assert!(halves.values().all(|count| *count <= 2));
                assert!(batch.revision >= seen);
                seen = batch.revision;
            }
        }
    }
    writers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_watches_and_never_reads_is_told_to_list_again_and_costs_no_memory() {
    const CHANGES: usize = 50_000;
    let state = Process::start("history = 1000").await;
    let grpc = state.grpc("form-state", "one");
    // Before the flood, so that what any load takes is not counted against the sleepers.
    let flood = async |count: usize, label: &str| {
        let text = format!("{label} {}", "x".repeat(1000));
        let writers = (0..8).map(|who| {
            let (mut grpc, text) = (grpc.clone(), text.clone());
            tokio::spawn(async move {
                for step in 0..count / 8 / 20 {
                    write(&mut grpc, who, 20, &format!("{step} {text}")).await.unwrap();
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    };
    flood(CHANGES / 5, "warm").await;
    let before = state.resident();

    let after = grpc.clone().list(list_networks()).await.unwrap().into_inner().revision;
    let request = WatchRequest { kind: "Network".into(), after_revision: after, ..Default::default() };
    let mut sleepers = Vec::new();
    for _ in 0..20 {
        sleepers.push(state.grpc("form-state", "one").watch(request.clone()).await.unwrap().into_inner());
    }
    let mut http = state.admin().watch(&format!("{NETWORKS}?watch&after_revision={after}"), None).await;
    flood(CHANGES, "flood").await;
    let grown = state.resident().saturating_sub(before);
    println!("resident: {} MiB, and {} MiB more after {CHANGES} changes", before >> 20, grown >> 20);
    assert!(grown < 64 << 20, "{} MiB for 21 sleepers", grown >> 20);

    for mut sleeper in sleepers {
        let told = loop {
            match sleeper.message().await {
                Ok(message) => assert!(message.is_some(), "dropped in silence"),
                Err(status) => break status,
            }
        };
        assert_eq!(told.code(), Code::OutOfRange, "{told:?}");
    }
    loop {
        let (event, data) = http.change().await;
        if event == "error" {
            assert_eq!(data["type"], "/problems/compacted");
            break;
        }
    }
}

/// A small file system of our own; only this process and its children see it.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Or why there can be none.
    fn mount() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("no mount namespace: {error}"))?;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).map_err(|error| error.to_string())?;
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=8m"))
            .map_err(|error| format!("no tmpfs: {error}"))?;
        Ok(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// On a thread of its own: the namespace is the thread's, and goes with it.
#[test]
fn a_full_disk_refuses_writes_reads_go_on_and_with_space_writes_do_too() {
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = disk.0.path();
        let state = Process::start_on(root, "history = 1000").await;
        let admin = state.admin();
        admin.post(NETWORKS, network("kept")).await.ok();
        // Somebody else takes the space.
        let other = root.join("other");
        let mut taken = std::fs::File::create(&other).unwrap();
        while std::io::Write::write_all(&mut taken, &[0; 4096]).is_ok() {}
        taken.set_len(taken.metadata().unwrap().len() - (256 << 10)).unwrap();

        let spec = |n: usize| json!({"spec": {"description": format!("{n} {}", "x".repeat(900))}});
        let mut refused = None;
        let mut written = 0;
        for n in 0..20_000 {
            let answer = admin.put(&format!("{NETWORKS}/n{}", n % 50), spec(n)).await;
            if answer.status >= 300 {
                refused = Some(answer.problem());
                break;
            }
            written = n;
        }
        let (status, kind, text) = refused.unwrap();
        assert_eq!((status, kind.as_str()), (507, "disk-full"), "{text}");
        assert_eq!(admin.get(&format!("{NETWORKS}/kept")).await.status, 200);
        let last = admin.get(&format!("{NETWORKS}/n{}", written % 50)).await.ok();
        assert!(last.body["spec"]["description"].as_str().unwrap().starts_with(&format!("{written} ")));
        let answers = join_all((0..8).map(|n| admin.put(&format!("{NETWORKS}/m{n}"), spec(n)))).await;
        assert!(answers.iter().all(|answer| answer.status < 500 || answer.status == 507), "{answers:?}");

        drop(taken);
        std::fs::remove_file(other).unwrap();
        while admin.put(&format!("{NETWORKS}/after"), spec(1)).await.status != 201 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(admin.get(&format!("{NETWORKS}/after")).await.status, 200);
    });
}

#[tokio::test]
async fn a_changed_file_takes_effect_a_bad_one_is_refused_and_a_stop_is_orderly() {
    let mut state = Process::start("").await;
    let file = state.config_file();
    let good = std::fs::read_to_string(&file).unwrap();

    std::fs::write(&file, format!("{good}[log]\nlevel = 'debug'\n")).unwrap();
    state.logged("configuration reloaded", 1).await;
    // The hot key is in force: what is only told at debug is told now.
    let debug = |state: &Process| state.log().matches("\"level\":\"DEBUG\"").count();
    while debug(&state) == 0 {
        state.nobody().get("/healthz").await;
    }

    std::fs::write(&file, format!("{good}histroy = 5\n")).unwrap();
    state.logged("configuration refused", 1).await;
    assert!(state.log().contains("histroy") && state.log().contains("line"), "{}", state.log());
    let told = debug(&state);
    while debug(&state) == told {
        state.nobody().get("/healthz").await;
    }

    // Replaced, as an editor does it; then the same again, by signal.
    let beside = file.with_extension("new");
    std::fs::write(&beside, &good).unwrap();
    std::fs::rename(&beside, &file).unwrap();
    state.logged("configuration reloaded", 2).await;
    state.signal(Signal::SIGHUP);
    state.logged("configuration reloaded", 3).await;

    state.signal(Signal::SIGTERM);
    assert!(state.wait().await.success(), "{}", state.log());
    let secret = std::fs::read_to_string(state.data_dir().join("admin.token")).unwrap();
    assert!(!state.log().contains(secret.trim()));
}

/// Gives an instance the first address of its node that is free, as whoever is told to does: it claims one, and takes the
/// next where that is another's. However often form-state goes, it goes on.
async fn take_address(agent: &Client, name: &str, prefix: &str) -> String {
    let mut hosts = 2..255;
    loop {
        // Anew each time: what was written just before a kill may be there though nobody was told.
        let mut instance = match agent.get::<kinds::Instance>("default", name).await {
            Ok(instance) => instance,
            Err(error) if error.is_temporary() => continue,
            Err(error) => panic!("{error}"),
        };
        if let [address] = &instance.status.addresses[..] {
            return address.clone();
        }
        instance.status.addresses = vec![prefix.replace("0/24", &hosts.start.to_string())];
        match agent.update_status(instance).await {
            Ok(_) | Err(Error::Conflict(_)) => {}
            Err(Error::AlreadyExists(_)) => drop(hosts.next()),
            Err(error) if error.is_temporary() => tokio::time::sleep(Duration::from_millis(2)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_96_that_want_an_address_at_once_no_two_get_the_same_however_often_it_is_killed() {
    const COUNT: usize = 96;
    let mut state = Process::start("cpu_overcommit = 64").await;
    ready_package(&state, 64).await;
    let (agent, _lease) = ready_node(&state, "one", 1 << 20, Duration::from_secs(600)).await;
    let prefix = agent.get::<kinds::Node>("", "one").await.unwrap().spec.ipv4_prefix;
    let names: Vec<String> = (0..COUNT).map(|n| format!("i{n}")).collect();
    let admin = state.admin();
    join_all(names.iter().map(|name| admin.post("/v1/projects/default/instances", instance(name)))).await;
    let placed = async || {
        let all = agent.list::<kinds::Instance>("default").await.unwrap().items;
        all.iter().filter(|instance| instance.status.node == "one").count()
    };
    while placed().await < COUNT {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let net = state.service("formnet", "one");
    let mut takers = tokio::task::JoinSet::new();
    for name in names {
        let (net, prefix) = (net.clone(), prefix.clone());
        takers.spawn(async move { take_address(&net, &name, &prefix).await });
    }
    let (mut told, mut kills) = (Vec::new(), 0);
    while let Some(address) = takers.join_next().await {
        told.push(address.unwrap());
        if told.len() % 12 == 0 && told.len() < COUNT {
            state.kill().await;
            kills += 1;
        }
    }
    assert_eq!(kills, 7);
    let once: BTreeSet<&String> = told.iter().collect();
    assert_eq!(once.len(), COUNT, "{told:?}");
    // And what is stored is what was told.
    let stored = agent.list::<kinds::Instance>("default").await.unwrap().items;
    let stored: BTreeSet<String> = stored.into_iter().flat_map(|instance| instance.status.addresses).collect();
    assert!(stored.iter().eq(once), "{stored:?}");
}
