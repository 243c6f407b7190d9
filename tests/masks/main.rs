//! Masks: how many positions are kept, which ones, how they are drawn, and what a mask does to tensors.

#[path = "../common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, IndexOp, Tensor, Var};
use common::{bits, numbers, p_value, randn, CPU};
use masksub::{
    num_keep, BlockMasking, Error, Fill, Grid, Mask, MaskGenerator, MaskRatio, Pass, RandomMasking, Seed, StepKey,
};
use proptest::prelude::*;

fn key(step: usize) -> StepKey {
    Seed::new(11).at(step)
}

fn row_of(len: usize) -> Grid {
    Grid::new(1, len)
}

/// One-sample masks of many steps, each a sorted set of kept positions.
fn draws(generator: &dyn MaskGenerator, grid: Grid, count: usize) -> Vec<Vec<u32>> {
    let batch = 64;
    let masks = (0..count.div_ceil(batch)).map(|step| generator.generate(batch, grid, key(step)).unwrap());
    let rows = masks.flat_map(|mask| mask.rows().map(<[u32]>::to_vec).collect::<Vec<_>>());
    rows.take(count).collect()
}

mod count {
    use super::*;

    #[test]
    fn keeps_what_rounding_would_lose() {
        for (len, ratio, kept) in [
            (10, 0.9, 1),
            (100, 0.9, 10),
            (49, 0.5, 24),
            (196, 0.5, 98),
            (196, 0.75, 49),
            (1, 0.99, 1),
            (7, 0., 7),
            (2, 0.999999, 1),
            (1000, 0.7, 300),
        ] {
            let mask = RandomMasking::new(ratio)
                .unwrap()
                .generate(3, row_of(len), key(0))
                .unwrap();
            assert_eq!((mask.batch(), mask.num_keep()), (3, kept), "L = {len}, r = {ratio}");
        }
    }

    proptest! {
        /// A ratio of whole numbers p / q, counted without a floating-point number.
        #[test]
        fn is_the_floor_of_the_kept_share(len in 1usize..3000, q in 1u64..1000, p in 0u64..1000) {
            let p = p % q;
            let exact = (len as u64 * (q - p) / q).max(1) as usize;
            prop_assert_eq!(num_keep(len, p as f64 / q as f64).unwrap(), exact);
        }

        #[test]
        fn holds_for_every_sample(
            height in 1usize..20, width in 1usize..20, batch in 1usize..5, ratio in 0f64..1., step in 0usize..1000
        ) {
            let grid = Grid::new(height, width);
            let mask = RandomMasking::new(ratio).unwrap().generate(batch, grid, key(step)).unwrap();
            prop_assert_eq!(mask.num_keep(), num_keep(grid.len(), ratio).unwrap());
            prop_assert_eq!(mask.rows().len(), batch);
            for row in mask.rows() {
                prop_assert_eq!(row.len(), mask.num_keep());
                prop_assert!(row.windows(2).all(|pair| pair[0] < pair[1]), "not ascending: {:?}", row);
                prop_assert!(row.iter().all(|&at| (at as usize) < grid.len()));
            }
        }
    }
}

mod distribution {
    use super::*;

    /// A p-value that neither an uneven nor a suspiciously even distribution has.
    fn assert_plausible(p: f64, what: &str) {
        assert!((1e-4..=1. - 1e-4).contains(&p), "{what}: p = {p:.2e}");
    }

    #[test]
    fn every_position_is_as_likely() {
        let samples = 20_000;
        for (len, ratio) in [(16, 0.25), (16, 0.5), (49, 0.6), (49, 0.75), (10, 0.9), (196, 0.5)] {
            let mut counts = vec![0f64; len];
            let rows = draws(&RandomMasking::new(ratio).unwrap(), row_of(len), samples);
            rows.iter().flatten().for_each(|&at| counts[at as usize] += 1.);
            let share = num_keep(len, ratio).unwrap() as f64 / len as f64;
            let expected = samples as f64 * share;
            let squares: f64 = counts.iter().map(|count| (count - expected).powi(2)).sum();
            // K of L without replacement: counts covary by -1 / (L - 1) of their variance, which (L - 1) / L undoes.
            let (l, variance) = (len as f64, expected * (1. - share));
            let statistic = (l - 1.) / l * squares / variance;
            assert_plausible(p_value(statistic, len - 1), &format!("L = {len}, r = {ratio}"));
        }
    }

    #[test]
    fn every_pair_is_kept_together_as_often() {
        let (len, samples) = (12usize, 20_000);
        for ratio in [0.25, 0.5, 0.75] {
            let kept = num_keep(len, ratio).unwrap() as f64;
            let together = kept * (kept - 1.) / (len * (len - 1)) as f64;
            let mut counts = BTreeMap::new();
            for row in draws(&RandomMasking::new(ratio).unwrap(), row_of(len), samples) {
                for (i, &a) in row.iter().enumerate() {
                    row[i + 1..]
                        .iter()
                        .for_each(|&b| *counts.entry((a, b)).or_insert(0f64) += 1.);
                }
            }
            let (mean, deviation) = (
                samples as f64 * together,
                (samples as f64 * together * (1. - together)).sqrt(),
            );
            for a in 0..len as u32 {
                for b in a + 1..len as u32 {
                    let z = (counts.get(&(a, b)).copied().unwrap_or(0.) - mean) / deviation;
                    assert!(z.abs() < 4.5, "r = {ratio}, positions {a} and {b}: z = {z:.1}");
                }
            }
        }
    }

    #[test]
    fn every_set_is_as_likely() {
        let samples = 20_000;
        // 6 choose 4, 3, 2 and 1.
        for (ratio, sets) in [(0.3, 15), (0.5, 20), (0.66, 15), (0.8, 6)] {
            let mut counts = BTreeMap::new();
            for row in draws(&RandomMasking::new(ratio).unwrap(), row_of(6), samples) {
                *counts.entry(row).or_insert(0f64) += 1.;
            }
            assert_eq!(counts.len(), sets, "r = {ratio}");
            let expected = samples as f64 / sets as f64;
            let statistic = counts.values().map(|count| (count - expected).powi(2) / expected).sum();
            assert_plausible(p_value(statistic, sets - 1), &format!("r = {ratio}"));
        }
    }

    /// Overlaps of independent draws follow the hypergeometric distribution.
    fn assert_independent(pairs: impl Iterator<Item = (Vec<u32>, Vec<u32>)>, what: &str) {
        let (len, kept) = (8u64, 4u64);
        let choose = |n: u64, k: u64| (0..k).map(|i| (n - i) as f64 / (i + 1) as f64).product::<f64>();
        let mut counts = [0f64; 5];
        for (a, b) in pairs {
            let (a, b) = (BTreeSet::from_iter(a), BTreeSet::from_iter(b));
            counts[a.intersection(&b).count()] += 1.;
        }
        let total: f64 = counts.iter().sum();
        let statistic = (0..=kept).zip(counts).map(|(overlap, count)| {
            let chance = choose(kept, overlap) * choose(len - kept, kept - overlap) / choose(len, kept);
            (count - total * chance).powi(2) / (total * chance)
        });
        assert_plausible(p_value(statistic.sum(), 4), what);
    }

    #[test]
    fn samples_and_steps_are_independent() {
        let masking = RandomMasking::new(0.5).unwrap();
        let masks: Vec<Vec<Vec<u32>>> = (0..8000)
            .map(|step| {
                let mask = masking.generate(2, Grid::new(2, 4), key(step)).unwrap();
                mask.rows().map(<[u32]>::to_vec).collect()
            })
            .collect();
        let samples = masks.iter().map(|mask| (mask[0].clone(), mask[1].clone()));
        assert_independent(samples, "two samples of a batch");
        let steps = masks.chunks(2).map(|masks| (masks[0][0].clone(), masks[1][0].clone()));
        assert_independent(steps, "two steps of a sample");
        let of_seed = |seed| -> Vec<u32> {
            let mask = masking.generate(1, Grid::new(2, 4), Seed::new(seed).at(0)).unwrap();
            let rows: Vec<&[u32]> = mask.rows().collect();
            rows[0].to_vec()
        };
        let seeds = (0..8000).map(|seed| (of_seed(2 * seed), of_seed(2 * seed + 1)));
        assert_independent(seeds, "two seeds");
    }
}

mod blocks {
    use super::*;

    #[test]
    fn are_kept_or_dropped_as_a_whole() {
        for (height, width, block, ratio) in [(8, 12, 2, 0.5), (6, 3, 3, 0.5), (12, 4, 4, 0.7), (5, 7, 1, 0.3)] {
            let grid = Grid::new(height, width);
            let mask = BlockMasking::new(ratio, block)
                .unwrap()
                .generate(5, grid, key(3))
                .unwrap();
            let blocks = (height / block) * (width / block);
            assert_eq!(mask.num_keep(), num_keep(blocks, ratio).unwrap() * block * block);
            assert_eq!(mask.grid(), grid);
            for row in mask.rows() {
                let mut per_block = BTreeMap::new();
                for &at in row {
                    let (y, x) = (at as usize / width, at as usize % width);
                    *per_block.entry((y / block, x / block)).or_insert(0) += 1;
                }
                assert!(per_block.values().all(|&count| count == block * block), "{per_block:?}");
                assert_eq!(per_block.len(), num_keep(blocks, ratio).unwrap());
            }
        }
    }

    #[test]
    fn are_as_likely_as_each_other() {
        let mut counts = BTreeMap::new();
        let samples = 6000;
        for row in draws(&BlockMasking::new(0.5, 2).unwrap(), Grid::new(4, 6), samples) {
            *counts.entry(row).or_insert(0f64) += 1.;
        }
        // 6 blocks, 3 kept.
        assert_eq!(counts.len(), 20);
        let expected = samples as f64 / 20.;
        let statistic = counts.values().map(|count| (count - expected).powi(2) / expected).sum();
        assert!(p_value(statistic, 19) > 1e-4);
    }

    #[test]
    fn that_do_not_tile_the_grid_are_refused() {
        for (grid, block) in [
            (Grid::new(8, 7), 2),
            (Grid::new(9, 8), 4),
            (Grid::new(2, 2), 3),
            (Grid::new(0, 4), 2),
        ] {
            let error = BlockMasking::new(0.5, block)
                .unwrap()
                .generate(1, grid, key(0))
                .unwrap_err();
            let error = Error::from(error);
            assert!(
                matches!(error, Error::InvalidArgument { argument: "block", .. }),
                "{error}"
            );
            assert!(error.to_string().contains(&grid.to_string()), "{error}");
        }
    }
}

mod ratio {
    use super::*;
    use rand_distr::Uniform;

    fn drawn(low: f64, high: f64) -> MaskRatio {
        MaskRatio::drawn(Uniform::new(low, high).unwrap())
    }

    #[test]
    fn is_drawn_once_per_step_for_all_samples() {
        let masking = RandomMasking::with_ratio(drawn(0.2, 0.8));
        let keeps = |step: usize| masking.generate(6, row_of(100), key(step)).unwrap().num_keep();
        let of_steps: BTreeSet<usize> = (0..200).map(keeps).collect();
        assert!(of_steps.len() > 30, "ratios hardly change: {of_steps:?}");
        assert!(of_steps.iter().all(|kept| (20..=80).contains(kept)), "{of_steps:?}");
        for step in 0..20 {
            // The same when asked again, and in every micro-batch.
            let micro = masking
                .generate(2, row_of(100), key(step).with_first_sample(4))
                .unwrap();
            assert_eq!(micro.num_keep(), keeps(step));
        }
    }

    #[test]
    fn follows_its_distribution() {
        let ratio = drawn(0.2, 0.6);
        let mut bins = [0f64; 8];
        for step in 0..4000 {
            bins[((ratio.at(key(step)).unwrap() - 0.2) / 0.05) as usize] += 1.;
        }
        let statistic = bins.iter().map(|count| (count - 500f64).powi(2) / 500.).sum();
        assert!(p_value(statistic, 7) > 1e-4, "{bins:?}");
    }

    #[test]
    fn outside_its_range_is_an_error_of_that_step() {
        for (low, high) in [(1., 2.), (-2., -1.), (1., 1.0000001)] {
            let error = RandomMasking::with_ratio(drawn(low, high))
                .generate(1, row_of(4), key(0))
                .unwrap_err();
            let error = Error::from(error);
            assert!(
                matches!(
                    error,
                    Error::InvalidArgument {
                        argument: "mask_ratio",
                        ..
                    }
                ),
                "{error}"
            );
            assert!(error.to_string().contains("at least 0 and below 1"), "{error}");
        }
        let nan = MaskRatio::drawn(rand_distr::Normal::new(0.5, f64::MAX).unwrap().map(|_| f64::NAN));
        assert!(nan.at(key(0)).unwrap_err().to_string().contains("NaN"));
        // Some steps are fine and others are not.
        let sometimes = drawn(0.5, 1.5);
        let fine = (0..100).filter(|&step| sometimes.at(key(step)).is_ok()).count();
        assert!((20..80).contains(&fine), "{fine}");
    }

    use rand_distr::Distribution;
}

#[test]
fn generators_are_objects() {
    let generators: [Box<dyn MaskGenerator>; 2] = [
        Box::new(RandomMasking::new(0.5).unwrap()),
        Box::new(BlockMasking::new(0.5, 2).unwrap()),
    ];
    for generator in generators {
        // `Box<dyn MaskGenerator>` is a generator itself.
        fn through<G: MaskGenerator>(generator: G) -> Mask {
            generator.generate(2, Grid::new(4, 4), key(1)).unwrap()
        }
        let direct = generator.generate(2, Grid::new(4, 4), key(1)).unwrap();
        assert_eq!(through(generator), direct);
    }
}

// Recorded on x86-64 Linux: any platform and any release must draw the same masks.
#[test]
fn masks_are_portable() {
    let rows = |mask: Mask| mask.rows().map(<[u32]>::to_vec).collect::<Vec<_>>();
    let key = Seed::new(2306).at(11339);
    let kept = RandomMasking::new(0.75)
        .unwrap()
        .generate(2, Grid::new(4, 4), key)
        .unwrap();
    let dropped = RandomMasking::new(0.25)
        .unwrap()
        .generate(2, Grid::new(3, 4), key)
        .unwrap();
    let blocks = BlockMasking::new(0.5, 2)
        .unwrap()
        .generate(1, Grid::new(4, 4), key)
        .unwrap();
    let drawn = MaskRatio::drawn(rand_distr::Uniform::new(0., 1.).unwrap());
    assert_eq!(rows(kept), [[5, 8, 14, 15], [0, 5, 8, 13]]);
    assert_eq!(
        rows(dropped),
        [[0, 1, 2, 3, 5, 7, 8, 9, 10], [1, 2, 3, 4, 5, 7, 8, 9, 11]]
    );
    assert_eq!(rows(blocks), [[2, 3, 6, 7, 10, 11, 14, 15]]);
    assert_eq!(drawn.at(key).unwrap(), 0.35670143185428316);
}

mod micro_batches {
    use super::*;

    #[test]
    fn keep_what_the_whole_batch_keeps() {
        let generators: [&dyn MaskGenerator; 3] = [
            &RandomMasking::new(0.6).unwrap(),
            &BlockMasking::new(0.5, 2).unwrap(),
            &RandomMasking::with_ratio(MaskRatio::drawn(rand_distr::Uniform::new(0.2, 0.8).unwrap())),
        ];
        for generator in generators {
            let grid = Grid::new(4, 6);
            let whole = generator.generate(8, grid, key(5)).unwrap();
            let halves = [0, 4].map(|first| generator.generate(4, grid, key(5).with_first_sample(first)).unwrap());
            let rows: Vec<&[u32]> = halves.iter().flat_map(Mask::rows).collect();
            assert_eq!(rows, whole.rows().collect::<Vec<_>>());
            assert_ne!(halves[0], halves[1]);
        }
    }

    /// What `draw` makes of samples 0..8 at once, and of 0..3 and 3..8.
    fn assert_same(draw: impl Fn(&Tensor, StepKey) -> Tensor, xs: &Tensor) {
        let whole = draw(xs, key(2));
        let parts = [(0, 3), (3, 5)]
            .map(|(first, count)| draw(&xs.narrow(0, first, count).unwrap(), key(2).with_first_sample(first)));
        assert_eq!(bits(&Tensor::cat(&parts, 0).unwrap()), bits(&whole));
        assert_ne!(bits(&whole), bits(xs));
    }

    #[test]
    fn fill_and_drop_what_the_whole_batch_does() {
        let images = randn((8, 2, 4, 4), "micro-batches");
        let masking = RandomMasking::new(0.5).unwrap();
        let noise = |xs: &Tensor, key| {
            let mask = masking.generate(xs.dim(0).unwrap(), Grid::new(2, 2), key).unwrap();
            mask.fill(xs, &Fill::Noise, key).unwrap()
        };
        assert_same(noise, &images);
        // The second site of each, in main and sub pass.
        for start in [Pass::train, Pass::train_sub] {
            let dropout = |xs: &Tensor, key| {
                let mut pass = start(key);
                pass.dropout(xs, 0.5).unwrap();
                pass.dropout(xs, 0.5).unwrap()
            };
            assert_same(dropout, &images);
            let drop_path = |xs: &Tensor, key| {
                let mut pass = start(key);
                pass.drop_path(xs, 0.5).unwrap();
                pass.drop_path(xs, 0.5).unwrap()
            };
            assert_same(drop_path, &images);
        }
    }
}

/// A mask of `batch` samples on `grid`, which the tests below take as given.
fn some_mask(batch: usize, grid: Grid, ratio: f64) -> Mask {
    RandomMasking::new(ratio)
        .unwrap()
        .generate(batch, grid, key(7))
        .unwrap()
}

mod from_noise {
    use super::*;

    /// Picks the smallest `num_keep` times, the leftmost of equal ones.
    fn selection(noise: &[f32], num_keep: usize) -> Vec<u32> {
        let mut left: Vec<(usize, f32)> = noise.iter().copied().enumerate().collect();
        let mut picked = vec![];
        for _ in 0..num_keep {
            let mut best = 0;
            for candidate in 1..left.len() {
                if left[candidate].1 < left[best].1 {
                    best = candidate;
                }
            }
            picked.push(left.remove(best).0 as u32);
        }
        picked
    }

    proptest! {
        /// Noise of few values, so that there are ties everywhere.
        #[test]
        fn keeps_the_smallest_and_of_equal_ones_the_lower_position(
            noise in proptest::collection::vec(proptest::collection::vec(0u8..6, 12), 1..4), num_keep in 1usize..=12
        ) {
            let noise: Vec<Vec<f32>> = noise.iter().map(|row| row.iter().map(|&n| n as f32 / 4. - 0.5).collect()).collect();
            let tensor = Tensor::new(noise.clone(), &CPU).unwrap();
            let mask = Mask::from_noise(Grid::new(3, 4), &tensor, num_keep).unwrap();
            for (row, noise) in mask.rows().zip(&noise) {
                prop_assert_eq!(row, &selection(noise, num_keep)[..]);
            }
        }
    }

    #[test]
    fn orders_zeros_infinities_and_other_dtypes() {
        let grid = row_of(5);
        let noise = Tensor::new(&[[0f32, -0., f32::INFINITY, f32::NEG_INFINITY, -1.]], &CPU).unwrap();
        let mask = Mask::from_noise(grid, &noise, 5).unwrap();
        // 0 and -0 are equal, so the lower position comes first.
        assert_eq!(mask.rows().next().unwrap(), [3, 4, 0, 1, 2]);
        for dtype in [DType::F64, DType::BF16, DType::F16, DType::U8, DType::I64] {
            let noise = Tensor::new(&[[3f32, 1., 4., 1., 5.]], &CPU)
                .unwrap()
                .to_dtype(dtype)
                .unwrap();
            let mask = Mask::from_noise(grid, &noise, 3).unwrap();
            assert_eq!(mask.rows().next().unwrap(), [1, 3, 0], "{dtype:?}");
        }
    }
}

mod views {
    use super::*;

    #[test]
    fn kept_and_dropped_positions_are_a_partition() {
        for ratio in [0., 0.3, 0.5, 0.9] {
            let mask = some_mask(3, Grid::new(4, 5), ratio);
            let kept = mask.keep_indices(&CPU).unwrap();
            let dropped = mask.dropped_indices(&CPU).unwrap();
            assert_eq!(kept.dims(), [3, mask.num_keep()]);
            assert_eq!(dropped.dims(), [3, 20 - mask.num_keep()]);
            assert_eq!((kept.dtype(), dropped.dtype()), (DType::U32, DType::U32));
            for sample in 0..3 {
                let kept = kept.i(sample).unwrap().to_vec1::<u32>().unwrap();
                let dropped = dropped.i(sample).unwrap().to_vec1::<u32>().unwrap();
                assert!(dropped.windows(2).all(|pair| pair[0] < pair[1]));
                let mut all = [kept, dropped].concat();
                all.sort_unstable();
                assert_eq!(all, (0..20).collect::<Vec<u32>>());
            }
        }
    }

    #[test]
    fn keep_indices_stay_in_the_order_given() {
        let mask = Mask::from_keep_indices(Grid::new(2, 3), &[[4, 0], [1, 5]]).unwrap();
        assert_eq!(
            mask.keep_indices(&CPU).unwrap().to_vec2::<u32>().unwrap(),
            [[4, 0], [1, 5]]
        );
    }

    #[test]
    fn dense_is_one_where_kept() {
        let mask = Mask::from_keep_indices(Grid::new(2, 2), &[[3, 0], [2, 1]]).unwrap();
        for dtype in [DType::U8, DType::U32, DType::F32, DType::BF16, DType::F64] {
            let dense = mask.to_dense(dtype, &CPU).unwrap();
            assert_eq!(dense.dtype(), dtype);
            assert_eq!(numbers(&dense), [1., 0., 0., 1., 0., 1., 1., 0.]);
        }
    }

    #[test]
    fn upsampling_repeats_positions_as_blocks() {
        let mask = some_mask(2, Grid::new(2, 3), 0.5);
        for factor in [1, 2, 3] {
            let fine = mask.upsample(factor).unwrap();
            assert_eq!(fine.grid(), Grid::new(2 * factor, 3 * factor));
            let coarse = mask.to_dense(DType::F32, &CPU).unwrap().reshape((2, 2, 3)).unwrap();
            let dense = fine.to_dense(DType::F32, &CPU).unwrap();
            let dense = dense.reshape((2, 2 * factor, 3 * factor)).unwrap();
            let (coarse, dense) = (coarse.to_vec3::<f32>().unwrap(), dense.to_vec3::<f32>().unwrap());
            for (sample, rows) in dense.iter().enumerate() {
                for (y, row) in rows.iter().enumerate() {
                    for (x, &kept) in row.iter().enumerate() {
                        assert_eq!(kept, coarse[sample][y / factor][x / factor]);
                    }
                }
            }
        }
        let error = mask.upsample(0).unwrap_err();
        assert!(
            matches!(error, Error::InvalidArgument { argument: "factor", .. }),
            "{error}"
        );
    }
}

mod gather {
    use super::*;

    /// Value and gradient against loops over samples, positions and widths.
    fn compare(prefix: usize, mask: &Mask, tokens: &Tensor) {
        let width = tokens.dim(2).unwrap();
        let var = Var::from_tensor(tokens).unwrap();
        let gathered = mask.gather(&var, prefix).unwrap();
        let shape = (mask.batch(), prefix + mask.num_keep(), width);
        assert_eq!(gathered.dims(), [shape.0, shape.1, shape.2]);
        let weights = randn(shape, "weights");
        let loss = (&gathered * &weights).unwrap().sum_all().unwrap();
        let grad = loss.backward().unwrap().get(&var).unwrap().to_vec3::<f32>().unwrap();

        let source = tokens.to_vec3::<f32>().unwrap();
        let gathered = gathered.to_vec3::<f32>().unwrap();
        let weights = weights.to_vec3::<f32>().unwrap();
        let mut expected_grad = vec![vec![vec![0f32; width]; tokens.dim(1).unwrap()]; mask.batch()];
        for (sample, kept) in mask.rows().enumerate() {
            let rows = (0..prefix).chain(kept.iter().map(|&at| prefix + at as usize));
            for (to, from) in rows.enumerate() {
                assert_eq!(gathered[sample][to], source[sample][from]);
                expected_grad[sample][from].clone_from(&weights[sample][to]);
            }
        }
        assert_eq!(grad, expected_grad);
    }

    #[test]
    fn takes_prefix_and_kept_rows() {
        for (prefix, ratio) in [(0, 0.5), (1, 0.5), (2, 0.8), (1, 0.)] {
            let mask = some_mask(3, Grid::new(2, 5), ratio);
            compare(prefix, &mask, &randn((3, prefix + 10, 4), "tokens"));
        }
    }

    #[test]
    fn takes_rows_in_any_order() {
        let mask = Mask::from_keep_indices(Grid::new(2, 2), &[[3, 0, 1], [2, 1, 3]]).unwrap();
        compare(1, &mask, &randn((2, 5, 3), "tokens"));
    }

    #[test]
    fn takes_tokens_that_are_not_contiguous() {
        let mask = some_mask(2, Grid::new(2, 3), 0.5);
        let transposed = randn((2, 4, 6), "transposed").transpose(1, 2).unwrap();
        let gathered = mask.gather(&transposed, 0).unwrap();
        let expected = mask.gather(&transposed.contiguous().unwrap(), 0).unwrap();
        assert_eq!(bits(&gathered), bits(&expected));
        compare(0, &mask, &transposed);
    }

    #[test]
    fn works_in_other_dtypes() {
        let mask = some_mask(2, Grid::new(2, 3), 0.5);
        let tokens = randn((2, 7, 4), "tokens");
        for dtype in [DType::F64, DType::BF16, DType::F16] {
            let converted = tokens.to_dtype(dtype).unwrap();
            let var = Var::from_tensor(&converted).unwrap();
            let gathered = mask.gather(&var, 1).unwrap();
            assert_eq!(gathered.dtype(), dtype);
            let expected = mask.gather(&converted.to_dtype(DType::F32).unwrap(), 1).unwrap();
            assert_eq!(numbers(&gathered), numbers(&expected));
            let grads = gathered.sum_all().unwrap().backward().unwrap();
            let kept: f64 = numbers(grads.get(&var).unwrap()).iter().sum();
            assert_eq!(kept, (2 * 4 * (1 + 3)) as f64);
        }
    }

    #[test]
    fn refuses_other_shapes() {
        let mask = some_mask(2, Grid::new(2, 3), 0.5);
        for shape in [vec![2, 6, 4], vec![3, 7, 4], vec![2, 7], vec![2, 7, 4, 1], vec![]] {
            let error = mask.gather(&randn(shape.clone(), "odd"), 1).unwrap_err();
            assert!(
                matches!(&error, Error::Shape { argument: "tokens", got, .. } if *got == shape),
                "{error}"
            );
        }
    }
}

mod fill {
    use super::*;

    const SHAPE: (usize, usize, usize, usize) = (3, 2, 4, 12);

    /// A mask on a grid of 2 x 3 blocks of 2 x 4 pixels, and for each pixel whether it is kept, worked out by loops.
    fn blocks() -> (Mask, Vec<bool>) {
        let mask = some_mask(3, Grid::new(2, 3), 0.5);
        let mut kept = vec![];
        for row in mask.rows() {
            for _channel in 0..2 {
                for y in 0..4 {
                    kept.extend((0..12).map(|x| row.contains(&((y / 2 * 3 + x / 4) as u32))));
                }
            }
        }
        (mask, kept)
    }

    fn fill(mask: &Mask, images: &Tensor, fill: Fill) -> Vec<f32> {
        let filled = mask.fill(images, &fill, key(1)).unwrap();
        assert_eq!((filled.dims(), filled.dtype()), (images.dims(), images.dtype()));
        filled.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn keeps_kept_pixels_bit_for_bit_and_hides_the_others() {
        let (mask, kept) = blocks();
        let images = randn(SHAPE, "fill");
        let pixels: Vec<f32> = images.flatten_all().unwrap().to_vec1().unwrap();
        let means: Vec<f64> = pixels
            .chunks(48)
            .map(|c| c.iter().map(|&p| p as f64).sum::<f64>() / 48.)
            .collect();
        type Expected<'a> = Box<dyn Fn(usize, f32) -> bool + 'a>;
        let cases: [(Fill, Expected); 4] = [
            (Fill::Zero, Box::new(|_, hidden| hidden.to_bits() == 0)),
            (
                Fill::Value(vec![0.25, -3.]),
                Box::new(|at, hidden| hidden == [0.25, -3.][at / 48 % 2]),
            ),
            (
                Fill::Mean,
                Box::new(|at, hidden| (hidden as f64 - means[at / 48]).abs() < 1e-6),
            ),
            (
                Fill::Noise,
                Box::new(|at, hidden| hidden != pixels[at] && hidden.is_finite()),
            ),
        ];
        for (what, expected) in cases {
            let filled = fill(&mask, &images, what.clone());
            for (at, (&got, &was)) in filled.iter().zip(&pixels).enumerate() {
                match kept[at] {
                    true => assert_eq!(got.to_bits(), was.to_bits(), "{what:?}: kept pixel {at}"),
                    false => assert!(expected(at, got), "{what:?}: hidden pixel {at} is {got}"),
                }
            }
        }
    }

    #[test]
    fn noise_is_standard_normal_and_drawn_per_pixel() {
        let mask = Mask::from_keep_indices(Grid::new(1, 2), &[[0], [1]]).unwrap();
        let images = randn((2, 3, 64, 128), "noise").affine(0., 9.).unwrap();
        let hidden: Vec<f64> = numbers(&mask.fill(&images, &Fill::Noise, key(0)).unwrap())
            .into_iter()
            .filter(|&pixel| pixel != 9.)
            .collect();
        let n = hidden.len() as f64;
        assert_eq!(hidden.len(), 2 * 3 * 64 * 64);
        let mean = hidden.iter().sum::<f64>() / n;
        let variance = hidden.iter().map(|pixel| (pixel - mean).powi(2)).sum::<f64>() / n;
        let fourth = hidden.iter().map(|pixel| (pixel - mean).powi(4)).sum::<f64>() / n;
        assert!(mean.abs() < 4.5 / n.sqrt(), "{mean}");
        assert!((variance - 1.).abs() < 4.5 * (2. / n).sqrt(), "{variance}");
        assert!((fourth - 3.).abs() < 4.5 * (96. / n).sqrt(), "{fourth}");
        let distinct: BTreeSet<u64> = hidden.iter().map(|pixel| pixel.to_bits()).collect();
        assert!(distinct.len() as f64 > 0.99 * n, "{} of {n}", distinct.len());
        // Other steps draw other noise, the same step the same.
        let at = |step| mask.fill(&images, &Fill::Noise, key(step)).unwrap();
        assert_eq!(bits(&at(1)), bits(&at(1)));
        assert_ne!(bits(&at(1)), bits(&at(2)));
    }

    #[test]
    fn hidden_pixels_do_not_leak() {
        let (mask, kept) = blocks();
        let clean = randn(SHAPE, "leak");
        let pixels: Vec<f32> = clean.flatten_all().unwrap().to_vec1().unwrap();
        for poison in [f32::NAN, f32::INFINITY, f32::MAX] {
            let poisoned = pixels
                .iter()
                .zip(&kept)
                .map(|(&pixel, &kept)| if kept { pixel } else { poison });
            let poisoned = Tensor::from_iter(poisoned, &CPU).unwrap().reshape(SHAPE).unwrap();
            for what in [Fill::Zero, Fill::Noise, Fill::Value(vec![1., 2.])] {
                let (clean, poisoned) = (fill(&mask, &clean, what.clone()), fill(&mask, &poisoned, what.clone()));
                assert_eq!(clean, poisoned, "{what:?}, {poison}");
            }
        }
        // Nor do kept ones get lost: a NaN that is kept stays.
        let kept_nan = pixels
            .iter()
            .zip(&kept)
            .map(|(&pixel, &kept)| if kept { f32::NAN } else { pixel });
        let kept_nan = Tensor::from_iter(kept_nan, &CPU).unwrap().reshape(SHAPE).unwrap();
        let filled = fill(&mask, &kept_nan, Fill::Zero);
        assert!(filled.iter().zip(&kept).all(|(pixel, &kept)| pixel.is_nan() == kept));
    }

    #[test]
    fn gradients_reach_kept_pixels_only() {
        let (mask, kept) = blocks();
        let var = Var::from_tensor(&randn(SHAPE, "gradient")).unwrap();
        let filled = mask.fill(&var, &Fill::Zero, key(0)).unwrap();
        let grads = filled.sum_all().unwrap().backward().unwrap();
        let expected: Vec<f64> = kept.iter().map(|&kept| f64::from(u8::from(kept))).collect();
        assert_eq!(numbers(grads.get(&var).unwrap()), expected);
    }

    #[test]
    fn half_precision_images_keep_their_dtype_and_mean() {
        // 0.1 * 64 * 64 overflows nothing, but a sum in half precision stops growing long before.
        for dtype in [DType::F16, DType::BF16, DType::F64] {
            let mask = Mask::from_keep_indices(Grid::new(1, 2), &[[0]]).unwrap();
            let images = (Tensor::ones((1, 1, 256, 256), DType::F32, &CPU).unwrap() * 3.).unwrap();
            let filled = mask
                .fill(&images.to_dtype(dtype).unwrap(), &Fill::Mean, key(0))
                .unwrap();
            assert_eq!(filled.dtype(), dtype);
            assert!(
                numbers(&filled).iter().all(|pixel| (pixel - 3.).abs() < 0.02),
                "{dtype:?}: {:?}",
                numbers(&filled).last()
            );
        }
    }

    #[test]
    fn images_that_are_not_contiguous_are_filled_alike() {
        let (mask, _) = blocks();
        let channels_last = randn((3, 4, 12, 2), "channels last").permute((0, 3, 1, 2)).unwrap();
        for what in [Fill::Zero, Fill::Mean, Fill::Noise, Fill::Value(vec![1., 2.])] {
            let as_is = fill(&mask, &channels_last, what.clone());
            let plain = fill(&mask, &channels_last.contiguous().unwrap(), what.clone());
            // The order in which a mean is summed differs.
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
            assert!(as_is.iter().zip(&plain).all(close), "{what:?}");
        }
    }
}
