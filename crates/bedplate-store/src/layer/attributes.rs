//! The extended attributes of a member: gathered from the records of several writers, and checked.
//!
//! ```text
//! SCHILY.xattr.<name>      star, GNU tar, libarchive, every tool for containers     as it is
//! LIBARCHIVE.xattr.<name>  libarchive   name with %XX, value in base 64           ┐ in tars that are no
//! RHT.security.selinux     GNU tar      security.selinux, without its NUL         ┘ layers
//! SCHILY.acl.<kind>        all three    the lists of `acl`
//! ```
//!
//! Invariants: where an attribute is said several times, the first of this list counts; what an archive
//! brings, a file system of Linux can hold, and its mode says what its access list says.

use bedplate_model::name::shown;

use super::acl;
use super::entry::{Entry, EntryKind};
use super::error::LayerError;
use super::parse::{Origin, Records, value};

/// The prefix of keys that carry extended attributes.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";
/// The prefix of libarchive's own.
const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";
/// GNU tar's own key for labels of SELinux, and the attribute that it means.
const SELINUX: (&[u8], &[u8]) = (b"RHT.security.selinux", b"security.selinux");
/// Capabilities of a program.
const CAPABILITY: &[u8] = b"security.capability";
/// The longest name of an extended attribute, as Linux has it.
const MAX_NAME: usize = 255;

/// Adds to an entry what its records say of extended attributes and access lists.
pub(super) fn add(
    entry: &mut Entry,
    globals: &Records,
    local: &Records,
    offset: u64,
    origin: Origin,
) -> Result<(), LayerError> {
    let xattrs = &mut entry.metadata.xattrs;
    // Tools for containers do not know these, and the digest of an image is that of what they see.
    if origin == Origin::Archive {
        for (key, value) in globals.iter().chain(local) {
            if let Some(name) = key.strip_prefix(LIBARCHIVE) {
                let name = unescaped(name).ok_or(LayerError::Pax { offset })?;
                let value = base64(value).ok_or(LayerError::Pax { offset })?;
                xattrs.insert(name.into(), value.into());
            }
        }
        if let Some(label) = value(globals, local, SELINUX.0) {
            // The kernel's value ends with a NUL, the record's does not.
            let label = label.strip_suffix(b"\0").unwrap_or(label);
            xattrs.insert(SELINUX.1.into(), [label, b"\0"].concat().into());
        }
    }
    for (key, value) in globals.iter().chain(local) {
        if let Some(name) = key.strip_prefix(XATTR)
            && !name.is_empty()
        {
            // Libarchive escapes this name, too; beside its own record that shows.
            let own = [LIBARCHIVE, name].concat();
            let twice = origin == Origin::Archive
                && (local.contains_key(&*own) || globals.contains_key(&*own));
            let name = match unescaped(name) {
                Some(plain) if twice => plain.into(),
                _ => name.into(),
            };
            xattrs.insert(name, value.clone());
        }
    }
    if origin != Origin::Stored {
        for name in xattrs.keys() {
            if let Err(what) = check_name(name) {
                let (path, name) = (entry.path.clone(), shown(name));
                return Err(LayerError::XattrName { path, name, what });
            }
        }
    }
    for (key, name) in acl::KINDS {
        // The attribute itself, where it is there, is the exact one.
        let Some(text) = value(globals, local, key).filter(|_| !xattrs.contains_key(name)) else {
            continue;
        };
        match acl::from_text(text) {
            // What an archive says so, its mode is to say too.
            Ok(list)
                if name == acl::ACCESS && acl::is_minimal(&list) && origin != Origin::Archive => {}
            Ok(list) => {
                xattrs.insert(name.into(), list.into());
            }
            Err(_) if origin == Origin::Stored => {}
            Err(acl::Problem::Malformed) => return Err(LayerError::Pax { offset }),
            Err(acl::Problem::NameAlone) => {
                let path = entry.path.clone();
                return Err(LayerError::NamesAlone { path });
            }
        }
    }
    if origin == Origin::Archive {
        for (name, value) in &entry.metadata.xattrs {
            if let Err(what) = check_value(&entry.kind, name, value) {
                let (path, name) = (entry.path.clone(), shown(name));
                return Err(LayerError::XattrValue { path, name, what });
            }
        }
        take_mode(entry);
    }
    Ok(())
}

/// Gives an entry the mode that Linux derives from its access list.
fn take_mode(entry: &mut Entry) {
    let metadata = &mut entry.metadata;
    let Some(list) = metadata.xattrs.get(acl::ACCESS) else {
        return;
    };
    if let Some(mode) = acl::mode(list) {
        metadata.mode = metadata.mode & 0o7000 | mode;
        if acl::is_minimal(list) {
            metadata.xattrs.remove(acl::ACCESS);
        }
    }
}

/// Checks that Linux could give a file an attribute of this name.
///
/// Which namespaces there are is left to the system that a file comes to: tars from elsewhere have others.
fn check_name(name: &[u8]) -> Result<(), &'static str> {
    let dot = name.iter().position(|byte| *byte == b'.');
    match dot {
        _ if name.contains(&0) => Err("has a NUL in it"),
        _ if name.len() > MAX_NAME => Err("is longer than 255 bytes"),
        None | Some(0) => Err("has no namespace, such as `user.`"),
        Some(dot) if dot + 1 == name.len() => Err("is nothing but a namespace"),
        Some(_) => Ok(()),
    }
}

/// Checks that Linux takes this value for what it reads itself.
fn check_value(kind: &EntryKind, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    match name {
        // A further name of a file brings none.
        _ if matches!(kind, EntryKind::HardLink(_)) => Ok(()),
        acl::ACCESS if matches!(kind, EntryKind::Symlink(_)) && !acl::is_minimal(value) => {
            Err("which no symbolic link can have")
        }
        acl::DEFAULT if *kind != EntryKind::Directory => Err("which only directories can have"),
        acl::ACCESS | acl::DEFAULT if acl::mode(value).is_none() => {
            Err("whose value is no access list that Linux takes")
        }
        acl::ACCESS | acl::DEFAULT => Ok(()),
        CAPABILITY if !is_capability(value) => {
            Err("whose value is no set of capabilities that Linux takes")
        }
        _ if name.starts_with(b"system.") => {
            Err("which no file system takes: of `system.` there are only the access lists")
        }
        _ => Ok(()),
    }
}

/// Says whether these are capabilities of version 2, or of version 3 with the root that they hold for: no
/// other can be set.
fn is_capability(value: &[u8]) -> bool {
    const EFFECTIVE: u32 = 1;
    let number = |place: usize| {
        let bytes = value.get(place..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    };
    match (number(0).map(|magic| magic & !EFFECTIVE), value.len()) {
        (Some(0x0200_0000), 20) => true,
        (Some(0x0300_0000), 24) => number(20) != Some(u32::MAX),
        _ => false,
    }
}

/// Undoes `%XX`.
fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>()?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(digits[0])? << 4 | digit(digits[1])?) as u8);
        rest = after;
    }
    Some(bytes)
}

/// Undoes base 64; libarchive leaves out the `=` at the end, others do not.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|byte| *byte != b'=');
    let text = end.map_or(&[][..], |end| &text[..=end]);
    if text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for position in 0..4 {
            let value = match group.get(position) {
                None => 0,
                Some(byte @ b'A'..=b'Z') => byte - b'A',
                Some(byte @ b'a'..=b'z') => byte - b'a' + 26,
                Some(byte @ b'0'..=b'9') => byte - b'0' + 52,
                Some(b'+') => 62,
                Some(b'/') => 63,
                Some(_) => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64_is_read_with_and_without_its_padding() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg", b"f"),
            ("Zg==", b"f"),
            ("Zm8", b"fo"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("AP+/", b"\0\xff\xbf"),
        ] {
            assert_eq!(base64(text.as_bytes()).unwrap(), bytes, "{text}");
        }
        for bad in ["Z", "Zm9vY", "Zm 8", "Zg=g", "Zm-v"] {
            assert_eq!(base64(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn names_are_read_with_what_libarchive_escapes() {
        assert_eq!(
            unescaped(b"user.a%3Db%25%c3%BC").unwrap(),
            "user.a=b%ü".as_bytes()
        );
        for bad in ["user.%", "user.%4", "user.%zz", "user.%+1"] {
            assert_eq!(unescaped(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn capabilities_are_those_that_linux_lets_be_set() {
        let value = |magic: u32, length: usize, root: u32| {
            let mut value = [&magic.to_le_bytes()[..], &[0; 16], &root.to_le_bytes()].concat();
            value.truncate(length);
            value
        };
        assert!(is_capability(&value(0x0200_0001, 20, 0)));
        assert!(is_capability(&value(0x0200_0000, 20, 0)));
        assert!(is_capability(&value(0x0300_0001, 24, 1000)));
        for bad in [
            value(0x0100_0001, 12, 0),
            value(0x0200_0001, 24, 0),
            value(0x0300_0001, 20, 0),
            value(0x0300_0001, 24, u32::MAX),
            value(0x0200_0002, 20, 0),
            b"junk".to_vec(),
            Vec::new(),
        ] {
            assert!(!is_capability(&bad), "{bad:?}");
        }
    }
}
