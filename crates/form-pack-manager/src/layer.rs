//! The package as an OCI image: one layer, a configuration, a manifest. All three are the same bytes for the same
//! input: entries are sorted, times and owners are zero, modes are 0644 or 0755, JSON objects have their keys in order.

use std::io::{self, Write};

use form_rootfs::{Digest, Hasher};
use oci_spec::OciSpecError;
use oci_spec::image::{
    Arch, ConfigBuilder, DescriptorBuilder, ImageConfigurationBuilder, ImageManifestBuilder, MediaType, Os,
    RootFsBuilder,
};
use tar::{EntryType, Header};

use crate::context::{Context, Node};
use crate::formfile::Formfile;
use crate::store::BlobInfo;
use crate::tree::Tree;

/// Where a manifest keeps the size of the machine, so that the package can be run wherever it was pulled from.
pub const VCPU_ANNOTATION: &str = "formation.machine.vcpu";
/// MiB; see [`VCPU_ANNOTATION`].
pub const MEMORY_ANNOTATION: &str = "formation.machine.memory-mib";
/// MiB; see [`VCPU_ANNOTATION`].
pub const DISK_ANNOTATION: &str = "formation.machine.disk-mib";

/// Writes `tree` as a layer (`application/vnd.oci.image.layer.v1.tar+zstd`) to `out`; returns its diff-id, which is the
/// digest of the tar before it is compressed. `written` hears of each byte of contents that is done.
pub fn write_layer(
    tree: &Tree,
    context: &Context,
    out: &mut dyn Write,
    written: &mut dyn FnMut(u64),
) -> io::Result<Digest> {
    let hashed = Hasher::new(zstd::Encoder::new(out, LEVEL)?);
    let mut tar = tar::Builder::new(hashed);
    for (path, node) in tree.iter() {
        let mut header = Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mode(0o755);
        match node {
            Node::Directory => {
                header.set_entry_type(EntryType::Directory);
                tar.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Node::File { contents, executable } => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(if *executable { 0o755 } else { 0o644 });
                header.set_size(contents.len);
                tar.append_data(&mut header, path, context.open(*contents))?;
                written(contents.len);
            }
            Node::Symlink { target } => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                tar.append_link(&mut header, path, target)?;
            }
        }
    }
    let (encoder, diff_id, _) = tar.into_inner()?.finish();
    encoder.finish()?.flush()?;
    Ok(diff_id)
}

/// The OCI configuration of a package whose one layer has `diff_id`.
pub fn config_json(formfile: &Formfile, diff_id: Digest) -> Result<Vec<u8>, OciSpecError> {
    let mut config = ConfigBuilder::default()
        .entrypoint(formfile.entrypoint.clone())
        .env(formfile.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>())
        .working_dir(formfile.workdir.clone());
    if let Some(user) = &formfile.user {
        config = config.user(user.clone());
    }
    // An absent and an empty set mean the same; oci-spec panics on the one when it is serialised, tools on the other.
    if !formfile.ports.is_empty() {
        config = config.exposed_ports(formfile.ports.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids([diff_id.to_string()]).build()?;
    let image = ImageConfigurationBuilder::default()
        .created("1970-01-01T00:00:00Z")
        .architecture(Arch::default())
        .os(Os::Linux)
        .config(config.build()?)
        .rootfs(rootfs)
        .build()?;
    canonical(&image)
}

/// The OCI manifest that binds `config` and `layer` together.
pub fn manifest_json(formfile: &Formfile, config: &BlobInfo, layer: &BlobInfo) -> Result<Vec<u8>, OciSpecError> {
    let descriptor = |media_type: MediaType, blob: &BlobInfo| {
        let digest: oci_spec::image::Digest = blob.digest.to_string().parse()?;
        DescriptorBuilder::default().media_type(media_type).digest(digest).size(blob.size).build()
    };
    let machine = &formfile.machine;
    let annotations = [
        (VCPU_ANNOTATION, machine.vcpu.to_string()),
        (MEMORY_ANNOTATION, machine.memory_mib.to_string()),
        (DISK_ANNOTATION, machine.disk_mib.to_string()),
    ];
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(MediaType::ImageConfig, config)?)
        .layers([descriptor(MediaType::ImageLayerZstd, layer)?])
        .annotations(
            annotations
                .map(|(key, value)| (key.to_owned(), value))
                .into_iter()
                .collect::<std::collections::HashMap<_, _>>(),
        )
        .build()?;
    canonical(&manifest)
}

/// zstd's default, as for root disks.
const LEVEL: i32 = 3;

/// JSON with the keys of every object in order. oci-spec keeps ports and annotations in hash maps, whose order changes
/// with every run.
fn canonical(value: &impl serde::Serialize) -> Result<Vec<u8>, OciSpecError> {
    fn sort(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(object) => {
                let mut members: Vec<_> = object.into_iter().collect();
                members.sort_by(|(a, _), (b, _)| a.cmp(b));
                members.into_iter().map(|(key, value)| (key, sort(value))).collect()
            }
            serde_json::Value::Array(items) => items.into_iter().map(sort).collect(),
            scalar => scalar,
        }
    }
    Ok(serde_json::to_vec(&sort(serde_json::to_value(value)?))?)
}

#[cfg(test)]
mod tests;
