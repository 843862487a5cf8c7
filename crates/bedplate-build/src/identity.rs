//! Takes out what belongs to one machine: an image serves many.
//!
//! ```text
//! /etc/machine-id              emptied: systemd makes one at the first boot
//! /var/lib/dbus/machine-id     a link to it
//! /etc/hostname                removed, or the name that all machines of the image have
//! /etc/resolv.conf             emptied, or systemd-resolved's where the image runs it
//! /etc/ssh/ssh_host_*_key*     removed; a unit makes new ones
//! random seeds                 removed
//! ```

use bedplate_model::{Content, Tree, TreePath};

use crate::edit::{EditError, Editor, resolve};

/// Files that must never be the same on two machines.
const SECRETS: [&str; 2] = ["var/lib/systemd/random-seed", "var/lib/urandom/random-seed"];

const HOST_KEYS_UNIT: &str = "bedplate-ssh-host-keys.service";

/// Makes host keys where none are, before the first connection can be made.
const HOST_KEYS_TEXT: &str = "\
[Unit]
Description=Make this machine's SSH host keys
Documentation=man:ssh-keygen(1)
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service sshd.service ssh.socket sshd.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
RemainAfterExit=yes
";

/// Takes a machine's identity out of a tree; see the module's drawing.
///
/// `hostname` is the name that every machine of this image starts with, where they have one.
pub fn remove_identity(editor: &mut Editor<'_>, hostname: Option<&str>) -> Result<(), EditError> {
    editor.file("etc/machine-id", 0o444, b"")?;
    if is_file(editor.tree(), "var/lib/dbus/machine-id") {
        editor.symlink("var/lib/dbus/machine-id", "/etc/machine-id")?;
    }
    match hostname {
        Some(name) => {
            editor.file("etc/hostname", 0o644, format!("{name}\n").as_bytes())?;
        }
        None => {
            editor.remove("etc/hostname");
        }
    }
    resolver(editor)?;
    for path in SECRETS {
        editor.remove(path);
    }
    ssh_host_keys(editor)
}

/// The file of the machine that built the image says where that one asked for names.
fn resolver(editor: &mut Editor<'_>) -> Result<(), EditError> {
    if !is_file(editor.tree(), "etc/resolv.conf") {
        return Ok(());
    }
    let enabled = "etc/systemd/system/multi-user.target.wants/systemd-resolved.service";
    let alias = "etc/systemd/system/dbus-org.freedesktop.resolve1.service";
    if editor.find(enabled).is_some() || editor.find(alias).is_some() {
        editor.symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")?;
    } else {
        editor.file("etc/resolv.conf", 0o644, b"")?;
    }
    Ok(())
}

fn ssh_host_keys(editor: &mut Editor<'_>) -> Result<(), EditError> {
    let keys: Vec<String> = editor
        .find("etc/ssh")
        .and_then(|id| editor.tree().entries(id))
        .into_iter()
        .flat_map(|entries| entries.keys())
        .filter(|name| name.as_bytes().starts_with(b"ssh_host_"))
        .filter(|name| !name.as_bytes().ends_with(b".conf"))
        .map(|name| format!("etc/ssh/{name}"))
        .collect();
    for key in &keys {
        editor.remove(key);
    }
    let units = "usr/lib/systemd/system";
    let distribution_does =
        resolve(editor.tree(), &format!("{units}/sshd-keygen@.service")).is_some();
    if distribution_does || resolve(editor.tree(), "usr/bin/ssh-keygen").is_none() {
        return Ok(());
    }
    editor.file(
        &format!("{units}/{HOST_KEYS_UNIT}"),
        0o644,
        HOST_KEYS_TEXT.as_bytes(),
    )?;
    for server in ["ssh.service", "sshd.service", "ssh.socket", "sshd.socket"] {
        if resolve(editor.tree(), &format!("{units}/{server}")).is_some() {
            editor.symlink(
                &format!("{units}/{server}.wants/{HOST_KEYS_UNIT}"),
                &format!("../{HOST_KEYS_UNIT}"),
            )?;
        }
    }
    Ok(())
}

fn is_file(tree: &Tree, path: &str) -> bool {
    TreePath::try_from(path)
        .ok()
        .and_then(|path| tree.lookup(&path))
        .is_some_and(|id| matches!(tree.node(id).content, Content::File(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Entry, file, inline, paths, symlink, target, text, tree};
    use bedplate_model::Timestamp;

    fn anonymous(entries: &[Entry], hostname: Option<&str>) -> Tree {
        let mut tree = tree(entries);
        let mut editor = Editor::new(&mut tree, Timestamp::default(), &inline);
        remove_identity(&mut editor, hostname).unwrap();
        tree
    }

    #[test]
    fn no_machine_of_an_image_has_the_builders_identity() {
        let tree = anonymous(
            &[
                file("etc/machine-id", "0123"),
                file("etc/hostname", "builder"),
                file("etc/resolv.conf", "nameserver 10.0.0.1"),
                file("etc/ssh/ssh_host_ed25519_key", "secret"),
                file("etc/ssh/ssh_host_ed25519_key.pub", "public"),
                file("etc/ssh/ssh_config", "kept"),
                file("var/lib/dbus/machine-id", "0123"),
                file("var/lib/systemd/random-seed", "seed"),
            ],
            None,
        );
        assert_eq!(text(&tree, "etc/machine-id").as_deref(), Some(""));
        assert_eq!(text(&tree, "etc/resolv.conf").as_deref(), Some(""));
        assert_eq!(
            target(&tree, "var/lib/dbus/machine-id").as_deref(),
            Some("/etc/machine-id")
        );
        let paths = paths(&tree);
        assert!(paths.contains(&"/etc/ssh/ssh_config".to_owned()));
        for gone in ["hostname", "ssh_host", "random-seed"] {
            assert!(!paths.iter().any(|path| path.contains(gone)), "{gone}");
        }
    }

    #[test]
    fn host_keys_are_made_before_the_server_that_the_image_has() {
        let tree = anonymous(
            &[
                file("usr/bin/ssh-keygen", ""),
                file("usr/lib/systemd/system/ssh.service", ""),
            ],
            None,
        );
        assert_eq!(
            target(
                &tree,
                "usr/lib/systemd/system/ssh.service.wants/bedplate-ssh-host-keys.service"
            )
            .as_deref(),
            Some("../bedplate-ssh-host-keys.service")
        );
        let fedora = anonymous(
            &[
                file("usr/bin/ssh-keygen", ""),
                file("usr/lib/systemd/system/sshd.service", ""),
                file("usr/lib/systemd/system/sshd-keygen@.service", ""),
            ],
            None,
        );
        assert!(!paths(&fedora).iter().any(|path| path.contains("bedplate")));
    }

    #[test]
    fn a_resolver_that_runs_keeps_its_link_or_gets_it() {
        let kept = anonymous(&[symlink("etc/resolv.conf", "../run/x")], None);
        assert_eq!(
            target(&kept, "etc/resolv.conf").as_deref(),
            Some("../run/x")
        );
        let made = anonymous(
            &[
                file("etc/resolv.conf", "x"),
                symlink(
                    "etc/systemd/system/multi-user.target.wants/systemd-resolved.service",
                    "/usr/lib/systemd/system/systemd-resolved.service",
                ),
            ],
            Some("node"),
        );
        assert_eq!(
            target(&made, "etc/resolv.conf").as_deref(),
            Some("../run/systemd/resolve/stub-resolv.conf")
        );
        assert_eq!(text(&made, "etc/hostname").as_deref(), Some("node\n"));
    }
}
