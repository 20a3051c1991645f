//! A name answers for a workload that its health check finds well, and for no other.
#![allow(clippy::unwrap_used, reason = "a story may")]

use formation_tests::{eventually, program, story};

const NAME: &str = "hello.default.formation.internal";
const FORMFILE: &str = "FROM scratch\nCOPY hello check /\nEXPOSE 8080\nENTRYPOINT [\"/hello\"]\nDISK 64\n\
                        HEALTHCHECK --interval=1s --timeout=5s --retries=2 CMD [\"/check\"]\n";

#[test]
fn what_its_check_finds_ill_has_no_address_until_it_is_well() {
    story(|cloud| {
        let hello = std::fs::read(format!("{}/hello", cloud.hello())).unwrap();
        let package = |check: u8| {
            let dir = cloud.package("hello", FORMFILE, &[("hello", &hello), ("check", &program("so it is\n", check))]);
            cloud.form(&["run", &dir, "--name", "hello", "--no-wait"]).done();
        };
        package(1);
        let ill = cloud.eventually("instance", "hello", |found| found["status"]["health"]["state"] == "Unhealthy");
        assert_eq!(ill["status"]["phase"], "Running");
        assert!(cloud.dig(&[NAME, "A"]).data.is_empty());
        assert!(cloud.form(&["get", "instances"]).done().contains("Unhealthy"));

        package(0);
        cloud.eventually("instance", "hello", |found| found["status"]["health"]["state"] == "Healthy");
        assert_eq!(eventually("its page", || cloud.page(NAME)), "Hello from hello!\n");
    });
}
