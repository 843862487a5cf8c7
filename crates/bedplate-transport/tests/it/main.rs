//! The transport's public interface, against itself and against the tools that people use.

mod interop;
mod raw;
mod serving;
