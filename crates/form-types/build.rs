//! Generates the types and the gRPC stubs out of `proto/`, and keeps the descriptors: JSON, validation, OpenAPI and
//! `form explain` read those at run time.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());

    let mut files = Vec::new();
    for entry in std::fs::read_dir(root.join("formation/v1"))? {
        files.push(entry?.path());
    }
    files.sort();

    // protox and not protoc: a build needs nothing but cargo. Its encoder keeps the custom options that prost-types drops.
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    let mut prost_config = tonic_prost_build::Config::new();
    prost_config.enable_type_names().btree_map(["."]);
    tonic_prost_build::configure().compile_fds_with_config(compiler.file_descriptor_set(), prost_config)?;
    Ok(())
}
