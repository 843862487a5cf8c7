//! What is cut: one line each. Add one here, and every campaign has it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::program::{Program, REGISTRY};

/// One operation on a store.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What people call it.
    pub name: &'static str,
    /// The command lines that make the store which it begins with.
    pub(crate) before: &'static [&'static str],
    /// The command line that is cut.
    pub(crate) command: &'static str,
    /// Whether it may be run again when it is done; untag may not, for there is nothing left to untag.
    pub(crate) again: bool,
    /// Whether it is what one does on a full disk, and has to succeed there.
    pub(crate) makes_room: bool,
    /// Whether the store that it begins with is damaged, and it mends that.
    pub(crate) repairs: bool,
    /// Whether that store has a journal that an older version overtook: it never counts, and is set aside.
    pub(crate) overtaken: bool,
}

/// A journal that says of a name that it was not there, and would take it away.
const OVERTAKEN: &str = r#"{"format": "bedplate-journal", "version": 1, "required": [], "optional": [],
    "generation": 9, "refs": [{"name": "localhost/os:a", "replaces": "nothing", "document": null}]}"#;

impl Operation {
    /// Makes the store that the operation begins with.
    pub(crate) fn begin(&self, program: &Program, root: &Path) -> Result<()> {
        for line in self.before {
            program.run(root, line)?;
        }
        if self.repairs {
            damage(&root.join("store")).context("damaging the store")?;
        }
        if self.overtaken {
            fs::write(root.join("store/journal"), OVERTAKEN).context("writing a journal")?;
        }
        Ok(())
    }

    /// Whether whatever goes wrong ends in an error of this host's: what could not be repaired is told as
    /// damage, and a repair goes on past what it cannot read.
    pub fn ends_in_one_error(&self) -> bool {
        !self.repairs
    }
}

const fn operation(
    name: &'static str,
    before: &'static [&'static str],
    command: &'static str,
) -> Operation {
    Operation {
        name,
        before,
        command,
        again: true,
        makes_room: false,
        repairs: false,
        overtaken: false,
    }
}

/// Every operation that changes a store.
pub const OPERATIONS: &[Operation] = &[
    operation("commit into nothing", &[], "commit tree-1 os:v1"),
    operation(
        "commit of a changed tree",
        &["commit tree-1 os:v1"],
        "commit tree-2 os:v1",
    ),
    operation(
        "import",
        &["commit tree-2 os:v1"],
        "import tree-1.tar os:v1",
    ),
    operation("pull", &["commit tree-2 os:v2"], "pull REGISTRY/os:v1"),
    operation("tag", &["commit tree-1 os:v1"], "tag os:v1 os:a os:b os:c"),
    Operation {
        overtaken: true,
        ..operation(
            "tag past a journal",
            &["commit tree-1 os:v1", "tag os:v1 os:a os:b"],
            "tag os:v1 os:c os:d",
        )
    },
    Operation {
        again: false,
        makes_room: true,
        ..operation(
            "untag",
            &["commit tree-1 os:v1", "tag os:v1 os:a os:b os:c"],
            "untag os:a os:b",
        )
    },
    Operation {
        makes_room: true,
        ..operation(
            "gc",
            &["commit tree-1 os:v1", "commit tree-2 os:v2", "untag os:v1"],
            "gc",
        )
    },
    Operation {
        makes_room: true,
        ..operation(
            "gc of what names had",
            &["commit tree-1 os:v1", "commit tree-2 os:v1"],
            "gc --keep 1",
        )
    },
    Operation {
        repairs: true,
        ..operation(
            "repair",
            &["commit tree-1 os:v1"],
            "fsck --repair --from store",
        )
    },
    Operation {
        makes_room: true,
        ..operation("gc of all", &["commit tree-1 os:v1", "untag os:v1"], "gc")
    },
];

/// Removes, shortens and changes objects; not the image, which `images` reads.
fn damage(store: &Path) -> std::io::Result<()> {
    let mut objects = Vec::new();
    for directory in fs::read_dir(store.join("objects"))? {
        for object in fs::read_dir(directory?.path())? {
            objects.push(object?.path());
        }
    }
    objects.sort();
    for (number, object) in objects
        .iter()
        .step_by(objects.len().div_ceil(9).max(1))
        .enumerate()
    {
        let bytes = fs::read(object)?;
        // Not through the name: what shares the inode stays as it is.
        fs::remove_file(object)?;
        match number % 3 {
            0 => {}
            1 => fs::write(object, &bytes[..bytes.len() / 2])?,
            _ => fs::write(object, vec![0; bytes.len()])?,
        }
    }
    Ok(())
}

/// How many small files a tree has.
const FILES: usize = 200;

/// Makes two trees that share most of their files.
pub(crate) fn make_trees(place: &Path) -> Result<()> {
    for version in [1, 2] {
        let root = place.join(format!("tree-{version}"));
        make_tree(&root, version).with_context(|| format!("making {}", root.display()))?;
    }
    Ok(())
}

fn make_tree(root: &Path, version: usize) -> std::io::Result<()> {
    for directory in ["usr/bin", "usr/lib", "etc"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for number in 0..FILES {
        // One in eight differs between the versions.
        let version = if number % 8 == 0 { version } else { 0 };
        let text = format!("file {number} of version {version}\n").repeat(1 + number % 60 * 4);
        fs::write(root.join(format!("usr/lib/file-{number}")), text)?;
    }
    // Of a size that is written past the page cache, and no multiple of a block.
    fs::write(root.join("usr/bin/large"), vec![version as u8; 700_001])?;
    fs::write(root.join("etc/empty"), "")?;
    fs::write(root.join("etc/version"), version.to_string())?;
    for number in 0..FILES / 10 {
        let name = |directory| root.join(format!("usr/{directory}/file-{number}"));
        fs::hard_link(name("lib"), name("bin"))?;
    }
    symlink("usr/bin", root.join("bin"))
}

/// Makes what is imported and pulled.
pub(crate) fn prepare(program: &Program) -> Result<()> {
    let place = program.directory();
    for line in [
        "commit tree-1 os:v1",
        "export os:v1 -o tree-1.tar",
        &format!("push os:v1 {REGISTRY}/os:v1"),
    ] {
        program.run(place, line)?;
    }
    Ok(())
}
