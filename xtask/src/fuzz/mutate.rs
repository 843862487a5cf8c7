//! Damage to bytes, as chance and malice do it, repeatable by a seed.

/// The largest input: enough for any header, table or small file system.
const MAX_SIZE: usize = 1 << 18;

/// Numbers that break arithmetic.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];

/// Texts that parsers of text know, or should refuse.
const TEXTS: [&[u8]; 12] = [
    b"/",
    b"..",
    b"\0",
    b"\n",
    b"=",
    b"\"",
    b"\\",
    b"-1",
    b"99999999999999999999",
    b"\xff\xfe",
    b"{",
    b"]",
];

/// Makes inputs from seeds.
#[derive(Debug)]
pub(super) struct Mutator {
    state: u64,
}

impl Mutator {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// Makes the next input: one seed, damaged in one to eight places.
    pub(super) fn next(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.choose(seeds).cloned().unwrap_or_default();
        for _ in 0..=self.below(8) {
            self.damage(&mut input, seeds);
        }
        input.truncate(MAX_SIZE);
        input
    }

    fn damage(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len());
        let length = self.below(64).min(input.len() - at);
        match self.below(10) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = self.draw() as u8,
            2 => input.truncate(at),
            3 => {
                input.drain(at..at + length);
            }
            4 => {
                let copy = input[at..at + length].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            5 | 6 => {
                let number = self.choose(&NUMBERS).copied().unwrap_or_default();
                // Off by one, now and then.
                let number = number.wrapping_add(self.below(3) as u64).wrapping_sub(1);
                let width = 1 << self.below(4);
                let bytes = number.to_le_bytes();
                for (place, byte) in input[at..].iter_mut().zip(&bytes[..width]) {
                    *place = *byte;
                }
            }
            7 => {
                let text = self.choose(&TEXTS).copied().unwrap_or_default();
                input.splice(at..at, text.iter().copied());
            }
            8 => {
                // The head of this one, the tail of another.
                let other = self.choose(seeds).cloned().unwrap_or_default();
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                // A digit more or less is where lengths written as text break.
                if let Some(digit) = input[at..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                    *digit = b'0' + self.below(10) as u8;
                }
            }
        }
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let index = self.below(from.len());
        from.get(index)
    }

    /// A number below `limit`; 0 where there is none.
    fn below(&mut self, limit: usize) -> usize {
        let limit = limit as u64;
        self.draw().checked_rem(limit).unwrap_or(0) as usize
    }

    /// Xorshift: no randomness is wanted, only variety.
    fn draw(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let seeds = vec![b"a=1\nb=22\n".to_vec(), vec![0; 600], Vec::new()];
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..500).map(|_| mutator.next(&seeds)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }
}
