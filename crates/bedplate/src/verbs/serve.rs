//! `serve`: an OCI registry over a directory, until a signal ends it.

use anyhow::Context as _;

use crate::Answer;
use crate::cli::Serve;
use crate::context::Context;

pub(super) fn run(serve: &Serve, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let out = &mut *context.out;
    let mut told = Ok(());
    bedplate_transport::serve::serve_until_signal(serve.listen, &serve.dir, |address| {
        // Whoever started us waits for this line before the first push.
        told = writeln!(out, "serving {} at http://{address}", serve.dir.display())
            .and_then(|()| out.flush());
    })
    .with_context(|| format!("cannot serve {}", serve.dir.display()))?;
    told?;
    Ok(Answer::Yes)
}
