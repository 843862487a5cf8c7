//! Makes a root directory of any distribution into one that lives read-only.
//!
//! ```text
//! /home /root /srv /opt /mnt /media /usr/local   →  links into /var, contents moved there
//! /var/lib/{dpkg,rpm,pacman}                     →  /usr/lib/sysimage/…, a link stays
//! /boot /run /tmp /proc /sys /dev                →  empty
//! /sysroot and whatever else early boot needs    →  made
//! tmpfiles                                       →  makes the same directories in the /var of
//!                                                   machines that were installed from an older image
//! ```
//!
//! Invariant: nothing is lost. What cannot be moved (two files under one name) is an error.

use std::fmt::Write as _;

use bedplate_model::{Content, Tree, TreePath};

use crate::edit::{EditError, Editor};

/// A place that people write to: where programs look for it, where it lies, its mode when it is new.
struct Writable {
    place: &'static str,
    target: &'static str,
    mode: u16,
}

/// The places that lead into /var. Targets are those of Fedora's image systems.
const WRITABLE: [Writable; 7] = [
    Writable {
        place: "home",
        target: "var/home",
        mode: 0o755,
    },
    Writable {
        place: "root",
        target: "var/roothome",
        mode: 0o700,
    },
    Writable {
        place: "srv",
        target: "var/srv",
        mode: 0o755,
    },
    Writable {
        place: "opt",
        target: "var/opt",
        mode: 0o755,
    },
    Writable {
        place: "mnt",
        target: "var/mnt",
        mode: 0o755,
    },
    Writable {
        place: "media",
        target: "var/media",
        mode: 0o755,
    },
    Writable {
        place: "usr/local",
        target: "var/usrlocal",
        mode: 0o755,
    },
];

/// Package databases, which describe /usr and so belong to it: in /var one would be stale after the
/// first upgrade.
const DATABASES: [(&str, &str); 3] = [
    ("var/lib/dpkg", "usr/lib/sysimage/dpkg"),
    ("var/lib/rpm", "usr/lib/sysimage/rpm"),
    ("var/lib/pacman", "usr/lib/sysimage/pacman"),
];

/// Directories that a machine fills while it runs; an image's are empty.
const EMPTIED: [(&str, u16); 6] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("proc", 0o755),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
];

/// Directories that must be there.
const NEEDED: [(&str, u16); 4] = [
    ("etc", 0o755),
    ("sysroot", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

const TMPFILES: &str = "usr/lib/tmpfiles.d/bedplate-var.conf";

/// Makes a tree livable; see the module's drawing.
///
/// The kernel must have been taken out of /boot before.
pub fn make_livable(editor: &mut Editor<'_>) -> Result<(), EditError> {
    for (path, mode) in NEEDED {
        editor.directory(path, mode)?;
    }
    for (path, mode) in EMPTIED {
        editor.directory(path, mode)?;
        editor.clear(path);
    }
    for name in dangling_boot_links(editor.tree()) {
        editor.remove(&name);
    }
    editor.remove("lost+found");

    let mut lines = String::from(
        "# Written by `bedplate build`: what this image expects in /var, for machines whose /var is older.\n",
    );
    for Writable {
        place,
        target,
        mode,
    } in WRITABLE
    {
        let link = relative(place, target);
        match kind(editor.tree(), place) {
            Kind::Directory => editor.merge_directory(place, target)?,
            Kind::Missing => {
                editor.directory(target, mode)?;
            }
            Kind::Link(there) if *there == *link.as_bytes() => {
                editor.directory(target, mode)?;
            }
            // A distribution that made the link itself knows where it wants it.
            Kind::Link(_) | Kind::Other => continue,
        }
        if let Kind::Missing = kind(editor.tree(), place) {
            editor.symlink(place, &link)?;
        }
        describe(editor.tree(), target, &mut lines);
    }
    for (old, new) in DATABASES {
        let link = relative(old, new);
        match kind(editor.tree(), old) {
            Kind::Directory => {
                editor.merge_directory(old, new)?;
                editor.symlink(old, &link)?;
            }
            Kind::Link(there) if *there == *link.as_bytes() => {}
            Kind::Missing | Kind::Link(_) | Kind::Other => continue,
        }
        line(&mut lines, 'L', old, None, &link);
    }
    editor.file(TMPFILES, 0o644, lines.as_bytes())?;
    Ok(())
}

/// Writes a link target that leads from `place` to `target`, both below the root.
fn relative(place: &str, target: &str) -> String {
    let up = "../".repeat(place.matches('/').count());
    format!("{up}{target}")
}

enum Kind {
    Missing,
    Directory,
    Link(Box<[u8]>),
    Other,
}

fn kind(tree: &Tree, path: &str) -> Kind {
    let found = TreePath::try_from(path)
        .ok()
        .and_then(|path| tree.lookup(&path));
    match found {
        None => Kind::Missing,
        Some(id) => match &tree.node(id).content {
            Content::Directory(_) => Kind::Directory,
            Content::Symlink(target) => Kind::Link(target.clone()),
            Content::File(_)
            | Content::BlockDevice(_)
            | Content::CharacterDevice(_)
            | Content::Fifo
            | Content::Socket => Kind::Other,
        },
    }
}

/// Finds `/vmlinuz`, `/initrd.img` and their like, which lead into the /boot that is emptied.
fn dangling_boot_links(tree: &Tree) -> Vec<String> {
    let into_boot = |target: &[u8]| {
        target
            .strip_prefix(b"/")
            .unwrap_or(target)
            .starts_with(b"boot/")
    };
    tree.entries(Tree::ROOT)
        .into_iter()
        .flatten()
        .filter(|(_, id)| {
            matches!(&tree.node(**id).content, Content::Symlink(target) if into_boot(target))
        })
        .map(|(name, _)| name.to_string())
        .collect()
}

/// Writes the tmpfiles lines that make a directory, with the directories and links below it.
///
/// Files are left out: the first boot copies them with the image's whole /var, and after that they
/// belong to the machine.
fn describe(tree: &Tree, place: &str, lines: &mut String) {
    let Some(top) = TreePath::try_from(place)
        .ok()
        .and_then(|path| tree.lookup(&path))
    else {
        return;
    };
    let mut one = |path: &str, id| {
        let node = tree.node(id);
        let metadata = &node.metadata;
        match &node.content {
            Content::Directory(_) => {
                let owner = (metadata.mode, metadata.uid, metadata.gid);
                line(lines, 'd', path, Some(owner), "-");
            }
            Content::Symlink(target) => {
                // tmpfiles reads text; such a link is made by the first boot alone.
                if let Ok(target) = std::str::from_utf8(target) {
                    line(lines, 'L', path, None, target);
                }
            }
            Content::File(_)
            | Content::BlockDevice(_)
            | Content::CharacterDevice(_)
            | Content::Fifo
            | Content::Socket => {}
        }
    };
    one(place, top);
    for (path, id) in tree.walk_from(top) {
        if let Ok(path) = std::str::from_utf8(&path.to_bytes()) {
            one(&format!("{place}/{path}"), id);
        }
    }
}

/// Writes one tmpfiles line; what stands in it literally is quoted as tmpfiles.d(5) has it.
fn line(
    lines: &mut String,
    kind: char,
    path: &str,
    owner: Option<(u16, u32, u32)>,
    argument: &str,
) {
    // `%` opens a specifier, white space ends a field, and quotes and backslashes are C-like.
    let quote = |text: &str| {
        let text = text
            .replace('%', "%%")
            .replace('\\', "\\\\")
            .replace('"', "\\\"");
        if text.contains(char::is_whitespace) {
            format!("\"{text}\"")
        } else {
            text
        }
    };
    if path.contains('\n') || argument.contains('\n') {
        return; // no line of a text file can say that
    }
    let owner = owner.map_or_else(
        || "- - -".to_owned(),
        |(mode, uid, gid)| format!("{mode:04o} {uid} {gid}"),
    );
    // A String never fails.
    let _ = writeln!(
        lines,
        "{kind} {} {owner} - {}",
        quote(&format!("/{path}")),
        quote(argument)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Entry, directory, file, inline, paths, symlink, target, text, tree};
    use bedplate_model::Timestamp;

    fn livable(entries: &[Entry]) -> Tree {
        let mut tree = tree(entries);
        let time = Timestamp::default();
        make_livable(&mut Editor::new(&mut tree, time, &inline)).unwrap();
        tree
    }

    #[test]
    fn writable_places_lead_into_var_with_what_was_there() {
        let tree = livable(&[
            file("root/.bashrc", "x"),
            directory("usr/local/bin"),
            symlink("usr/local/man", "share/man"),
            file("opt/tool/x", "y"),
        ]);
        assert_eq!(target(&tree, "root").as_deref(), Some("var/roothome"));
        assert_eq!(
            target(&tree, "usr/local").as_deref(),
            Some("../var/usrlocal")
        );
        assert_eq!(text(&tree, "var/roothome/.bashrc").as_deref(), Some("x"));
        assert_eq!(text(&tree, "var/opt/tool/x").as_deref(), Some("y"));
        let lines = text(&tree, TMPFILES).unwrap();
        for line in [
            "d /var/home 0755 0 0 - -",
            "d /var/usrlocal/bin 0755 0 0 - -",
            "L /var/usrlocal/man - - - - share/man",
            "d /var/opt/tool 0755 0 0 - -",
        ] {
            assert!(
                lines.lines().any(|found| found == line),
                "{line} in\n{lines}"
            );
        }
        assert!(!lines.contains(".bashrc"), "files belong to the machine");
    }

    #[test]
    fn a_link_that_the_distribution_made_stays() {
        let tree = livable(&[symlink("home", "var/users"), directory("var/users")]);
        assert_eq!(target(&tree, "home").as_deref(), Some("var/users"));
    }

    #[test]
    fn the_package_database_moves_to_usr_and_a_link_stays() {
        let tree = livable(&[file("var/lib/dpkg/status", "Package: x")]);
        assert_eq!(
            text(&tree, "usr/lib/sysimage/dpkg/status").as_deref(),
            Some("Package: x")
        );
        let link = "../../usr/lib/sysimage/dpkg";
        assert_eq!(target(&tree, "var/lib/dpkg").as_deref(), Some(link));
        assert!(
            text(&tree, TMPFILES)
                .unwrap()
                .contains("L /var/lib/dpkg - - - - ../../usr/lib/sysimage/dpkg\n")
        );
    }

    #[test]
    fn what_a_machine_fills_is_empty_and_there() {
        let tree = livable(&[
            file("boot/vmlinuz-1", "k"),
            file("run/x/y", "z"),
            symlink("vmlinuz", "boot/vmlinuz-1"),
            symlink("bin", "usr/bin"),
        ]);
        let paths = paths(&tree);
        for path in [
            "/boot", "/dev", "/proc", "/run", "/sys", "/tmp", "/sysroot", "/var/tmp",
        ] {
            assert!(paths.iter().any(|found| found == path), "{path}");
            let below = format!("{path}/");
            assert!(
                !paths.iter().any(|found| found.starts_with(&below)),
                "{path}"
            );
        }
        assert!(!paths.contains(&"/vmlinuz".to_owned()));
        assert!(paths.contains(&"/bin".to_owned()));
        let tmp = tree.lookup(&TreePath::try_from("tmp").unwrap()).unwrap();
        assert_eq!(tree.node(tmp).metadata.mode, 0o1777);
    }

    #[test]
    fn names_that_tmpfiles_would_misread_are_quoted() {
        let tree = livable(&[directory("opt/a b"), directory("opt/50%")]);
        let lines = text(&tree, TMPFILES).unwrap();
        assert!(
            lines.contains("d \"/var/opt/a b\" 0755 0 0 - -\n"),
            "{lines}"
        );
        assert!(lines.contains("d /var/opt/50%% 0755 0 0 - -\n"), "{lines}");
    }

    #[test]
    fn two_files_under_one_name_are_an_error_and_not_a_loss() {
        let mut tree = tree(&[file("opt/x", "1"), file("var/opt/x", "2")]);
        let mut editor = Editor::new(&mut tree, Timestamp::default(), &inline);
        assert!(make_livable(&mut editor).is_err());
    }

    #[test]
    fn a_tree_that_is_livable_stays_as_it_is() {
        let once = livable(&[file("root/.bashrc", "x"), file("var/lib/dpkg/status", "y")]);
        let mut twice = once.clone();
        let time = Timestamp::default();
        make_livable(&mut Editor::new(&mut twice, time, &inline)).unwrap();
        assert_eq!(once, twice);
    }
}
