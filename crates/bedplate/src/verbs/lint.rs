//! `lint`: checks whether a directory or an image makes a good bootable image.

use anyhow::Context as _;
use bedplate_build::files::{DirectoryFiles, Files, StoreFiles};
use bedplate_build::lint::{self, LINTS, Severity};
use serde::Serialize;

use super::subject::Subject;
use crate::Answer;
use crate::cli::Lint;
use crate::context::Context;
use crate::render::json;
use crate::render::table::Table;

/// A finding, for programs.
#[derive(Serialize)]
struct Finding {
    lint: &'static str,
    severity: String,
    message: String,
}

pub(super) fn run(arguments: &Lint, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    if arguments.list {
        let mut table = Table::new(["LINT", "SEVERITY", "LOOKS FOR"]);
        for lint in LINTS {
            table.row([
                lint.name.to_owned(),
                lint.severity.to_string(),
                lint.doc.to_owned(),
            ]);
        }
        table.write(context.out)?;
        return Ok(Answer::Yes);
    }
    let word = arguments.subject.as_deref().unwrap_or_default();
    let attempted = || format!("cannot check {word}");
    let subject = Subject::parse(word)?;
    let (tree, _) = subject.read(context).with_context(attempted)?;
    let check = |kind, files: &dyn Files| lint::lint(&tree, kind, files, &arguments.skip);
    let findings = match &subject {
        Subject::Directory(path) => check(lint::Subject::RootDirectory, &DirectoryFiles::new(path)),
        Subject::Image(_) => {
            let store = context.store()?;
            check(lint::Subject::Image, &StoreFiles::new(&store))
        }
    };
    let fatal = findings
        .iter()
        .any(|finding| arguments.fatal_warnings || finding.severity == Severity::Error);
    let out = &mut *context.out;
    if arguments.json {
        let findings: Vec<_> = findings
            .into_iter()
            .map(|finding| Finding {
                lint: finding.lint,
                severity: finding.severity.to_string(),
                message: finding.message,
            })
            .collect();
        json(out, &findings)?;
    } else {
        for finding in &findings {
            writeln!(out, "{finding}")?;
        }
        if findings.is_empty() {
            writeln!(out, "nothing to say against {word}")?;
        }
    }
    Ok(if fatal { Answer::No } else { Answer::Yes })
}
