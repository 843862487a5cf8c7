//! How the story is told: every command with its real output, or only what was found to hold.

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use testkit::qemu::Machine;

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// Each command as a person would type it, and all that it prints.
    Full,
    /// Steps and what was checked.
    Brief,
    /// Nothing: who asks for it tells the result.
    Silent,
}

/// Tells what happens, and keeps the time of each step.
pub(super) struct Narrator {
    voice: Voice,
    begun: Instant,
    steps: Vec<(String, Instant)>,
    bold: (&'static str, &'static str),
    faint: (&'static str, &'static str),
}

impl Narrator {
    pub(super) fn new(voice: Voice) -> Self {
        let terminal = io::stdout().is_terminal();
        let style = |on| {
            if terminal {
                (on, "\u{1b}[0m")
            } else {
                ("", "")
            }
        };
        Self {
            voice,
            begun: Instant::now(),
            steps: Vec::new(),
            bold: style("\u{1b}[1m"),
            faint: style("\u{1b}[2m"),
        }
    }

    /// Begins a step.
    pub(super) fn step(&mut self, title: &str) {
        self.steps.push((title.to_owned(), Instant::now()));
        if self.voice == Voice::Silent {
            return;
        }
        let (on, off) = self.bold;
        println!(
            "{}{on}{}. {title}{off}  [{:.0} s]",
            if self.voice == Voice::Full { "\n" } else { "" },
            self.steps.len(),
            self.begun.elapsed().as_secs_f32()
        );
    }

    /// Says something that a reader of the demo wants to know.
    pub(super) fn say(&mut self, text: &str) {
        if self.voice == Voice::Full {
            println!("  {text}");
        }
    }

    /// States what was checked.
    pub(super) fn fact(&mut self, text: &str) {
        if self.voice == Voice::Silent {
            return;
        }
        let (on, off) = self.bold;
        println!("  {on}✓{off} {text}");
    }

    /// Shows a command and what it said, both known already.
    pub(super) fn told(&mut self, command: &str, said: &str) {
        self.prompt("machine#", command);
        for line in said.lines() {
            self.line(line);
        }
    }

    /// Runs a command on this computer and shows it as `prompt typed`; failing is an error.
    pub(super) fn host(&mut self, prompt: &str, typed: &str, command: &mut Command) -> Result<()> {
        self.prompt(prompt, typed);
        let (reader, writer) = io::pipe().context("making a pipe")?;
        let second = writer.try_clone().context("making a pipe")?;
        let mut process = command
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(second)
            .spawn()
            .with_context(|| format!("starting `{typed}`"))?;
        // The command holds the pipe's ends as well: without this, reading would not see the end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut said = String::new();
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.context("reading what was printed")?;
            let line = String::from_utf8_lossy(&line);
            self.line(&line);
            said.push_str(&line);
            said.push('\n');
        }
        let status = process
            .wait()
            .with_context(|| format!("waiting for `{typed}`"))?;
        if status.success() {
            return Ok(());
        }
        if self.voice == Voice::Full {
            said.clear();
        }
        bail!("`{typed}` failed ({status})\n{said}");
    }

    /// Runs a command in the machine and returns what it printed; failing is an error.
    pub(super) fn guest(&mut self, machine: &mut Machine, script: &str) -> Result<String> {
        self.prompt("machine#", script);
        let ran = machine.run(script)?;
        for line in ran.stdout.lines().chain(ran.stderr.lines()) {
            self.line(line);
        }
        if ran.code != 0 {
            bail!(
                "`{script}` in the machine failed ({})\n{}{}",
                ran.code,
                ran.stdout,
                ran.stderr
            );
        }
        Ok(ran.stdout)
    }

    /// Ends the story with what each step took.
    pub(super) fn end(&self) {
        if self.voice == Voice::Full {
            println!();
            let ends = self.steps.iter().skip(1).map(|(_, begun)| *begun);
            for ((title, begun), end) in self.steps.iter().zip(ends.chain([Instant::now()])) {
                println!(
                    "{:>5.0} s  {title}",
                    end.duration_since(*begun).as_secs_f32()
                );
            }
        }
        println!("{:>5.0} s  in all", self.begun.elapsed().as_secs_f32());
    }

    fn prompt(&self, prompt: &str, typed: &str) {
        if self.voice == Voice::Full {
            let (on, off) = self.bold;
            println!("  {prompt} {on}{typed}{off}");
            // What follows may take a while; the reader should know what.
            let _ = io::stdout().flush();
        }
    }

    fn line(&self, line: &str) {
        if self.voice == Voice::Full {
            let (on, off) = self.faint;
            println!("  {on}│ {line}{off}");
        }
    }
}
