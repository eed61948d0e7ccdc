// SPDX-License-Identifier: MIT OR Apache-2.0
//! Inputs made from others by chance, the same for the same number.

/// Values at which lengths and counters tend to go wrong.
const ODD: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX];
/// Changes of one input at most.
const CHANGES: u64 = 6;
/// No input is longer.
const LONGEST: usize = 16 << 10;

/// A source of inputs.
#[derive(Clone, Debug)]
pub struct Mutator {
    state: u64,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    /// A source that gives the same inputs for the same number and seeds.
    #[must_use]
    pub fn new(number: u64, seeds: Vec<Vec<u8>>) -> Self {
        Self { state: number.wrapping_mul(2).wrapping_add(1), seeds }
    }

    /// The next of a sequence that looks like chance (xorshift64*).
    fn draw(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        let drawn = self.draw() >> 16;
        usize::try_from(drawn % (limit.max(1) as u64)).unwrap_or(0)
    }

    /// The next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let which = self.below(self.seeds.len());
        let mut bytes = self.seeds.get(which).cloned().unwrap_or_default();
        for _ in 0..=self.draw() % CHANGES {
            self.change(&mut bytes);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        let end = (at + 1 + self.below(16)).min(bytes.len());
        match self.draw() % 7 {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.draw().to_le_bytes()[3],
            2 => {
                let (odd, width) = (ODD[self.below(ODD.len())], 1 << self.below(4));
                bytes.iter_mut().skip(at).zip(&odd.to_le_bytes()[..width]).for_each(|(to, from)| *to = *from);
            }
            3 => drop(bytes.drain(at.min(end)..end)),
            4 => {
                let copy = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => bytes.truncate(at),
            _ => {
                let other = self.below(self.seeds.len());
                let from = self.below(self.seeds.get(other).map_or(0, Vec::len));
                let part: Vec<u8> = self
                    .seeds
                    .get(other)
                    .into_iter()
                    .flat_map(|seed| seed.iter().skip(from).take(16))
                    .copied()
                    .collect();
                bytes.splice(at..at, part);
            }
        }
    }
}
