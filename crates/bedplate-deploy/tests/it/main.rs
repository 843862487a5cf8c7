//! Machines from outside: installed to files; and the verbs over a simulated loader, with the power cut
//! at each write.

mod cuts;
mod deployments;
mod etc_modes;
mod health;
mod install;
mod kargs;
mod life;
mod simulated;
