//! Someone reads along with a machine that goes on talking: nothing is missed, and the end is the machine's.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;

use formation_tests::{story, ticker};

const FORMFILE: &str = "FROM scratch\nCOPY tick /tick\nENTRYPOINT [\"/tick\"]\nMEMORY 128\nDISK 16\n";
/// More than are kept: what the reader began with is long gone at the end.
const ROTATIONS: usize = 4;

#[test]
fn a_console_is_followed_through_its_rotations_until_the_instance_is_deleted() {
    story(|cloud| {
        cloud.kill();
        cloud.set("console_kib=1");
        cloud.start();
        let dir = cloud.package("tick", FORMFILE, &[("tick", &ticker())]);
        cloud.form(&["run", &dir]).done();
        let machine = std::fs::read_dir(cloud.data().join("machines/instances")).unwrap().next().unwrap().unwrap();
        // Between two logs there is none for a moment.
        let log = || machine.path().join("console.log").metadata().ok().map(|log| log.ino());

        let mut follower = cloud.form_that_goes_on(&["logs", "-f", "tick"]);
        let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap);
        let (mut current, mut rotations, mut next) = (log(), 0, None);
        while rotations < ROTATIONS {
            let line = lines.next().unwrap();
            let Some(digit) = line.trim_end().strip_prefix("tick ") else { continue };
            let digit: u8 = digit.parse().unwrap();
            assert_eq!(digit, next.unwrap_or(digit), "a line is missing before this one, or is there twice");
            next = Some((digit + 1) % 10);
            let now = log();
            if now.is_some() && now != current {
                (current, rotations) = (now, rotations + 1);
            }
        }
        assert!(next.is_some());

        let reader = std::thread::spawn(move || lines.last());
        cloud.form(&["instance", "delete", "tick"]).done();
        let last = reader.join().unwrap().unwrap();
        assert!(last.contains("Power down"), "{last}");
        assert!(follower.wait().unwrap().success());
    });
}
