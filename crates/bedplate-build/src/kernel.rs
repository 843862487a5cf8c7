//! Finds the one kernel of a tree, and puts everything of it under /usr/lib/modules.
//!
//! ```text
//! /boot/vmlinuz-<release>      (Debian)  ─┐
//! /usr/lib/modules/<release>/vmlinuz  ◀───┘  (Fedora has it there)
//! ```
//!
//! Invariant: after [`adopt`] the kernel lies beside its modules, and nothing of it in /boot counts.

use bedplate_model::{Content, Name, NodeId, Tree, TreePath, layout};

use crate::edit::{EditError, Editor, resolve};

/// What distributions keep in /boot beside the kernel, and its name under /usr/lib/modules.
const COMPANIONS: [(&str, &str); 2] = [("config-", "config"), ("System.map-", "System.map")];

/// The kernel of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its release: the name of its directory under /usr/lib/modules.
    pub release: String,
    /// The node of the kernel itself.
    pub node: NodeId,
}

/// Finds the one kernel of a tree, as Fedora and Debian lay them out, without a change.
pub fn find(tree: &Tree) -> Result<Kernel, KernelError> {
    let directory = TreePath::try_from(layout::MODULES)
        .ok()
        .and_then(|path| tree.lookup(&path))
        .and_then(|id| tree.entries(id));
    let Some(entries) = directory else {
        let split = TreePath::try_from("lib/modules")
            .ok()
            .and_then(|path| tree.lookup(&path));
        return Err(match split {
            Some(_) => KernelError::SplitUsr,
            None => KernelError::None,
        });
    };
    let mut kernels = Vec::new();
    let mut without = Vec::new();
    for (name, id) in entries {
        if tree.entries(*id).is_none_or(|entries| entries.is_empty()) {
            continue;
        }
        let release = release_text(name)?;
        match kernel_node(tree, &release) {
            Some(node) => kernels.push(Kernel { release, node }),
            None => without.push(release),
        }
    }
    match (kernels.len(), without.first()) {
        (1, None) => Ok(kernels.remove(0)),
        (0, None) => Err(KernelError::None),
        (0, Some(release)) => Err(KernelError::ModulesOnly {
            release: release.clone(),
        }),
        _ => {
            without.extend(kernels.into_iter().map(|kernel| kernel.release));
            without.sort();
            Err(KernelError::Several { releases: without })
        }
    }
}

/// Finds the one kernel and gives it its name beside its modules.
pub fn adopt(editor: &mut Editor<'_>) -> Result<Kernel, KernelError> {
    let kernel = find(editor.tree())?;
    let release = &kernel.release;
    let home = format!("{}/{release}", layout::MODULES);
    let vmlinuz = format!("{home}/{}", layout::VMLINUZ);
    if editor.find(&vmlinuz) != Some(kernel.node) {
        editor.link(&vmlinuz, kernel.node)?;
    }
    for (prefix, name) in COMPANIONS {
        let place = format!("{home}/{name}");
        let Some(companion) = file(editor.tree(), &format!("boot/{prefix}{release}")) else {
            continue;
        };
        if editor.find(&place).is_none() {
            editor.link(&place, companion)?;
        }
    }
    Ok(kernel)
}

fn kernel_node(tree: &Tree, release: &str) -> Option<NodeId> {
    let beside = format!("{}/{release}/{}", layout::MODULES, layout::VMLINUZ);
    let in_boot = format!("boot/vmlinuz-{release}");
    file(tree, &beside).or_else(|| file(tree, &in_boot))
}

fn file(tree: &Tree, path: &str) -> Option<NodeId> {
    resolve(tree, path).filter(|id| matches!(tree.node(*id).content, Content::File(_)))
}

/// A release stands in paths, file names and command lines: it is a word of plain characters.
fn release_text(name: &Name) -> Result<String, KernelError> {
    std::str::from_utf8(name.as_bytes())
        .ok()
        .filter(|text| {
            text.chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '~'))
        })
        .map(str::to_owned)
        .ok_or_else(|| KernelError::Release {
            name: name.to_string(),
        })
}

/// Why a tree has no kernel to boot.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nothing under /usr/lib/modules.
    #[error("the tree has no kernel: nothing lies in /usr/lib/modules")]
    None,
    /// `/lib` is a directory of its own.
    #[error("the kernel's modules lie in /lib/modules, and /lib is no link to /usr/lib")]
    SplitUsr,
    /// Modules without a kernel.
    #[error(
        "/usr/lib/modules/{release} has no kernel: neither vmlinuz in it nor /boot/vmlinuz-{release}"
    )]
    ModulesOnly {
        /// The release.
        release: String,
    },
    /// More than one.
    #[error("the tree has more than one kernel: {}", releases.join(", "))]
    Several {
        /// What lies under /usr/lib/modules.
        releases: Vec<String>,
    },
    /// A name that is no release.
    #[error("/usr/lib/modules/{name} is not named like a kernel release")]
    Release {
        /// The name.
        name: String,
    },
    /// The tree could not be changed.
    #[error(transparent)]
    Edit(#[from] EditError),
}

impl KernelError {
    /// Returns what the builder can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::None | Self::ModulesOnly { .. } => {
                Some("install a kernel package into the root directory")
            }
            Self::SplitUsr => Some("merge /usr first (Debian: install usrmerge)"),
            Self::Several { .. } => Some("remove all but one kernel package"),
            Self::Release { .. } => Some("remove what does not belong there"),
            Self::Edit(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Entry, directory, file, inline, symlink, text, tree};
    use bedplate_model::Timestamp;

    fn adopted(entries: &[Entry]) -> Result<(Tree, Kernel), KernelError> {
        let mut tree = tree(entries);
        let kernel = adopt(&mut Editor::new(&mut tree, Timestamp::default(), &inline))?;
        Ok((tree, kernel))
    }

    #[test]
    fn debians_kernel_gets_its_place_beside_its_modules() {
        let (tree, kernel) = adopted(&[
            file("usr/lib/modules/6.1.0-1-cloud-amd64/modules.dep", ""),
            file("boot/vmlinuz-6.1.0-1-cloud-amd64", "MZ"),
            file("boot/config-6.1.0-1-cloud-amd64", "CONFIG_X=y"),
            symlink("lib", "usr/lib"),
        ])
        .unwrap();
        assert_eq!(kernel.release, "6.1.0-1-cloud-amd64");
        let place = |name: &str| format!("usr/lib/modules/6.1.0-1-cloud-amd64/{name}");
        assert_eq!(text(&tree, &place("vmlinuz")).as_deref(), Some("MZ"));
        assert_eq!(text(&tree, &place("config")).as_deref(), Some("CONFIG_X=y"));
    }

    #[test]
    fn fedoras_kernel_is_where_it_belongs() {
        let (_, kernel) =
            adopted(&[file("usr/lib/modules/6.17.4-300.fc43.x86_64/vmlinuz", "MZ")]).unwrap();
        assert_eq!(kernel.release, "6.17.4-300.fc43.x86_64");
    }

    #[test]
    fn a_kernel_that_is_a_link_beside_its_modules_becomes_the_file() {
        let (tree, _) = adopted(&[
            symlink("usr/lib/modules/6.1/vmlinuz", "/boot/vmlinuz-6.1"),
            file("boot/vmlinuz-6.1", "MZ"),
        ])
        .unwrap();
        assert_eq!(
            text(&tree, "usr/lib/modules/6.1/vmlinuz").as_deref(),
            Some("MZ")
        );
    }

    #[test]
    fn none_and_several_are_told_apart() {
        let refused = |entries: &[Entry]| adopted(entries).unwrap_err();
        assert!(matches!(
            refused(&[directory("usr/lib")]),
            KernelError::None
        ));
        assert!(matches!(
            refused(&[directory("usr/lib/modules/6.1")]),
            KernelError::None
        ));
        assert!(matches!(
            refused(&[file("lib/modules/6.1/vmlinuz", "")]),
            KernelError::SplitUsr
        ));
        assert!(matches!(
            refused(&[file("usr/lib/modules/6.1/modules.dep", "")]),
            KernelError::ModulesOnly { .. }
        ));
        let several = refused(&[
            file("usr/lib/modules/6.1/vmlinuz", ""),
            file("usr/lib/modules/6.2/modules.dep", ""),
        ]);
        assert!(several.to_string().ends_with("6.1, 6.2"), "{several}");
        assert!(several.hint().is_some());
        assert!(matches!(
            refused(&[file("usr/lib/modules/a b/vmlinuz", "")]),
            KernelError::Release { .. }
        ));
    }
}
