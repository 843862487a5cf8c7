//! UEFI firmware for guests: OVMF, as distributions install it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::options::plain;

/// Code and template of the variables, in the order in which they are looked for.
const PLACES: [(&str, &str); 5] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE_4M.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
];

/// Firmware that is installed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Its code.
    pub code: PathBuf,
    /// Its variables as a new machine has them; each machine needs a copy of its own.
    pub template: PathBuf,
}

/// No firmware was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no UEFI firmware for QEMU is installed (package ovmf)")]
pub struct NoFirmware;

impl Firmware {
    /// Finds the firmware that is installed here.
    pub fn find() -> Result<Self, NoFirmware> {
        PLACES
            .into_iter()
            .map(|(code, template)| (PathBuf::from(code), PathBuf::from(template)))
            .find(|(code, template)| code.exists() && template.exists())
            .map(|(code, template)| Self { code, template })
            .ok_or(NoFirmware)
    }

    /// Returns QEMU's options for it, with a machine's own variables.
    pub fn options(&self, variables: &Path) -> Vec<OsString> {
        let flash = |unit: u8, more: &str, file: &Path| {
            let mut option =
                OsString::from(format!("if=pflash,format=raw,unit={unit}{more},file="));
            option.push(plain(file));
            option
        };
        vec![
            "-drive".into(),
            flash(0, ",readonly=on", &self.code),
            "-drive".into(),
            flash(1, "", variables),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_read_only_and_the_variables_are_the_machines() {
        let firmware = Firmware {
            code: "/usr/share/code.fd".into(),
            template: "/usr/share/vars.fd".into(),
        };
        assert_eq!(
            firmware.options(Path::new("/a,b/vars")),
            [
                "-drive",
                "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/code.fd",
                "-drive",
                "if=pflash,format=raw,unit=1,file=/a,,b/vars",
            ]
        );
    }
}
