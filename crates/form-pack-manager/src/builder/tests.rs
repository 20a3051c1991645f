use std::io::Read;
use std::path::Path;

use form_rootfs::{Digest, expand_rootfs};

use super::*;
use crate::store::{BlobStore as _, DirStore};
use crate::testing::{context, workshop};

const FILES: &[(&str, &str)] = &[("hello*", "#!"), ("conf/a", "a"), ("etc/passwd", "web:x:33:44::/srv:/bin/sh\n")];

struct Bench {
    _dir: tempfile::TempDir,
    workshop: Workshop,
}

fn bench() -> Bench {
    form_service::run::init_process();
    let dir = tempfile::tempdir().unwrap();
    Bench { workshop: workshop(dir.path()), _dir: dir }
}

impl Bench {
    fn build(&self, lines: &str, files: &[(&str, &str)]) -> Result<(Package, String), String> {
        self.build_with(lines, files, &[], None)
    }

    fn build_with(
        &self,
        text: &str,
        files: &[(&str, &str)],
        args: &[(&str, &str)],
        target: Option<&str>,
    ) -> Result<(Package, String), String> {
        let text = format!("{text}\nDISK 16\n");
        let formfile = Formfile::parse("Formfile", text.as_bytes()).map_err(|found| found[0].plain())?;
        let args = args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request = Request {
            project: "default",
            formfile: &formfile,
            context: &context(files),
            args: &args,
            target,
            network: Network::None,
            no_cache: false,
            secrets: &BTreeMap::new(),
            deadline: None,
            stop: &Stop::default(),
        };
        let mut log = String::new();
        let built = build(&self.workshop, &request, &mut |event| match event {
            Event::Step { number, total, text } => log += &format!("{number}/{total} {text}\n"),
            Event::Cached => log += "cached\n",
            Event::Output(bytes) => log += &String::from_utf8_lossy(bytes),
            Event::Phase(text) => log += &format!("{text}\n"),
        });
        built.map(|package| (package, log)).map_err(|error| error.words("Formfile", text.as_bytes()))
    }

    fn blob(&self, digest: &Digest) -> Vec<u8> {
        read(self.workshop.store(), digest)
    }

    fn config(&self, package: &Package) -> serde_json::Value {
        serde_json::from_slice(&self.blob(&package.config.digest)).unwrap()
    }

    /// The names in the layers, with owners and modes.
    fn layers(&self, package: &Package) -> Vec<Vec<String>> {
        let names = |layer: &crate::image::Layer| {
            let tar = zstd::decode_all(&self.blob(&layer.blob.digest)[..]).unwrap();
            assert_eq!(Digest::of(&tar), layer.diff_id);
            let mut archive = tar::Archive::new(&tar[..]);
            let entries = archive.entries().unwrap().map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let (uid, gid, mode) = (header.uid().unwrap(), header.gid().unwrap(), header.mode().unwrap());
                assert_eq!(header.mtime().unwrap(), 0);
                format!("{} {uid}:{gid} {mode:o}", entry.path().unwrap().display())
            });
            entries.collect()
        };
        package.layers.iter().map(names).collect()
    }
}

fn read(store: &DirStore, digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.get(digest).unwrap().unwrap().reader.read_to_end(&mut bytes).unwrap();
    bytes
}

const END: &str = "ENTRYPOINT [\"/hello\"]";

#[test]
fn a_build_puts_an_image_and_a_disk_into_the_store() {
    let bench = bench();
    let text = format!(
        "FROM scratch\nCOPY . /\nMEMORY 64\nEXPOSE 80\nENV A=1\nENV B=$A/2\nWORKDIR /srv\nUSER web\nLABEL x=y\nSTOPSIGNAL SIGINT\nVOLUME /data\nHEALTHCHECK CMD true\n{END}\nCMD [\"x\"]"
    );
    let (package, log) = bench.build(&text, FILES).unwrap();
    assert!(log.starts_with("1/13 FROM scratch\n2/13 COPY . /\n3/13 EXPOSE 80\n"), "{log}");
    assert!(log.ends_with("making the root disk\n"), "{log}");

    let manifest: serde_json::Value = serde_json::from_slice(&bench.blob(&package.manifest.digest)).unwrap();
    assert_eq!(manifest["layers"][0]["digest"], package.layers[0].blob.digest.to_string());
    assert_eq!(manifest["config"]["digest"], package.config.digest.to_string());
    assert_eq!(manifest["annotations"]["formation.machine.memory-mib"], "64");
    let config = bench.config(&package);
    assert_eq!(config["config"]["Env"], serde_json::json!(["A=1", "B=1/2"]));
    assert_eq!(config["config"]["User"], "web");
    assert_eq!(config["config"]["WorkingDir"], "/srv");
    assert_eq!(config["config"]["StopSignal"], "SIGINT");
    assert_eq!(config["config"]["Healthcheck"]["Test"], serde_json::json!(["CMD-SHELL", "true"]));
    assert_eq!(config["config"]["Labels"]["formation.machine.disk-mib"], "16");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    let history = config["history"].as_array().unwrap();
    assert_eq!(history.iter().filter(|step| step.get("empty_layer").is_none()).count(), 2);
    assert_eq!(package.command(), ["/hello", "x"]);

    let disk = bench._dir.path().join("disk.img");
    let blob = bench.workshop.store().get(&package.disk.blob.digest).unwrap().unwrap();
    expand_rootfs(blob.reader, &disk, &package.disk.raw).unwrap();
    assert_eq!(package.disk.raw.size, 16 << 20);
}

#[test]
fn building_twice_gives_the_same_package_with_and_without_what_was_kept() {
    let text =
        format!("FROM scratch\nCOPY . /\nWORKDIR /w\nCOPY conf .\nEXPOSE 1 2 3 4 5 6 7 8\nLABEL c=1 b=2 a=3\n{END}");
    let (first, second) = (bench(), bench());
    let mut shuffled = FILES.to_vec();
    shuffled.reverse();
    let (package, log) = first.build(&text, FILES).unwrap();
    assert!(!log.contains("cached"), "{log}");
    let blobs = first.workshop.store().list().unwrap().count();
    let (again, log) = first.build(&text, &shuffled).unwrap();
    assert_eq!(log.matches("cached").count(), 3, "{log}");
    assert!(!log.contains("root disk"), "{log}");
    assert_eq!(package, again);
    assert_eq!(first.workshop.store().list().unwrap().count(), blobs);
    assert_eq!(package, second.build(&text, FILES).unwrap().0);
}

#[test]
fn stages_are_built_if_they_are_needed_and_copied_from() {
    let bench = bench();
    let text = "FROM scratch AS one\nCOPY hello /made/\nFROM scratch AS unused\nCOPY conf /x\nFROM one AS two\nCOPY --chown=web conf /c\nFROM scratch\nCOPY --from=one --chmod=700 /made/he* /hello\nENTRYPOINT [\"/hello\"]";
    let (package, log) = bench.build(text, FILES).unwrap();
    assert!(!log.contains("conf /x"), "{log}");
    assert_eq!(bench.layers(&package), [["hello 0:0 700"]]);
    let error = bench.build_with(text, FILES, &[], Some("nowhere")).unwrap_err();
    assert!(error.contains("no stage \"nowhere\""), "{error}");
    let error = bench.build_with(text, FILES, &[], Some("one")).unwrap_err();
    assert!(error.contains("neither ENTRYPOINT nor CMD"), "{error}");
    let error = bench.build_with(text, FILES, &[], Some("two")).unwrap_err();
    // Its tree has no passwd.
    assert!(error.contains("no user `web`") && error.contains("COPY --chown=web"), "{error}");
}

#[test]
fn arguments_are_given_by_the_build_or_have_defaults() {
    let bench = bench();
    let text = format!("ARG V=outer\nFROM scratch\nARG V\nARG D=b\nENV A=$V$D\nCOPY . /\n{END}");
    let env = |args: &[(&str, &str)]| bench.build_with(&text, FILES, args, None).unwrap().0.start.env[0].1.clone();
    assert_eq!(env(&[]), "outerb");
    assert_eq!(env(&[("V", "x"), ("D", "y")]), "xy");
}

#[test]
fn globs_heredocs_and_archives_are_copied() {
    let bench = bench();
    let text = format!("FROM scratch\nCOPY hello /\nCOPY c*/a e*/p?sswd /g/\nCOPY <<EOF /etc/motd\nhi\nEOF\n{END}");
    let (package, _) = bench.build(&text, FILES).unwrap();
    let layers = bench.layers(&package);
    assert_eq!(layers[1], ["g/ 0:0 755", "g/a 0:0 644", "g/passwd 0:0 644"]);
    assert_eq!(layers[2], ["etc/ 0:0 755", "etc/motd 0:0 644"]);
    let error = bench.build(&format!("FROM scratch\nCOPY no* /\n{END}"), FILES).unwrap_err();
    assert!(error.contains("nothing matches `no*`"), "{error}");
}

#[test]
fn what_cannot_start_or_cannot_be_had_fails_the_build_where_it_stands() {
    let bench = bench();
    let error = |lines: &str| bench.build(&format!("FROM scratch\n{lines}\n{END}"), FILES).unwrap_err();
    assert!(error("COPY . /bin").contains("`/hello` is not in the package"));
    assert!(error("COPY conf/a /hello").contains("`/hello` is not executable"));
    assert!(error("COPY . /hello/").contains("`/hello` is a directory"));
    let missing = error("COPY nothing /");
    assert!(missing.contains("`nothing` is not there") && missing.contains("Formfile:2:6"), "{missing}");
    assert!(error("COPY --from=other/web /x /x").contains("not of the project default"));
    assert!(error("COPY --from=web /x /x").contains("there is no image `web` here"));
    assert!(error("COPY --from=debian:bookworm /x /x").contains("--network host"));
    assert!(error("COPY --from=debian:12 /x /x").contains("no suite"));
    let refused = error("COPY --from=127.0.0.1:9/web /x /x");
    assert!(refused.contains("cannot be had") && refused.contains("`registries`"), "{refused}");
}

#[test]
fn an_image_in_an_oci_layout_of_the_context_is_a_base() {
    let bench = bench();
    let text = format!("FROM scratch\nCOPY . /\nENV A=1\nVCPU 3\n{END}");
    let (package, _) = bench.build(&text, FILES).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("layout/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let all = [package.manifest, package.config].into_iter().chain(package.layers.iter().map(|layer| layer.blob));
    for blob in all {
        std::fs::write(blobs.join(blob.digest.hex()), bench.blob(&blob.digest)).unwrap();
    }
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": package.manifest.digest.to_string(), "size": package.manifest.size }] });
    std::fs::write(dir.path().join("layout/index.json"), index.to_string()).unwrap();
    let build = |dir: &Path| {
        let text = "FROM oci:layout\nCOPY layout/index.json /more\n";
        let formfile = Formfile::parse("Formfile", text.as_bytes()).unwrap();
        let tar = crate::context::pack_context(dir, Vec::new()).unwrap();
        let context = Context::read(&tar[..], dir, &crate::context::Limits::default()).unwrap();
        let request = Request {
            project: "other",
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
        build(&bench.workshop, &request, &mut |_| {}).map_err(|error| error.words("Formfile", text.as_bytes()))
    };
    let built = build(dir.path()).unwrap();
    assert_eq!(built.layers[0], package.layers[0]);
    assert_eq!((built.layers.len(), built.machine.vcpu, built.machine.disk_mib), (2, 3, 16));
    assert_eq!(built.start.env, [("A".to_owned(), "1".to_owned())]);

    // A layer that is not what the configuration says of it.
    let config = String::from_utf8(bench.blob(&package.config.digest)).unwrap();
    let lie = config.replace(&package.layers[0].diff_id.hex(), &Digest::of(b"lie").hex());
    std::fs::write(blobs.join(Digest::of(lie.as_bytes()).hex()), &lie).unwrap();
    let manifest = String::from_utf8(bench.blob(&package.manifest.digest)).unwrap();
    let manifest = manifest.replace(&package.config.digest.to_string(), &Digest::of(lie.as_bytes()).to_string());
    std::fs::write(blobs.join(Digest::of(manifest.as_bytes()).hex()), &manifest).unwrap();
    let index = serde_json::json!({ "manifests": [{ "digest": Digest::of(manifest.as_bytes()).to_string(), "size": manifest.len() }] });
    std::fs::write(dir.path().join("layout/index.json"), index.to_string()).unwrap();
    let error = build(dir.path()).unwrap_err();
    assert!(error.contains("expands to"), "{error}");
}

#[test]
fn a_hundred_thousand_files_are_built() {
    let names: Vec<String> = (0..100_000).map(|number| format!("d{}/f{number}", number / 1000)).collect();
    let mut tar = tar::Builder::new(Vec::new());
    for name in names.iter().map(String::as_str).chain(["hello"]) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(1);
        tar.append_data(&mut header, name, &b"x"[..]).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let bench = bench();
    let context = Context::read(&tar[..], bench._dir.path(), &crate::context::Limits::default()).unwrap();
    let formfile =
        Formfile::parse("Formfile", format!("FROM scratch\nCOPY . /\nDISK 1024\n{END}\n").as_bytes()).unwrap();
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
    let package = build(&bench.workshop, &request, &mut |_| {}).unwrap();
    assert_eq!(package.disk.raw.size, 1 << 30);
}
