//! A merged /etc as a layer over the image's: what differs, and marks for what is gone.
//!
//! ```text
//! merged   hosts (changed)   motd (as it came)   –                    local/own
//! image    hosts             motd                issue                –
//! layer    hosts             –                   issue: device 0:0    local/own
//! ```
//!
//! Invariant (a law, tested): overlayfs shows the layer over the image's /etc as the merged one.

use std::collections::{BTreeMap, BTreeSet};

use bedplate_model::tree::TreeError;
use bedplate_model::{Content, Name, Node, NodeId, Rdev, Tree};

use super::merge::{Merged, Place, Source, same_metadata};

/// What overlayfs hides a name of a lower layer by.
const WHITEOUT: Content = Content::CharacterDevice(Rdev { major: 0, minor: 0 });

/// Takes away what a merged /etc has of the image's.
pub fn layer(merged: &Merged, image: Place<'_>) -> Result<Merged, TreeError> {
    let mut layering = Layering {
        merged,
        tree: Tree::new(merged.tree.node(Tree::ROOT).metadata.clone()),
        sources: BTreeMap::new(),
    };
    layering.entries(Tree::ROOT, Tree::ROOT, Some(image))?;
    Ok(Merged {
        tree: layering.tree,
        sources: layering.sources,
        conflicts: merged.conflicts.clone(),
    })
}

struct Layering<'m> {
    merged: &'m Merged,
    tree: Tree,
    sources: BTreeMap<NodeId, Source>,
}

impl Layering<'_> {
    fn entries(
        &mut self,
        into: NodeId,
        directory: NodeId,
        image: Option<Place<'_>>,
    ) -> Result<(), TreeError> {
        let merged = self.merged.tree.entries(directory);
        let names: BTreeSet<&Name> = [merged, image.and_then(Place::entries)]
            .into_iter()
            .flatten()
            .flat_map(BTreeMap::keys)
            .collect();
        for name in names {
            let here = self.merged.tree.child(directory, name.as_bytes());
            let below = image.and_then(|image| image.child(name));
            match (here, below) {
                (Some(here), below) => self.entry(into, name, here, below)?,
                (None, Some(below)) => {
                    let node = Node {
                        metadata: below.node().metadata.clone(),
                        content: WHITEOUT,
                    };
                    self.tree.insert(into, name.clone(), node)?;
                }
                (None, None) => {}
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        into: NodeId,
        name: &Name,
        id: NodeId,
        below: Option<Place<'_>>,
    ) -> Result<(), TreeError> {
        let node = self.merged.tree.node(id);
        let unchanged =
            below.is_some_and(|below| same_metadata(&below.node().metadata, &node.metadata));
        if !matches!(node.content, Content::Directory(_)) {
            let made = matches!(self.merged.sources.get(&id), Some(Source::Bytes(_)));
            if !made && unchanged && below.is_some_and(|below| below.node().content == node.content)
            {
                return Ok(());
            }
            let copy = self.tree.insert(into, name.clone(), node.clone())?;
            if let Some(source) = self.merged.sources.get(&id) {
                self.sources.insert(copy, source.clone());
            }
            return Ok(());
        }
        let directory = Node {
            metadata: node.metadata.clone(),
            content: Content::empty_directory(),
        };
        let copy = self.tree.insert(into, name.clone(), directory)?;
        // What is no directory in the image has no entries to hide.
        let below = below.filter(|below| below.entries().is_some());
        self.entries(copy, id, below)?;
        let empty = self.tree.entries(copy).is_some_and(BTreeMap::is_empty);
        if empty && unchanged && below.is_some() {
            self.tree.remove(into, name.as_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bedplate_model::{FileContent, Metadata, Timestamp};
    use proptest::prelude::*;

    use super::*;

    /// What overlayfs shows of a layer over a directory.
    fn shown(layer: &Tree, id: NodeId, image: Option<Place<'_>>) -> BTreeMap<Name, Shown> {
        let upper = layer.entries(id).cloned().unwrap_or_default();
        let mut all: BTreeMap<Name, Shown> = BTreeMap::new();
        for name in image
            .and_then(Place::entries)
            .into_iter()
            .flatten()
            .map(|(name, _)| name)
        {
            let below = image.and_then(|image| image.child(name)).unwrap();
            all.insert(name.clone(), whole(below));
        }
        for (name, id) in upper {
            let node = layer.node(id);
            if node.content == WHITEOUT {
                all.remove(&name);
                continue;
            }
            let below = image.and_then(|image| image.child(&name));
            let entries = layer
                .entries(id)
                .map(|_| shown(layer, id, below.filter(|below| below.entries().is_some())));
            all.insert(name, Shown::new(node, entries));
        }
        all
    }

    fn whole(place: Place<'_>) -> Shown {
        let entries = place.entries().map(|entries| {
            entries
                .keys()
                .map(|name| (name.clone(), whole(place.child(name).unwrap())))
                .collect()
        });
        Shown::new(place.node(), entries)
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Shown {
        mode: u16,
        content: Option<Content>,
        entries: Option<BTreeMap<Name, Self>>,
    }

    impl Shown {
        fn new(node: &Node, entries: Option<BTreeMap<Name, Self>>) -> Self {
            Self {
                mode: node.metadata.mode,
                content: entries.is_none().then(|| node.content.clone()),
                entries,
            }
        }
    }

    fn place(tree: &Tree) -> Place<'_> {
        Place::new(tree, Tree::ROOT)
    }

    /// Two levels of a few names, so that they meet.
    fn tree() -> impl Strategy<Value = Tree> {
        let file = (0..3_u8, 0..2_u16);
        let entry = prop_oneof![
            file.clone().prop_map(Ok),
            prop::collection::btree_map("[a-c]", file, 0..3).prop_map(Err),
        ];
        prop::collection::btree_map("[a-d]", entry, 0..5).prop_map(|entries| {
            let mut tree = Tree::new(Metadata::default());
            let node = |(byte, mode): (u8, u16)| Node {
                metadata: Metadata {
                    mode: 0o600 + mode,
                    mtime: Timestamp {
                        seconds: byte.into(),
                        nanoseconds: 0,
                    },
                    ..Metadata::default()
                },
                content: Content::File(FileContent::Inline(Box::from([byte]))),
            };
            for (name, entry) in entries {
                let name = Name::new(name.as_bytes()).unwrap();
                match entry {
                    Ok(file) => {
                        tree.insert(Tree::ROOT, name, node(file)).unwrap();
                    }
                    Err(files) => {
                        let directory = Node {
                            metadata: Metadata::default(),
                            content: Content::empty_directory(),
                        };
                        let id = tree.insert(Tree::ROOT, name, directory).unwrap();
                        for (name, file) in files {
                            let name = Name::new(name.as_bytes()).unwrap();
                            tree.insert(id, name, node(file)).unwrap();
                        }
                    }
                }
            }
            tree
        })
    }

    proptest! {
        #[test]
        fn a_layer_over_the_image_shows_what_was_merged(merged in tree(), image in tree()) {
            let wanted = Merged { tree: merged, sources: BTreeMap::new(), conflicts: Vec::new() };
            let layer = layer(&wanted, place(&image)).unwrap();
            prop_assert_eq!(
                shown(&layer.tree, Tree::ROOT, Some(place(&image))),
                whole(place(&wanted.tree)).entries.unwrap()
            );
        }

        #[test]
        fn what_nobody_changed_needs_no_layer(image in tree()) {
            let merged = Merged { tree: image.clone(), sources: BTreeMap::new(), conflicts: Vec::new() };
            let layer = layer(&merged, place(&image)).unwrap();
            prop_assert!(layer.tree.entries(Tree::ROOT).unwrap().is_empty());
        }
    }
}
