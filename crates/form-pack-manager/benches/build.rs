//! How long a build takes: cold, and after a line of the last COPY changed.
//!
//! `cargo bench -p form-pack-manager`; prints the median of a few runs for each.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use form_pack_manager::builder::{Request, build};
use form_pack_manager::context::{Context, Limits, pack_context};
use form_pack_manager::store::DirStore;
use form_pack_manager::workshop::{Options, Registries, Workshop};
use form_sandbox::{Network, Stop};
use formfile::Formfile;

type Failed = Box<dyn std::error::Error>;

fn main() -> Result<(), Failed> {
    let mut report = String::new();
    for (base_mib, disk_mib, runs) in [(1, 64, 9), (1, 1024, 5), (64, 1024, 5)] {
        let dir = tempfile::tempdir()?;
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("base"))?;
        let mut state = 7_u32;
        for file in 0..base_mib * 4 {
            let mut contents = Vec::new();
            for _ in 0..1 << 15 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Half of it is noise, as of programs.
                contents.extend_from_slice(&state.to_le_bytes());
                contents.extend_from_slice(b"text");
            }
            fs::write(source.join(format!("base/{file}")), &contents)?;
        }
        let workshop = |name: &str| {
            Workshop::open(
                DirStore::open(dir.path().join(name).join("store"))?,
                Options {
                    data_dir: dir.path().join(name),
                    first_id: 1_000_000,
                    most_bytes: 10 << 30,
                    limits: Limits { bytes: 64 << 30, ..Limits::default() },
                    debian_mirror: String::new(),
                    debian_fresh: Duration::ZERO,
                    registries: Registries::default(),
                    program: "/bin/false".into(),
                },
            )
            .map_err(Failed::from)
        };
        let kept = workshop("kept")?;
        let text =
            format!("FROM scratch\nCOPY base /base\nCOPY main /\nDISK {disk_mib}\nENTRYPOINT [\"sh\", \"/main\"]\n");
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        for run in 0..runs {
            fs::write(source.join("main"), format!("echo {run}\n"))?;
            cold.push(once(&workshop(&format!("cold-{run}"))?, &source, &text)?);
            warm.push(once(&kept, &source, &text)?);
        }
        // The first of them was cold, too.
        warm.remove(0);
        let (cold, warm) = (median(cold), median(warm));
        report += &format!("{base_mib} MiB on a disk of {disk_mib} MiB: cold {cold:.1?}, after a change {warm:.1?}\n");
    }
    std::io::Write::write_all(&mut std::io::stdout(), report.as_bytes())?;
    Ok(())
}

/// From the directory to the package.
fn once(workshop: &Workshop, source: &Path, text: &str) -> Result<Duration, Failed> {
    let start = Instant::now();
    let tar = pack_context(source, Vec::new())?;
    let context = Context::read(&tar[..], workshop.scratch(), &Limits::default())?;
    let formfile = Formfile::parse("Formfile", text.as_bytes()).map_err(|_| "the Formfile of the benchmark")?;
    let request = Request {
        project: "default",
        formfile: &formfile,
        context: &context,
        args: &BTreeMap::new(),
        target: None,
        network: Network::None,
        no_cache: false,
        secrets: &BTreeMap::new(),
        deadline: None,
        stop: &Stop::default(),
    };
    build(workshop, &request, &mut |_| {})?;
    Ok(start.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
