//! `internal`: what the machine's own units call. Their words go to the journal.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use anyhow::Context as _;
use bedplate_deploy::esp::RootDisk;
use bedplate_deploy::firmware::{self, EfiVariables, Registered};
use bedplate_deploy::grow;
use bedplate_deploy::{Finalized, Machine};
use bedplate_model::layout;

use super::{automatic, gate};
use crate::Answer;
use crate::blame::sentence;
use crate::cli::Internal;
use crate::context::Context;
use crate::render::bytes;

pub(super) fn run(internal: &Internal, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    if let Internal::Connect { socket } = internal {
        return connect(socket, context);
    }
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
        Internal::Upgrade => return automatic::run(&host, context),
        // It runs on no machine of ours, and was done before one was asked for.
        Internal::Connect { .. } => {}
        Internal::Check => return gate::check(&host, context),
        Internal::Prove => return gate::prove(&host, context),
        Internal::Heal => return gate::heal(&host, context),
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
        Internal::Register => {
            let partition = RootDisk::of(Path::new(layout::SYSROOT))
                .partition()
                .context("cannot find the boot partition")?;
            let mut variables = EfiVariables::of(Path::new(firmware::EFIVARS));
            match firmware::register(&mut variables, partition, host.settings.tries)? {
                Registered::Done(plan) if plan.is_empty() => {
                    writeln!(context.out, "{plan}the loader is registered already")?;
                }
                Registered::Done(plan) => write!(context.out, "{plan}")?,
                // Such machines are complete without: only the tries of a kernel that does not load are lost.
                Registered::Refused(error) => writeln!(
                    context.out,
                    "the loader stays unregistered: {}",
                    sentence(&error)
                )?,
            }
        }
    }
    Ok(Answer::Yes)
}

/// Connects standard input and output to a socket, until either side ends.
fn connect(path: &Path, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let attempted = || format!("cannot connect to {}", path.display());
    let mut socket = UnixStream::connect(path).with_context(attempted)?;
    let mut into = socket.try_clone().with_context(attempted)?;
    thread::spawn(move || {
        // However it ends, the other direction has nothing to say any more.
        let _ = io::copy(&mut io::stdin().lock(), &mut into);
        let _ = into.shutdown(Shutdown::Both);
    });
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = socket.read(&mut piece).with_context(attempted)?;
        if length == 0 {
            return Ok(Answer::Yes);
        }
        context.out.write_all(&piece[..length])?;
        context.out.flush()?;
    }
}
