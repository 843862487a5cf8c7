//! The code that a BIOS starts: made of the files of GRUB that an image has, without GRUB's own tools.
//!
//! ```text
//! sector 0        boot.img              loads one sector; which, is written into it
//! partition       diskboot.img          loads the others; which, stands at its end
//!   of type       lzma_decompress.img   unpacks what follows; both lengths are written into it
//!   BIOS boot     LZMA( kernel.img's segment · module area )
//!
//! module area     "mimg" · 12 · its length
//!                 type · length · content, filled up to 4 bytes      modules, in the order of their needs,
//!                 …                                                  and at last the place of grub.cfg
//! ```
//!
//! Invariant: what comes from the image is a stranger's: it is written into where it looks as expected, and
//! refused elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};

use bedplate_model::layout;
use lzma_rust2::{LzmaOptions, LzmaWriter};

use super::DIRECTORY;

/// What GRUB needs for [`super::CONFIG_TEXT`]; [`DEPENDENCIES`] adds what these need.
const MODULES: [&str; 13] = [
    "biosdisk",
    "part_gpt",
    "fat",
    "normal",
    "configfile",
    "loadenv",
    "regexp",
    "test",
    "linux",
    "boot",
    "minicmd",
    "keystatus",
    "reboot",
];
/// The file that says which module needs which.
const DEPENDENCIES: &str = "moddep.lst";

/// A sector of a disk.
const SECTOR: usize = 512;
/// What a boot sector has room for before the disk's identifier and its partitions.
const MBR_CODE: usize = 440;
/// The longest core image: below 640 KiB of memory there is no room for more.
pub const CORE_MAX: usize = 0x78000;
/// The longest unpacked one: many times what it needs.
const PAYLOAD_MAX: usize = 4 << 20;
/// The longest program that unpacks: what lies between its place in memory and the kernel's.
const DECOMPRESSOR_MAX: usize = 0x9000 - 0x8200;
/// Where the kernel lies in memory.
const KERNEL_ADDRESS: u32 = 0x9000;
/// The most lines of [`DEPENDENCIES`], and modules of one.
const DEPENDENCIES_MAX: usize = 4096;

/// The type of a module in the module area.
const TYPE_MODULE: u32 = 0;
/// The type of the place of the configuration.
const TYPE_PREFIX: u32 = 3;

/// The code that a BIOS starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootCode {
    /// What stands before the disk's identifier in its first sector.
    pub mbr: [u8; MBR_CODE],
    /// What the BIOS boot partition begins with: whole sectors.
    pub core: Vec<u8>,
}

/// Where the code will lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first sector of the BIOS boot partition.
    pub first_sector: u64,
    /// The number of the boot partition in the partition table.
    pub boot_partition: u32,
}

/// Makes the code. `read` returns a file of GRUB's by its name, or `None` where there is none.
pub fn boot_code(
    read: &dyn Fn(&str) -> io::Result<Option<Vec<u8>>>,
    place: Place,
) -> Result<BootCode, BuildError> {
    let mut files = Files {
        read,
        missing: Vec::new(),
        length: 0,
    };
    let boot = files.take("boot.img")?;
    let diskboot = files.take("diskboot.img")?;
    let decompressor = files.take("lzma_decompress.img")?;
    let kernel = files.take("kernel.img")?;
    let list = files.take(DEPENDENCIES)?;
    let mut modules = Vec::new();
    // Without the list it is not known which modules are missing as well.
    if !files.missing.iter().any(|name| name == DEPENDENCIES) {
        for name in in_order(&parse_dependencies(&list)?, &MODULES)? {
            modules.push(files.take(&format!("{name}.mod"))?);
        }
    }
    if !files.missing.is_empty() {
        return Err(BuildError::Missing {
            files: files.missing,
        });
    }
    let prefix = format!("(,gpt{})/{DIRECTORY}", place.boot_partition);
    let payload = payload(segment(&kernel)?, &modules, &prefix)?;
    Ok(BootCode {
        mbr: first_sector(&boot, place.first_sector)?,
        core: core(&diskboot, decompressor, &payload, place.first_sector)?,
    })
}

/// The files of an image, and those that it has not.
struct Files<'a> {
    read: &'a dyn Fn(&str) -> io::Result<Option<Vec<u8>>>,
    missing: Vec<String>,
    /// How long all of them are together.
    length: usize,
}

impl Files<'_> {
    /// Reads one; of one that is missing nothing is left but its name.
    fn take(&mut self, name: &str) -> Result<Vec<u8>, BuildError> {
        let bytes = (self.read)(name).map_err(|source| BuildError::Read {
            file: name.to_owned(),
            source,
        })?;
        if bytes.is_none() {
            self.missing.push(name.to_owned());
        }
        let bytes = bytes.unwrap_or_default();
        self.length += bytes.len();
        if self.length > PAYLOAD_MAX {
            return Err(BuildError::Long);
        }
        Ok(bytes)
    }
}

/// Reads which module needs which: lines of `module: needed needed`.
fn parse_dependencies(list: &[u8]) -> Result<BTreeMap<&str, Vec<&str>>, BuildError> {
    let wrong = || BuildError::Strange {
        file: DEPENDENCIES,
        what: "lists modules in another way",
    };
    let text = std::str::from_utf8(list).map_err(|_| wrong())?;
    let name = |text: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        !text.is_empty() && text.bytes().all(plain)
    };
    let mut needs = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let (module, needed) = line.split_once(':').ok_or_else(wrong)?;
        let needed: Vec<&str> = needed.split_whitespace().collect();
        let names = [&[module], &needed[..]].concat();
        if !names.into_iter().all(name) || needed.len() > DEPENDENCIES_MAX {
            return Err(wrong());
        }
        needs.insert(module, needed);
        if needs.len() > DEPENDENCIES_MAX {
            return Err(wrong());
        }
    }
    Ok(needs)
}

/// Returns modules with all that they need, each behind what it needs itself.
fn in_order<'a>(
    needs: &BTreeMap<&'a str, Vec<&'a str>>,
    wanted: &[&'a str],
) -> Result<Vec<&'a str>, BuildError> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    // What is to be looked at, and what is to be added since its needs were.
    let mut stack: Vec<(&str, bool)> = wanted.iter().rev().map(|name| (*name, false)).collect();
    while let Some((name, looked)) = stack.pop() {
        if looked {
            order.push(name);
        } else if seen.insert(name) {
            stack.push((name, true));
            let needed = needs.get(name).ok_or_else(|| BuildError::Module {
                name: name.to_owned(),
            })?;
            stack.extend(needed.iter().rev().map(|name| (*name, false)));
        }
    }
    Ok(order)
}

/// Returns the one segment of the kernel that is loaded: a 32-bit ELF program for one address.
fn segment(kernel: &[u8]) -> Result<&[u8], BuildError> {
    const PROGRAM_HEADER: usize = 32;
    let wrong = || BuildError::Strange {
        file: "kernel.img",
        what: "is no 32-bit ELF program with one segment for the address 0x9000",
    };
    // Class 32 bits, little-endian; at 16: a program, for the 386.
    if !kernel.starts_with(b"\x7fELF\x01\x01") || read_u32(kernel, 16) != Some(0x0003_0002) {
        return Err(wrong());
    }
    let headers = read_u32(kernel, 28).ok_or_else(wrong)? as usize;
    let (size, count) = read_u16(kernel, 42)
        .zip(read_u16(kernel, 44))
        .ok_or_else(wrong)?;
    if usize::from(size) != PROGRAM_HEADER {
        return Err(wrong());
    }
    let mut found = None;
    for number in 0..usize::from(count) {
        let at = headers + number * PROGRAM_HEADER;
        let field = |index: usize| read_u32(kernel, at + 4 * index).ok_or_else(wrong);
        const LOAD: u32 = 1;
        if field(0)? != LOAD {
            continue;
        }
        let (offset, address, length) = (field(1)? as usize, field(2)?, field(4)? as usize);
        let segment = kernel.get(offset..).and_then(|rest| rest.get(..length));
        if found.is_some() || address != KERNEL_ADDRESS {
            return Err(wrong());
        }
        found = Some(segment.ok_or_else(wrong)?);
    }
    found
        .filter(|segment| !segment.is_empty())
        .ok_or_else(wrong)
}

/// Puts together what is compressed: the kernel, and behind it the module area.
fn payload(kernel: &[u8], modules: &[Vec<u8>], prefix: &str) -> Result<Vec<u8>, BuildError> {
    const HEADER: u32 = 12;
    let mut area = Vec::new();
    for module in modules {
        add(&mut area, TYPE_MODULE, module)?;
    }
    add(&mut area, TYPE_PREFIX, &[prefix.as_bytes(), b"\0"].concat())?;
    if kernel.len() + area.len() > PAYLOAD_MAX {
        return Err(BuildError::Long);
    }
    let mut payload = kernel.to_vec();
    payload.extend(b"mimg");
    payload.extend(HEADER.to_le_bytes());
    payload.extend((HEADER + area.len() as u32).to_le_bytes());
    payload.extend(area);
    Ok(payload)
}

/// Adds an object to a module area.
fn add(area: &mut Vec<u8>, kind: u32, content: &[u8]) -> Result<(), BuildError> {
    const HEADER: usize = 8;
    let length = HEADER + content.len().next_multiple_of(4);
    if area.len() + length > PAYLOAD_MAX {
        return Err(BuildError::Long);
    }
    let end = area.len() + length;
    area.extend(kind.to_le_bytes());
    area.extend((length as u32).to_le_bytes());
    area.extend(content);
    area.resize(end, 0);
    Ok(())
}

/// Compresses as the decompressor expects it: no header, no end mark, the standard properties.
fn compress(payload: &[u8]) -> io::Result<Vec<u8>> {
    let options = LzmaOptions {
        dict_size: PAYLOAD_MAX as u32,
        lc: 3,
        lp: 0,
        pb: 2,
        ..LzmaOptions::with_preset(6)
    };
    let mut writer = LzmaWriter::new_no_header(Vec::new(), &options, false)?;
    writer.write_all(payload)?;
    writer.finish()
}

/// Makes the core image.
fn core(
    diskboot: &[u8],
    mut decompressor: Vec<u8>,
    payload: &[u8],
    first_sector: u64,
) -> Result<Vec<u8>, BuildError> {
    let strange = |file, what| BuildError::Strange { file, what };
    let packed = compress(payload).map_err(BuildError::Compress)?;
    // The lengths, and how much of the image would be there twice: nothing, which is what stands there.
    let fields = decompressor.get_mut(8..20);
    let fields = fields.filter(|fields| fields.iter().all(|byte| *byte == 0));
    let fields = fields.ok_or(strange(
        "lzma_decompress.img",
        "has no empty fields for lengths",
    ))?;
    fields[..4].copy_from_slice(&(packed.len() as u32).to_le_bytes());
    fields[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    if decompressor.len() > DECOMPRESSOR_MAX {
        return Err(strange("lzma_decompress.img", "is too long"));
    }

    // At the end of the sector: first sector, number of sectors, and the segment that they are loaded to.
    const LIST: &[u8] = b"\x02\0\0\0\0\0\0\0\0\0\x20\x08";
    let list = SECTOR - LIST.len();
    if diskboot.len() != SECTOR || &diskboot[list..] != LIST {
        return Err(strange(
            "diskboot.img",
            "does not end with an empty list of blocks",
        ));
    }
    let mut image = [diskboot, &decompressor, &packed].concat();
    image.resize(image.len().next_multiple_of(SECTOR), 0);
    if image.len() > CORE_MAX {
        return Err(BuildError::Long);
    }
    let sectors = (image.len() / SECTOR - 1) as u16;
    image[list..list + 8].copy_from_slice(&(first_sector + 1).to_le_bytes());
    image[list + 8..list + 10].copy_from_slice(&sectors.to_le_bytes());
    Ok(image)
}

/// Makes the code of the disk's first sector.
fn first_sector(boot: &[u8], core: u64) -> Result<[u8; MBR_CODE], BuildError> {
    // The sector to load, the drive to load it from (the one that the BIOS says), and the beginning of a check
    // of that: a jump over it.
    const SECTOR_AT: usize = 0x5c;
    const DRIVE_CHECK_AT: usize = 0x66;
    const EXPECTED: &[u8] = b"\x01\0\0\0\0\0\0\0\xff\xfa\xeb";
    let strange = BuildError::Strange {
        file: "boot.img",
        what: "does not say in the usual place what it loads",
    };
    let as_expected = boot.len() == SECTOR
        && boot.ends_with(b"\x55\xaa")
        && boot[SECTOR_AT..].starts_with(EXPECTED);
    if !as_expected {
        return Err(strange);
    }
    let mut code = [0; MBR_CODE];
    code.copy_from_slice(&boot[..MBR_CODE]);
    code[SECTOR_AT..SECTOR_AT + 8].copy_from_slice(&core.to_le_bytes());
    // A BIOS may say that a disk is a floppy: two instructions that do nothing let the check happen.
    code[DRIVE_CHECK_AT..DRIVE_CHECK_AT + 2].copy_from_slice(&[0x90, 0x90]);
    Ok(code)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*field))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

/// Why there is no code for a BIOS.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The image has no GRUB, or not all of it.
    #[error(
        "the image has no GRUB for a BIOS: /{}/{{{}}} {} missing (Debian: grub-pc-bin)",
        layout::GRUB, files.join(","), if files.len() == 1 { "is" } else { "are" }
    )]
    Missing {
        /// The names of the files.
        files: Vec<String>,
    },
    /// A file could not be read.
    #[error("cannot read the image's /{}/{file}", layout::GRUB)]
    Read {
        /// Its name.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A file is not what GRUB 2 has under this name.
    #[error("the image's /{}/{file} {what}", layout::GRUB)]
    Strange {
        /// Its name.
        file: &'static str,
        /// What is strange.
        what: &'static str,
    },
    /// A module that is needed is not listed.
    #[error("the image's /{}/{DEPENDENCIES} has no module `{name}`", layout::GRUB)]
    Module {
        /// Its name.
        name: String,
    },
    /// It does not fit below 640 KiB.
    #[error("the image's GRUB is too large for a BIOS to load")]
    Long,
    /// It could not be compressed.
    #[error("cannot compress GRUB")]
    Compress(#[source] io::Error),
}

#[cfg(test)]
mod tests;
