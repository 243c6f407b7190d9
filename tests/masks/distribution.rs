//! Which positions are kept: all alike, and independent of each other.

use std::collections::{BTreeMap, BTreeSet};

use masksub::{num_keep, Grid, MaskGenerator, RandomMasking, Seed};

use super::{draws, key, row_of};
use crate::common::p_value;

/// A p-value that neither an uneven nor a suspiciously even distribution has.
fn assert_plausible(p: f64, what: &str) {
    assert!((1e-4..=1.0 - 1e-4).contains(&p), "{what}: p = {p:.2e}");
}

#[test]
fn every_position_is_as_likely() {
    let samples = 20_000;
    for (len, ratio) in [(16, 0.25), (16, 0.5), (49, 0.6), (49, 0.75), (10, 0.9), (196, 0.5)] {
        let mut counts = vec![0f64; len];
        let rows = draws(&RandomMasking::new(ratio).unwrap(), row_of(len), samples);
        rows.iter().flatten().for_each(|&at| counts[at as usize] += 1.0);
        let share = num_keep(len, ratio).unwrap() as f64 / len as f64;
        let expected = samples as f64 * share;
        let squares: f64 = counts.iter().map(|count| (count - expected).powi(2)).sum();
        // K of L without replacement: counts covary by -1 / (L - 1) of their variance, which (L - 1) / L undoes.
        let (l, variance) = (len as f64, expected * (1.0 - share));
        let statistic = (l - 1.0) / l * squares / variance;
        assert_plausible(p_value(statistic, len - 1), &format!("L = {len}, r = {ratio}"));
    }
}

#[test]
fn every_pair_is_kept_together_as_often() {
    let (len, samples) = (12usize, 20_000);
    for ratio in [0.25, 0.5, 0.75] {
        let kept = num_keep(len, ratio).unwrap() as f64;
        let together = kept * (kept - 1.0) / (len * (len - 1)) as f64;
        let mut counts = BTreeMap::new();
        for row in draws(&RandomMasking::new(ratio).unwrap(), row_of(len), samples) {
            for (i, &a) in row.iter().enumerate() {
                row[i + 1..]
                    .iter()
                    .for_each(|&b| *counts.entry((a, b)).or_insert(0f64) += 1.0);
            }
        }
        let (mean, deviation) = (
            samples as f64 * together,
            (samples as f64 * together * (1.0 - together)).sqrt(),
        );
        for a in 0..len as u32 {
            for b in a + 1..len as u32 {
                let z = (counts.get(&(a, b)).copied().unwrap_or(0.0) - mean) / deviation;
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
            *counts.entry(row).or_insert(0f64) += 1.0;
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
        counts[a.intersection(&b).count()] += 1.0;
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
