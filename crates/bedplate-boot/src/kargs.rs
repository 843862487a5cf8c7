//! Kernel arguments that an image brings: `kargs.d/*.toml`, in bootc's format.
//!
//! ```toml
//! kargs = ["console=ttyS0", "mitigations=auto"]
//! match-architectures = ["x86_64"]     # optional; otherwise every architecture
//! ```
//!
//! Invariant: an argument is one word of a command line: never empty, without control characters, and
//! with white space in double quotes alone, so that no file can smuggle a second argument in.

use std::io;

use bedplate_model::{Content, FileContent, Tree, TreePath};
use serde::Deserialize;

/// The directories of such files below an image's root, in the order in which they count.
pub const DIRECTORIES: [&str; 2] = ["usr/lib/bootc/kargs.d", "usr/lib/bedplate/kargs.d"];

/// The most bytes of one file that are read.
pub const FILE_MAX: u64 = 64 << 10;

/// One file of kernel arguments.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct KargsFile {
    /// The arguments.
    pub kargs: Vec<String>,
    /// The architectures that they are for, as Rust names them; `None` means all.
    #[serde(default)]
    pub match_architectures: Option<Vec<String>>,
}

/// Parses one file.
pub fn parse(text: &str) -> Result<KargsFile, ParseKargsError> {
    let file: KargsFile =
        toml::from_str(text).map_err(|error| ParseKargsError::Toml(error.message().to_owned()))?;
    match file.kargs.iter().find(|argument| !is_argument(argument)) {
        None => Ok(file),
        Some(argument) => Err(ParseKargsError::Argument(bedplate_model::name::shown(
            argument.as_bytes(),
        ))),
    }
}

/// Returns whether a text is one argument of a kernel command line.
pub fn is_argument(text: &str) -> bool {
    let mut quoted = false;
    let one_word = text.chars().all(|character| {
        quoted ^= character == '"';
        !character.is_control() && (quoted || !character.is_whitespace())
    });
    !text.is_empty() && one_word && !quoted
}

/// Joins the arguments of several files, for one architecture, in the order of the files.
pub fn merge<'a>(
    files: impl IntoIterator<Item = &'a KargsFile>,
    architecture: &str,
) -> Vec<String> {
    files
        .into_iter()
        .filter(|file| {
            file.match_architectures
                .as_ref()
                .is_none_or(|list| list.iter().any(|name| name == architecture))
        })
        .flat_map(|file| file.kargs.iter().cloned())
        .collect()
}

/// Lists the files of an image: those of [`DIRECTORIES`], each directory in the order of its names.
pub fn files(tree: &Tree) -> Vec<(TreePath, &FileContent)> {
    let mut found = Vec::new();
    for directory in DIRECTORIES {
        let Ok(path) = TreePath::try_from(directory) else {
            continue;
        };
        let entries = tree.lookup(&path).and_then(|id| tree.entries(id));
        for (name, id) in entries.into_iter().flatten() {
            if let Content::File(content) = &tree.node(*id).content
                && name.as_bytes().ends_with(b".toml")
            {
                found.push((path.join(name), content));
            }
        }
    }
    found
}

/// Collects the arguments that an image brings.
///
/// `read` reads a whole file of at most [`FILE_MAX`] bytes. A file that is wrong is an error and not
/// passed over: the argument that it was to bring may be what the machine boots by.
pub fn of_image(
    tree: &Tree,
    architecture: &str,
    read: &mut dyn FnMut(&TreePath, &FileContent) -> io::Result<Vec<u8>>,
) -> Result<Vec<String>, ImageKargsError> {
    let mut parsed = Vec::new();
    for (path, content) in files(tree) {
        if content.size() > FILE_MAX {
            return Err(ImageKargsError::Long { path });
        }
        let bytes = read(&path, content).map_err(|source| ImageKargsError::Read {
            path: path.clone(),
            source,
        })?;
        let file = std::str::from_utf8(&bytes)
            .map_err(|_| ParseKargsError::Toml("it is not UTF-8".to_owned()))
            .and_then(parse)
            .map_err(|source| ImageKargsError::Parse { path, source })?;
        parsed.push(file);
    }
    Ok(merge(&parsed, architecture))
}

/// Why a file gives no kernel arguments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseKargsError {
    /// Not TOML, or of other fields.
    #[error("it is not a list of kernel arguments: {0}")]
    Toml(String),
    /// An argument that is not one word.
    #[error("`{0}` is not one kernel argument")]
    Argument(String),
}

/// Why the kernel arguments of an image could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum ImageKargsError {
    /// A file could not be read.
    #[error("cannot read the image's {path}")]
    Read {
        /// The file.
        path: TreePath,
        /// Why.
        source: io::Error,
    },
    /// A file is longer than [`FILE_MAX`].
    #[error("the image's {path} has more than {FILE_MAX} bytes")]
    Long {
        /// The file.
        path: TreePath,
    },
    /// A file is wrong.
    #[error("the image's {path} gives no kernel arguments")]
    Parse {
        /// The file.
        path: TreePath,
        /// Why.
        source: ParseKargsError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use bedplate_model::{Metadata, Name, Node};
    use proptest::prelude::*;

    #[test]
    fn arguments_join_in_the_order_of_the_files_and_for_one_architecture() {
        let files = [
            parse("kargs = [\"a\", 'b=\"c d\"']").unwrap(),
            parse("kargs = [\"x\"]\nmatch-architectures = [\"aarch64\"]").unwrap(),
            parse("kargs = [\"a\"]\nmatch-architectures = [\"x86_64\"]").unwrap(),
        ];
        assert_eq!(merge(&files, "x86_64"), ["a", "b=\"c d\"", "a"]);
    }

    #[test]
    fn no_file_smuggles_in_a_second_argument() {
        for text in [
            "kargs = [\"a init=/bin/sh\"]",
            "kargs = [\"\"]",
            "kargs = [\"a\\nb\"]",
            "kargs = ['a=\"b']",
            "kargs = \"a\"",
            "kargs = [1]",
            "kargs = []\nother = 1",
            "nonsense",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wrong_file_of_an_image_is_named() {
        let mut tree = Tree::new(Metadata::root_owned(0o755));
        let mut at = Tree::ROOT;
        let directory = || Node::new(Metadata::root_owned(0o755), Content::empty_directory());
        for name in DIRECTORIES[0].split('/') {
            at = tree
                .insert(at, Name::try_from(name).unwrap(), directory())
                .unwrap();
        }
        for (name, text) in [
            ("10.toml", "kargs = ['a']"),
            ("README", "x"),
            ("20.toml", "?"),
        ] {
            let content = Content::File(FileContent::Inline(text.as_bytes().into()));
            let node = Node::new(Metadata::root_owned(0o644), content);
            tree.insert(at, Name::try_from(name).unwrap(), node)
                .unwrap();
        }
        let mut read = |_: &TreePath, content: &FileContent| match content {
            FileContent::Inline(bytes) => Ok(bytes.to_vec()),
            FileContent::Object { .. } => Err(io::Error::other("no objects here")),
        };
        let error = of_image(&tree, "x86_64", &mut read).unwrap_err();
        assert!(error.to_string().contains("kargs.d/20.toml"), "{error}");
        tree.remove(at, b"20.toml");
        assert_eq!(of_image(&tree, "x86_64", &mut read).unwrap(), ["a"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _ = parse(&text);
        }
    }
}
