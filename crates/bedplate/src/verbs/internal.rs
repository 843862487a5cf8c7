//! `internal`: what the machine's own units call. Their words go to the journal.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use bedplate_deploy::grow;
use bedplate_deploy::{Finalized, Machine};
use bedplate_model::layout;

use crate::Answer;
use crate::cli::Internal;
use crate::context::Context;
use crate::render::bytes;

pub(super) fn run(internal: &Internal, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let host = context.machine()?;
    match internal {
        Internal::Finalize => {
            let store = context.store()?;
            let machine = Machine::open(&host)?;
            match machine
                .finalize(&store)
                .context("cannot finalize what is staged")?
            {
                Finalized::Nothing => writeln!(context.out, "nothing is staged")?,
                Finalized::Waits(id) => writeln!(
                    context.out,
                    "deployment {id} stays staged: what runs is not proven yet"
                )?,
                Finalized::Trial {
                    deployment,
                    conflicts,
                } => {
                    writeln!(context.out, "deployment {deployment} boots next, on trial")?;
                    for conflict in conflicts {
                        writeln!(context.out, "conflict in /etc: {conflict}")?;
                    }
                }
            }
        }
        Internal::Prove => {
            let store = context.store()?;
            let machine = Machine::open(&host)?;
            machine
                .prove(&store)
                .context("cannot prove what was booted")?;
            machine
                .publish()
                .context("cannot write the machine's state")?;
            writeln!(
                context.out,
                "deployment {} is proven",
                machine.booted().deployment
            )?;
        }
        Internal::Grow => {
            let root = File::open(layout::SYSROOT).context("cannot open the root")?;
            let here = grow::Host {
                sys: Path::new("/sys"),
                dev: Path::new("/dev"),
            };
            let grown = grow::grow(&root, here).context("cannot grow the root to its disk")?;
            writeln!(
                context.out,
                "the root partition had {} and has {}",
                bytes(grown.before),
                bytes(grown.after)
            )?;
        }
    }
    Ok(Answer::Yes)
}
