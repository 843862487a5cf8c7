//! What can be tested without being the first program of a machine.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};

use bedplate_boot::cmdline::{BootArguments, Cmdline};
use bedplate_sys::mount::MountFeatures;

use crate::root::{Checked, Mounted};
use crate::{copy, devices, state, switch};

#[test]
fn an_ext4_is_known_by_its_superblock() {
    let mut block = [0; 1024];
    assert_eq!(devices::parse_superblock(&block), None);
    block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
    block[0x68..0x78].copy_from_slice(&core::array::from_fn::<u8, 16, _>(|at| at as u8));
    block[0x78..0x7d].copy_from_slice(b"label");
    let found = format!("{:?}", devices::parse_superblock(&block).unwrap());
    assert!(
        found.contains("00010203-0405-0607-0809-0a0b0c0d0e0f"),
        "{found}"
    );
    assert!(found.contains("\"label\""), "{found}");
}

/// A disk with a partition table of one entry.
fn disk(sector: usize, first: u64, count: u32, size: u32) -> File {
    let mut bytes = vec![0; sector * 4];
    let header = &mut bytes[sector..];
    header[..8].copy_from_slice(b"EFI PART");
    header[72..80].copy_from_slice(&first.to_le_bytes());
    header[80..84].copy_from_slice(&count.to_le_bytes());
    header[84..88].copy_from_slice(&size.to_le_bytes());
    let entry = core::array::from_fn::<u8, 32, _>(|at| at as u8);
    bytes[sector * 2..][..32].copy_from_slice(&entry);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

#[test]
fn a_partition_is_known_by_its_table_at_any_sector_size() {
    for sector in [512, 4096] {
        let disk = disk(sector, 2, 128, 128);
        let found = devices::read_partition(&disk, sector as u64, 1).unwrap();
        let found = format!("{found:?}");
        assert!(
            found.contains("03020100-0504-0706-0809-0a0b0c0d0e0f"),
            "{found}"
        );
        assert!(
            found.contains("13121110-1514-1716-1819-1a1b1c1d1e1f"),
            "{found}"
        );
    }
}

#[test]
fn a_partition_table_of_a_stranger_ends_in_an_error() {
    for (first, count, size, index) in [
        (u64::MAX, 128, 128, 1),
        (2, 0, 128, 1),
        (2, 128, 128, 0),
        (2, u32::MAX, u32::MAX, 4_000_000_000),
        (1 << 60, 128, 128, 1),
    ] {
        let disk = disk(512, first, count, size);
        let found = devices::read_partition(&disk, 512, index);
        assert!(!matches!(found, Ok(Some(_))), "{first} {count} {size}");
    }
    assert!(devices::read_partition(&tempfile::tempfile().unwrap(), 512, 1).is_err());
}

#[test]
fn a_copy_has_every_attribute_and_a_crash_leaves_no_half_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let pristine = directory.path().join("pristine");
    fs::create_dir_all(pristine.join("sub/empty")).unwrap();
    fs::write(pristine.join("sub/file"), "content").unwrap();
    fs::set_permissions(pristine.join("sub/file"), PermissionsExt::from_mode(0o4751)).unwrap();
    fs::hard_link(pristine.join("sub/file"), pristine.join("again")).unwrap();
    std::os::unix::fs::symlink("nowhere", pristine.join("link")).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 123_456_789);
    File::open(pristine.join("sub"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    let parent = directory.path().join("state");
    fs::create_dir_all(parent.join("etc.new/half")).unwrap();
    state::make(&pristine, &parent, "etc").unwrap();
    let made = parent.join("etc");
    assert!(!parent.join("etc.new").exists() && !made.join("half").exists());
    for path in ["", "sub", "sub/empty", "sub/file", "again", "link"] {
        let [one, other] = [&pristine, &made].map(|tree| {
            let found = fs::symlink_metadata(tree.join(path)).unwrap();
            (
                found.mode(),
                found.uid(),
                found.mtime(),
                found.mtime_nsec(),
                found.nlink(),
            )
        });
        assert_eq!(one, other, "{path}");
    }
    let inode = |name| fs::metadata(made.join(name)).unwrap().ino();
    assert_eq!(inode("again"), inode("sub/file"));
    assert_eq!(fs::read_to_string(made.join("again")).unwrap(), "content");
    assert!(copy::tree(&pristine, &made).is_err(), "the name is taken");
}

#[test]
fn the_running_system_is_told_what_was_booted() {
    let digest = "1".repeat(64);
    let line = format!("bedplate.deployment=01020304 bedplate.root=?v1-sha256-12:{digest}");
    let told = BootArguments::of(&Cmdline::parse(&line)).unwrap();
    let mounted = Mounted {
        features: MountFeatures {
            erofs_file: true,
            data_only: true,
            overlay_verity: false,
        },
        checked: Checked::Not,
    };
    assert_eq!(
        switch::booted_text(&told, mounted),
        format!(
            "{{\"deployment\":\"01020304\",\"root\":\"v1-sha256-12:{digest}\",\"verity\":\"off\",\
             \"kernel-features\":{{\"erofs_file\":true,\"data_only\":true,\"overlay_verity\":false}}}}\n"
        )
    );
}
