//! Users and groups merge entry by entry, and field by field where both sides changed one entry.
//!
//! ```text
//! passwd   name:password:UID:GID:comment:home:shell
//! group    name:password:GID:member,member          shadow, gshadow   name:…
//! subuid, subgid   name:first:count                 several lines for one name are possible
//! ```
//!
//! Lines that are no entry (comments, NIS) are entries of their own, named by their text. Formats:
//! passwd(5), group(5), shadow(5), gshadow(5), subuid(5).
//!
//! Invariant: no id gets a second holder by a merge. What nobody changed here follows the image, ids
//! included. An entry of the image whose id belongs to one that was made or changed here gives way: it
//! keeps the id that it had, or, when it is new, is left out with its shadow (sysusers then finds a free
//! id). Either is a conflict.

use std::collections::{BTreeMap, BTreeSet};

use bedplate_model::name::shown;

use super::conflict::Kind;

/// A file of users or groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountFile {
    /// Users.
    Passwd,
    /// Groups.
    Group,
    /// Passwords of users.
    Shadow,
    /// Passwords of groups.
    Gshadow,
    /// Ranges of user ids that a user may map.
    Subuid,
    /// Ranges of group ids that a user may map.
    Subgid,
}

/// Returns which file of accounts a name directly below /etc is.
pub fn kind(name: &[u8]) -> Option<AccountFile> {
    Some(match name {
        b"passwd" => AccountFile::Passwd,
        b"group" => AccountFile::Group,
        b"shadow" => AccountFile::Shadow,
        b"gshadow" => AccountFile::Gshadow,
        b"subuid" => AccountFile::Subuid,
        b"subgid" => AccountFile::Subgid,
        _ => return None,
    })
}

impl AccountFile {
    /// Returns which field holds the id that nobody else may have.
    const fn id_field(self) -> Option<usize> {
        match self {
            Self::Passwd | Self::Group => Some(2),
            Self::Subuid | Self::Subgid => Some(1),
            Self::Shadow | Self::Gshadow => None,
        }
    }

    /// Returns the fields that are lists of names.
    const fn list_fields(self) -> &'static [usize] {
        match self {
            Self::Group => &[3],
            Self::Gshadow => &[2, 3],
            Self::Passwd | Self::Shadow | Self::Subuid | Self::Subgid => &[],
        }
    }

    const fn is_of_groups(self) -> bool {
        matches!(self, Self::Group | Self::Gshadow)
    }
}

/// Entries that were left out of `passwd` and `group`; their passwords are left out too.
#[derive(Clone, Debug, Default)]
pub struct LeftOut {
    users: BTreeSet<Vec<u8>>,
    groups: BTreeSet<Vec<u8>>,
}

/// A merged file of accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedAccounts {
    /// The new text.
    pub bytes: Vec<u8>,
    /// What gave way.
    pub conflicts: Vec<Kind>,
}

/// Merges three versions of a file of accounts.
///
/// `passwd` and `group` come before their shadows: what is left out of them is noted in `left_out`.
pub fn merge(
    file: AccountFile,
    base: &[u8],
    here: &[u8],
    image: &[u8],
    left_out: &mut LeftOut,
) -> MergedAccounts {
    let [base, here, image] = [base, here, image].map(|text| Entries::parse(file, text));
    let mut merged = MergedAccounts {
        bytes: Vec::new(),
        conflicts: Vec::new(),
    };
    let holders = Holders::settle(file, &base, &here, &image);
    let new_keys = image
        .order
        .iter()
        .filter(|key| !here.lines.contains_key(*key));
    for key in here.order.iter().chain(new_keys) {
        let (old, local, new) = (base.get(key), here.get(key), image.get(key));
        let (lines, clash) = if local == old {
            let clash = new.iter().find_map(|line| holders.clash(file, key, line));
            if clash.is_some() {
                (local.to_vec(), clash)
            } else {
                merged.conflicts.extend(moved(file, key, local, new));
                (new.to_vec(), None)
            }
        } else if new == old || new == local {
            (local.to_vec(), None)
        } else {
            let (lines, clean) = fields(file, old, local, new);
            if !clean {
                merged.conflicts.push(Kind::Account { name: shown(key) });
            }
            (lines, None)
        };
        let shadow_of_left_out = local.is_empty()
            && match file {
                AccountFile::Shadow => left_out.users.contains(key),
                AccountFile::Gshadow => left_out.groups.contains(key),
                AccountFile::Passwd
                | AccountFile::Group
                | AccountFile::Subuid
                | AccountFile::Subgid => false,
            };
        if shadow_of_left_out {
            continue;
        }
        if let Some((id, holder)) = clash {
            merged.conflicts.push(Kind::IdClash {
                name: shown(key),
                id,
                holder,
            });
            if lines.is_empty() {
                if file.is_of_groups() {
                    left_out.groups.insert(key.clone());
                } else {
                    left_out.users.insert(key.clone());
                }
            }
        }
        for line in lines {
            merged.bytes.extend_from_slice(&line);
            merged.bytes.push(b'\n');
        }
    }
    merged
}

/// A file's entries: the lines of each name, and the order in which the names first come.
struct Entries {
    order: Vec<Vec<u8>>,
    lines: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
}

impl Entries {
    fn parse(file: AccountFile, text: &[u8]) -> Self {
        let mut entries = Self {
            order: Vec::new(),
            lines: BTreeMap::new(),
        };
        for line in text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let key = match line.iter().position(|byte| *byte == b':') {
                // A NIS line (`+::::::`) and a comment are what they say.
                Some(colon) if colon > 0 && !matches!(line[0], b'+' | b'-' | b'#') => {
                    &line[..colon]
                }
                _ => line,
            };
            let lines = entries.lines.entry(key.to_vec()).or_default();
            if lines.is_empty() {
                entries.order.push(key.to_vec());
            }
            // The first entry of a name is the one that counts; only ranges add up.
            let ranges = matches!(file, AccountFile::Subuid | AccountFile::Subgid);
            if lines.is_empty() || ranges {
                lines.push(line.to_vec());
            }
        }
        entries
    }

    fn get(&self, key: &[u8]) -> &[Vec<u8>] {
        self.lines.get(key).map_or(&[], Vec::as_slice)
    }
}

/// Tells that the image gives an account another id than it had: files outside the image keep the old one.
fn moved(file: AccountFile, key: &[u8], local: &[Vec<u8>], new: &[Vec<u8>]) -> Option<Kind> {
    if !matches!(file, AccountFile::Passwd | AccountFile::Group) {
        return None;
    }
    let (from, _) = ids(file, local.first()?)?;
    let (to, _) = ids(file, new.first()?)?;
    (from != to).then(|| Kind::IdMoved {
        name: shown(key),
        from: from as u32,
        to: to as u32,
    })
}

/// Who holds which ids of those that stay as they are here.
struct Holders(Vec<(u64, u64, Vec<u8>)>);

impl Holders {
    /// Finds the entries that stay: those made or changed here, and those of the image that have to give
    /// way to one that stays, which may make others give way in turn.
    fn settle(file: AccountFile, base: &Entries, here: &Entries, image: &Entries) -> Self {
        let mut holders = Self(Vec::new());
        let mut follows: Vec<&Vec<u8>> = Vec::new();
        let new_keys = image
            .order
            .iter()
            .filter(|key| !here.lines.contains_key(*key));
        for key in here.order.iter().chain(new_keys) {
            if here.get(key) == base.get(key) {
                follows.push(key);
            } else {
                holders.add(file, key, here.get(key));
            }
        }
        loop {
            let before = follows.len();
            follows.retain(|key| {
                let new = image.get(key);
                let gives_way = new
                    .iter()
                    .any(|line| holders.clash(file, key, line).is_some());
                if gives_way {
                    holders.add(file, key, here.get(key));
                }
                !gives_way
            });
            if follows.len() == before {
                return holders;
            }
        }
    }

    fn add(&mut self, file: AccountFile, name: &[u8], lines: &[Vec<u8>]) {
        let held = lines.iter().filter_map(|line| ids(file, line));
        self.0
            .extend(held.map(|(first, end)| (first, end, name.to_vec())));
    }

    /// Returns the id and the holder that stand in the way of a line that the image brings.
    fn clash(&self, file: AccountFile, name: &[u8], line: &[u8]) -> Option<(u32, String)> {
        let (first, end) = ids(file, line)?;
        let (held, _, holder) = self
            .0
            .iter()
            .find(|(held, held_end, holder)| holder != name && *held < end && first < *held_end)?;
        Some((first.max(*held) as u32, shown(holder)))
    }
}

/// Returns the ids of a line: the first, and the one after the last.
fn ids(file: AccountFile, line: &[u8]) -> Option<(u64, u64)> {
    let fields: Vec<_> = line.split(|byte| *byte == b':').collect();
    let number = |field: usize| -> Option<u64> {
        let text = std::str::from_utf8(fields.get(field)?).ok()?;
        text.parse::<u32>().ok().map(u64::from)
    };
    let first = number(file.id_field()?)?;
    let count = match file {
        AccountFile::Subuid | AccountFile::Subgid => number(2)?,
        AccountFile::Passwd | AccountFile::Group | AccountFile::Shadow | AccountFile::Gshadow => 1,
    };
    Some((first, first + count))
}

/// Merges an entry that both sides changed; returns whether nothing gave way.
fn fields(
    file: AccountFile,
    old: &[Vec<u8>],
    local: &[Vec<u8>],
    new: &[Vec<u8>],
) -> (Vec<Vec<u8>>, bool) {
    let ([old, rest @ ..], [here], [image]) = (old, local, new) else {
        // Added by both, or removed by one and changed by the other, or several ranges.
        return (local.to_vec(), false);
    };
    let split = |line: &Vec<u8>| -> Vec<Vec<u8>> {
        line.split(|byte| *byte == b':')
            .map(<[u8]>::to_vec)
            .collect()
    };
    let (old, here, image) = (split(old), split(here), split(image));
    if !rest.is_empty() || old.len() != here.len() || here.len() != image.len() {
        return (local.to_vec(), false);
    }
    let mut clean = true;
    let mut merged = Vec::with_capacity(here.len());
    for (position, ((old, here), image)) in old.iter().zip(&here).zip(&image).enumerate() {
        merged.push(if here == old && Some(position) != file.id_field() {
            image.clone()
        } else if image == old || image == here {
            here.clone()
        } else if file.list_fields().contains(&position) {
            members(old, here, image)
        } else {
            clean = false;
            here.clone()
        });
    }
    (vec![merged.join(&b':')], clean)
}

/// Merges lists of names: what one side added is there, what one side removed is not.
fn members(old: &[u8], here: &[u8], image: &[u8]) -> Vec<u8> {
    let names = |list: &'_ [u8]| -> Vec<Vec<u8>> {
        list.split(|byte| *byte == b',')
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect()
    };
    let (old, here, image) = (names(old), names(here), names(image));
    let kept = here
        .iter()
        .filter(|name| image.contains(name) || !old.contains(name));
    let added = image
        .iter()
        .filter(|name| !here.contains(name) && !old.contains(name));
    let merged: Vec<_> = kept.chain(added).cloned().collect();
    merged.join(&b',')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn merged(file: AccountFile, base: &str, here: &str, image: &str) -> (String, Vec<Kind>) {
        let merged = merge(
            file,
            base.as_bytes(),
            here.as_bytes(),
            image.as_bytes(),
            &mut LeftOut::default(),
        );
        (String::from_utf8(merged.bytes).unwrap(), merged.conflicts)
    }

    #[test]
    fn a_local_user_and_a_new_system_user_are_both_there() {
        let base = "root:x:0:0::/root:/bin/sh\n";
        let (text, conflicts) = merged(
            AccountFile::Passwd,
            base,
            "root:x:0:0::/root:/bin/bash\nalice:x:1000:1000::/home/alice:/bin/bash\n",
            "root:x:0:0:root:/root:/bin/sh\n_chrony:x:105:110::/:/bin/false\n",
        );
        assert_eq!(
            text,
            "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000::/home/alice:/bin/bash\n_chrony:x:105:110::/:/bin/false\n"
        );
        assert_eq!(conflicts, []);
    }

    #[test]
    fn an_id_that_is_taken_here_keeps_its_holder() {
        let mut left_out = LeftOut::default();
        let passwd = merge(
            AccountFile::Passwd,
            b"",
            b"local:x:105:105::/:/bin/sh\n",
            b"_new:x:105:110::/:/bin/false\n",
            &mut left_out,
        );
        assert_eq!(passwd.bytes, b"local:x:105:105::/:/bin/sh\n");
        assert_eq!(
            passwd.conflicts,
            [Kind::IdClash {
                name: "_new".into(),
                id: 105,
                holder: "local".into()
            }]
        );
        let shadow = merge(
            AccountFile::Shadow,
            b"",
            b"local:!:1::::::\n",
            b"_new:!*:1::::::\n",
            &mut left_out,
        );
        assert_eq!(shadow.bytes, b"local:!:1::::::\n");
    }

    #[test]
    fn an_image_that_moves_a_system_user_onto_a_taken_id_does_not() {
        let (text, conflicts) = merged(
            AccountFile::Passwd,
            "a:x:105:1::/:/x\n",
            "a:x:105:1::/:/x\nlocal:x:106:1::/:/x\n",
            "a:x:106:1::/:/x\n",
        );
        assert_eq!(text, "a:x:105:1::/:/x\nlocal:x:106:1::/:/x\n");
        assert_eq!(conflicts.len(), 1);
    }

    #[test]
    fn what_nobody_changed_here_follows_the_image_also_when_ids_change_places() {
        let (text, conflicts) = merged(
            AccountFile::Group,
            "input:x:103:\nsgx:x:104:\n",
            "input:x:103:\nsgx:x:104:\nanna:x:1500:\n",
            "_chrony:x:103:\ninput:x:104:\nsgx:x:105:\n",
        );
        assert_eq!(
            text,
            "input:x:104:\nsgx:x:105:\nanna:x:1500:\n_chrony:x:103:\n"
        );
        let moved = |name: &str, from, to| Kind::IdMoved {
            name: name.into(),
            from,
            to,
        };
        assert_eq!(
            conflicts,
            [moved("input", 103, 104), moved("sgx", 104, 105)]
        );
    }

    #[test]
    fn an_entry_that_gives_way_makes_the_next_one_give_way() {
        // `a` cannot move onto the local 101, so it keeps 100, which `b` then cannot have.
        let (text, conflicts) = merged(
            AccountFile::Group,
            "a:x:100:\nb:x:102:\n",
            "a:x:100:\nb:x:102:\nlocal:x:101:\n",
            "a:x:101:\nb:x:100:\n",
        );
        assert_eq!(text, "a:x:100:\nb:x:102:\nlocal:x:101:\n");
        assert_eq!(conflicts.len(), 2);
    }

    #[test]
    fn members_of_a_group_add_up() {
        let (text, conflicts) = merged(
            AccountFile::Group,
            "docker:x:990:a,b\n",
            "docker:x:990:a,b,alice\n",
            "docker:x:990:b,c\n",
        );
        assert_eq!(text, "docker:x:990:b,alice,c\n");
        assert_eq!(conflicts, []);
    }

    #[test]
    fn ranges_of_one_user_stay_together_and_never_overlap_those_of_another() {
        let (text, conflicts) = merged(
            AccountFile::Subuid,
            "",
            "alice:100000:65536\nalice:300000:1000\n",
            "bob:165000:65536\ncarol:500000:10\n",
        );
        assert_eq!(
            text,
            "alice:100000:65536\nalice:300000:1000\ncarol:500000:10\n"
        );
        assert!(
            matches!(&conflicts[..], [Kind::IdClash { name, id: 165_000, .. }] if name == "bob")
        );
    }

    #[test]
    fn a_field_that_both_changed_stays_local_and_is_a_conflict() {
        let (text, conflicts) = merged(
            AccountFile::Shadow,
            "root:*:1::::::\n",
            "root:mine:2::::::\n",
            "root:theirs:1::::::\n",
        );
        assert_eq!(text, "root:mine:2::::::\n");
        assert_eq!(
            conflicts,
            [Kind::Account {
                name: "root".into()
            }]
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            base in proptest::collection::vec(any::<u8>(), 0..60),
            here in "[a-c:+#,0-9\n]{0,60}",
            image in "[a-c:+#,0-9\n]{0,60}",
        ) {
            for file in [AccountFile::Passwd, AccountFile::Group, AccountFile::Gshadow, AccountFile::Subuid] {
                let _ = merge(file, &base, here.as_bytes(), image.as_bytes(), &mut LeftOut::default());
            }
        }

        #[test]
        fn merging_again_changes_nothing(
            base in "([a-d]:x:[0-9]:[ab]?\n){0,4}",
            here in "([a-d]:x:[0-9]:[ab]?\n){0,4}",
            image in "([a-d]:x:[0-9]:[ab]?\n){0,4}",
        ) {
            let (first, _) = merged(AccountFile::Group, &base, &here, &image);
            let (second, _) = merged(AccountFile::Group, &image, &first, &image);
            prop_assert_eq!(first, second);
        }
    }
}
