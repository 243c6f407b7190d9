//! Masks, and what is done with them.

use candle_core::DType;
use masksub::{num_keep, BlockMasking, Fill, Grid, Mask, MaskGenerator, RandomMasking};
use proptest::prelude::*;

use crate::common::{numbers, CPU};
use crate::{any_float, any_lying, key, normal, Lying};

/// Kept or not, position by position.
fn dense(mask: &Mask) -> Vec<Vec<bool>> {
    let is_kept = |row: &[u32], at: usize| row.contains(&(at as u32));
    mask.rows()
        .map(|row| (0..mask.grid().len()).map(|at| is_kept(row, at)).collect())
        .collect()
}

proptest! {
    #[test]
    fn a_sample_is_drawn_by_its_number_alone(
        height in 1usize..9, width in 2usize..9, batch in 2usize..7, ratio in 0f64..1.0, first in 0usize..7, step in 0usize..99
    ) {
        let (grid, masking) = (Grid::new(height, width), RandomMasking::new(ratio).unwrap());
        let first = first % batch;
        let whole = masking.generate(batch, grid, key(step)).unwrap();
        let rest = masking.generate(batch - first, grid, key(step).with_first_sample(first)).unwrap();
        prop_assert!(whole.rows().skip(first).eq(rest.rows()));
        prop_assert_eq!(whole.num_keep(), num_keep(grid.len(), ratio).unwrap());
    }

    #[test]
    fn blocks_are_kept_or_hidden_as_a_whole(
        rows in 1usize..5, columns in 2usize..5, block in 1usize..5, batch in 1usize..4, ratio in 0f64..1.0
    ) {
        let grid = Grid::new(rows * block, columns * block);
        let mask = BlockMasking::new(ratio, block).unwrap().generate(batch, grid, key(0)).unwrap();
        let coarse = RandomMasking::new(ratio).unwrap().generate(batch, Grid::new(rows, columns), key(0)).unwrap();
        prop_assert_eq!(&coarse.upsample(block).unwrap(), &mask);
        for (fine, coarse) in dense(&mask).iter().zip(dense(&coarse)) {
            for (at, kept) in fine.iter().enumerate() {
                let (row, column) = (at / grid.width / block, at % grid.width / block);
                prop_assert_eq!(*kept, coarse[row * columns + column]);
            }
        }
    }

    #[test]
    fn kept_and_dropped_make_the_whole(
        height in 1usize..9, width in 2usize..9, batch in 1usize..5, ratio in 0f64..1.0, dtype in any_float()
    ) {
        let mask = RandomMasking::new(ratio).unwrap().generate(batch, Grid::new(height, width), key(3)).unwrap();
        let expected: Vec<f64> = dense(&mask).concat().into_iter().map(f64::from).collect();
        prop_assert_eq!(numbers(&mask.to_dense(dtype, &CPU).unwrap()), expected);
        let dropped = mask.dropped_indices(&CPU).unwrap().to_vec2::<u32>().unwrap();
        for ((kept, dropped), dense) in mask.rows().zip(&dropped).zip(dense(&mask)) {
            prop_assert_eq!(kept.len() + dropped.len(), height * width);
            prop_assert!(dropped.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(dropped.iter().all(|&at| !dense[at as usize]));
        }
        let again: Vec<Vec<u32>> = mask.rows().map(<[u32]>::to_vec).collect();
        prop_assert_eq!(&Mask::from_keep_indices(mask.grid(), &again).unwrap(), &mask);
    }

    #[test]
    fn gathered_rows_are_copies(
        height in 1usize..5, width in 2usize..5, batch in 1usize..4, prefix in 0usize..4, dim in 1usize..6,
        ratio in 0f64..1.0, dtype in any_float(), lying in any_lying()
    ) {
        let mask = RandomMasking::new(ratio).unwrap().generate(batch, Grid::new(height, width), key(4)).unwrap();
        let length = prefix + height * width;
        let tokens = normal(&[batch, length, dim], dtype, lying, "tokens");
        let gathered = mask.gather(&tokens, prefix).unwrap();
        prop_assert_eq!((gathered.dims(), gathered.dtype()), (&[batch, prefix + mask.num_keep(), dim][..], dtype));
        let from = numbers(&tokens);
        let mut expected = vec![];
        for (sample, row) in mask.rows().enumerate() {
            let rows = (0..prefix).chain(row.iter().map(|&at| prefix + at as usize));
            expected.extend(rows.flat_map(|row| from[(sample * length + row) * dim..][..dim].to_vec()));
        }
        prop_assert_eq!(numbers(&gathered), expected);
    }

    #[test]
    fn hidden_tokens_are_the_mask_token_and_kept_ones_themselves(
        height in 1usize..5, width in 2usize..5, batch in 1usize..4, dim in 1usize..6, ratio in 0f64..1.0,
        dtype in any_float(), lying in any_lying()
    ) {
        let mask = RandomMasking::new(ratio).unwrap().generate(batch, Grid::new(height, width), key(5)).unwrap();
        let tokens = normal(&[batch, height * width, dim], dtype, lying, "tokens");
        let token = normal(&[dim], dtype, Lying::Narrowed, "mask token");
        let replaced = numbers(&mask.replace(&tokens, &token).unwrap());
        let (from, token) = (numbers(&tokens), numbers(&token));
        for (at, kept) in dense(&mask).concat().into_iter().enumerate() {
            let expected = if kept { &from[at * dim..][..dim] } else { &token[..] };
            prop_assert_eq!(&replaced[at * dim..][..dim], expected);
        }
    }

    #[test]
    fn filled_blocks_are_what_was_asked_for(
        height in 1usize..4, width in 2usize..4, batch in 1usize..4, channels in 1usize..4, p in 1usize..4, q in 1usize..4,
        ratio in 0f64..1.0, dtype in any_float(), lying in any_lying(), zero in any::<bool>()
    ) {
        let mask = RandomMasking::new(ratio).unwrap().generate(batch, Grid::new(height, width), key(6)).unwrap();
        let (h, w) = (height * p, width * q);
        let images = normal(&[batch, channels, h, w], dtype, lying, "images");
        let values: Vec<f32> = (0..channels).map(|channel| channel as f32 + 0.5).collect();
        let fill = if zero { Fill::Zero } else { Fill::Value(values.clone()) };
        let filled = numbers(&mask.fill(&images, &fill, key(6)).unwrap());
        let (from, kept) = (numbers(&images), dense(&mask));
        for (at, value) in filled.into_iter().enumerate() {
            let (x, y, channel, sample) = (at % w, at / w % h, at / w / h % channels, at / w / h / channels);
            let filling = if zero { 0.0 } else { f64::from(values[channel]) };
            let expected = if kept[sample][y / p * width + x / q] { from[at] } else { filling };
            prop_assert_eq!(value, expected);
        }
    }

    /// The mean of a channel, which stays its mean as far as rounding goes; noise, which is nobody's pixels.
    #[test]
    fn means_and_noise_hide_the_pixels(
        height in 1usize..4, width in 2usize..4, batch in 1usize..3, p in 1usize..4, lying in any_lying()
    ) {
        let mask = RandomMasking::new(0.5).unwrap().generate(batch, Grid::new(height, width), key(7)).unwrap();
        let images = normal(&[batch, 2, height * p, width * p], DType::F32, lying, "images");
        let area = height * width * p * p;
        let from = numbers(&images);
        for fill in [Fill::Mean, Fill::Noise] {
            let filled = numbers(&mask.fill(&images, &fill, key(7)).unwrap());
            for (plane, kept) in dense(&mask).iter().flat_map(|kept| [kept, kept]).enumerate() {
                let before = &from[plane * area..][..area];
                let mean = before.iter().sum::<f64>() / area as f64;
                for (at, value) in filled[plane * area..][..area].iter().enumerate() {
                    let (row, column) = (at / (width * p), at % (width * p));
                    match (kept[row / p * width + column / p], &fill) {
                        (true, _) => prop_assert_eq!(*value, before[at]),
                        (false, Fill::Mean) => prop_assert!((value - mean).abs() < 1e-5),
                        (false, _) => prop_assert!(*value != before[at]),
                    }
                }
            }
        }
    }
}
