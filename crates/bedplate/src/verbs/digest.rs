//! `digest`: prints the root digest of a directory as it lies on the disk; nothing is stored.

use std::io;

use anyhow::Context as _;
use bedplate_model::{Algorithm, RootDigest, RuleSet};
use bedplate_store::DigestOnly;
use bedplate_store::erofs::{self, HardLinks, Options};

use crate::Answer;
use crate::cli::Digest;
use crate::context::Context;

pub(super) fn run(digest: &Digest, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let attempted = || {
        format!(
            "cannot compute the digest of {}",
            digest.directory.display()
        )
    };
    let tree = bedplate_store::scan(&digest.directory, &DigestOnly(Algorithm::Sha256), &())
        .with_context(attempted)?;
    let options = Options {
        version: digest.format_version,
        hard_links: if digest.break_hardlinks {
            HardLinks::Break
        } else {
            HardLinks::Keep
        },
    };
    let written = erofs::write(&tree, &options, &mut io::sink()).with_context(attempted)?;
    if digest.break_hardlinks {
        // Exactly what mkcomposefs prints.
        writeln!(context.out, "{}", written.id)?;
    } else {
        let root = RootDigest {
            rules: RuleSet::Exact1,
            erofs: written.version,
            image: written.id,
        };
        writeln!(context.out, "{root}")?;
    }
    Ok(Answer::Yes)
}
