//! `why`: why this machine is not updating, or not on what it was asked for.

use bedplate_deploy::Machine;
use bedplate_deploy::why::{self, Reason, Source};
use bedplate_transport::PullOptions;
use serde::Serialize;

use crate::Answer;
use crate::blame::sentence;
use crate::cli::Why;
use crate::context::Context;
use crate::render::json;

/// One reason, for programs.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    reason: &'a Reason,
    message: String,
    advice: Option<&'static str>,
}

/// Lists the reasons; the answer is no where there is one.
pub(super) fn run(arguments: &Why, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let host = context.machine()?;
    let status = Machine::open(&host)?.status()?;
    let source = match why::asked(&status) {
        Some(asked) if !arguments.offline && !asked.image.is_local() => {
            let client = context.client(&arguments.remote)?;
            match client.look(&asked.image, &PullOptions::new(context.host.now())) {
                Ok(manifest) => Source::Has(manifest),
                Err(error) => Source::Silent(sentence(&error)),
            }
        }
        _ => Source::Unasked,
    };
    let reasons = why::reasons(&status, &source);
    let told: Vec<Told<'_>> = reasons
        .iter()
        .map(|reason| Told {
            reason,
            message: reason.to_string(),
            advice: reason.advice(),
        })
        .collect();
    if arguments.json {
        json(context.out, &told)?;
    } else {
        for Told {
            message, advice, ..
        } in &told
        {
            writeln!(context.out, "{message}")?;
            if let Some(advice) = advice {
                writeln!(context.out, "    → {advice}")?;
            }
        }
        if told.is_empty() {
            let known = match source {
                Source::Has(_) => {
                    "this machine runs the newest version of its image, and it is proven"
                }
                Source::Unasked | Source::Silent(_) => {
                    "nothing on this machine keeps it from updating"
                }
            };
            writeln!(context.out, "{known}")?;
        }
    }
    Ok(if told.is_empty() {
        Answer::Yes
    } else {
        Answer::No
    })
}
