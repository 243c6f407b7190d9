//! Masks of sequences: each sample's own ratio, tokens that stay, padding that is never kept.

use candle_core::{DType, Device, Tensor, Var};
use masksub::{num_keep, BlockMasking, Error, Grid, Mask, MaskGenerator, RandomMasking, Seed, Sequences, StepKey};

use super::key;
use crate::common::{numbers, randn, CPU};

/// [B, L] of 1 up to each length.
fn of_lengths(lengths: &[usize], len: usize) -> Sequences {
    let is_token = |&length: &usize| (0..len).map(|at| u8::from(at < length)).collect::<Vec<_>>();
    Sequences::new(&Tensor::new(lengths.iter().map(is_token).collect::<Vec<_>>(), &CPU).unwrap()).unwrap()
}

fn at(positions: &[(usize, usize)], batch: usize, len: usize) -> Tensor {
    let mut dense = vec![vec![0u32; len]; batch];
    positions.iter().for_each(|&(sample, at)| dense[sample][at] = 7);
    Tensor::new(dense, &CPU).unwrap()
}

fn half() -> RandomMasking {
    RandomMasking::new(0.5).unwrap()
}

#[test]
fn keep_a_share_of_each_samples_own_tokens() {
    let lengths = [12, 1, 7, 12, 2, 30];
    let sequences = of_lengths(&lengths, 30);
    assert_eq!(sequences.lengths(), lengths);
    for ratio in [0.0, 0.3, 0.5, 0.9] {
        let masking = RandomMasking::new(ratio).unwrap();
        for step in 0..20 {
            let mask = sequences.draw(&masking, key(step)).unwrap();
            assert_eq!((mask.grid(), mask.batch()), (Grid::new(1, 30), 6));
            assert_eq!(mask.num_keep(), num_keep(30, ratio).unwrap());
            for (row, &length) in mask.rows().zip(&lengths) {
                assert_eq!(row.len(), num_keep(length, ratio).unwrap());
                assert!(row.windows(2).all(|pair| pair[0] < pair[1]), "ascending: {row:?}");
                assert!(row.iter().all(|&at| (at as usize) < length), "no padding: {row:?}");
            }
            if ratio == 0.0 {
                let whole = sequences.whole();
                assert!(mask.rows().eq(whole.rows()));
            }
        }
    }
}

#[test]
fn every_set_of_the_free_tokens_is_as_likely() {
    // Two of four free tokens beside one that stays: six sets.
    let stays = at(&[(0, 2)], 1, 8);
    let sequences = of_lengths(&[5], 8).keeping(&stays).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    for step in 0..6000 {
        let mask = sequences.draw(&half(), key(step)).unwrap();
        *counts.entry(mask.rows().next().unwrap().to_vec()).or_insert(0usize) += 1;
    }
    assert_eq!(counts.len(), 6, "{counts:?}");
    assert!(counts.keys().all(|row| row.len() == 3 && row.contains(&2)));
    let statistic = counts.values().map(|&n| (n as f64 - 1000.0).powi(2) / 1000.0).sum();
    assert!(crate::common::p_value(statistic, 5) > 1e-4, "{counts:?}");
}

#[test]
fn tokens_stay_where_they_are_told() {
    let stays = [(0, 0), (0, 4), (1, 1), (1, 2), (2, 0)];
    let sequences = of_lengths(&[9, 3, 1], 10).keeping(&at(&stays, 3, 10)).unwrap();
    let masking = RandomMasking::new(0.9).unwrap();
    for step in 0..50 {
        let mask = sequences.draw(&masking, key(step)).unwrap();
        let rows: Vec<_> = mask.rows().collect();
        // One of seven and two that stay; a single free one; none.
        assert_eq!([rows[0].len(), rows[1].len(), rows[2].len()], [3, 3, 1]);
        assert!(stays.iter().all(|&(sample, at)| rows[sample].contains(&(at as u32))));
    }
    // What stays may be said in several calls.
    let twice = of_lengths(&[9, 3, 1], 10)
        .keeping(&at(&stays[..2], 3, 10))
        .and_then(|sequences| sequences.keeping(&at(&stays[2..], 3, 10)));
    assert_eq!(twice.unwrap(), sequences);
}

/// As Hugging Face's `special_tokens_mask` does.
#[test]
fn padding_is_not_kept_where_it_is_marked() {
    let marked = [(0, 0), (1, 0), (1, 3), (1, 4), (2, 1), (2, 4)];
    let of_tokens: Vec<_> = marked
        .into_iter()
        .filter(|&(sample, at)| at < [5, 3, 1][sample])
        .collect();
    assert_eq!(of_tokens, [(0, 0), (1, 0)]);
    let keeping = |marked: &[(usize, usize)]| of_lengths(&[5, 3, 1], 5).keeping(&at(marked, 3, 5)).unwrap();
    assert_eq!(keeping(&marked), keeping(&of_tokens));
}

#[test]
fn micro_batches_draw_what_the_whole_batch_does() {
    let sequences = of_lengths(&[12, 5, 7, 9], 12);
    let whole = sequences.draw(&half(), key(3)).unwrap();
    let part = of_lengths(&[7, 9], 9)
        .draw(&half(), key(3).with_first_sample(2))
        .unwrap();
    assert!(whole.rows().skip(2).eq(part.rows()));
    // Where lengths are equal and none stays, as masks of grids.
    let equal = of_lengths(&[8; 5], 8).draw(&half(), key(3)).unwrap();
    assert_eq!(equal, half().generate(5, Grid::new(1, 8), key(3)).unwrap());
}

#[test]
fn what_fills_up_is_told_from_tokens() {
    let sequences = of_lengths(&[4, 2, 1], 5);
    let mask = sequences.draw(&RandomMasking::new(0.25).unwrap(), key(1)).unwrap();
    assert!(mask.is_ragged());
    let rows: Vec<Vec<u32>> = mask.rows().map(<[u32]>::to_vec).collect();
    assert_eq!([rows[0].len(), rows[1].len(), rows[2].len()], [3, 1, 1]);
    let attention = mask.attention_mask(DType::F32, &CPU).unwrap();
    assert_eq!(
        attention.to_vec2::<f32>().unwrap(),
        [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    );
    let bias = mask.attention_bias(DType::F64, &CPU).unwrap().to_vec3::<f64>().unwrap();
    let never = f64::NEG_INFINITY;
    assert_eq!(bias[0], vec![vec![0.0; 3]; 3]);
    assert_eq!(bias[1], vec![vec![0.0, never, never]; 3]);
    let dense = mask.to_dense(DType::U8, &CPU).unwrap().to_vec2::<u8>().unwrap();
    for (dense, row) in dense.iter().zip(&rows) {
        assert!((0..5u32).all(|at| (dense[at as usize] == 1) == row.contains(&at)));
    }
    let whole = sequences.whole();
    assert_eq!(whole.num_keep(), 5);
    assert_eq!(whole.rows().map(<[u32]>::len).collect::<Vec<_>>(), [4, 2, 1]);
    assert!(!of_lengths(&[5, 5], 5).whole().is_ragged());

    // Tokens are those of their positions, and get the gradients back.
    let tokens = Var::from_tensor(&randn((3, 5, 2), "tokens")).unwrap();
    let kept = mask.gather(&tokens, 0).unwrap();
    let is_token = attention.unsqueeze(2).unwrap();
    let sum = kept.broadcast_mul(&is_token).unwrap().sum_all().unwrap();
    let gradient = sum.backward().unwrap().get(&tokens).unwrap().clone();
    let expected = mask.to_dense(DType::F32, &CPU).unwrap().unsqueeze(2).unwrap();
    assert_eq!(numbers(&gradient), numbers(&expected.repeat((1, 1, 2)).unwrap()));
    for (b, row) in rows.iter().enumerate() {
        for (place, &at) in row.iter().enumerate() {
            let of = |t: &Tensor, at: usize| numbers(&t.get(b).unwrap().get(at).unwrap());
            assert_eq!(of(&kept, place), of(&tokens, at as usize));
        }
    }
}

#[test]
fn what_needs_as_many_in_every_sample_refuses() {
    let ragged = of_lengths(&[4, 2], 4).draw(&half(), key(0)).unwrap();
    for result in [
        ragged.dropped_indices(&Device::Cpu).map(drop),
        ragged.upsample(2).map(drop),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(
            error.contains("mask is one of which samples keep fewer than 2 positions"),
            "{error}"
        );
    }
    let error = ragged.attention_bias(DType::U8, &CPU).unwrap_err();
    assert!(matches!(error, Error::DType { argument: "dtype", .. }), "{error}");
}

/// A generator of another's mistakes.
struct Wrong;

impl MaskGenerator for Wrong {
    fn generate(&self, _: usize, _: Grid, _: StepKey) -> candle_core::Result<Mask> {
        Ok(Mask::from_keep_indices(Grid::new(1, 2), &[[1], [0]])?)
    }
}

#[test]
fn refuse_what_is_none() {
    let message = |rows: Vec<Vec<u32>>| {
        Sequences::new(&Tensor::new(rows, &CPU).unwrap())
            .unwrap_err()
            .to_string()
    };
    let none = message(vec![vec![1, 0], vec![0, 0]]);
    assert_eq!(
        none,
        "attention_mask is no token in sample 1, but must be at least one token, and padding behind"
    );
    let before = message(vec![vec![0, 1]]);
    assert!(
        before.starts_with("attention_mask is padding before a token in sample 0"),
        "{before}"
    );
    for shape in [vec![3], vec![0, 3], vec![3, 0], vec![1, 2, 3]] {
        let error = Sequences::new(&randn(shape.clone(), "s")).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Shape {
                    argument: "attention_mask",
                    ..
                }
            ),
            "{shape:?}"
        );
    }
    let stays = |stays: Tensor| of_lengths(&[2, 3], 3).keeping(&stays).unwrap_err().to_string();
    assert!(stays(at(&[], 3, 3)).starts_with("stays has shape [3, 3], but must be [2, 3]"));

    let sequences = of_lengths(&[2, 3], 3);
    let error = sequences.draw(&Wrong, key(0)).unwrap_err().to_string();
    assert!(error.contains("mask is for 2 samples on 1 x 2"), "{error}");
    let blocks = BlockMasking::new(0.5, 2).unwrap();
    assert!(sequences.draw(&blocks, Seed::new(0).at(0)).is_err());
}
