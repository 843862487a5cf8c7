//! Layers and images: what comes from a registry, and what lies in a store that somebody else wrote.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use bedplate_model::tree::INLINE_MAX;
use bedplate_model::{Algorithm, ErofsVersion, FileContent, ObjectId, RuleSet, Sha256, Tree};
use bedplate_store::erofs::{self, HardLinks, Options};
use bedplate_store::layer::{self, Contents, Layer};
use bedplate_store::{PutError, verity};

/// Whose the tables are.
const DIFF_ID: Sha256 = Sha256([7; 32]);

/// A tar's unit.
const BLOCK: usize = 512;

/// Where a tar header has its checksum, and where the magic that says that it is one.
const CHECKSUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..262;

/// The most that a file's body may claim and deliver here.
const BODY_MAX: u64 = 1 << 20;

/// Bodies of files, kept in memory.
#[derive(Default)]
struct Bodies(Mutex<HashMap<ObjectId, Vec<u8>>>);

impl Contents for Bodies {
    fn put(&self, content: &mut dyn Read, size: u64) -> Result<FileContent, PutError> {
        let mut bytes = Vec::new();
        content
            .take(size.min(BODY_MAX))
            .read_to_end(&mut bytes)
            .map_err(PutError::Read)?;
        let found = bytes.len() as u64;
        if found != size {
            return Err(PutError::WrongSize {
                wanted: size,
                found,
            });
        }
        self.put_bytes(&bytes)
    }

    fn put_bytes(&self, bytes: &[u8]) -> Result<FileContent, PutError> {
        if bytes.len() <= INLINE_MAX {
            return Ok(FileContent::Inline(bytes.into()));
        }
        let id = verity::digest(Algorithm::Sha256, bytes);
        let mut bodies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bodies.insert(id, bytes.to_vec());
        Ok(FileContent::Object {
            id,
            size: bytes.len() as u64,
        })
    }
}

impl Bodies {
    fn open(&self, content: &FileContent) -> io::Result<Box<dyn Read + 'static>> {
        let bytes = match content {
            FileContent::Inline(bytes) => bytes.to_vec(),
            FileContent::Object { id, .. } => {
                let bodies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                bodies
                    .get(id)
                    .cloned()
                    .ok_or_else(|| io::Error::other("a body that nobody stored"))?
            }
        };
        Ok(Box::new(Cursor::new(bytes)))
    }
}

/// Tars of one small directory as GNU tar writes them, in each of its formats, and one of whiteouts.
pub(super) fn tars() -> Result<Vec<Vec<u8>>> {
    let scratch = tempfile::tempdir().context("making a directory for seeds")?;
    let root = scratch.path().join("root");
    let long = "n".repeat(120);
    fs::create_dir_all(root.join("usr/share").join(&long)).context("making a seed")?;
    for (name, size) in [("empty", 0), ("small", 20), ("edge", 64), ("large", 5000)] {
        fs::write(root.join("usr").join(name), vec![b'a'; size]).context("making a seed")?;
    }
    fs::write(root.join("usr/share").join(&long).join(&long), "deep").context("making a seed")?;
    fs::hard_link(root.join("usr/large"), root.join("linked")).context("making a seed")?;
    symlink("usr/small", root.join("symlink")).context("making a seed")?;
    fs::write(root.join("usr/.wh.gone"), "").context("making a seed")?;
    fs::write(root.join("usr/share/.wh..wh..opq"), "").context("making a seed")?;
    let mut tars = Vec::new();
    for format in ["gnu", "pax", "oldgnu"] {
        let tar = scratch.path().join(format);
        let status = Command::new("tar")
            .args([
                "--create",
                "--sort=name",
                "--mtime=@1.5",
                "--owner=a:7",
                "--blocking-factor=1",
            ])
            .arg(format!("--format={format}"))
            .arg(format!("--file={}", tar.display()))
            .arg(format!("--directory={}", root.display()))
            .arg(".")
            .status()
            .context("starting tar")?;
        anyhow::ensure!(status.success(), "tar could not make a seed: {status}");
        tars.push(fs::read(&tar).context("reading a seed")?);
    }
    Ok(tars)
}

/// Makes the checksum of each header right.
pub(super) fn repair_tar(input: &mut [u8]) {
    for block in input.chunks_exact_mut(BLOCK) {
        if &block[MAGIC] != b"ustar" {
            continue;
        }
        block[CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

pub(super) fn tar(input: &[u8]) {
    let bodies = Bodies::default();
    let Ok(layer) = layer::read(&mut &*input, &bodies) else {
        return;
    };
    let mut again = Vec::new();
    layer::rewrite_tar(&layer, &|content| bodies.open(content), &mut again)
        .expect("a layer that was read is written again");
    assert!(
        again == input,
        "a layer was written with other bytes than were read"
    );
    let table =
        Layer::decode(&layer.encode(&DIFF_ID), &DIFF_ID).expect("a table that we wrote is read");
    assert_eq!(table.entries(), layer.entries());
    if let Ok(tree) = layer::flatten(&[layer], RuleSet::Exact1) {
        image_of(&tree);
    }
}

/// Says that a table has no seal, so that damage gets past its check.
pub(super) fn unseal_table(input: &mut [u8]) {
    if let Some(optional) = input.get_mut(12) {
        *optional &= !1;
    }
}

pub(super) fn tables() -> Result<Vec<Vec<u8>>> {
    tars()?
        .iter()
        .map(|tar| Ok(layer::read(&mut &**tar, &Bodies::default())?.encode(&DIFF_ID)))
        .collect()
}

pub(super) fn table(input: &[u8]) {
    if let Ok(layer) = Layer::decode(input, &DIFF_ID) {
        let _ = layer::flatten(&[layer], RuleSet::Bootc1);
    }
}

pub(super) fn images() -> Result<Vec<Vec<u8>>> {
    let mut images = Vec::new();
    for tar in tars()? {
        let layer = layer::read(&mut &*tar, &Bodies::default())?;
        let tree = layer::flatten(&[layer], RuleSet::Exact1)?;
        for version in [ErofsVersion::V0, ErofsVersion::V1] {
            let mut image = Vec::new();
            erofs::write(&tree, &options(version), &mut image)?;
            images.push(image);
        }
    }
    Ok(images)
}

pub(super) fn image(input: &[u8]) {
    if let Ok(tree) = erofs::read(input) {
        image_of(&tree);
    }
}

/// Whatever we accept, we can write, and read back as the same.
fn image_of(tree: &Tree) {
    let mut image = Vec::new();
    if erofs::write(tree, &options(ErofsVersion::V1), &mut image).is_ok() {
        let again = erofs::read(&image).expect("an image that we wrote is read");
        assert!(
            &again == tree,
            "an image holds another tree than was written"
        );
    }
}

fn options(version: ErofsVersion) -> Options {
    Options {
        version,
        hard_links: HardLinks::Keep,
    }
}
