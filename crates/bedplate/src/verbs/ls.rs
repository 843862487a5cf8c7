//! `ls`: lists a directory of an image, without mounting it.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Context as _;
use bedplate_build::edit::resolve;
use bedplate_model::name::shown;
use bedplate_model::{Content, FileContent, NodeId, Tree, TreePath};
use serde::Serialize;

use crate::Answer;
use crate::blame::Refusal;
use crate::cli::Ls;
use crate::context::{Context, find_image};
use crate::render::{json, moment};

pub(super) fn run(ls: &Ls, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let image = find_image(&store, &ls.name)?.target;
    let tree = store
        .tree(&image.root)
        .with_context(|| format!("cannot read {}", ls.name))?;
    let id = find(&tree, &ls.path, &ls.name.to_string())?;
    let names = tree.name_counts();
    let listed = |path: Vec<u8>, id| (shown(&path), id);
    let entries: Vec<(String, NodeId)> = match tree.entries(id) {
        None => vec![listed(ls.path.as_os_str().as_bytes().to_vec(), id)],
        Some(_) if ls.recursive => tree
            .walk_from(id)
            .map(|(below, id)| listed(below.to_bytes(), id))
            .collect(),
        Some(entries) => entries
            .iter()
            .map(|(name, id)| listed(name.as_bytes().to_vec(), *id))
            .collect(),
    };
    let out = &mut *context.out;
    if ls.json {
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(path, id)| Entry::of(&tree, id, names[id.index()], path))
            .collect();
        json(out, &entries)?;
        return Ok(Answer::Yes);
    }
    for (path, id) in entries {
        line(out, &tree, id, &names, &path, ls.long)?;
    }
    Ok(Answer::Yes)
}

/// One entry, for programs. Names, targets and attributes that are not UTF-8 are escaped as everywhere
/// in our output: `\xff`.
#[derive(Serialize)]
struct Entry {
    /// Relative to the listed directory; of a file, the path that was asked for.
    path: String,
    /// `file`, `directory`, `symlink` and so on.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The permissions in octal, with setuid, setgid and sticky bit: `0755`.
    mode: String,
    uid: u32,
    gid: u32,
    /// How many names the entry has in the image.
    links: u32,
    /// Bytes of a file's content or of a link's target, otherwise 0.
    size: u64,
    mtime: Mtime,
    /// The fs-verity digest of a file's content; null where the content lies in the image itself.
    object: Option<String>,
    /// Where a symbolic link leads.
    target: Option<String>,
    /// Major and minor number of a device.
    device: Option<[u32; 2]>,
    /// The names of the extended attributes.
    xattrs: Vec<String>,
}

/// A time since 1970.
#[derive(Serialize)]
struct Mtime {
    seconds: i64,
    nanoseconds: u32,
}

impl Entry {
    fn of(tree: &Tree, id: NodeId, links: u32, path: String) -> Self {
        let node = tree.node(id);
        let metadata = &node.metadata;
        let (mut size, mut object, mut target, mut device) = (0, None, None, None);
        match &node.content {
            Content::File(content) => {
                size = content.size();
                if let FileContent::Object { id, .. } = content {
                    object = Some(id.to_string());
                }
            }
            Content::Symlink(bytes) => {
                size = bytes.len() as u64;
                target = Some(shown(bytes));
            }
            Content::BlockDevice(rdev) | Content::CharacterDevice(rdev) => {
                device = Some([rdev.major, rdev.minor]);
            }
            Content::Directory(_) | Content::Fifo | Content::Socket => {}
        }
        Self {
            path,
            kind: node.content.type_name(),
            mode: format!("{:04o}", metadata.mode),
            uid: metadata.uid,
            gid: metadata.gid,
            links,
            size,
            mtime: Mtime {
                seconds: metadata.mtime.seconds,
                nanoseconds: metadata.mtime.nanoseconds,
            },
            object,
            target,
            device,
            xattrs: metadata.xattrs.keys().map(|name| shown(name)).collect(),
        }
    }
}

/// Finds what a path leads to, following symbolic links inside the image, or says that it leads nowhere.
pub(super) fn find(tree: &Tree, path: &Path, image: &str) -> anyhow::Result<NodeId> {
    path.to_str()
        .map_or_else(
            // Names that are not UTF-8 are found as they are.
            || tree.lookup(&TreePath::try_from(path).ok()?),
            |text| resolve(tree, text),
        )
        .ok_or_else(|| {
            Refusal::usage(
                format!("{image} has no {}", path.display()),
                "`bedplate ls` shows what is there",
            )
            .into()
        })
}

/// Writes one entry: its name, or in the long form what `ls -l` has, with the time in UTC.
fn line(
    out: &mut dyn Write,
    tree: &Tree,
    id: NodeId,
    names: &[u32],
    name: &str,
    long: bool,
) -> io::Result<()> {
    let node = tree.node(id);
    if !long {
        return writeln!(out, "{name}");
    }
    let size = match &node.content {
        Content::File(content) => content.size().to_string(),
        Content::BlockDevice(device) | Content::CharacterDevice(device) => {
            format!("{}, {}", device.major, device.minor)
        }
        Content::Symlink(target) => target.len().to_string(),
        Content::Directory(_) | Content::Fifo | Content::Socket => "0".to_owned(),
    };
    write!(
        out,
        "{} {:>3} {:>5} {:>5} {size:>10} {} {name}",
        mode(node.st_mode()),
        names[id.index()],
        node.metadata.uid,
        node.metadata.gid,
        moment(node.metadata.mtime.seconds),
    )?;
    match &node.content {
        Content::Symlink(target) => writeln!(out, " -> {}", shown(target)),
        _ => writeln!(out),
    }
}

/// Prints type and permissions as `ls` does: `-rwsr-xr-t`.
fn mode(st_mode: u16) -> String {
    let kind = match st_mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o060_000 => 'b',
        0o020_000 => 'c',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = st_mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, st_mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::mode;

    #[test]
    fn modes_look_as_in_ls() {
        for (st_mode, text) in [
            (0o104_755, "-rwsr-xr-x"),
            (0o041_777, "drwxrwxrwt"),
            (0o102_644, "-rw-r-Sr--"),
            (0o120_777, "lrwxrwxrwx"),
            (0o020_600, "crw-------"),
        ] {
            assert_eq!(mode(st_mode), text);
        }
    }
}
