//! fs-verity digests: what objects and images are named by.
//!
//! ```text
//! content ─ blocks of 4096 ─→ hashes ─ blocks of 4096 ─→ hashes … ─→ one root hash
//! digest = H(descriptor: version, algorithm, block size, length, root hash)
//! ```
//!
//! Linux, "fs-verity: read-only file-based authenticity protection", section "File digest computation":
//! blocks of 4096 bytes, no salt, the last block of each level padded with zeros; a content of one block
//! has that block's hash for a root, an empty one has zeros.

use std::io::{self, Read};

use bedplate_model::{Algorithm, ObjectId};
use sha2::{Digest as _, Sha256, Sha512};

/// The block size in bytes: what composefs uses, and every kernel supports.
const BLOCK: usize = 4096;
/// A Merkle tree over 2^64 bytes has at most this many levels above its data (128 hashes a block,
/// or 64 with SHA-512).
const LEVELS_MAX: usize = 10;
/// How much is read at once.
const READ: usize = 256 * 1024;

/// Computes the fs-verity digest of bytes that come piece by piece.
#[derive(Clone, Debug)]
pub struct Hasher {
    algorithm: Algorithm,
    length: u64,
    /// The data block that is not full yet.
    block: Vec<u8>,
    /// For each level above the data, the hashes that do not fill a block yet.
    levels: Vec<Vec<u8>>,
}

impl Hasher {
    /// Starts with no bytes.
    pub fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            length: 0,
            block: Vec::new(),
            levels: Vec::new(),
        }
    }

    /// Appends bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if !self.block.is_empty() {
            let (fill, rest) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(fill);
            bytes = rest;
            if self.block.len() < BLOCK {
                return;
            }
            let hash = hash(self.algorithm, &self.block, BLOCK);
            self.block.clear();
            self.push(0, &hash);
        }
        let mut blocks = bytes.chunks_exact(BLOCK);
        for block in &mut blocks {
            let hash = hash(self.algorithm, block, BLOCK);
            self.push(0, &hash);
        }
        self.block.extend_from_slice(blocks.remainder());
    }

    /// Appends zeros: in time that grows with the logarithm of their number.
    pub fn update_zeros(&mut self, count: u64) {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        let mut count = count;
        if !self.block.is_empty() {
            let fill = count.min((BLOCK - self.block.len()) as u64);
            self.update(&ZEROS[..fill as usize]);
            count -= fill;
        }
        let blocks = count / BLOCK as u64;
        if blocks > 0 {
            self.length += blocks * BLOCK as u64;
            let hash = hash(self.algorithm, &ZEROS, BLOCK);
            self.push_run(0, &hash, blocks);
        }
        self.update(&ZEROS[..(count % BLOCK as u64) as usize]);
    }

    /// Ends, and returns the digest.
    pub fn finish(mut self) -> ObjectId {
        let root = self.root();
        let mut descriptor = [0; 256];
        descriptor[0] = 1; // version
        descriptor[1] = self.algorithm.kernel_number();
        descriptor[2] = BLOCK.trailing_zeros() as u8;
        descriptor[8..16].copy_from_slice(&self.length.to_le_bytes());
        descriptor[16..16 + root.len()].copy_from_slice(&root);
        let digest = hash(self.algorithm, &descriptor, descriptor.len());
        ObjectId::from_bytes(self.algorithm, &digest).expect("the hash has its own length")
    }

    fn root(&mut self) -> Vec<u8> {
        if self.length == 0 {
            return vec![0; self.algorithm.digest_len()];
        }
        if !self.block.is_empty() {
            let hash = hash(self.algorithm, &self.block, BLOCK);
            self.push(0, &hash);
        }
        // A level with one hash and none above it is the root.
        let mut level = 0;
        loop {
            let hashes = std::mem::take(&mut self.levels[level]);
            let is_top = level + 1 == self.levels.len();
            if is_top && hashes.len() == self.algorithm.digest_len() {
                return hashes;
            }
            if !hashes.is_empty() {
                let hash = hash(self.algorithm, &hashes, BLOCK);
                self.push(level + 1, &hash);
            }
            level += 1;
        }
    }

    /// Adds a hash to a level; a block of them that is full becomes a hash of the next level.
    fn push(&mut self, level: usize, bytes: &[u8]) {
        if self.levels.len() <= level {
            debug_assert!(level < LEVELS_MAX, "a length of 64 bits needs no more");
            self.levels.push(Vec::with_capacity(BLOCK));
        }
        // A full block is hashed only when one more comes: a level of exactly one block may be the top.
        if self.levels[level].len() == BLOCK {
            let hash = hash(self.algorithm, &self.levels[level], BLOCK);
            self.levels[level].clear();
            self.push(level + 1, &hash);
        }
        self.levels[level].extend_from_slice(bytes);
    }

    /// Adds the same hash many times: whole blocks of it are hashed once, and so on above.
    fn push_run(&mut self, level: usize, hash_of_each: &[u8], count: u64) {
        let mut left = count;
        // Up to a full block, which stays until one more comes.
        while left > 0
            && self
                .levels
                .get(level)
                .is_none_or(|block| block.len() < BLOCK)
        {
            self.push(level, hash_of_each);
            left -= 1;
        }
        if left == 0 {
            return;
        }
        let per_block = (BLOCK / hash_of_each.len()) as u64;
        let blocks = (left - 1) / per_block; // the last one stays, full or not
        if blocks > 0 {
            let full = std::mem::take(&mut self.levels[level]);
            let above = hash(self.algorithm, &full, BLOCK);
            self.push(level + 1, &above);
            let same = hash(
                self.algorithm,
                &hash_of_each.repeat(per_block as usize),
                BLOCK,
            );
            self.push_run(level + 1, &same, blocks);
            left -= blocks * per_block;
        }
        for _ in 0..left {
            self.push(level, hash_of_each);
        }
    }
}

/// Computes the fs-verity digest of some bytes.
pub fn digest(algorithm: Algorithm, bytes: &[u8]) -> ObjectId {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

/// Computes the fs-verity digest of everything that a reader gives, and counts it.
pub fn digest_reader(algorithm: Algorithm, reader: &mut dyn Read) -> io::Result<(ObjectId, u64)> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; READ];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => {
                let length = hasher.length;
                return Ok((hasher.finish(), length));
            }
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A hash, as long as its algorithm has them.
#[derive(Clone, Copy)]
struct Hash {
    bytes: [u8; Algorithm::Sha512.digest_len()],
    length: usize,
}

impl std::ops::Deref for Hash {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Hashes bytes, as if zeros followed up to `length`.
fn hash(algorithm: Algorithm, bytes: &[u8], length: usize) -> Hash {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let padding = &ZEROS[..length - bytes.len()];
    let mut out = Hash {
        bytes: [0; Algorithm::Sha512.digest_len()],
        length: algorithm.digest_len(),
    };
    let place = &mut out.bytes[..out.length];
    match algorithm {
        Algorithm::Sha256 => {
            let hasher = Sha256::new().chain_update(bytes).chain_update(padding);
            place.copy_from_slice(&hasher.finalize());
        }
        Algorithm::Sha512 => {
            let hasher = Sha512::new().chain_update(bytes).chain_update(padding);
            place.copy_from_slice(&hasher.finalize());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `fsverity digest` of fsverity-utils 1.5 prints for that many bytes of `byte % 251`.
    const KNOWN: [(usize, Algorithm, &str); 16] = [
        (
            0,
            Algorithm::Sha256,
            "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95",
        ),
        (
            0,
            Algorithm::Sha512,
            "ccf9e5aea1c2a64efa2f2354a6024b90dffde6bbc017825045dce374474e13d10adb9dadcc6ca8e17a3c075fbd31336e8f266ae6fa93a6c3bed66f9e784e5abf",
        ),
        (
            1,
            Algorithm::Sha256,
            "b803429503d95915829b29fdbc8bbad142f3abfd11b1cadf5526582e685c0551",
        ),
        (
            1,
            Algorithm::Sha512,
            "9fcf5172b085b1c8f9365eecb37a1869e193a4705654a5829f11939cd01d5c0fd97276be8cd9d49f76cfc8dcfeb80f8128e3548a1de50b56912b9e3fc7bde27b",
        ),
        (
            4095,
            Algorithm::Sha256,
            "5f4953aad672b0188023d6cd6fbce9d09508eb7dad165b6298ce0086bc1e72db",
        ),
        (
            4095,
            Algorithm::Sha512,
            "1f4a9ea21af349cae1d1aa1ce4e560ce6d1e5882d8e2e7696b5afd14191f876e608444553101ba7ff16386a79c7e8739b2905ed14baf8036ebd05e6f09063b2a",
        ),
        (
            4096,
            Algorithm::Sha256,
            "13e9b8848ae484a36acb3f3cac0ceb2f7601e96633d15c92f9bd3dd44e492157",
        ),
        (
            4096,
            Algorithm::Sha512,
            "7bf994782b368ecc4e20ce9144701b1a30524d5bbc90987625de22eebc8cf370ec846c1b5e77f9099c6f6cfc0b590359b9ac8083a43e5f7fa5ec05a25dab6e03",
        ),
        (
            4097,
            Algorithm::Sha256,
            "b0d074abef4d544404facfab6ba242f6a8ccbde90f1325cd286f3c8aa8d0f8aa",
        ),
        (
            4097,
            Algorithm::Sha512,
            "97a1e45daaa69bd7b31908cf835318ba36476984ffa7f4a5913c0187db04ce5f19dc80306f493741d4ad1cdd212b7a9d2691aa3d42563d35471363fbb0fc7f1c",
        ),
        (
            524_288,
            Algorithm::Sha256,
            "d82861203d50ae9b60948504a704f35f5118bd229aeb1a22d6dae47b1767c4c4",
        ),
        (
            524_288,
            Algorithm::Sha512,
            "7b3d245f9dc3169e2f721fa32f735149ace066408e783d5d79e21f9761e2efc39fb016b0a94e0a00af41a32fa5283b189899b0f27f91d013be745709678c0278",
        ),
        (
            524_289,
            Algorithm::Sha256,
            "4dc6905041c9c4ee73e13b53f63f5d289c46da359b664a965ead7f8cc4d799d4",
        ),
        (
            524_289,
            Algorithm::Sha512,
            "60b58fe0f1e5198627ffb6be091eef60edce9b4ff6ee43884ba78a831ecdecc1572729afc5ebeb09101e3f102c9d7142ab4f66216198d85f8c7194eca7885bb2",
        ),
        (
            1_048_576,
            Algorithm::Sha256,
            "93c995656d665b81c3a87eed032fcf06a8f9cecef51e3f5e5af7fa59fef1d439",
        ),
        (
            67_108_869,
            Algorithm::Sha256,
            "9dd5b05ed52fe1bb86fa899e3e1c06df348699182f0f5994b124d0fbf6a284ea",
        ),
    ];

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|position| (position % 251) as u8).collect()
    }

    #[test]
    fn digests_equal_those_of_fsverity_utils() {
        for (length, algorithm, wanted) in KNOWN {
            assert_eq!(
                digest(algorithm, &content(length)).to_hex(),
                wanted,
                "{length}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn runs_of_zeros_are_zeros(
            runs in proptest::collection::vec((0..9_000_usize, 0..3_000_000_u64), 1..5),
            sha512: bool,
        ) {
            let algorithm = if sha512 { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let (mut whole, mut hasher) = (Vec::new(), Hasher::new(algorithm));
            for (data, zeros) in runs {
                whole.extend(content(data));
                hasher.update(&content(data));
                whole.resize(whole.len() + zeros as usize, 0);
                hasher.update_zeros(zeros);
            }
            proptest::prop_assert_eq!(hasher.finish(), digest(algorithm, &whole));
        }
    }

    #[test]
    fn long_runs_of_zeros_meet_every_boundary_of_blocks() {
        let block = BLOCK as u64;
        for blocks in [1, 127, 128, 129, 128 * 128 - 1, 128 * 128, 128 * 128 + 1] {
            for before in [0, 1, 127, 128, 129] {
                let mut hasher = Hasher::new(Algorithm::Sha256);
                hasher.update_zeros(before * block);
                hasher.update_zeros(blocks * block);
                let zeros = vec![0; ((before + blocks) * block) as usize];
                assert_eq!(
                    hasher.finish(),
                    digest(Algorithm::Sha256, &zeros),
                    "{before} + {blocks}"
                );
            }
        }
    }

    #[test]
    fn pieces_of_any_length_give_the_digest_of_the_whole() {
        let bytes = content(3 * BLOCK * 128 + 77);
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let whole = digest(algorithm, &bytes);
            for piece in [1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 100_000] {
                let mut hasher = Hasher::new(algorithm);
                bytes.chunks(piece).for_each(|piece| hasher.update(piece));
                assert_eq!(hasher.finish(), whole, "{piece}");
            }
            assert_eq!(
                digest_reader(algorithm, &mut &bytes[..]).unwrap(),
                (whole, bytes.len() as u64)
            );
        }
    }
}
