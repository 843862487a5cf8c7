//! Puts Bedplate itself into a tree: the program, the early-boot program, the initramfs and the units.
//!
//! ```text
//! /usr/bin/bedplate                              the program
//! /usr/lib/bedplate/bedplate-init                PID 1 of the initramfs, to make others from
//! /usr/lib/modules/<release>/initramfs.img       made from both and the tree's kernel modules
//! /usr/lib/systemd/system/bedplate-*.service     enabled by links, so that no preset decides
//! /usr/lib/systemd/system/bedplate-upgrade.timer  likewise; machine.toml says whether it does anything
//! /usr/lib/systemd/system/boot-complete.target.d/50-bedplate.conf    a gate that hangs fails
//! /usr/lib/systemd/system.conf.d/50-bedplate.conf                     a machine that hangs restarts
//! /usr/lib/tmpfiles.d/bedplate-overlay.conf                           what was written to /usr for a while goes
//! /usr/lib/systemd/system/systemd-bless-boot.service → /dev/null
//! ```

use bedplate_model::layout;

use crate::edit::{EditError, Editor};

const UNITS: &str = "usr/lib/systemd/system";

/// The units that come with the program: name and text.
const OUR_UNITS: [(&str, &str); 8] = [
    (
        "bedplate-finalize.service",
        include_str!("../../../dist/units/bedplate-finalize.service"),
    ),
    (
        "bedplate-firmware.service",
        include_str!("../../../dist/units/bedplate-firmware.service"),
    ),
    (
        "bedplate-grow.service",
        include_str!("../../../dist/units/bedplate-grow.service"),
    ),
    (
        "bedplate-heal.service",
        include_str!("../../../dist/units/bedplate-heal.service"),
    ),
    (
        "bedplate-health.service",
        include_str!("../../../dist/units/bedplate-health.service"),
    ),
    (
        "bedplate-prove.service",
        include_str!("../../../dist/units/bedplate-prove.service"),
    ),
    (
        "bedplate-upgrade.service",
        include_str!("../../../dist/units/bedplate-upgrade.service"),
    ),
    (
        "bedplate-upgrade.timer",
        include_str!("../../../dist/units/bedplate-upgrade.timer"),
    ),
];

/// Settings of the service manager that come with the program: path and text.
const OUR_SETTINGS: [(&str, &str); 3] = [
    (
        "usr/lib/systemd/system/boot-complete.target.d/50-bedplate.conf",
        include_str!("../../../dist/units/boot-complete.target.conf"),
    ),
    (
        "usr/lib/systemd/system.conf.d/50-bedplate.conf",
        include_str!("../../../dist/units/manager.conf"),
    ),
    (
        "usr/lib/tmpfiles.d/bedplate-overlay.conf",
        include_str!("../../../dist/units/tmpfiles.conf"),
    ),
];

/// Proving a deployment is ours: this service would rename boot entries behind the record's back.
const MASKED: &str = "systemd-bless-boot.service";

/// Adds the program, the early-boot program and the units.
pub fn add(editor: &mut Editor<'_>, program: &[u8], init: &[u8]) -> Result<(), EditError> {
    editor.file(layout::PROGRAM, 0o755, program)?;
    editor.file(layout::INIT, 0o755, init)?;
    for (name, text) in OUR_UNITS {
        editor.file(&format!("{UNITS}/{name}"), 0o644, text.as_bytes())?;
        for (target, kind) in installs(text) {
            editor.symlink(
                &format!("{UNITS}/{target}.{kind}/{name}"),
                &format!("../{name}"),
            )?;
        }
    }
    for (path, text) in OUR_SETTINGS {
        editor.file(path, 0o644, text.as_bytes())?;
    }
    editor.symlink(&format!("{UNITS}/{MASKED}"), "/dev/null")?;
    Ok(())
}

/// Adds the initramfs of a kernel.
pub fn add_initramfs(
    editor: &mut Editor<'_>,
    release: &str,
    initramfs: &[u8],
) -> Result<(), EditError> {
    let path = format!("{}/{release}/{}", layout::MODULES, layout::INITRAMFS);
    editor.file(&path, 0o600, initramfs)?;
    Ok(())
}

/// Adds kernel arguments, as a file of the image.
pub fn add_kargs(editor: &mut Editor<'_>, kargs: &[String]) -> Result<(), EditError> {
    if kargs.is_empty() {
        return Ok(());
    }
    // No argument has control characters, so these two are all that TOML wants escaped.
    let list = kargs
        .iter()
        .map(|argument| {
            let escaped = argument.replace('\\', "\\\\").replace('"', "\\\"");
            format!("\"{escaped}\"")
        })
        .collect::<Vec<_>>()
        .join(", ");
    let path = format!("{}/50-build.toml", bedplate_boot::kargs::DIRECTORIES[1]);
    editor.file(&path, 0o644, format!("kargs = [{list}]\n").as_bytes())?;
    Ok(())
}

/// Lists where a unit's `[Install]` section wants it: the target, and `wants` or `requires`.
fn installs(unit: &str) -> impl Iterator<Item = (&str, &'static str)> {
    unit.lines()
        .skip_while(|line| line.trim() != "[Install]")
        .filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            let kind = match key.trim() {
                "WantedBy" => "wants",
                "RequiredBy" => "requires",
                _ => return None,
            };
            Some(value.split_whitespace().map(move |target| (target, kind)))
        })
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{directory, file, inline, target, text, tree};
    use bedplate_model::Timestamp;

    #[test]
    fn every_unit_is_there_and_something_wants_it() {
        let mut tree = tree(&[
            directory("usr"),
            file("usr/lib/systemd/system/systemd-bless-boot.service", "x"),
        ]);
        let mut editor = Editor::new(&mut tree, Timestamp::default(), &inline);
        add(&mut editor, b"program", b"init").unwrap();
        add_initramfs(&mut editor, "6.1", b"cpio").unwrap();
        assert_eq!(text(&tree, layout::PROGRAM).as_deref(), Some("program"));
        assert_eq!(
            text(&tree, "usr/lib/modules/6.1/initramfs.img").as_deref(),
            Some("cpio")
        );
        for (name, unit) in OUR_UNITS {
            assert_eq!(
                text(&tree, &format!("{UNITS}/{name}")).as_deref(),
                Some(unit)
            );
            let wanted: Vec<_> = installs(unit).collect();
            let timer = name.replace(".service", ".timer");
            let timed = OUR_UNITS
                .iter()
                .any(|(other, _)| *other == timer && timer != name);
            assert!(!wanted.is_empty() || timed, "nothing starts {name}");
            for (by, kind) in wanted {
                let link = format!("{UNITS}/{by}.{kind}/{name}");
                assert_eq!(target(&tree, &link), Some(format!("../{name}")));
            }
        }
        let masked = format!("{UNITS}/systemd-bless-boot.service");
        assert_eq!(target(&tree, &masked).as_deref(), Some("/dev/null"));
    }

    #[test]
    fn kernel_arguments_read_back_as_they_were_given() {
        let mut tree = tree(&[]);
        let mut editor = Editor::new(&mut tree, Timestamp::default(), &inline);
        let kargs = ["console=ttyS0", "dyndbg=\"file a\\b +p\""].map(str::to_owned);
        add_kargs(&mut editor, &kargs).unwrap();
        let text = text(&tree, "usr/lib/bedplate/kargs.d/50-build.toml").unwrap();
        assert_eq!(bedplate_boot::kargs::parse(&text).unwrap().kargs, kargs);
    }
}
