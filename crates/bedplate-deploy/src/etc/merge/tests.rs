use super::*;
use bedplate_model::Timestamp;
use proptest::prelude::*;

/// Makes an /etc from lines: `path=content`, `path/` for a directory, `path>target` for a link, each
/// with `#mode` behind it where the mode is not the usual one.
fn etc(lines: &[&str]) -> Tree {
    let mut tree = Tree::new(Metadata::root_owned(0o755));
    for line in lines {
        let (line, mode) = match line.split_once('#') {
            Some((line, mode)) => (line, u16::from_str_radix(mode, 8).ok()),
            None => (*line, None),
        };
        let (path, content, usual) = if let Some((path, text)) = line.split_once('=') {
            let content = FileContent::Inline(text.as_bytes().into());
            (path, Content::File(content), 0o644)
        } else if let Some((path, target)) = line.split_once('>') {
            (path, Content::Symlink(target.as_bytes().into()), 0o777)
        } else {
            (line, Content::empty_directory(), 0o755)
        };
        let path = TreePath::try_from(path).unwrap();
        let (parents, name) = path.split_last().unwrap();
        let mut at = Tree::ROOT;
        for parent in parents {
            at = tree.child(at, parent.as_bytes()).unwrap_or_else(|| {
                let node = Node::new(Metadata::root_owned(0o755), Content::empty_directory());
                tree.insert(at, parent.clone(), node).unwrap()
            });
        }
        let node = Node::new(Metadata::root_owned(mode.unwrap_or(usual)), content);
        tree.insert(at, name.clone(), node).unwrap();
    }
    tree
}

fn merge_trees(base: &Tree, here: &Tree, image: &Tree) -> Merged {
    let mut read = |_: Side, _: &TreePath, content: &FileContent| match content {
        FileContent::Inline(bytes) => Ok(bytes.to_vec()),
        FileContent::Object { .. } => Err(io::Error::other("no objects here")),
    };
    let place = |tree| Place::new(tree, Tree::ROOT);
    merge(place(base), place(here), place(image), &mut read).unwrap()
}

/// Puts the bytes into a merged tree, so that it can be compared and merged again.
fn filled(mut merged: Merged) -> Tree {
    for (id, source) in merged.sources {
        if let Source::Bytes(bytes) = source {
            let content = Content::File(FileContent::Inline(bytes));
            merged.tree.set_content(id, content).unwrap();
        }
    }
    merged.tree
}

/// Merges and returns the result with its conflicts, as texts.
fn merged(base: &[&str], here: &[&str], image: &[&str]) -> (Tree, Vec<String>) {
    let merged = merge_trees(&etc(base), &etc(here), &etc(image));
    let conflicts = merged.conflicts.iter().map(ToString::to_string).collect();
    (filled(merged), conflicts)
}

#[test]
fn each_side_gets_what_it_alone_changed() {
    let base = ["a=1", "b=1", "c=1", "d=1", "dir/x=1", "dir/y=1"];
    let here = [
        "a=2", "b=1", "d=1", "new=1", "dir/x=2", "dir/y=1", "dir/z=1",
    ];
    let image = [
        "a=1",
        "b=3",
        "c=1",
        "image=1",
        "dir/x=1",
        "dir/y=3",
        "other/q=1",
    ];
    let (tree, conflicts) = merged(&base, &here, &image);
    assert_eq!(
        tree,
        etc(&[
            "a=2",
            "b=3",
            "dir/x=2",
            "dir/y=3",
            "dir/z=1",
            "image=1",
            "new=1",
            "other/q=1"
        ])
    );
    assert!(conflicts.is_empty(), "{conflicts:?}");
}

#[test]
fn mode_and_content_of_one_file_are_two_changes() {
    let (tree, conflicts) = merged(&["a=1"], &["a=1#600"], &["a=2"]);
    assert_eq!(tree, etc(&["a=2#600"]));
    assert!(conflicts.is_empty(), "{conflicts:?}");
    let (tree, conflicts) = merged(&["a=1"], &["a=1#600"], &["a=1#640"]);
    assert_eq!(tree, etc(&["a=1#600"]));
    assert_eq!(conflicts.len(), 1);
}

#[test]
fn the_local_version_wins_and_the_conflict_is_named() {
    for (base, here, image, result, word) in [
        (
            vec!["a=1"],
            vec!["a=2"],
            vec!["a=3"],
            vec!["a=2"],
            "content",
        ),
        (vec!["a>1"], vec!["a>2"], vec!["a>3"], vec!["a>2"], "target"),
        (vec![], vec!["a=2"], vec!["a=3"], vec!["a=2"], "new here"),
        (vec!["a=1"], vec![], vec!["a=3"], vec![], "removed here"),
        (
            vec!["a=1"],
            vec!["a=2"],
            vec![],
            vec!["a=2"],
            "removed by the image",
        ),
        (
            vec!["a=1"],
            vec!["a>x"],
            vec!["a/b=1"],
            vec!["a>x"],
            "symbolic link here",
        ),
        (
            vec!["a/b=1"],
            vec!["a=1"],
            vec!["a/b=2"],
            vec!["a=1"],
            "file here",
        ),
        (
            vec!["a/b=1"],
            vec!["a/b=2"],
            vec!["a=3"],
            vec!["a/b=2"],
            "directory here",
        ),
        (vec!["a/b=1"], vec![], vec!["a/b=2"], vec![], "removed here"),
    ] {
        let (tree, conflicts) = merged(&base, &here, &image);
        assert_eq!(tree, etc(&result), "{base:?} {here:?} {image:?}");
        assert_eq!(conflicts.len(), 1, "{conflicts:?}");
        assert!(conflicts[0].contains(word), "{conflicts:?}");
    }
}

#[test]
fn a_type_that_one_side_alone_changed_is_no_conflict() {
    for (base, here, image, result) in [
        (vec!["a/b=1"], vec!["a/b=1"], vec!["a=1"], vec!["a=1"]),
        (vec!["a=1"], vec!["a=1"], vec!["a/b=1"], vec!["a/b=1"]),
        (vec!["a/b=1"], vec!["a>x"], vec!["a/b=1"], vec!["a>x"]),
    ] {
        let (tree, conflicts) = merged(&base, &here, &image);
        assert_eq!(tree, etc(&result));
        assert!(conflicts.is_empty(), "{conflicts:?}");
    }
}

#[test]
fn a_directory_that_the_image_removed_stays_for_what_is_local_in_it() {
    let base = ["d/old=1", "d/changed=1", "e/old=1"];
    let here = ["d/old=1", "d/changed=2", "d/mine=1", "e/old=1"];
    let (tree, conflicts) = merged(&base, &here, &[]);
    assert_eq!(tree, etc(&["d/changed=2", "d/mine=1"]));
    assert_eq!(conflicts.len(), 1, "{conflicts:?}");
}

#[test]
fn users_merge_by_lines_and_their_backups_stay_silent() {
    let (tree, conflicts) = merged(
        &["passwd=a:x:1:1::/:/x\n", "passwd-=1", "ld.so.cache=1"],
        &[
            "passwd=a:x:1:1::/:/x\nme:x:9:9::/:/x\n",
            "passwd-=2",
            "ld.so.cache=2",
        ],
        &[
            "passwd=a:x:1:1::/:/x\nb:x:2:2::/:/x\n",
            "passwd-=3",
            "ld.so.cache=3",
        ],
    );
    let wanted = [
        "passwd=a:x:1:1::/:/x\nme:x:9:9::/:/x\nb:x:2:2::/:/x\n",
        "passwd-=2",
        "ld.so.cache=3",
    ];
    assert_eq!(tree, etc(&wanted));
    assert!(conflicts.is_empty(), "{conflicts:?}");
}

#[test]
fn a_user_that_the_image_renumbers_is_told_of_where_nobody_touched_the_file() {
    let before = ["group=mail:x:8:\n", "passwd=a:x:105:8::/:/x\n"];
    let after = [
        "group=mail:x:12:\n",
        "passwd=a:x:106:12::/:/x\nnew:x:105:1::/:/x\n",
    ];
    let (tree, conflicts) = merged(&before, &before, &after);
    assert_eq!(tree, etc(&after), "the image's files are taken whole");
    assert_eq!(conflicts.len(), 2, "{conflicts:?}");
    assert!(
        conflicts[0].contains("`mail` from id 8 to 12"),
        "{conflicts:?}"
    );
    assert!(
        conflicts[1].contains("`a` from id 105 to 106"),
        "{conflicts:?}"
    );
}

#[test]
fn times_alone_are_no_change() {
    let base = etc(&["a=1"]);
    let mut here = etc(&["a=1"]);
    let a = here.child(Tree::ROOT, b"a").unwrap();
    here.metadata_mut(a).mtime = Timestamp::from_seconds(99);
    let result = merge_trees(&base, &here, &etc(&["a=2"]));
    assert_eq!(filled(result), etc(&["a=2"]));
}

/// A small /etc over few names, so that the three sides meet often.
fn any_etc() -> impl Strategy<Value = Tree> {
    let entry = (0..6_usize, 0..5_usize, 0..2_usize);
    proptest::collection::vec(entry, 0..6).prop_map(|entries| {
        let names = ["a", "b", "c", "group", "d/x", "d/y"];
        let mut chosen = BTreeMap::new();
        for (name, content, mode) in entries {
            chosen.insert(names[name], (content, mode));
        }
        let lines: Vec<String> = chosen
            .iter()
            .map(|(name, (content, mode))| {
                let kind = match content {
                    0 => "=g:x:1:a\n".to_owned(),
                    1 => "=g:x:1:b\nh:x:2:\n".to_owned(),
                    2 => "=2".to_owned(),
                    3 => ">there".to_owned(),
                    _ => String::new(),
                };
                let usual = if kind.starts_with('>') {
                    ""
                } else {
                    ["", "#600"][*mode]
                };
                format!("{name}{kind}{usual}")
            })
            .collect();
        etc(&lines.iter().map(String::as_str).collect::<Vec<_>>())
    })
}

proptest! {
    #[test]
    fn nothing_changed_here_gives_the_images(base in any_etc(), image in any_etc()) {
        let merged = merge_trees(&base, &base, &image);
        prop_assert!(merged.conflicts.is_empty());
        prop_assert_eq!(filled(merged), image);
    }

    #[test]
    fn nothing_changed_in_the_image_gives_what_is_here(base in any_etc(), here in any_etc()) {
        let merged = merge_trees(&base, &here, &base);
        prop_assert!(merged.conflicts.is_empty());
        prop_assert_eq!(filled(merged), here);
    }

    #[test]
    fn the_same_change_on_both_sides_is_that_change(base in any_etc(), changed in any_etc()) {
        let merged = merge_trees(&base, &changed, &changed);
        prop_assert!(merged.conflicts.is_empty());
        prop_assert_eq!(filled(merged), changed);
    }

    #[test]
    fn merging_the_result_again_changes_nothing(
        base in any_etc(), here in any_etc(), image in any_etc(),
    ) {
        let once = filled(merge_trees(&base, &here, &image));
        let again = merge_trees(&image, &once, &image);
        prop_assert_eq!(filled(again), once);
    }

    #[test]
    fn every_file_has_a_source(base in any_etc(), here in any_etc(), image in any_etc()) {
        let merged = merge_trees(&base, &here, &image);
        for (path, id) in merged.tree.walk() {
            let is_file = matches!(merged.tree.node(id).content, Content::File(_));
            prop_assert_eq!(is_file, merged.sources.contains_key(&id), "{}", path);
        }
    }
}
