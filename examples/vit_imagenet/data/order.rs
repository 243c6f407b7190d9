//! The order in which an epoch shows its images.

use super::draws::{rng, Purpose};
use anyhow::{ensure, Result};
use rand::Rng;

/// The numbers below `n` in random order (Fisher-Yates; u32 draws, which are the same on 32- and 64-bit platforms).
pub fn permutation(n: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..=i as u32) as usize);
    }
    order
}

/// How an order is cut in batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    pub size: usize,
    /// Leaves out the images that no longer fill a batch, as PyTorch's `DataLoader` does with `drop_last`.
    pub drop_last: bool,
    /// What is loaded of each batch.
    pub part: Part,
}

/// A rank's part of what several share: every one of `of`, from `rank`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub rank: usize,
    pub of: usize,
}

impl Part {
    /// Where there is one rank.
    pub const ALL: Self = Self { rank: 0, of: 1 };

    /// Those of `all` that are in it. Of a batch of an epoch's order they are what PyTorch's `DistributedSampler` and, with
    /// repeats, DeiT's `RASampler` give this rank, in whatever epoch and wherever the run began.
    pub fn take<T>(self, all: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
        all.into_iter().skip(self.rank).step_by(self.of)
    }
}

impl Batching {
    /// How many batches so many images make.
    pub fn count(self, images: usize) -> usize {
        if self.drop_last {
            images / self.size
        } else {
            images.div_ceil(self.size)
        }
    }
}

/// `order` in batches for training. The last may be smaller, unless it is dropped, but is not a single image where another
/// could spare one: batch norm of one image whose map is a single pixel has no variance to divide by.
pub fn training_batches<T: Copy>(order: &[T], batching: Batching) -> Vec<Vec<T>> {
    if batching.drop_last {
        return order.chunks_exact(batching.size).map(<[T]>::to_vec).collect();
    }
    let mut batches: Vec<Vec<T>> = order.chunks(batching.size).map(<[T]>::to_vec).collect();
    if let [.., before, last] = &mut batches[..] {
        if last.len() == 1 && before.len() > 2 {
            last.splice(0..0, before.pop());
        }
    }
    batches
}

/// How many images an epoch of `images` shows when each it shows appears `repeats` times: as many as ever, but in whole
/// 256s, as DeiT's sampler for repeated augmentation rounds (which here leaves fewer than that alone).
pub fn repeated_len(images: usize, repeats: usize) -> usize {
    const WHOLE: usize = 256;
    match repeats {
        ..=1 => images,
        _ if images < WHOLE => images,
        _ => images / WHOLE * WHOLE,
    }
}

/// `order` with each index `repeats` times in a row, numbered, as far as the epoch goes. E. Hoffer et al., "Augment your
/// batch", 2020; DeiT (arXiv 2012.12877) shows a third of the images three times.
pub fn repeated(order: &[usize], repeats: usize) -> Vec<(usize, usize)> {
    let each = order
        .iter()
        .flat_map(|&index| (0..repeats.max(1)).map(move |repeat| (index, repeat)));
    each.take(repeated_len(order.len(), repeats)).collect()
}

/// Which of a data set's training images are trained on, and which are held out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Portion {
    /// All that are not held out, if `None`.
    pub train_size: Option<usize>,
    /// Held out to be evaluated on, in the place of the test images.
    pub validation: usize,
    /// Draws both. Where `train_size` is given, the images that are trained on do not depend on how many are held out.
    pub seed: u64,
}

impl Portion {
    /// Whether every image is trained on.
    pub fn is_all(self) -> bool {
        self.train_size.is_none() && self.validation == 0
    }

    /// Those of the numbers below `pool` that are trained on, and those that are held out: sorted, and none in both.
    pub fn of(self, pool: usize) -> Result<(Vec<usize>, Vec<usize>)> {
        let Self { validation, .. } = self;
        ensure!(
            validation < pool,
            "--validation is {validation}, but must be below {pool}, the number of training images"
        );
        let (n, most) = (self.train_size.unwrap_or(pool - validation), pool - validation);
        let held_out = if validation == 0 { "" } else { " that are not held out" };
        ensure!(
            (1..=most).contains(&n),
            "--train-size is {n}, but must be at least 1 and at most {most}, the number of training images{held_out}"
        );
        let mut train = permutation(pool, &mut rng(self.seed, 0, 0, Purpose::Subset));
        let mut held_out = train.split_off(n);
        held_out.truncate(validation);
        train.sort_unstable();
        held_out.sort_unstable();
        Ok((train, held_out))
    }
}

#[cfg(test)]
impl Batching {
    /// Batches, the last of which may be smaller.
    pub fn all(size: usize) -> Self {
        Self {
            size,
            drop_last: false,
            part: Part::ALL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use masksub::train::replicas::Replicas;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn permutation_holds_every_number_once() {
        let mut order = permutation(1000, &mut rng(1, 2, 0, Purpose::Order));
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
        assert!(permutation(0, &mut rng(1, 2, 0, Purpose::Order)).is_empty());
    }

    // The sampler's rule, worked by hand: 600 images give 512 places, of which 170 images take three and one takes two.
    #[test]
    fn repeated_augmentation_shows_a_third_of_the_images_three_times() {
        let order = permutation(600, &mut rng(1, 2, 0, Purpose::Order));
        let shown = repeated(&order, 3);
        assert_eq!(shown.len(), 512);
        for (i, &(index, repeat)) in shown.iter().enumerate() {
            assert_eq!((index, repeat), (order[i / 3], i % 3));
        }
        assert_eq!(repeated(&order, 1), order.iter().map(|&i| (i, 0)).collect::<Vec<_>>());
        assert_eq!(repeated(&[7, 3, 9, 4], 3), [(7, 0), (7, 1), (7, 2), (3, 0)]);
        assert_eq!(
            [0, 255, 256, 511, 512, 1_281_167].map(|n| repeated_len(n, 3)),
            [0, 255, 256, 256, 512, 1_281_024]
        );
    }

    // Each of the 6 orders of 3 numbers: 1000 expected, standard deviation 29.
    #[test]
    fn permutations_are_equally_likely() {
        let mut count = std::collections::HashMap::new();
        for epoch in 0..6000 {
            *count
                .entry(permutation(3, &mut rng(0, epoch, 0, Purpose::Order)))
                .or_insert(0) += 1;
        }
        assert_eq!(count.len(), 6);
        assert!(count.values().all(|&n| (850..1150).contains(&n)), "{count:?}");
    }

    #[test]
    fn a_single_image_gets_company_from_the_batch_before() {
        let sizes = |images: usize, batch_size| {
            let order: Vec<usize> = (0..images).rev().collect();
            let batching = Batching::all(batch_size);
            let batches = training_batches(&order, batching);
            assert_eq!(batches.concat(), order);
            // As many steps as the schedule counts.
            assert_eq!(batches.len(), batching.count(images));
            batches.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(65, 64), [63, 2]);
        assert_eq!(sizes(129, 64), [64, 63, 2]);
        assert_eq!(sizes(66, 64), [64, 2]);
        assert_eq!(sizes(64, 64), [64]);
        assert_eq!(sizes(7, 3), [3, 2, 2]);
        // There is no other image, or none can be spared.
        assert_eq!(sizes(1, 64), [1]);
        assert_eq!(sizes(5, 2), [2, 2, 1]);
        assert_eq!(sizes(3, 1), [1, 1, 1]);
        assert!(sizes(0, 64).is_empty());
    }

    #[test]
    fn an_incomplete_batch_can_be_dropped() {
        let order: Vec<usize> = (0..10).collect();
        for (size, whole) in [(3, 9), (4, 8), (5, 10), (10, 10), (11, 0)] {
            let batching = Batching {
                drop_last: true,
                ..Batching::all(size)
            };
            let batches = training_batches(&order, batching);
            assert_eq!(batches.concat(), order[..whole]);
            assert!(batches.iter().all(|batch| batch.len() == size));
            assert_eq!(batches.len(), batching.count(10));
        }
    }

    proptest! {
        // DeiT's RASampler: copies stand side by side, and go to replicas side by side.
        #[test]
        fn copies_of_an_image_never_meet_in_one_replicas_batch(
            images in 1usize..700,
            repeats in 1usize..5,
            more in 0usize..4,
            share in 1usize..6,
            seed in 0u64..1000,
        ) {
            let replicas = Replicas::new(repeats + more).unwrap();
            let size = share * replicas.count();
            let order = permutation(images, &mut rng(seed, 0, 0, Purpose::Order));
            let shown = repeated(&order, repeats);
            for batch in training_batches(&shown, Batching { drop_last: true, ..Batching::all(size) }) {
                for replica in 0..replicas.count() {
                    let of_replica = replicas.positions(replica, size).unwrap();
                    let indices: Vec<usize> = of_replica.map(|place| batch[place].0).collect();
                    let different: HashSet<&usize> = indices.iter().collect();
                    prop_assert_eq!(different.len(), share);
                    prop_assert_eq!(indices.len(), share);
                }
            }
        }
    }

    proptest! {
        // torch.utils.data.DistributedSampler's and, where images are repeated, DeiT's RASampler's `indices[rank::ranks]`,
        // batch by batch; and wherever the run is taken up again, on however many ranks, no place is lost or shown twice.
        #[test]
        fn parts_are_every_gth_place_and_all_of_them_together(
            images in 1usize..200,
            repeats in 1usize..4,
            ranks in 1usize..5,
            others in 1usize..5,
            done in 0usize..4,
            seed in 0u64..1000,
        ) {
            let order = permutation(images, &mut rng(seed, 0, 0, Purpose::Order));
            let shown = repeated(&order, repeats);
            let batching = Batching { drop_last: true, ..Batching::all(12 * ranks * others) };
            let batches = training_batches(&shown, batching);
            let part = |rank, of, batch: &Vec<(usize, usize)>| Part { rank, of }.take(batch.clone()).collect::<Vec<_>>();
            let whole = batches.concat();
            for rank in 0..ranks {
                let ours: Vec<_> = batches.iter().flat_map(|batch| part(rank, ranks, batch)).collect();
                let sampler: Vec<_> = whole.iter().copied().skip(rank).step_by(ranks).collect();
                prop_assert_eq!(ours, sampler);
            }
            let done = done.min(batches.len());
            let mut seen: Vec<_> = batches[..done].iter().flat_map(|batch| (0..ranks).flat_map(|rank| part(rank, ranks, batch))).collect();
            let rest: Vec<_> = shown.iter().copied().skip(done * batching.size).collect();
            for batch in training_batches(&rest, batching) {
                seen.extend((0..others).flat_map(|rank| part(rank, others, &batch)));
            }
            let mut whole = whole;
            seen.sort_unstable();
            whole.sort_unstable();
            prop_assert_eq!(seen, whole);
        }
    }

    // With fewer replicas than copies they do, as in the sources.
    #[test]
    fn copies_meet_where_replicas_are_fewer() {
        let shown = repeated(&[7, 3, 9, 4, 5, 6], 3);
        let of_first = Replicas::new(2).unwrap().positions(0, 6).unwrap();
        let indices: Vec<usize> = of_first.map(|place| shown[place].0).collect();
        assert_eq!(indices, [7, 7, 3]);
    }

    #[test]
    fn a_portion_is_sorted_distinct_and_of_the_asked_size() {
        let portion = |train_size, validation, seed| Portion {
            train_size,
            validation,
            seed,
        };
        let (train, none) = portion(Some(300), 0, 7).of(1200).unwrap();
        assert_eq!((train.len(), none.len()), (300, 0));
        assert!(train.windows(2).all(|pair| pair[0] < pair[1]) && train[299] < 1200);
        assert_ne!(train, portion(Some(300), 0, 8).of(1200).unwrap().0);
        assert_eq!(portion(None, 0, 0).of(5).unwrap().0, [0, 1, 2, 3, 4]);
        // What is held out is trained on by nobody, and takes nothing from those who are.
        let (same, held_out) = portion(Some(300), 200, 7).of(1200).unwrap();
        assert_eq!((&same, held_out.len()), (&train, 200));
        assert!(held_out.iter().all(|i| train.binary_search(i).is_err()));
        let (rest, held_out) = portion(None, 200, 7).of(1200).unwrap();
        let both: HashSet<_> = rest.iter().chain(&held_out).collect();
        assert_eq!((rest.len(), both.len()), (1000, 1200));

        let error = |portion: Portion| portion.of(1200).unwrap_err().to_string();
        assert_eq!(
            error(portion(Some(1201), 0, 0)),
            "--train-size is 1201, but must be at least 1 and at most 1200, the number of training images"
        );
        assert_eq!(
            error(portion(Some(1001), 200, 0)),
            "--train-size is 1001, but must be at least 1 and at most 1000, the number of training images that are not held out"
        );
        assert!(error(portion(None, 1200, 0)).starts_with("--validation is 1200, but must be below 1200"));
        assert!(portion(Some(0), 0, 0).of(10).is_err());
    }
}
