//! How deployments come by their /etc.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use bedplate_deploy::Finalized;
use bedplate_model::layout;
use bedplate_model::record::{DeploymentId, EtcMode};

use super::life::{stage, upgrade};
use super::simulated::{FIRST, Simulated};

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn layer(machine: &Simulated, id: DeploymentId) -> std::path::PathBuf {
    machine.etc(id).with_file_name(layout::ETC_LAYER)
}

#[test]
fn a_layer_has_what_was_changed_here_and_marks_for_what_was_removed() {
    let mut machine = Simulated::proven();
    let etc = machine.etc(FIRST);
    fs::write(etc.join("hostname"), "mine\n").unwrap();
    fs::remove_dir_all(etc.join("app")).unwrap();
    machine.config.set("[etc]\nmode = \"overlay\"\n");
    let second = upgrade(&mut machine, 2);
    let layer = layer(&machine, second);
    assert!(!machine.etc(second).exists());
    // `app/settings` changed in the image, so removing it here is a conflict that the machine wins.
    assert_eq!(names(&layer), ["app", "hostname"]);
    assert_eq!(
        fs::read_to_string(layer.join("hostname")).unwrap(),
        "mine\n"
    );
    let gone = fs::symlink_metadata(layer.join("app")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let deployment = machine.record().deployment(second).unwrap().clone();
    assert_eq!(deployment.etc, EtcMode::Overlay);
    let status = machine.with(|m| m.status()).unwrap();
    assert_eq!(status.deployments[0].etc_conflicts.len(), 1);

    // What runs now is read as it shows itself, and the layer goes on.
    machine.with(|m| m.prove(&machine.store, &[])).unwrap();
    let here = machine.system().join("etc");
    fs::create_dir_all(&here).unwrap();
    for (name, text) in [
        ("hostname", "mine\n"),
        ("release", "version 2\n"),
        ("motd", "new\n"),
    ] {
        fs::write(here.join(name), text).unwrap();
    }
    let passwd = "root:x:0:0::/root:/bin/sh\nsystem2:x:200:1::/:/x\n";
    fs::write(here.join("passwd"), passwd).unwrap();
    let third = upgrade(&mut machine, 3);
    assert_eq!(
        names(&self::layer(&machine, third)),
        ["app", "hostname", "motd"]
    );
}

#[test]
fn an_etc_that_keeps_nothing_is_made_by_early_boot_alone() {
    for mode in ["transient", "read-only"] {
        let mut machine = Simulated::proven();
        fs::write(machine.etc(FIRST).join("hostname"), "mine\n").unwrap();
        machine.config.set(match mode {
            "transient" => "[etc]\nmode = \"transient\"\n",
            _ => "[etc]\nmode = \"read-only\"\n",
        });
        let second = upgrade(&mut machine, 2);
        assert!(!machine.etc(second).exists() && !layer(&machine, second).exists());
        let entry = machine.read(&format!(
            "bedplate-{FIRST}-{second}+2-1.conf"
        ));
        assert!(entry.contains(&format!("bedplate.etc={mode}")), "{entry}");
        machine.with(|m| m.prove(&machine.store, &[])).unwrap();

        // Back to one that keeps changes: there are none to merge, so it begins with the image's.
        machine.config.set("");
        let third = stage(&machine, 3);
        let done = machine.with(|m| m.finalize(&machine.store)).unwrap();
        assert!(matches!(done, Finalized::Trial { deployment, .. } if deployment == third));
        assert!(!machine.etc(third).exists());
    }
}
