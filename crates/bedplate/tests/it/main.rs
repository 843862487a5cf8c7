//! The program as a person types it: a few transcripts for each verb.

mod damage;
mod differences;
mod errors;
mod findings;
mod kill;
mod linked;
mod registry;
mod sandbox;
mod surroundings;
mod tars;
mod together;
mod trees;
