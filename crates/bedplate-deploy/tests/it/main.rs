//! The life of a machine: its verbs over a simulated loader, and with the power cut at each write.

mod cuts;
mod life;
mod simulated;
