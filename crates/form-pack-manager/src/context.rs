//! The build context: the directory that `COPY` copies from, as it travels from `form` to the builder.
//!
//! It arrives as a tar stream from someone we do not trust, and is never unpacked. The contents of its files go one
//! after the other into one unnamed scratch file, and an index says what stands where. So no name out of the stream
//! ever reaches the host's file system, nothing is left over when the builder dies, and a file takes no memory.
//!
//! | what the stream holds | what becomes of it |
//! | --- | --- |
//! | file, directory | kept; of its mode, only whether its owner may execute it; owner, times, set-id bits are dropped |
//! | symbolic link | kept as text, never followed on the host; a relative target that climbs out of the context is refused |
//! | hard link | becomes a file with the contents of its target, which must have come before it |
//! | device, pipe, socket, sparse file | refused |
//! | absolute name, `..`, name that is not UTF-8 or is too long | refused |
//! | the same name again | the later file or link wins, as with tar; nothing replaces a directory |
//! | anything below a name that is not a directory | refused |
//! | PAX `size` (a file of 8 GiB or more, in that dialect) | refused |

mod index;
mod pack;

pub use index::{Context, ContextError, Extent, Limits, Node};
pub use pack::{PackError, pack_context};

#[cfg(test)]
mod tests;
