//! The code is compared with that of GRUB's own tools, where the machine has them (Debian: grub-pc-bin and
//! grub-common); without them, a test says so and ends.

use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

const PLACE: Place = Place {
    first_sector: 2048,
    boot_partition: 2,
};

/// The files of the machine's own GRUB, or `None` where it has none.
fn of_this_machine() -> Option<impl Fn(&str) -> io::Result<Option<Vec<u8>>>> {
    let home = Path::new("/").join(layout::GRUB);
    if !home.join("kernel.img").exists() {
        eprintln!("skipped: this machine has no {}", home.display());
        return None;
    }
    Some(move |name: &str| match fs::read(home.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    })
}

/// What a core image unpacks to.
fn unpacked(core: &[u8]) -> Vec<u8> {
    let length = |at: usize| read_u32(&core[SECTOR..], at).unwrap() as usize;
    let packed = &core[SECTOR + decompressor().len()..][..length(8)];
    let unpacked = length(12);
    let mut reader =
        lzma_rust2::LzmaReader::new(packed, unpacked as u64, 3, 0, 2, PAYLOAD_MAX as u32, None)
            .unwrap();
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
    assert_eq!(bytes.len(), unpacked);
    bytes
}

fn decompressor() -> Vec<u8> {
    let home = Path::new("/").join(layout::GRUB);
    fs::read(home.join("lzma_decompress.img")).unwrap()
}

/// The objects of a module area, each with its type.
fn objects(mut area: &[u8]) -> Vec<(u32, &[u8])> {
    let mut found = Vec::new();
    while let Some(kind) = read_u32(area, 0) {
        let length = read_u32(area, 4).unwrap() as usize;
        found.push((kind, &area[8..length]));
        area = &area[length..];
    }
    found
}

/// Runs GRUB's own tool, or returns `None` where there is none.
fn mkimage(modules: &[&str], to: &Path) -> Option<Vec<u8>> {
    let made = Command::new("grub-mkimage")
        .args(["-O", "i386-pc", "-p", "(,gpt2)/bedplate", "-o"])
        .arg(to)
        .args(modules)
        .output();
    match made {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("skipped: this machine has no grub-mkimage (Debian: grub-common)");
            None
        }
        made => {
            let made = made.unwrap();
            assert!(made.status.success(), "{made:?}");
            Some(fs::read(to).unwrap())
        }
    }
}

#[test]
fn a_core_image_unpacks_to_what_grubs_own_tool_makes() {
    let directory = tempfile::tempdir().unwrap();
    let Some(read) = of_this_machine() else {
        return;
    };
    let Some(theirs) = mkimage(&MODULES, &directory.path().join("core.img")) else {
        return;
    };
    let ours = boot_code(&read, PLACE).unwrap().core;

    // But for the place of the image on the disk and the lengths, the programs are the same.
    let without = |image: &[u8], fields: &[std::ops::Range<usize>]| {
        let mut image = image.to_vec();
        for field in fields {
            image[field.clone()].fill(0);
        }
        image
    };
    let programs = SECTOR + decompressor().len();
    let fields = [0x1f4..0x1fe, SECTOR + 8..SECTOR + 16];
    assert_eq!(
        without(&ours[..programs], &fields),
        without(&theirs[..programs], &fields)
    );
    assert_eq!(ours[0x1f4..0x1fc], 2049u64.to_le_bytes());
    let sectors = ours.len() / SECTOR - 1;
    assert_eq!(ours[0x1fc..0x1fe], (sectors as u16).to_le_bytes());

    // Kernel and header are the same to the byte; so are the modules, whose order is free within their needs.
    let (ours, theirs) = (unpacked(&ours), unpacked(&theirs));
    let kernel = read("kernel.img").unwrap().unwrap();
    let area = segment(&kernel).unwrap().len() + 12;
    assert_eq!(ours.len(), theirs.len());
    assert!(ours[..area] == theirs[..area]);
    let (ours, theirs) = (objects(&ours[area..]), objects(&theirs[area..]));
    assert_eq!(ours.last(), theirs.last());
    let sorted = |objects: &[(u32, &[u8])]| {
        let mut sorted: Vec<_> = objects
            .iter()
            .map(|(kind, bytes)| (*kind, bytes.to_vec()))
            .collect();
        sorted.sort();
        sorted
    };
    assert!(sorted(&ours) == sorted(&theirs));

    // In their order, ours is theirs.
    let (prefix, modules) = theirs.split_last().unwrap();
    assert_eq!(prefix.0, TYPE_PREFIX);
    let modules: Vec<Vec<u8>> = modules.iter().map(|(_, bytes)| bytes.to_vec()).collect();
    let again = payload(segment(&kernel).unwrap(), &modules, "(,gpt2)/bedplate").unwrap();
    assert!(objects(&again[area..]) == theirs);
}

#[test]
fn each_module_stands_behind_what_it_needs() {
    let Some(read) = of_this_machine() else {
        return;
    };
    let list = read(DEPENDENCIES).unwrap().unwrap();
    let needs = parse_dependencies(&list).unwrap();
    let order = in_order(&needs, &MODULES).unwrap();
    for (place, name) in order.iter().enumerate() {
        for needed in &needs[name] {
            let before = order[..place].contains(needed);
            assert!(before, "{name} needs {needed}: {order:?}");
        }
        assert!(!order[..place].contains(name), "{name} twice: {order:?}");
    }
}

/// A command that GRUB does not find counts as one that succeeded: it would count no tries.
#[test]
fn every_command_of_the_configuration_is_in_the_core_image() {
    let Some(read) = of_this_machine() else {
        return;
    };
    let list = read(DEPENDENCIES).unwrap().unwrap();
    let order = in_order(&parse_dependencies(&list).unwrap(), &MODULES).unwrap();
    let commands = String::from_utf8(read("command.lst").unwrap().unwrap()).unwrap();
    // A `*` marks commands that take options.
    let provided = |command: &str| {
        let lines = commands.lines().filter_map(|line| line.split_once(": "));
        let mut modules = lines.filter(|(name, _)| name.trim_start_matches('*') == command);
        modules.any(|(_, module)| order.contains(&module))
    };
    let language = [
        "if",
        "then",
        "else",
        "fi",
        "while",
        "for",
        "do",
        "done",
        "function",
        "menuentry",
        "return",
        "set",
        "{",
        "}",
        "",
    ];
    let fragment = super::super::fragment(&crate::entry::BootEntry::default()).unwrap();
    let own = |word: &str| super::super::CONFIG_TEXT.contains(&format!("function {word} {{"));
    let text = [super::super::CONFIG_TEXT, &fragment].concat();
    let mut looked = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        for part in line.split(';') {
            let mut words = part.split_whitespace().peekable();
            while words
                .next_if(|word| ["if", "then", "while", "do"].contains(word))
                .is_some()
            {}
            let word = words.next().unwrap_or_default();
            assert!(
                language.contains(&word) || own(word) || provided(word),
                "`{word}` of `{line}`"
            );
            looked += usize::from(!language.contains(&word));
        }
    }
    assert!(looked > 10, "{looked} commands");
}

#[test]
fn the_same_files_give_the_same_code() {
    let Some(read) = of_this_machine() else {
        return;
    };
    let code = boot_code(&read, PLACE).unwrap();
    assert_eq!(boot_code(&read, PLACE).unwrap(), code);
    assert_eq!(code.mbr[0x5c..0x64], 2048u64.to_le_bytes());
}

#[test]
fn an_image_without_grub_is_told_which_files_and_which_package_it_lacks() {
    let error = boot_code(&|_| Ok(None), PLACE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image has no GRUB for a BIOS: /usr/lib/grub/i386-pc/\
         {boot.img,diskboot.img,lzma_decompress.img,kernel.img,moddep.lst} are missing \
         (Debian: grub-pc-bin)"
    );
    let Some(read) = of_this_machine() else {
        return;
    };
    let without = |name: &str| match name {
        "fat.mod" => Ok(None),
        _ => read(name),
    };
    let error = boot_code(&without, PLACE).unwrap_err();
    assert!(
        error.to_string().contains("{fat.mod} is missing"),
        "{error}"
    );
}

#[test]
fn a_list_that_runs_in_circles_or_leaves_its_directory_is_refused_or_ends() {
    let needs = parse_dependencies(b"a: b\nb: a\n").unwrap();
    assert_eq!(in_order(&needs, &["a"]).unwrap(), ["b", "a"]);
    for wrong in ["a", "../a: b", "a: ../b", "a b: c", "\u{0}: a"] {
        assert!(parse_dependencies(wrong.as_bytes()).is_err(), "{wrong:?}");
    }
    let error = in_order(&needs, &["c"]).unwrap_err();
    assert!(matches!(error, BuildError::Module { .. }), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_a_panic(file in 0..5usize, at in 0..4096usize, bytes: Vec<u8>, cut: bool) {
        // One of the files is changed somewhere, or cut off there.
        let read = |name: &str| {
            let names = ["boot.img", "diskboot.img", "lzma_decompress.img", "kernel.img", DEPENDENCIES];
            let mut content = match name {
                "boot.img" => boot_image(),
                "diskboot.img" => diskboot_image(),
                "lzma_decompress.img" => vec![0; 64],
                "kernel.img" => kernel_image(),
                DEPENDENCIES => MODULES.map(|name| format!("{name}:\n")).concat().into_bytes(),
                _ => b"a module".to_vec(),
            };
            if name == names[file] {
                let at = at % content.len();
                let end = content.len().min(at + bytes.len());
                content[at..end].copy_from_slice(&bytes[..end - at]);
                if cut {
                    content.truncate(at);
                }
            }
            Ok(Some(content))
        };
        if let Ok(code) = boot_code(&read, PLACE) {
            prop_assert!(code.core.len() <= CORE_MAX && code.core.len().is_multiple_of(SECTOR));
        }
    }
}

fn boot_image() -> Vec<u8> {
    let mut image = vec![0; SECTOR];
    image[0x5c..0x67].copy_from_slice(b"\x01\0\0\0\0\0\0\0\xff\xfa\xeb");
    image[510..].copy_from_slice(b"\x55\xaa");
    image
}

fn diskboot_image() -> Vec<u8> {
    let mut image = vec![0; SECTOR];
    image[500..].copy_from_slice(b"\x02\0\0\0\0\0\0\0\0\0\x20\x08");
    image
}

fn kernel_image() -> Vec<u8> {
    let mut image = vec![0; 200];
    image[..6].copy_from_slice(b"\x7fELF\x01\x01");
    for (at, value) in [(16, 0x0003_0002), (28, 52), (42, 0x0001_0020)] {
        let value: u32 = value;
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    for (field, value) in [1, 100, 0x9000, 0x9000, 100].into_iter().enumerate() {
        let value: u32 = value;
        image[52 + 4 * field..56 + 4 * field].copy_from_slice(&value.to_le_bytes());
    }
    image
}
