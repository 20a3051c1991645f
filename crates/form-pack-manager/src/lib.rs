//! x
pub mod context;
pub mod formfile;
