//! How long a build takes: a 1 MiB binary on a disk of 64 MiB, and on one of 1 GiB.
//!
//! `cargo bench -p form-pack-manager`; prints the median of a few runs for each.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use form_pack_manager::builder::build;
use form_pack_manager::context::{Context, Limits, pack_context};
use form_pack_manager::formfile::Formfile;
use form_pack_manager::store::DirStore;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("source");
    fs::create_dir(&source)?;
    let mut binary = Vec::new();
    let mut state = 7_u32;
    for _ in 0..1 << 18 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        binary.extend_from_slice(&state.to_le_bytes());
    }
    fs::write(source.join("hello"), &binary)?;
    fs::set_permissions(source.join("hello"), fs::Permissions::from_mode(0o755))?;
    let store = DirStore::open(dir.path().join("store"))?;

    let mut report = String::new();
    for (disk_mib, runs) in [(64, 9), (1024, 3)] {
        let text = format!("FROM scratch\nCOPY hello /\nDISK {disk_mib}\nENTRYPOINT [\"/hello\"]\n");
        let formfile = Formfile::parse("Formfile", text.as_bytes()).map_err(|_| "the Formfile of the benchmark")?;
        let mut times = Vec::new();
        for _ in 0..runs {
            let start = Instant::now();
            let tar = pack_context(&source, Vec::new())?;
            let context = Context::read(&tar[..], dir.path(), &Limits::default())?;
            build(&formfile, &context, &store, dir.path(), &mut |_| {})?;
            times.push(start.elapsed());
        }
        times.sort();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        report += &format!("build, 1 MiB binary, {disk_mib} MiB disk: median {median:.1?} of {runs}\n");
    }
    std::io::Write::write_all(&mut std::io::stdout(), report.as_bytes())?;
    Ok(())
}
