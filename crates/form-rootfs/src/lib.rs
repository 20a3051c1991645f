//! Root disk images as they travel between nodes.
//!
//! A root disk is an ext4 image of a fixed size, mostly zeros. It travels as one zstd stream ([`MEDIA_TYPE`]) and rests
//! as a sparse file. Two digests name it: that of the compressed bytes, by which a blob store keeps it, and that of the
//! raw image ([`RawImage`]), which stays the same whatever compressed it and is checked again when it is expanded.
//!
//! Each MiB is hashed and compressed by itself. So zeros cost nothing, and of a disk that is nearly the one before, only
//! what changed is compressed.
//!
//! ```text
//! builder: ext4 file --compress--> blob in a store       node: blob --expand_rootfs--> sparse ext4 file
//! ```

mod compress;
mod digest;
mod expand;
mod raw;

pub use compress::{Frame, compress_rootfs};
pub use digest::{Algorithm, Digest, Hasher, ParseDigestError};
pub use expand::{ExpandError, expand_rootfs};
pub use raw::RawImage;

/// The media type of a root disk blob: an ext4 image, compressed as a zstd stream.
pub const MEDIA_TYPE: &str = "application/vnd.formation.rootfs.ext4.v1+zstd";
