//! Damage to valid inputs: bits, numbers at limits, pieces removed, doubled, swapped with those of another input. The same seed gives
//! the same inputs. It knows no format.

use crate::MAX_INPUT;

/// splitmix64: short, and good enough to choose damage with.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        match end {
            0 => 0,
            // Fits: it is below a usize.
            _ => (self.number() % end as u64) as usize,
        }
    }
}

/// Numbers at which code that counts goes wrong.
const LIMITS: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    u64::MAX,
];

/// Most pieces of damage to one input.
const MOST_DAMAGE: usize = 6;

/// Makes damaged inputs out of a corpus.
#[derive(Debug, Clone)]
pub struct Mutator {
    corpus: Vec<Vec<u8>>,
    unit: usize,
    random: Random,
}

impl Mutator {
    /// Inputs out of `corpus`, in which `unit` bytes belong together.
    pub fn new(corpus: Vec<Vec<u8>>, unit: usize, seed: u64) -> Self {
        Mutator { corpus, unit: unit.max(1), random: Random::new(seed) }
    }

    /// The next input, at most [`MAX_INPUT`] bytes.
    pub fn next_input(&mut self) -> Vec<u8> {
        let parent = self.random.below(self.corpus.len());
        let mut input = self.corpus.get(parent).cloned().unwrap_or_default();
        for _ in 0..=self.random.below(MOST_DAMAGE) {
            self.damage(&mut input);
        }
        input.truncate(MAX_INPUT);
        input
    }

    fn damage(&mut self, input: &mut Vec<u8>) {
        let at = self.random.below(input.len());
        match self.random.below(10) {
            0 | 1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.random.below(8);
                }
            }
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.random.number() as u8;
                }
            }
            3 | 4 => self.write_limit(input, at),
            5 => {
                let piece = self.piece(input.len());
                input.drain(piece);
            }
            6 => {
                let piece = self.piece(input.len());
                let copy = input.get(piece).unwrap_or_default().to_vec();
                self.insert(input, &copy);
            }
            7 => {
                let noise: Vec<u8> = (0..self.unit).map(|_| self.random.number() as u8).collect();
                self.insert(input, &noise);
            }
            8 => {
                let other = self.random.below(self.corpus.len());
                let other = self.corpus.get(other).cloned().unwrap_or_default();
                let piece = self.piece(other.len());
                self.insert(input, other.get(piece).unwrap_or_default());
            }
            _ => {
                let end = self.piece(input.len()).start;
                input.truncate(end);
            }
        }
    }

    /// Overwrites 1, 2, 4 or 8 bytes with a number at a limit, of either byte order.
    fn write_limit(&mut self, input: &mut [u8], at: usize) {
        let len = 1 << self.random.below(4);
        let limit = LIMITS.get(self.random.below(LIMITS.len())).copied().unwrap_or_default();
        let limit = limit.wrapping_sub(self.random.below(2) as u64);
        let mut bytes = limit.to_le_bytes();
        if self.random.below(2) == 1 {
            bytes[..len].reverse();
        }
        for (to, from) in input.iter_mut().skip(at).zip(&bytes[..len]) {
            *to = *from;
        }
    }

    /// A piece of whole units out of `len` bytes, mostly a short one.
    fn piece(&mut self, len: usize) -> std::ops::Range<usize> {
        let units = len / self.unit;
        let start = self.random.below(units);
        let longest = (units - start).min(if self.random.below(8) == 0 { units } else { 8 });
        let end = start + self.random.below(longest + 1);
        start * self.unit..end * self.unit
    }

    fn insert(&mut self, input: &mut Vec<u8>, piece: &[u8]) {
        let at = self.random.below(input.len() / self.unit + 1) * self.unit;
        let room = MAX_INPUT.saturating_sub(input.len());
        input.splice(at..at, piece.iter().copied().take(room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutator(seed: u64) -> Mutator {
        Mutator::new(vec![vec![0; 64], vec![1; 256]], 8, seed)
    }

    #[test]
    fn one_seed_gives_the_same_inputs_again() {
        let (mut one, mut other) = (mutator(3), mutator(3));
        assert!((0..100).all(|_| one.next_input() == other.next_input()));
    }

    #[test]
    fn two_seeds_give_different_inputs() {
        assert_ne!(mutator(3).next_input(), mutator(4).next_input());
    }

    #[test]
    fn no_input_is_longer_than_the_limit() {
        let mut mutator = Mutator::new(vec![vec![0; MAX_INPUT]], 1, 1);
        assert!((0..1000).all(|_| mutator.next_input().len() <= MAX_INPUT));
    }

    #[test]
    fn an_empty_corpus_is_damaged_without_a_panic() {
        let mut mutator = Mutator::new(Vec::new(), 8, 1);
        assert!((0..1000).map(|_| mutator.next_input().len()).max() > Some(0));
    }
}
