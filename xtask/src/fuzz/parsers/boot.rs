//! What lies on a boot partition, or comes from the kernel's command line.

use anyhow::Result;
use bedplate_boot::cmdline::{BootArguments, Cmdline};
use bedplate_boot::entry::{BootEntry, EntryName};
use bedplate_boot::firmware::{HardDrive, LoadOption};
use bedplate_boot::kargs;
use bedplate_boot::loader_conf::LoaderConf;

#[expect(clippy::unnecessary_wraps, reason = "one signature for all parsers")]
pub(super) fn entries() -> Result<Vec<Vec<u8>>> {
    let ours = "title Debian GNU/Linux 12 (bookworm)\nversion 2\nsort-key bedplate\n\
                linux /EFI/bedplate/vmlinuz-00\ninitrd /EFI/bedplate/initramfs-00.img\n\
                options root=UUID=6a1c0a3e-0000-4000-8000-000000000001 panic=10\n";
    let theirs = "# Boot Loader Specification type#1 entry\r\ntitle\tx\nmachine-id 1\nlinux /a\n\
                  initrd /b\ninitrd /c\noptions a\noptions \"b c\"\narchitecture x64\n";
    Ok(vec![ours.into(), theirs.into()])
}

pub(super) fn entry(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(entry) = BootEntry::parse(text) else {
        return;
    };
    let printed = entry.to_string();
    // Control characters become spaces: a title must not bring lines of its own.
    if !text.contains(|character: char| character.is_control() && character != '\n') {
        assert!(
            BootEntry::parse(&printed).is_ok_and(|again| again == entry),
            "an entry that was accepted is refused or changed when it is printed: {printed:?}"
        );
    }
}

pub(super) fn files() -> Result<Vec<Vec<u8>>> {
    let conf = LoaderConf {
        timeout: 3,
        default: "00000001".parse()?,
    };
    Ok(vec![
        conf.to_sector().to_vec(),
        b"bedplate-00000001-00000002+3-1.conf".to_vec(),
        b"bedplate-00000001.conf".to_vec(),
        b"kargs = [\"quiet\", \"a=\\\"b c\\\"\"]\nmatch-architectures = [\"x86_64\"]\n".to_vec(),
        format!(
            "root=PARTUUID=6a1c0a3e-0000-4000-8000-000000000001 bedplate.deployment=00000001 \
             bedplate.root=?v1-sha256-12:{} panic=10 init=\"/sbin/my init\"",
            "ab".repeat(32)
        )
        .into_bytes(),
    ])
}

/// Small texts that no parser takes for another's: each tries all of them.
pub(super) fn file(input: &[u8]) {
    if let Some(conf) = LoaderConf::parse(input) {
        assert_eq!(LoaderConf::parse(&conf.to_sector()), Some(conf));
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(name) = text.parse::<EntryName>() {
        assert_eq!(
            name.to_string(),
            text,
            "an entry's name changed when it was printed"
        );
    }
    if let Ok(file) = kargs::parse(text) {
        assert!(
            file.kargs
                .iter()
                .all(|argument| kargs::is_argument(argument))
        );
    }
    let _ = BootArguments::of(&Cmdline::parse(text));
}

pub(super) fn load_options() -> Result<Vec<Vec<u8>>> {
    let partition = HardDrive {
        number: 1,
        start: 2048,
        length: 1 << 20,
        guid: [7; 16],
    };
    let ours = LoadOption::new(
        "Bedplate (2)".into(),
        partition,
        r"\EFI\systemd\a.efi".into(),
    );
    let mut theirs = ours.encode()?;
    theirs.extend_from_slice(b"optional data");
    Ok(vec![ours.encode()?, theirs])
}

pub(super) fn load_option(input: &[u8]) {
    let Ok(option) = LoadOption::decode(input) else {
        return;
    };
    let Ok(printed) = option.encode() else {
        return;
    };
    assert_eq!(LoadOption::decode(&printed).ok(), Some(option));
}
