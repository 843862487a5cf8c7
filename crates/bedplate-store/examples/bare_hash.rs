//! The floor that `bedplate digest` is measured against: opens, reads and hashes every regular file below
//! a directory with SHA-256, on all cores, and does nothing else.

#![expect(clippy::print_stdout, reason = "a program of its own")]

use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest as _, Sha256};

fn main() -> std::io::Result<()> {
    let mut pending: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let mut files = Vec::new();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    let next = AtomicUsize::new(0);
    let hash = || -> std::io::Result<u64> {
        let (mut buffer, mut total) = (vec![0; 256 * 1024], 0);
        while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (mut file, mut hasher) = (File::open(path)?, Sha256::new());
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                hasher.update(&buffer[..count]);
                total += count as u64;
            }
            std::hint::black_box(hasher.finalize());
        }
        Ok(total)
    };
    let threads = std::thread::available_parallelism()?.get();
    let total: std::io::Result<u64> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(hash)).collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("hashing does not panic"))
            .sum()
    });
    println!("{} files, {} bytes", files.len(), total?);
    Ok(())
}
