//! The verbs: one file each (or one for a pair). A verb reads its arguments, calls the libraries and
//! draws what they answer.

mod automatic;
mod build;
mod cat;
mod checkout;
mod commit;
mod df;
mod diff;
mod digest;
mod events;
mod export;
mod fsck;
mod gate;
mod gc;
mod images;
mod import;
mod inspect;
mod install;
mod internal;
mod kargs;
mod lint;
mod log;
mod ls;
mod mount;
mod pin;
mod pull;
mod push;
mod rollback;
mod serve;
mod status;
mod subject;
mod tag;
mod undeploy;
mod upgrade;
mod usr_overlay;
pub(crate) mod vm;
mod why;

use crate::Answer;
use crate::cli::Verb;
use crate::context::Context;

/// Does what was typed.
pub(crate) fn run(verb: &Verb, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    match verb {
        Verb::Build(arguments) => build::run(arguments, context),
        Verb::Commit(arguments) => commit::run(arguments, context),
        Verb::Checkout(arguments) => checkout::run(arguments, context),
        Verb::Import(arguments) => import::run(arguments, context),
        Verb::Export(arguments) => export::run(arguments, context),
        Verb::Digest(arguments) => digest::run(arguments, context),
        Verb::Pull(arguments) => pull::run(arguments, context),
        Verb::Push(arguments) => push::run(arguments, context),
        Verb::Tag(arguments) => tag::tag(arguments, context),
        Verb::Untag(arguments) => tag::untag(arguments, context),
        Verb::Images(arguments) => images::run(arguments, context),
        Verb::Inspect(arguments) => inspect::run(arguments, context),
        Verb::Log(arguments) => log::run(arguments, context),
        Verb::Ls(arguments) => ls::run(arguments, context),
        Verb::Cat(arguments) => cat::run(arguments, context),
        Verb::Diff(arguments) => diff::run(arguments, context),
        Verb::Mount(arguments) => mount::mount(arguments, context),
        Verb::Umount(arguments) => mount::umount(arguments, context),
        Verb::Lint(arguments) => lint::run(arguments, context),
        Verb::Serve(arguments) => serve::run(arguments, context),
        Verb::Gc(arguments) => gc::run(arguments, context),
        Verb::Fsck(arguments) => fsck::run(arguments, context),
        Verb::Df(arguments) => df::run(arguments, context),
        Verb::Install(arguments) => install::run(arguments, context),
        Verb::Status(arguments) => status::run(arguments, context),
        Verb::Upgrade(arguments) => upgrade::upgrade(arguments, context),
        Verb::Switch(arguments) => upgrade::switch(arguments, context),
        Verb::Rollback(arguments) => rollback::run(arguments, context),
        Verb::Pin(arguments) => pin::pin(arguments, context),
        Verb::Unpin(arguments) => pin::unpin(arguments, context),
        Verb::Undeploy(arguments) => undeploy::run(arguments, context),
        Verb::Kargs(arguments) => kargs::run(arguments, context),
        Verb::UsrOverlay => usr_overlay::run(context),
        Verb::Why(arguments) => why::run(arguments, context),
        Verb::Events(arguments) => events::run(arguments, context),
        Verb::Vm(arguments) => vm::run(arguments, context),
        Verb::Internal(arguments) => internal::run(arguments, context),
    }
}
