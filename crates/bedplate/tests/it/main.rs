//! The program as a person types it: a few transcripts for each verb.

mod sandbox;
