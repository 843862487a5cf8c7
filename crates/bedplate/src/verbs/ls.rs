//! `ls`: lists a directory of an image, without mounting it.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Context as _;
use bedplate_build::edit::resolve;
use bedplate_model::name::shown;
use bedplate_model::{Content, NodeId, Tree, TreePath};

use crate::Answer;
use crate::blame::Refusal;
use crate::cli::Ls;
use crate::context::{Context, find_image};
use crate::render::moment;

pub(super) fn run(ls: &Ls, context: &mut Context<'_>) -> anyhow::Result<Answer> {
    let store = context.store()?;
    let image = find_image(&store, &ls.name)?;
    let tree = store
        .tree(&image.root)
        .with_context(|| format!("cannot read {}", ls.name))?;
    let id = find(&tree, &ls.path, &ls.name.to_string())?;
    let names = tree.name_counts();
    let out = &mut *context.out;
    if tree.entries(id).is_none() {
        line(
            out,
            &tree,
            id,
            &names,
            &shown(ls.path.as_os_str().as_bytes()),
            ls.long,
        )?;
        return Ok(Answer::Yes);
    }
    if ls.recursive {
        for (below, id) in tree.walk_from(id) {
            line(out, &tree, id, &names, &shown(&below.to_bytes()), ls.long)?;
        }
    } else {
        for (name, id) in tree.entries(id).into_iter().flatten() {
            line(out, &tree, *id, &names, &name.to_string(), ls.long)?;
        }
    }
    Ok(Answer::Yes)
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
