//! How many blocks to ask an endpoint about with one message: found by trying, not assumed.

use std::time::{Duration, Instant};

/// Target size of an answer about several blocks, not to be exceeded by much.
const AIM_BYTES: usize = 1 << 20;
/// After a refusal of even two blocks, how long to ask for one block at a time.
const AGAIN: Duration = Duration::from_secs(60);

/// The number of blocks. It doubles until the first refusal; each refusal halves it, or sets it to
/// what the provider suggests; after that it grows by one block at a time. The size of the last
/// answers limits it, too.
#[derive(Debug)]
pub(super) struct BatchSize {
    most: usize,
    blocks: usize,
    refused: Option<Instant>,
    bytes_per_block: usize,
}

impl BatchSize {
    /// Starts at `first` blocks and never exceeds `most`.
    pub(super) fn new(first: usize, most: usize) -> Self {
        Self { most, blocks: first, refused: None, bytes_per_block: 0 }
    }

    /// How many blocks to ask about now; 1 means block by block.
    pub(super) fn blocks(&self, now: Instant) -> usize {
        let again = self.refused.is_some_and(|at| now.duration_since(at) > AGAIN);
        let blocks = if again { self.blocks.max(2) } else { self.blocks };
        let fitting = AIM_BYTES / self.bytes_per_block.max(1);
        blocks.min(fitting).clamp(1, self.most)
    }

    /// An answer about `blocks` blocks arrived, of `bytes` bytes.
    pub(super) fn took(&mut self, blocks: usize, bytes: usize) {
        let weight = bytes / blocks.max(1);
        // Rises at once and falls slowly: one small answer proves little.
        self.bytes_per_block = weight.max((7 * self.bytes_per_block + weight) / 8);
        let alone = self.refused.is_some() && blocks == 1;
        if blocks >= self.blocks && !alone {
            let grown = if self.refused.is_some() { blocks + 1 } else { 2 * blocks };
            self.blocks = grown.min(self.most);
        }
    }

    /// A message about `blocks` blocks was too large; the provider may have suggested a number.
    pub(super) fn refused(&mut self, blocks: usize, suggested: Option<u64>, now: Instant) {
        let suggested = suggested.and_then(|most| usize::try_from(most).ok());
        let smaller = suggested.filter(|most| (1..blocks).contains(most)).unwrap_or(blocks / 2);
        self.blocks = self.blocks.min(smaller.max(1));
        self.refused = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates a request to a provider that accepts `limit` blocks.
    fn ask(size: &mut BatchSize, limit: usize, now: Instant) -> usize {
        let blocks = size.blocks(now);
        if blocks > limit {
            size.refused(blocks, None, now)
        } else {
            size.took(blocks, 10)
        }
        blocks
    }

    #[test]
    fn it_doubles_to_the_first_refusal_and_then_keeps_close_to_the_limit() {
        let (mut size, now) = (BatchSize::new(1, 128), Instant::now());
        let asked: Vec<_> = (0..9).map(|_| ask(&mut size, 50, now)).collect();
        assert_eq!(asked, [1, 2, 4, 8, 16, 32, 64, 32, 33]);
        let refusals = (0..200).filter(|_| ask(&mut size, 50, now) > 50).count();
        assert!((1..=10).contains(&refusals), "{refusals} of 200");
        let mut free = BatchSize::new(8, 128);
        let asked: Vec<_> = (0..6).map(|_| ask(&mut free, 999, now)).collect();
        assert_eq!(asked, [8, 16, 32, 64, 128, 128]);
    }

    #[test]
    fn a_provider_that_names_its_limit_is_taken_at_its_word() {
        let (mut size, now) = (BatchSize::new(64, 128), Instant::now());
        size.refused(64, Some(10), now);
        assert_eq!(size.blocks(now), 10);
        size.refused(10, Some(5_000), now);
        assert_eq!(size.blocks(now), 5, "no help: half");
        size.refused(5, Some(0), now);
        assert_eq!(size.blocks(now), 2);
    }

    #[test]
    fn a_refusal_of_two_blocks_is_believed_for_a_while() {
        let (mut size, now) = (BatchSize::new(2, 128), Instant::now());
        size.refused(2, None, now);
        size.refused(1, None, now);
        size.took(1, 10);
        assert_eq!(size.blocks(now), 1);
        assert_eq!(size.blocks(now + AGAIN), 1);
        assert_eq!(size.blocks(now + 2 * AGAIN), 2);
    }

    #[test]
    fn g7_heavy_answers_bound_it_at_once_and_light_ones_free_it_slowly() {
        let (mut size, now) = (BatchSize::new(64, 128), Instant::now());
        size.took(64, 64 * (AIM_BYTES / 4));
        assert_eq!(size.blocks(now), 4);
        size.took(4, 4 * 9 * AIM_BYTES);
        assert_eq!(size.blocks(now), 1, "a block that is too heavy by itself is asked for alone");
        size.took(1, 1_000);
        assert_eq!(size.blocks(now), 1);
        (0..60).for_each(|_| size.took(1, 1_000));
        assert!(size.blocks(now) > 32);
    }
}
