//! An address is one instance's, whatever is killed when.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use std::collections::HashSet;

use formation_tests::{Cloud, Said, Value, eventually, story};

/// As many as one node with two processors takes.
const COUNT: usize = 8;

/// All addresses that instances have; each once, or the story is over.
fn addresses(cloud: &Cloud) -> HashSet<String> {
    let mut seen = HashSet::new();
    for instance in cloud.list("instances") {
        for address in instance["status"]["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            assert!(seen.insert(address.to_owned()), "{address} is given twice: {instance:#}");
        }
    }
    seen
}

fn create(cloud: &Cloud, number: usize) -> Said {
    let instance = format!("{{kind: Instance, name: i{number}, spec: {{package: small, restart: Never}}}}");
    cloud.form_with(&[], &["apply", "-f", "-"], &instance)
}

/// Does `what` for each number at once, and kills the cloud when some of it is done.
fn killed_while(cloud: &mut Cloud, what: impl Fn(&Cloud, usize) -> Said + Sync, some: impl Fn(usize) -> bool) {
    std::thread::scope(|scope| {
        let (cloud, what) = (&*cloud, &what);
        for number in 0..COUNT {
            // Whoever is cut off gets an error, and may ask again.
            scope.spawn(move || drop(what(cloud, number)));
        }
        eventually("some of it is done", || some(addresses(cloud).len()).then_some(()));
        cloud.kill_now();
    });
    cloud.start();
    addresses(cloud);
}

#[test]
fn two_instances_never_get_one_address_whatever_is_killed_when() {
    story(|cloud| {
        cloud.kill();
        // Nothing that could boot: addresses are given all the same, and it takes no time.
        let guest = cloud.without_kernel();
        for file in ["vmlinuz", "initramfs"] {
            std::fs::write(guest.join(file), b"nothing").unwrap();
        }
        cloud.start();
        let formfile = "FROM scratch\nCOPY small /small\nENTRYPOINT [\"/small\"]\nMEMORY 64\nDISK 16\n";
        let dir = cloud.package("small", formfile, &[("small", b"nothing")]);
        cloud.form(&["pack", "build", &dir]).done();

        // While they come.
        killed_while(cloud, create, |given| given > COUNT / 2);
        for number in 0..COUNT {
            create(cloud, number).done();
        }
        eventually("all have addresses", || (addresses(cloud).len() == 2 * COUNT).then_some(()));

        // While they go.
        let delete = |cloud: &Cloud, number: usize| cloud.form(&["delete", "instance", &format!("i{number}")]);
        killed_while(cloud, delete, |given| given < 2 * COUNT);
        for instance in cloud.list("instances") {
            let said = cloud.form(&["delete", "instance", instance["name"].as_str().unwrap()]);
            assert!(matches!(said.code, Some(0 | 3)), "{said:#?}");
        }
        eventually("all are gone", || cloud.list("instances").is_empty().then_some(()));
        // formnet hears of it as everybody does.
        eventually("their taps are gone", || cloud.taps().is_empty().then_some(()));

        // And while they come again.
        killed_while(cloud, create, |given| given > COUNT);
        for number in 0..COUNT {
            create(cloud, number).done();
        }
        eventually("all have addresses", || (addresses(cloud).len() == 2 * COUNT).then_some(()));
    });
}
