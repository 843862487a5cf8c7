//! The transport's public interface, against itself and against the tools that people use.

mod conformance;
mod fake;
mod hostile;
mod interop;
mod limits;
mod linked;
mod raw;
mod serving;
mod tls;
mod transfer;
