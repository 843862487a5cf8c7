//! Who needs what is damaged or missing: the images, the names that keep them, and where in them.
//!
//! Invariant: nothing is read where nothing is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, PoisonError};

use bedplate_model::oci::Config;
use bedplate_model::{Content, FileContent, Sha256, TreePath};

use crate::item::Item;
use crate::layer::{EntryKind, Layer};
use crate::refs::{Pin, Ref};
use crate::store::Store;
use crate::usage::holders;
use crate::work;

/// One image or layer that needs something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// Who keeps it: names (`NAME`, or `NAME~1` for earlier images), then pins. Empty for garbage.
    pub names: Vec<String>,
    /// The image; a layer where no image has the object; the document itself, which names alone need.
    pub by: Item,
    /// Where the object is in it, by the first of its paths.
    pub path: Option<TreePath>,
    /// In how many places.
    pub paths: u64,
}

/// What needs each item; what nothing needs is not in it.
pub type Needs = BTreeMap<Item, Vec<Need>>;

impl Store {
    /// Finds out which images and layers, of those that can be read, need these items, and under which names.
    ///
    /// Reads every image where an object is asked for, on all cores.
    pub fn needs(&self, wanted: &BTreeSet<Item>) -> io::Result<Needs> {
        let mut needs = Needs::new();
        if wanted.is_empty() {
            return Ok(needs);
        }
        let refs = self.each_ref().unwrap_or_default().into_iter().flatten();
        let refs: Vec<Ref> = refs.map(Ref::from).collect();
        // One that cannot be read is a finding of its own.
        let pins: Vec<Pin> = self
            .each_pin()
            .unwrap_or_default()
            .into_iter()
            .flatten()
            .collect();
        let mut names = holders(&refs, &pins);
        self.name_layers(&refs, &mut names);
        for item in wanted {
            if let Some(names) = names.get(item) {
                let need = Need {
                    names: names.clone(),
                    by: *item,
                    path: None,
                    paths: 0,
                };
                needs.insert(*item, vec![need]);
            }
        }
        if wanted.iter().any(|item| matches!(item, Item::Object(_))) {
            let items = self.items()?.into_iter();
            let (images, layers): (Vec<Item>, Vec<Item>) = items
                .filter(|item| matches!(item, Item::Image(_) | Item::Layer(_)))
                .partition(|item| matches!(item, Item::Image(_)));
            self.look_for(wanted, images, &names, &mut needs);
            let left = wanted.iter().filter(|item| !needs.contains_key(item));
            let left: BTreeSet<Item> = left.copied().collect();
            self.look_for(&left, layers, &names, &mut needs);
        }
        for needs in needs.values_mut() {
            needs.sort();
        }
        Ok(needs)
    }

    /// Adds the names whose configs list a layer.
    fn name_layers(&self, refs: &[Ref], names: &mut BTreeMap<Item, Vec<String>>) {
        let configs = refs.iter().flat_map(Ref::images);
        let configs: BTreeSet<Sha256> = configs.filter_map(|target| target.config).collect();
        for config in configs {
            let Some(holders) = names.get(&Item::Blob(config)).cloned() else {
                continue;
            };
            let Ok(bytes) = self.blob(&config) else {
                continue;
            };
            let Ok(config) = serde_json::from_slice::<Config>(&bytes) else {
                continue;
            };
            for diff_id in config.rootfs.diff_ids {
                let layer = names.entry(Item::Layer(diff_id)).or_default();
                layer.extend(holders.iter().cloned());
                layer.sort();
                layer.dedup();
            }
        }
    }

    /// Looks for objects in images or layers.
    fn look_for(
        &self,
        wanted: &BTreeSet<Item>,
        among: Vec<Item>,
        names: &BTreeMap<Item, Vec<String>>,
        needs: &mut Needs,
    ) {
        if wanted.is_empty() {
            return;
        }
        let needs = Mutex::new(needs);
        work::each(among, &|by: Item| {
            let found = self.places_of(wanted, by);
            let mut needs = needs.lock().unwrap_or_else(PoisonError::into_inner);
            for (item, (path, paths)) in found {
                needs.entry(item).or_default().push(Need {
                    names: names.get(&by).cloned().unwrap_or_default(),
                    by,
                    path: Some(path),
                    paths,
                });
            }
        });
    }

    /// Returns where an image or layer has objects that are wanted; one that cannot be read has none.
    fn places_of(&self, wanted: &BTreeSet<Item>, by: Item) -> BTreeMap<Item, (TreePath, u64)> {
        let mut found: BTreeMap<Item, (TreePath, u64)> = BTreeMap::new();
        let mut meet = |content: &FileContent, path: &TreePath| {
            if let FileContent::Object { id, .. } = content
                && wanted.contains(&Item::Object(*id))
            {
                let place = found.entry(Item::Object(*id));
                place.or_insert_with(|| (path.clone(), 0)).1 += 1;
            }
        };
        match by {
            Item::Image(id) => {
                if let Ok(tree) = self.image_tree(&id) {
                    for (path, node) in tree.walk() {
                        if let Content::File(content) = &tree.node(node).content {
                            meet(content, &path);
                        }
                    }
                }
            }
            Item::Layer(diff_id) => {
                if let Ok(Some(table)) = self.layer(&diff_id)
                    && let Ok(layer) = Layer::decode(&table, &diff_id)
                {
                    for entry in layer.entries() {
                        if let EntryKind::File(content) = &entry.kind {
                            meet(content, &entry.path);
                        }
                    }
                }
            }
            Item::Object(_) | Item::Blob(_) => {}
        }
        found
    }
}
