//! `usr-overlay`: a /usr that can be written until the next reboot.

use std::path::Path;

use anyhow::Context as _;
use bedplate_deploy::{Host, Machine};
use bedplate_model::layout;

use crate::Answer;
use crate::blame::{Blame, Refusal};
use crate::context::Context;

pub(super) fn run(context: &mut Context<'_>) -> anyhow::Result<Answer> {
    context.require_machine()?;
    if !rustix::process::geteuid().is_root() {
        return Err(Refusal {
            blame: Blame::Host,
            message: "only root may make /usr writable".into(),
            hint: None,
        }
        .into());
    }
    // Among the mounts that everybody sees, and the store as it is: nothing of it changes.
    let host = Host::this_machine(context.host.now(), context.actor(), &Context::config());
    let machine = Machine::open(&host)?;
    let path = Path::new(layout::SYSROOT).join(layout::STORE);
    let store = bedplate_store::Store::open(&path)
        .with_context(|| format!("cannot open the store {}", path.display()))?;
    machine
        .overlay_usr(&store)
        .context("cannot make /usr writable")?;
    writeln!(
        context.out,
        "/usr can be written until the next reboot; what is written there goes then"
    )?;
    Ok(Answer::Yes)
}
