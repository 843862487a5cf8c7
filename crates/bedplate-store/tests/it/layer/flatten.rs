//! Layers on top of one another.

use super::*;

#[test]
fn whiteouts_act_on_lower_layers_alone_and_wherever_they_stand() {
    let lower = vec![
        dir("d/"),
        file("d/old", "1"),
        file("d/sub", "1"),
        file("gone", "1"),
    ];
    for upper in [
        vec![
            file("d/.wh..wh..opq", ""),
            file("d/new", "2"),
            file(".wh.gone", ""),
        ],
        vec![
            file("d/new", "2"),
            file(".wh.gone", ""),
            file("d/.wh..wh..opq", ""),
        ],
        vec![
            file("d/new", "2"),
            file("d/.wh.old", ""),
            file("d/.wh.sub", ""),
            file(".wh.gone", ""),
            file(".wh.never", ""),
        ],
    ] {
        assert_eq!(
            listing(&flat(&[lower.clone(), upper]).unwrap()),
            "/d/ /d/new=2"
        );
    }
    let again = vec![
        file("gone", "2"),
        file(".wh.gone", ""),
        file("d/.wh.old", ""),
        file("none/.wh.x", ""),
    ];
    assert_eq!(
        listing(&flat(&[lower, again]).unwrap()),
        "/d/ /d/sub=1 /gone=2"
    );
}

#[test]
fn a_whiteout_of_no_name_is_refused() {
    for bad in [".wh.", "d/.wh...", "d/.wh.."] {
        assert!(matches!(
            flat(&[vec![file(bad, "")]]),
            Err(FlattenError::Whiteout { .. })
        ));
    }
}

#[test]
fn types_change_between_layers_as_when_they_are_mounted() {
    let lower = vec![
        dir("a/"),
        file("a/x", "1"),
        file("b", "1"),
        symlink("lib", "usr/lib"),
    ];
    let upper = vec![
        file("a", "2"),
        dir("b/"),
        file("b/y", "2"),
        file("lib/z", "2"),
    ];
    assert_eq!(
        listing(&flat(&[lower, upper]).unwrap()),
        "/a=2 /b/ /b/y=2 /lib/ /lib/z=2"
    );
}

#[test]
fn a_directory_over_a_directory_keeps_entries_and_takes_metadata() {
    let mut upper = dir("a/");
    upper[100..107].copy_from_slice(b"0001777");
    sum(&mut upper);
    let tree = flat(&[vec![dir("a/"), file("a/x", "1")], vec![upper]]).unwrap();
    assert_eq!(listing(&tree), "/a/ /a/x=1");
    let a = tree.lookup(&path("a")).unwrap();
    assert_eq!(tree.node(a).metadata.mode, 0o1777);
}

#[test]
fn members_through_a_symbolic_link_of_their_own_layer_are_refused() {
    let layers = [vec![symlink("a", "/etc"), file("a/passwd", "evil")]];
    assert!(matches!(
        flat(&layers),
        Err(FlattenError::ThroughFile {
            kind: "symbolic link",
            ..
        })
    ));
}

#[test]
fn hard_links_reach_into_lower_layers_and_survive_their_target() {
    let tree = flat(&[
        vec![file("a", "1"), link("b", "a")],
        vec![link("c", "./b"), file("a", "2"), link("c", "c")],
    ])
    .unwrap();
    assert_eq!(listing(&tree), "/a=2 /b=1 /c=1");
    assert_eq!(tree.lookup(&path("b")), tree.lookup(&path("c")));

    assert!(matches!(
        flat(&[vec![link("b", "a"), file("a", "1")]]),
        Err(FlattenError::MissingTarget { .. })
    ));
    assert!(matches!(
        flat(&[vec![dir("a"), link("b", "a")]]),
        Err(FlattenError::DirectoryTarget { .. })
    ));
}

#[test]
fn bootc_1_cuts_what_its_digest_does_not_hold() {
    let attributes: &[(&str, &[u8])] = &[
        ("mtime", b"9.75"),
        ("SCHILY.xattr.user.x", b"1"),
        ("SCHILY.xattr.security.capability", b"\0=\n"),
    ];
    let layers = [vec![
        pax(&[("mtime", b"5.5")]),
        dir("usr/"),
        dir("run/"),
        file("run/lock", ""),
        pax(attributes),
        file("usr/tool", "x"),
    ]];
    let tree = flat_by(&layers, RuleSet::Bootc1).unwrap();
    assert_eq!(listing(&tree), "/run/ /usr/ /usr/tool=x");
    let metadata = |text: &str| {
        tree.node(tree.lookup(&path(text)).unwrap())
            .metadata
            .clone()
    };
    assert_eq!(metadata("/"), metadata("usr"));
    assert_eq!(metadata("run").mtime, Timestamp::from_seconds(5));
    assert_eq!(metadata("usr/tool").mtime, Timestamp::from_seconds(9));
    assert_eq!(
        metadata("usr/tool").xattrs,
        [(b"security.capability"[..].into(), b"\0=\n"[..].into())].into()
    );

    let exact = flat(&layers).unwrap();
    let tool = exact.node(exact.lookup(&path("usr/tool")).unwrap());
    assert_eq!(tool.metadata.mtime.nanoseconds, 750_000_000);
    assert_eq!(tool.metadata.xattrs.len(), 2);
}

#[test]
fn an_image_with_a_policy_is_refused_by_name_under_bootc_1() {
    for etc in ["etc", "usr/etc"] {
        let contexts = format!("{etc}/selinux/targeted/contexts/files/file_contexts");
        let config = format!("{etc}/selinux/config");
        let layers = [vec![
            file(&contexts, "x"),
            file(&config, "SELINUXTYPE=targeted"),
        ]];
        let refused = flat_by(&layers, RuleSet::Bootc1).unwrap_err().to_string();
        assert!(refused.contains("`targeted`"), "{refused}");
        assert!(flat(&layers).is_ok());
    }
}
