//! `EFI_LOAD_OPTION`: what one boot option starts (UEFI 2.10, 3.1.3), and its device path (10.3).
//!
//! ```text
//! attributes u32 │ length of the paths u16 │ description, UTF-16, NUL │ paths │ optional data
//!                                                                      │
//! node: type u8 │ subtype u8 │ length u16, these four included │ data ··· end node
//! ```
//!
//! Invariant: bytes that decode encode to the same bytes. What is not understood is kept as it is.

/// The option takes part in booting.
const ACTIVE: u32 = 1;

const MEDIA: u8 = 4;
const HARD_DRIVE: u8 = 1;
const FILE_PATH: u8 = 4;
const END: u8 = 0x7f;
const END_ENTIRE: u8 = 0xff;
/// Type, subtype and length of a node.
const NODE_HEAD: usize = 4;
const FORMAT_GPT: u8 = 2;
const SIGNATURE_GUID: u8 = 2;

/// A boot option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOption {
    /// The attributes; see [`LoadOption::is_active`].
    pub attributes: u32,
    /// What the firmware's menu shows.
    pub description: String,
    /// The nodes of the first device path, without its end.
    pub path: Vec<Node>,
    /// Further device paths, as they are.
    pub more_paths: Vec<u8>,
    /// What the option hands to the program that it starts.
    pub optional_data: Vec<u8>,
}

/// A node of a device path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A partition of a disk with a GPT.
    HardDrive(HardDrive),
    /// A file, as `\EFI\systemd\systemd-bootx64.efi`.
    File(String),
    /// Anything else.
    Opaque {
        /// Its type.
        kind: u8,
        /// Its subtype.
        subtype: u8,
        /// What follows its head.
        data: Vec<u8>,
    },
}

/// A partition, as a device path names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardDrive {
    /// Its number in the partition table, from 1.
    pub number: u32,
    /// Its first sector.
    pub start: u64,
    /// Its length in sectors.
    pub length: u64,
    /// Its GUID, in the byte order of the table.
    pub guid: [u8; 16],
}

impl LoadOption {
    /// Makes an active option that starts a file of a partition.
    pub fn new(description: String, partition: HardDrive, file: String) -> Self {
        Self {
            attributes: ACTIVE,
            description,
            path: vec![Node::HardDrive(partition), Node::File(file)],
            more_paths: Vec::new(),
            optional_data: Vec::new(),
        }
    }

    /// Returns whether the firmware tries it.
    pub const fn is_active(&self) -> bool {
        self.attributes & ACTIVE != 0
    }

    /// Returns whether it starts `file` of `partition`, wherever the firmware says that the disk is.
    ///
    /// Some firmware puts the way to the disk before the partition. FAT knows no upper or lower case.
    pub fn starts(&self, partition: &HardDrive, file: &str) -> bool {
        let way = |node: &Node| matches!(node, Node::Opaque { .. });
        let from_partition: Vec<_> = self.path.iter().skip_while(|node| way(node)).collect();
        match from_partition.as_slice() {
            [Node::HardDrive(drive), Node::File(path)] => {
                drive == partition && path.eq_ignore_ascii_case(file)
            }
            _ => false,
        }
    }

    /// Reads the value of a `Boot####` variable.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = bytes;
        let attributes = u32::from_le_bytes(take(&mut rest)?);
        let length = usize::from(u16::from_le_bytes(take(&mut rest)?));
        let mut units = Vec::new();
        loop {
            match u16::from_le_bytes(take(&mut rest)?) {
                0 => break,
                unit => units.push(unit),
            }
        }
        let description = String::from_utf16(&units).map_err(|_| DecodeError::Description)?;
        let (mut paths, optional_data) = rest.split_at_checked(length).ok_or(DecodeError::Short)?;
        let mut path = Vec::new();
        while let Some(node) = take_node(&mut paths)? {
            path.push(node);
        }
        Ok(Self {
            attributes,
            description,
            path,
            more_paths: paths.to_vec(),
            optional_data: optional_data.to_vec(),
        })
    }

    /// Prints the value of a `Boot####` variable.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        if self.description.contains('\0') {
            return Err(EncodeError::Nul);
        }
        let mut paths = Vec::new();
        for node in &self.path {
            put_node(&mut paths, node)?;
        }
        put_head(&mut paths, END, END_ENTIRE, 0)?;
        paths.extend_from_slice(&self.more_paths);
        let length = u16::try_from(paths.len()).map_err(|_| EncodeError::Long)?;

        let mut bytes = self.attributes.to_le_bytes().to_vec();
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&utf16(&self.description));
        bytes.extend_from_slice(&paths);
        bytes.extend_from_slice(&self.optional_data);
        Ok(bytes)
    }
}

/// Takes as many bytes as the caller's number has.
fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    let (head, tail) = rest.split_first_chunk().ok_or(DecodeError::Short)?;
    *rest = tail;
    Ok(*head)
}

/// Takes a node, or `None` for the end of the path.
fn take_node(rest: &mut &[u8]) -> Result<Option<Node>, DecodeError> {
    let [kind, subtype, low, high] = take(rest)?;
    let length = usize::from(u16::from_le_bytes([low, high]));
    let length = length.checked_sub(NODE_HEAD).ok_or(DecodeError::Node)?;
    let (data, tail) = rest.split_at_checked(length).ok_or(DecodeError::Short)?;
    *rest = tail;
    if (kind, subtype) == (END, END_ENTIRE) {
        return if data.is_empty() {
            Ok(None)
        } else {
            Err(DecodeError::Node)
        };
    }
    let known = match (kind, subtype) {
        (MEDIA, HARD_DRIVE) => hard_drive(data).map(Node::HardDrive),
        (MEDIA, FILE_PATH) => file_path(data).map(Node::File),
        _ => None,
    };
    Ok(Some(known.unwrap_or_else(|| Node::Opaque {
        kind,
        subtype,
        data: data.to_vec(),
    })))
}

/// Reads a partition of a GPT disk; others have another signature and are none of ours.
fn hard_drive(data: &[u8]) -> Option<HardDrive> {
    let mut rest = data;
    let drive = HardDrive {
        number: u32::from_le_bytes(take(&mut rest).ok()?),
        start: u64::from_le_bytes(take(&mut rest).ok()?),
        length: u64::from_le_bytes(take(&mut rest).ok()?),
        guid: take(&mut rest).ok()?,
    };
    (rest == [FORMAT_GPT, SIGNATURE_GUID]).then_some(drive)
}

/// Reads a path that has one NUL, at its end.
fn file_path(data: &[u8]) -> Option<String> {
    let (pairs, rest) = data.as_chunks::<2>();
    let units: Vec<u16> = pairs.iter().copied().map(u16::from_le_bytes).collect();
    let (nul, text) = units.split_last()?;
    if !rest.is_empty() || *nul != 0 || text.contains(&0) {
        return None;
    }
    String::from_utf16(text).ok()
}

fn put_node(out: &mut Vec<u8>, node: &Node) -> Result<(), EncodeError> {
    match node {
        Node::HardDrive(drive) => {
            put_head(out, MEDIA, HARD_DRIVE, 38)?;
            out.extend_from_slice(&drive.number.to_le_bytes());
            out.extend_from_slice(&drive.start.to_le_bytes());
            out.extend_from_slice(&drive.length.to_le_bytes());
            out.extend_from_slice(&drive.guid);
            out.extend_from_slice(&[FORMAT_GPT, SIGNATURE_GUID]);
        }
        Node::File(path) if path.contains('\0') => return Err(EncodeError::Nul),
        Node::File(path) => {
            let data = utf16(path);
            put_head(out, MEDIA, FILE_PATH, data.len())?;
            out.extend_from_slice(&data);
        }
        Node::Opaque {
            kind,
            subtype,
            data,
        } => {
            put_head(out, *kind, *subtype, data.len())?;
            out.extend_from_slice(data);
        }
    }
    Ok(())
}

fn put_head(out: &mut Vec<u8>, kind: u8, subtype: u8, data: usize) -> Result<(), EncodeError> {
    let length = u16::try_from(data.saturating_add(NODE_HEAD)).map_err(|_| EncodeError::Long)?;
    out.extend_from_slice(&[kind, subtype]);
    out.extend_from_slice(&length.to_le_bytes());
    Ok(())
}

/// UTF-16, little-endian, with a NUL behind it.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// Why bytes are no boot option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They end too early.
    #[error("a boot option ends too early")]
    Short,
    /// The description is no UTF-16.
    #[error("a boot option's description is no UTF-16")]
    Description,
    /// A node has an impossible length.
    #[error("a node of a boot option's device path has an impossible length")]
    Node,
}

/// Why an option cannot be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A text holds a NUL.
    #[error("a text of a boot option holds a NUL")]
    Nul,
    /// A device path has more than 65535 bytes.
    #[error("a boot option's device path is too long")]
    Long,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const ESP: HardDrive = HardDrive {
        number: 1,
        start: 2048,
        length: 0x1_0000,
        guid: *b"0123456789abcdef",
    };

    #[test]
    fn an_option_has_the_bytes_of_the_specification() {
        let option = LoadOption::new("B".to_owned(), ESP, "\\x".to_owned());
        let expected = [
            &[1, 0, 0, 0][..],                       // active
            &[56, 0],                                // 42 + 10 + 4 bytes of paths
            &[b'B', 0, 0, 0],                        // description
            &[4, 1, 42, 0, 1, 0, 0, 0],              // hard drive, partition 1
            &[0, 8, 0, 0, 0, 0, 0, 0],               // start 2048
            &[0, 0, 1, 0, 0, 0, 0, 0],               // length 65536
            b"0123456789abcdef",                     // signature
            &[2, 2],                                 // GPT, GUID
            &[4, 4, 10, 0, b'\\', 0, b'x', 0, 0, 0], // file
            &[0x7f, 0xff, 4, 0],                     // end
        ]
        .concat();
        assert_eq!(option.encode().unwrap(), expected);
        assert_eq!(LoadOption::decode(&expected).unwrap(), option);
        for end in 0..expected.len() {
            assert_eq!(
                LoadOption::decode(&expected[..end]),
                Err(DecodeError::Short),
                "cut at {end}"
            );
        }
    }

    #[test]
    fn a_way_to_the_disk_and_upper_case_start_the_same_file_and_another_partition_does_not() {
        let mut option = LoadOption::new("B".to_owned(), ESP, "\\EFI\\a.efi".to_owned());
        option.path.insert(
            0,
            Node::Opaque {
                kind: 2,
                subtype: 1,
                data: vec![0; 8],
            },
        );
        assert!(option.starts(&ESP, "\\efi\\A.EFI"));
        assert!(!option.starts(&ESP, "\\EFI\\b.efi"));
        let other = HardDrive {
            guid: [0; 16],
            ..ESP
        };
        assert!(!option.starts(&other, "\\EFI\\a.efi"));
    }

    #[test]
    fn a_node_shorter_than_its_head_is_refused() {
        let bytes = [1, 0, 0, 0, 4, 0, 0, 0, 4, 4, 3, 0];
        assert_eq!(LoadOption::decode(&bytes), Err(DecodeError::Node));
    }

    fn node() -> impl Strategy<Value = Node> {
        prop_oneof![
            any::<(u32, u64, u64, [u8; 16])>().prop_map(|(number, start, length, guid)| {
                Node::HardDrive(HardDrive {
                    number,
                    start,
                    length,
                    guid,
                })
            }),
            "[^\0]{0,20}".prop_map(Node::File),
            // Types 1 and 2 are hardware and ACPI, of which none is understood here.
            (1..3_u8, any::<u8>(), vec(any::<u8>(), 0..20)).prop_map(|(kind, subtype, data)| {
                Node::Opaque {
                    kind,
                    subtype,
                    data,
                }
            }),
        ]
    }

    /// Bytes that come near to an option: one with a few bytes changed.
    fn damaged() -> impl Strategy<Value = Vec<u8>> {
        let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        (vec(node(), 0..4), changes, any::<Vec<u8>>()).prop_map(|(path, changes, optional_data)| {
            let mut option = LoadOption::new("Bedplate".to_owned(), ESP, String::new());
            option.path = path;
            option.optional_data = optional_data;
            let mut bytes = option.encode().unwrap();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn an_option_reads_back_as_it_was_printed(
            attributes: u32,
            description in "[^\0]{0,20}",
            path in vec(node(), 0..5),
            more_paths in vec(any::<u8>(), 0..20),
            optional_data in vec(any::<u8>(), 0..20),
        ) {
            let option = LoadOption { attributes, description, path, more_paths, optional_data };
            let bytes = option.encode().unwrap();
            prop_assert_eq!(LoadOption::decode(&bytes), Ok(option));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes in prop_oneof![damaged(), any::<Vec<u8>>()]) {
            if let Ok(option) = LoadOption::decode(&bytes) {
                prop_assert_eq!(option.encode(), Ok(bytes));
            }
        }
    }
}
