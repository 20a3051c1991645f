//! A laptop, with wireguard-tools and wireguard-go: brought up by wg-quick from what `form net peer add` printed.

use std::process::Command;

use formation_tests::{eventually, story_of_a_mesh};

#[test]
fn it_is_let_in_by_its_file_and_cut_off_when_it_is_revoked() {
    for program in ["wg-quick", "wg", "wireguard-go"] {
        if Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .output()
            .is_ok_and(|it| !it.status.success())
        {
            return println!("skipped: there is no {program}; run `cargo xtask setup`");
        }
    }
    story_of_a_mesh(3, |mesh| {
        let laptop = 2;
        // The third machine is no node: it is somebody's, on the same Ethernet.
        mesh.kill(laptop);
        mesh.run(laptop, &["rm", "-f", "/run/wireguard/formnet0.sock"]).done();
        // Its tunnel ends a moment after its socket; until then its routes are there, which wg-quick wants to make.
        eventually("nothing of formnet is left there", || {
            (mesh.run(laptop, &["ip", "link", "show", "formnet0"]).code != Some(0)).then_some(())
        });
        let inner = [mesh.inner(0), mesh.inner(1)];
        mesh.eventually_reaches(0, inner[1]);
        mesh.form(&["node", "remove", "n3"]).done();

        let file = mesh.form(&["net", "peer", "add", "laptop"]).done();
        let path = mesh.dir().join("laptop.conf");
        // The names of the mesh's own DNS are another program's affair (resolvconf), which this machine may not have.
        let file: Vec<&str> = file.lines().filter(|line| !line.starts_with("DNS")).collect();
        std::fs::write(&path, file.join("\n")).unwrap();
        let path = path.display().to_string();
        let quick = |verb: &str| {
            mesh.run(laptop, &["env", "WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go", "wg-quick", verb, &path])
        };
        quick("up").done();
        for address in inner {
            mesh.eventually_reaches(laptop, address);
        }

        mesh.form(&["net", "peer", "revoke", "laptop"]).done();
        let start = std::time::Instant::now();
        for address in inner {
            eventually("it is cut off", || (!mesh.reaches(laptop, address)).then_some(()));
        }
        println!("cut off everywhere {:?} after it was revoked", start.elapsed());
        quick("down").done();
    });
}
