//! x
pub mod formfile;
