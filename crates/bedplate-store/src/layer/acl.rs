//! POSIX access lists: as text in tars, as binary attributes in trees.
//!
//! ```text
//! SCHILY.acl.access=user::rw-,user:lisa:r--:502,group::r--,mask::r--,other::---
//!         ↕
//! system.posix_acl_access = version 2 · (tag, permissions, id)*        little-endian, sorted
//! ```
//!
//! GNU tar separates by line feeds and has names or numbers; star and libarchive separate by commas and
//! add the number behind. Names alone mean nothing outside the machine that wrote them.
//!
//! Invariant: what [`to_text`] prints, [`from_text`] parses to the same bytes.

/// Where access lists stand in PAX headers, and the attribute that each becomes.
pub(super) const KINDS: [(&[u8], &[u8]); 2] = [
    (b"SCHILY.acl.access", ACCESS),
    (b"SCHILY.acl.default", DEFAULT),
];
/// The list that decides about access.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that new entries of a directory begin with.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;
/// Tag, permissions, id.
const ENTRY: usize = 8;

/// Why a text is no access list of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// It is not one that Linux would take.
    Malformed,
    /// It names a user or group without its number.
    NameAlone,
}

/// Parses a text to the attribute's value. An access list that says no more than the mode is empty.
pub(super) fn from_text(text: &[u8]) -> Result<Vec<u8>, Problem> {
    let text = std::str::from_utf8(text).map_err(|_| Problem::Malformed)?;
    let mut entries = Vec::new();
    for line in text.split(['\n', ',']) {
        // `#effective:r--` is a remark.
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            entries.push(entry(line)?);
        }
    }
    entries.sort_unstable();
    if !is_valid(&entries) {
        return Err(Problem::Malformed);
    }
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Ok(value)
}

/// Returns whether an access list says nothing that the mode does not: Linux keeps no such attribute.
pub(super) fn is_minimal(value: &[u8]) -> bool {
    value.len() <= 4 + 3 * ENTRY
}

/// Prints an attribute's value, or returns `None` where it is none that [`from_text`] makes.
pub(super) fn to_text(value: &[u8]) -> Option<String> {
    let mut lines = Vec::new();
    for (tag, id, permissions) in entries(value)? {
        let kind = match tag {
            USER_OBJ | USER => "user",
            GROUP_OBJ | GROUP => "group",
            MASK => "mask",
            OTHER => "other",
            _ => return None,
        };
        let letters: String = [(4, 'r'), (2, 'w'), (1, 'x')]
            .map(|(bit, letter)| if permissions & bit == 0 { '-' } else { letter })
            .iter()
            .collect();
        let who = if id == NO_ID {
            String::new()
        } else {
            id.to_string()
        };
        lines.push(format!("{kind}:{who}:{letters}"));
    }
    let text = lines.join(",");
    // Whatever is odd about the value, the text must not mean another one.
    (from_text(text.as_bytes()).as_deref() == Ok(value)).then_some(text)
}

/// Returns the permissions that a mode has beside an access list, or `None` where it is none that Linux
/// would take.
///
/// Those of the group are the mask, where there is one (POSIX 1003.1e, 23.1.2).
pub(super) fn mode(value: &[u8]) -> Option<u16> {
    let entries = entries(value)?;
    let known = |&(tag, id, permissions): &Entry| match tag {
        USER | GROUP => id != NO_ID && permissions <= 7,
        USER_OBJ | GROUP_OBJ | MASK | OTHER => id == NO_ID && permissions <= 7,
        _ => false,
    };
    if !entries.iter().all(known) || !entries.is_sorted_by_key(|entry| entry.0) {
        return None;
    }
    let of = |tag| Some(entries.iter().find(|entry| entry.0 == tag)?.2);
    is_valid(&entries).then_some(())?;
    Some(of(USER_OBJ)? << 6 | of(MASK).or(of(GROUP_OBJ))? << 3 | of(OTHER)?)
}

/// Tag, id, permissions: sorted as Linux wants them.
type Entry = (u16, u32, u16);

/// Takes an attribute's value apart.
fn entries(value: &[u8]) -> Option<Vec<Entry>> {
    let (version, rest) = value.split_first_chunk::<4>()?;
    let (entries, []) = rest.as_chunks::<ENTRY>() else {
        return None;
    };
    let entry = |&[t0, t1, p0, p1, i0, i1, i2, i3]: &[u8; ENTRY]| {
        (
            u16::from_le_bytes([t0, t1]),
            u32::from_le_bytes([i0, i1, i2, i3]),
            u16::from_le_bytes([p0, p1]),
        )
    };
    (u32::from_le_bytes(*version) == VERSION).then(|| entries.iter().map(entry).collect())
}

fn entry(line: &str) -> Result<Entry, Problem> {
    let fields: Vec<&str> = line.split(':').map(str::trim).collect();
    let (kind, who, letters, number) = match fields[..] {
        // `mask:rwx` and `other:rwx` are short forms.
        [kind, letters] => (kind, "", letters, None),
        [kind, who, letters] => (kind, who, letters, None),
        [kind, who, letters, number] => (kind, who, letters, Some(number)),
        _ => return Err(Problem::Malformed),
    };
    let named = !who.is_empty();
    let tag = match (kind, named) {
        ("user" | "u", false) => USER_OBJ,
        ("user" | "u", true) => USER,
        ("group" | "g", false) => GROUP_OBJ,
        ("group" | "g", true) => GROUP,
        ("mask" | "m", false) => MASK,
        ("other" | "o", false) => OTHER,
        _ => return Err(Problem::Malformed),
    };
    let id = if named {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.unwrap_or(who);
        if !digits(number) {
            return Err(Problem::NameAlone);
        }
        match number.parse() {
            Ok(id) if id != NO_ID => id,
            _ => return Err(Problem::Malformed),
        }
    } else {
        NO_ID
    };
    let mut permissions = 0;
    for letter in letters.chars() {
        permissions |= match letter {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return Err(Problem::Malformed),
        };
    }
    Ok((tag, id, permissions))
}

/// Says what Linux demands: each of the three, a mask where somebody is named, nobody twice.
fn is_valid(entries: &[Entry]) -> bool {
    let count = |tag| entries.iter().filter(|entry| entry.0 == tag).count();
    let twice = entries
        .windows(2)
        .any(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1));
    let named = count(USER) + count(GROUP) > 0;
    !twice
        && [USER_OBJ, GROUP_OBJ, OTHER]
            .iter()
            .all(|tag| count(*tag) == 1)
        && count(MASK) <= 1
        && (!named || count(MASK) == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_of_three_writers_give_what_linux_keeps() {
        let wanted = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff],
            &[2, 0, 4, 0, 0xf6, 1, 0, 0],
            &[4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
            &[0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
            &[0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        ]
        .concat();
        for text in [
            "user::rw-\nuser:502:r--\ngroup::r--\nmask::r--\nother::---\n",
            "user::rw-,user:lisa:r--:502,group::r--,mask::r--,other::---",
            "u::rw-,g::r--,m:r--,o:---,u:502:r--\t#effective:r--",
        ] {
            assert_eq!(from_text(text.as_bytes()).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn what_linux_would_not_take_is_malformed() {
        let base = "user::rw-,group::r--,other::---";
        for bad in [
            "",
            "user::rw-",
            "user::rw-,user:1:r--,group::r--,other::---",
            "user::rwz,group::r--,other::---",
            &format!("{base},other::---"),
            &format!("{base},mask::r--,user:1:r--,user:1:rw-"),
            &format!("{base},mask::r--,user:4294967295:r--"),
            &format!("{base},mask::r--,user:99999999999:r--"),
            &format!("{base},mask:5:r--"),
            &format!("{base},x"),
            &format!("{base},a:b:c:d:e"),
        ] {
            assert_eq!(from_text(bad.as_bytes()), Err(Problem::Malformed), "{bad}");
        }
        let named = format!("{base},mask::r--,user:lisa:r--");
        assert_eq!(from_text(named.as_bytes()), Err(Problem::NameAlone));
        assert_eq!(from_text(b"\xff"), Err(Problem::Malformed));
    }

    proptest! {
            #[test]
            fn any_bytes_are_printed_only_as_what_they_are(value in proptest::collection::vec(any::<u8>(), 0..60)) {
                if let Some(text) = to_text(&value) {
                    prop_assert_eq!(from_text(text.as_bytes()), Ok(value));
                }
            }

            #[test]
            fn lists_print_as_they_parse(
                users in proptest::collection::btree_map(0..u32::MAX, 0_u16..8, 0..4),
                groups in proptest::collection::btree_map(0..u32::MAX, 0_u16..8, 0..4),
                others: [u8; 4],
            ) {
                let mut value = VERSION.to_le_bytes().to_vec();
                let mut push = |tag: u16, permissions: u16, id: u32| {
                    value.extend_from_slice(&tag.to_le_bytes());
                    value.extend_from_slice(&permissions.to_le_bytes());
                    value.extend_from_slice(&id.to_le_bytes());
                };
                let [user, group, mask, other] = others.map(|byte| u16::from(byte & 7));
                push(USER_OBJ, user, NO_ID);
                for (id, permissions) in &users {
     push(USER, *permissions, *id);
    }
                push(GROUP_OBJ, group, NO_ID);
                for (id, permissions) in &groups {
     push(GROUP, *permissions, *id);
    }
                push(MASK, mask, NO_ID);
                push(OTHER, other, NO_ID);
                let text = to_text(&value).unwrap();
                prop_assert_eq!(from_text(text.as_bytes()), Ok(value));
            }
        }
}
