//! Looks for what would make an image boot badly, or behave unlike its builder expects.
//!
//! ```text
//! LINTS: [name · severity · what it looks for · check]      one line each; order is that of the report
//! ```
//!
//! Invariant: a lint reads; it changes nothing and never fails because of what it finds.

use std::fmt;

use bedplate_model::{Content, NodeId, Tree, TreePath, layout, os_release};

use crate::edit::resolve;
use crate::files::Files;
use crate::kernel;

/// What is looked at: a root directory before `build`, or an image after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A root directory: what `build` puts right is no finding.
    RootDirectory,
    /// An image: it is used as it is.
    Image,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; the image works.
    Warning,
    /// The image would not boot, or would lose something.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that a lint found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The lint's name.
    pub lint: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, and where.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.severity, self.message, self.lint)
    }
}

/// A lint: a name, and what it looks for.
pub struct Lint {
    /// Its name, by which it can be switched off.
    pub name: &'static str,
    /// How bad its findings are.
    pub severity: Severity,
    /// What it looks for, and why.
    pub doc: &'static str,
    check: fn(&Looked<'_>) -> Vec<String>,
}

impl fmt::Debug for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What a check sees.
struct Looked<'a> {
    tree: &'a Tree,
    subject: Subject,
    files: &'a dyn Files,
}

/// Every lint.
pub const LINTS: [Lint; 15] = [
    Lint {
        name: "kernel",
        severity: Severity::Error,
        doc: "exactly one kernel under /usr/lib/modules",
        check: kernel_check,
    },
    Lint {
        name: "init",
        severity: Severity::Error,
        doc: "something to start: /sbin/init or /usr/lib/systemd/systemd",
        check: init,
    },
    Lint {
        name: "boot-loader",
        severity: Severity::Error,
        doc: "systemd-boot, or GRUB for a BIOS: what `install` puts on the disk to start the rest",
        check: boot_loader,
    },
    Lint {
        name: "etc-usretc",
        severity: Severity::Error,
        doc: "no /usr/etc beside /etc: only one of them can be the pristine one",
        check: usr_etc,
    },
    Lint {
        name: "var-run",
        severity: Severity::Error,
        doc: "/var/run is a link to /run, not a directory that survives reboots",
        check: var_run,
    },
    Lint {
        name: "kargs",
        severity: Severity::Error,
        doc: "files in kargs.d are valid",
        check: kargs,
    },
    Lint {
        name: "api-directories",
        severity: Severity::Error,
        doc: "the directories that a system is mounted on are there",
        check: api_directories,
    },
    Lint {
        name: "identity",
        severity: Severity::Error,
        doc: "no machine-id and no SSH host keys: an image serves many machines",
        check: identity,
    },
    Lint {
        name: "os-release",
        severity: Severity::Warning,
        doc: "os-release names the system and its version",
        check: release,
    },
    Lint {
        name: "utf8",
        severity: Severity::Warning,
        doc: "names and link targets are UTF-8: other tools refuse what is not",
        check: utf8,
    },
    Lint {
        name: "nonempty-boot",
        severity: Severity::Warning,
        doc: "nothing in /boot but kernels: it is hidden on a machine",
        check: nonempty_boot,
    },
    Lint {
        name: "nonempty-run-tmp",
        severity: Severity::Warning,
        doc: "/run and /tmp are empty: they are file systems in memory on a machine",
        check: nonempty_run_tmp,
    },
    Lint {
        name: "var-log",
        severity: Severity::Warning,
        doc: "no logs of the build in /var/log",
        check: var_log,
    },
    Lint {
        name: "var-programs",
        severity: Severity::Warning,
        doc: "no programs in /opt, /usr/local, /srv or /var: upgrades do not reach them",
        check: var_programs,
    },
    Lint {
        name: "fstab",
        severity: Severity::Warning,
        doc: "/etc/fstab has no entry for /: early boot mounts it",
        check: fstab,
    },
];

/// Runs every lint that is not switched off, and returns what they found, errors first.
pub fn lint(tree: &Tree, subject: Subject, files: &dyn Files, off: &[String]) -> Vec<Finding> {
    let looked = Looked {
        tree,
        subject,
        files,
    };
    let mut findings: Vec<Finding> = LINTS
        .iter()
        .filter(|lint| !off.iter().any(|name| name == lint.name))
        .flat_map(|lint| {
            (lint.check)(&looked).into_iter().map(|message| Finding {
                lint: lint.name,
                severity: lint.severity,
                message,
            })
        })
        .collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// The most paths that one finding names.
const NAMED: usize = 5;

impl Looked<'_> {
    fn at(&self, path: &str) -> Option<NodeId> {
        self.tree.lookup(&TreePath::try_from(path).ok()?)
    }

    fn is_directory(&self, path: &str) -> bool {
        self.at(path)
            .is_some_and(|id| self.tree.entries(id).is_some())
    }

    fn has_entries(&self, path: &str) -> bool {
        self.at(path)
            .and_then(|id| self.tree.entries(id))
            .is_some_and(|entries| !entries.is_empty())
    }

    /// Reads a file of configuration; what is missing or too long for one is no text.
    fn text(&self, path: &TreePath, max: u64) -> Option<String> {
        let id = self.tree.lookup(path)?;
        let Content::File(content) = &self.tree.node(id).content else {
            return None;
        };
        let bytes = self.files.read(path, content, max).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Walks below a directory, with whole paths.
    fn below<'b>(&'b self, path: &'b str) -> impl Iterator<Item = (String, NodeId)> + 'b {
        self.at(path)
            .into_iter()
            .flat_map(|id| self.tree.walk_from(id))
            .map(move |(below, id)| (format!("/{path}{below}"), id))
    }
}

/// Says one thing about many paths, naming a few.
fn together(what: &str, paths: &[String]) -> Vec<String> {
    if paths.is_empty() {
        return Vec::new();
    }
    let named = paths
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    let more = paths.len().saturating_sub(NAMED);
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    vec![format!("{what}: {named}{rest}")]
}

fn kernel_check(looked: &Looked<'_>) -> Vec<String> {
    kernel::find(looked.tree)
        .err()
        .map(|error| match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        })
        .into_iter()
        .collect()
}

fn init(looked: &Looked<'_>) -> Vec<String> {
    let there = ["sbin/init", "usr/lib/systemd/systemd"]
        .iter()
        .any(|path| resolve(looked.tree, path).is_some());
    if there {
        Vec::new()
    } else {
        vec!["neither /sbin/init nor /usr/lib/systemd/systemd is there".to_owned()]
    }
}

fn boot_loader(looked: &Looked<'_>) -> Vec<String> {
    let grub = format!("{}/kernel.img", layout::GRUB);
    let there = |path: &str| resolve(looked.tree, path).is_some();
    if there(layout::SYSTEMD_BOOT) || there(&grub) {
        Vec::new()
    } else {
        vec![format!(
            "neither /{} nor /{grub} is there; install systemd-boot (Debian: systemd-boot-efi), or for a BIOS \
             GRUB (grub-pc-bin)",
            layout::SYSTEMD_BOOT
        )]
    }
}

fn usr_etc(looked: &Looked<'_>) -> Vec<String> {
    if looked.has_entries("usr/etc") && looked.is_directory("etc") {
        vec!["both /etc and /usr/etc have content".to_owned()]
    } else {
        Vec::new()
    }
}

fn var_run(looked: &Looked<'_>) -> Vec<String> {
    if looked.is_directory("var/run") {
        vec!["/var/run is a directory".to_owned()]
    } else {
        Vec::new()
    }
}

fn kargs(looked: &Looked<'_>) -> Vec<String> {
    bedplate_boot::kargs::files(looked.tree)
        .into_iter()
        .filter_map(|(path, _)| {
            let text = looked.text(&path, bedplate_boot::kargs::FILE_MAX)?;
            let error = bedplate_boot::kargs::parse(&text).err()?;
            Some(format!("{path}: {error}"))
        })
        .collect()
}

fn api_directories(looked: &Looked<'_>) -> Vec<String> {
    if looked.subject == Subject::RootDirectory {
        return Vec::new(); // build makes them
    }
    let missing: Vec<String> = ["dev", "etc", "proc", "run", "sys", "sysroot", "tmp", "var"]
        .into_iter()
        .filter(|path| !looked.is_directory(path))
        .map(|path| format!("/{path}"))
        .collect();
    together("directories are missing", &missing)
}

fn identity(looked: &Looked<'_>) -> Vec<String> {
    if looked.subject == Subject::RootDirectory {
        return Vec::new(); // build removes it
    }
    let mut found: Vec<String> = looked
        .below("etc/ssh")
        .map(|(path, _)| path)
        .filter(|path| path.starts_with("/etc/ssh/ssh_host_") && path.ends_with("_key"))
        .collect();
    if let Some(id) = looked.at("etc/machine-id")
        && let Content::File(content) = &looked.tree.node(id).content
        && content.size() > 32
    {
        found.push("/etc/machine-id".to_owned());
    }
    together("all machines of this image would share", &found)
}

fn release(looked: &Looked<'_>) -> Vec<String> {
    match crate::files::os_release(looked.tree, looked.files) {
        None => vec![format!("/{} is missing", os_release::PATHS[1])],
        Some(release) if release.version().is_none() => {
            vec!["os-release has neither IMAGE_VERSION nor VERSION_ID".to_owned()]
        }
        Some(_) => Vec::new(),
    }
}

fn utf8(looked: &Looked<'_>) -> Vec<String> {
    let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
    let strange: Vec<String> = looked
        .tree
        .walk()
        .filter(|(path, id)| {
            let name = path.split_last().map(|(_, name)| name.as_bytes());
            let target = match &looked.tree.node(*id).content {
                Content::Symlink(target) => Some(&**target),
                _ => None,
            };
            !name.is_none_or(is_text) || !target.is_none_or(is_text)
        })
        .map(|(path, _)| path.to_string())
        .collect();
    together("names or link targets that are not UTF-8", &strange)
}

fn nonempty_boot(looked: &Looked<'_>) -> Vec<String> {
    let is_kernels = |path: &str| {
        ["vmlinuz", "initrd", "initramfs", "config-", "System.map"]
            .iter()
            .any(|prefix| path.starts_with(&format!("/boot/{prefix}")))
    };
    let strange: Vec<String> = looked
        .below("boot")
        .filter(|(_, id)| looked.tree.entries(*id).is_none())
        .map(|(path, _)| path)
        .filter(|path| looked.subject == Subject::Image || !is_kernels(path))
        .collect();
    together("files in /boot do not reach a machine", &strange)
}

fn nonempty_run_tmp(looked: &Looked<'_>) -> Vec<String> {
    let files: Vec<String> = ["run", "tmp"]
        .into_iter()
        .flat_map(|place| looked.below(place))
        .filter(|(_, id)| looked.tree.entries(*id).is_none())
        .map(|(path, _)| path)
        .collect();
    together("files in /run or /tmp do not reach a machine", &files)
}

fn var_log(looked: &Looked<'_>) -> Vec<String> {
    let logs: Vec<String> = looked
        .below("var/log")
        .filter(
            |(_, id)| matches!(&looked.tree.node(*id).content, Content::File(content) if content.size() > 0),
        )
        .map(|(path, _)| path)
        .collect();
    together("logs of the build", &logs)
}

fn var_programs(looked: &Looked<'_>) -> Vec<String> {
    let places: &[&str] = match looked.subject {
        Subject::RootDirectory => &["opt", "srv", "usr/local", "var"],
        Subject::Image => &["var"],
    };
    let programs: Vec<String> = places
        .iter()
        .flat_map(|place| looked.below(place))
        // dpkg's own scripts move to /usr with its database.
        .filter(|(path, _)| !path.starts_with("/var/lib/dpkg/"))
        .filter(|(_, id)| {
            let node = looked.tree.node(*id);
            matches!(node.content, Content::File(_)) && node.metadata.mode & 0o111 != 0
        })
        .map(|(path, _)| path)
        .collect();
    together("programs that upgrades will not reach", &programs)
}

fn fstab(looked: &Looked<'_>) -> Vec<String> {
    let Ok(path) = TreePath::try_from("etc/fstab") else {
        return Vec::new();
    };
    let has_root = looked.text(&path, 64 << 10).is_some_and(|text| {
        text.lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .any(|line| line.split_whitespace().nth(1) == Some("/"))
    });
    if has_root {
        vec!["/etc/fstab mounts something on /".to_owned()]
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Entry, Texts, directory, file, symlink, tree};

    fn names(entries: &[Entry], subject: Subject) -> Vec<&'static str> {
        lint(&tree(entries), subject, &Texts, &[])
            .into_iter()
            .map(|finding| finding.lint)
            .collect()
    }

    fn sound() -> Vec<Entry> {
        vec![
            file("usr/lib/modules/6.1/vmlinuz", "MZ"),
            file("usr/lib/systemd/systemd", ""),
            file("usr/lib/systemd/boot/efi/systemd-bootx64.efi", ""),
            file("usr/lib/os-release", "ID=x\nVERSION_ID=1\n"),
            symlink("etc/os-release", "../usr/lib/os-release"),
            directory("var"),
        ]
    }

    #[test]
    fn a_sound_root_directory_has_no_findings_and_as_an_image_lacks_its_directories() {
        assert_eq!(names(&sound(), Subject::RootDirectory), Vec::<&str>::new());
        assert_eq!(names(&sound(), Subject::Image), ["api-directories"]);
    }

    #[test]
    fn an_empty_tree_has_every_fault_that_stops_a_boot() {
        assert_eq!(
            names(&[], Subject::RootDirectory),
            ["kernel", "init", "boot-loader", "os-release"]
        );
    }

    #[test]
    fn either_loader_is_enough() {
        for path in [layout::SYSTEMD_BOOT, "usr/lib/grub/i386-pc/kernel.img"] {
            let found = names(&[file(path, "x")], Subject::RootDirectory);
            assert!(!found.contains(&"boot-loader"), "{path}");
        }
    }

    #[test]
    fn each_fault_is_found_by_its_lint() {
        let key: Entry = file("etc/ssh/ssh_host_rsa_key", "secret");
        let mut tool = file("opt/tool", "#!");
        tool.1.metadata.mode = 0o755;
        let cases: [(Entry, &str); 8] = [
            (file("usr/etc/x", ""), "etc-usretc"),
            (directory("var/run"), "var-run"),
            (file("usr/lib/bootc/kargs.d/1.toml", "kargs = 1"), "kargs"),
            (file("boot/grub.cfg", ""), "nonempty-boot"),
            (file("tmp/x", ""), "nonempty-run-tmp"),
            (file("var/log/dpkg.log", "x"), "var-log"),
            (tool, "var-programs"),
            (file("etc/fstab", "# x\nUUID=1 / ext4\n"), "fstab"),
        ];
        for (entry, wanted) in cases {
            let mut entries = sound();
            entries.push(entry);
            let found = names(&entries, Subject::RootDirectory);
            assert_eq!(found, [wanted]);
        }
        let mut entries = sound();
        entries.push(key);
        assert!(names(&entries, Subject::Image).contains(&"identity"));
        assert!(!names(&entries, Subject::RootDirectory).contains(&"identity"));
    }

    #[test]
    fn a_lint_can_be_switched_off_and_many_paths_are_one_finding() {
        let off = ["kernel", "init", "boot-loader"].map(str::to_owned);
        let files: Vec<Entry> = [
            "tmp/a", "tmp/b", "tmp/c", "tmp/d", "tmp/e", "tmp/f", "tmp/g",
        ]
        .into_iter()
        .map(|path| file(path, ""))
        .collect();
        let findings = lint(&tree(&files), Subject::RootDirectory, &Texts, &off);
        let shown: Vec<String> = findings.iter().map(Finding::to_string).collect();
        assert_eq!(
            shown,
            [
                "warning: /usr/lib/os-release is missing (os-release)",
                "warning: files in /run or /tmp do not reach a machine: \
                 /tmp/a, /tmp/b, /tmp/c, /tmp/d, /tmp/e and 2 more (nonempty-run-tmp)"
            ]
        );
    }
}
