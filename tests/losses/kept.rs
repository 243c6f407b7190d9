//! Losses of the predictions that a mask keeps, row by row, with weights of samples and a confidence.

use candle_core::{DType, Tensor, Var};
use masksub::{Grid, Mask, RandomMasking, Seed, Sequences, SubModelLoss};

use super::{compare, oracle, rows, tensor, Rows};
use crate::common::{numbers, randn, sub_losses, CPU};

const CLASSES: usize = 3;

/// How the predictions of a sample lie in a tensor.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Kept,
    All,
    OnGrid,
    /// Square blocks of pixels for each position.
    Pixels(usize),
}

impl Layout {
    /// The dimensions between batch and classes.
    fn dims(self, mask: &Mask) -> Vec<usize> {
        let Grid { height, width } = mask.grid();
        match self {
            Layout::Kept => vec![mask.num_keep()],
            Layout::All => vec![height * width],
            Layout::OnGrid => vec![height, width],
            Layout::Pixels(side) => vec![height * side, width * side],
        }
    }

    fn count(self, mask: &Mask) -> usize {
        self.dims(mask).iter().product()
    }

    /// The places of a sample's predictions that are compared.
    fn places(self, mask: &Mask, sample: usize) -> Vec<usize> {
        let keep = mask.rows().nth(sample).unwrap();
        match self {
            Layout::Kept => (0..keep.len()).collect(),
            Layout::All | Layout::OnGrid => keep.iter().map(|&at| at as usize).collect(),
            Layout::Pixels(side) => {
                let width = mask.grid().width * side;
                let position = |pixel: usize| (pixel / width / side * mask.grid().width + pixel % width / side) as u32;
                let pixels = 0..self.count(mask);
                pixels.filter(|&pixel| keep.contains(&position(pixel))).collect()
            }
        }
    }

    /// All rows of a batch as logits.
    fn logits(self, rows: &Tensor, mask: &Mask) -> candle_core::Result<Tensor> {
        rows.reshape([vec![mask.batch()], self.dims(mask), vec![CLASSES]].concat())
    }

    fn random(self, mask: &Mask, name: &str) -> Rows {
        let spread = randn((mask.batch() * self.count(mask), CLASSES), name);
        oracle::map(&rows(&spread), |x| 2.0 * x)
    }
}

/// In another order than that of the grid.
fn of_images() -> Mask {
    Mask::from_keep_indices(Grid::new(2, 3), &[[5, 0, 3], [1, 4, 2]]).unwrap()
}

/// Of 6, 2, 4 and 3 tokens.
fn of_texts() -> Mask {
    let is_token = [[1u8; 6], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]];
    let sequences = Sequences::new(&Tensor::new(&is_token, &CPU).unwrap()).unwrap();
    let stays = Tensor::new(&[[0u8; 6], [0; 6], [0; 6], [0, 0, 1, 0, 0, 0]], &CPU).unwrap();
    let sequences = sequences.keeping(&stays).unwrap();
    let mask = sequences.draw(&RandomMasking::new(0.5).unwrap(), Seed::new(3).at(1));
    let mask = mask.unwrap();
    assert_eq!(mask.rows().map(<[u32]>::len).collect::<Vec<_>>(), [3, 1, 2, 2]);
    mask
}

/// The loss of one pair of predictions at a temperature, and how sure the target is.
fn of_pair(kind: usize, sub: &[f64], main: &[f64], t: f64) -> (f64, f64) {
    let [sub, main] = [sub, main].map(|row| vec![row.iter().map(|x| x / t).collect::<Vec<_>>()]);
    let [p, target] = [&sub, &main].map(|row| vec![oracle::softmax(&row[0])]);
    let sigmoids = oracle::map(&main, oracle::sigmoid);
    let top = |row: &Rows| row[0].iter().copied().fold(0.0, f64::max);
    let loss = match kind {
        0 => oracle::cross_entropy(&sub, &target),
        1 => oracle::kl(&target, &p),
        2 => (oracle::kl(&target, &p) + oracle::kl(&p, &target)) / 2.0,
        _ => oracle::bce(&sub, &sigmoids),
    };
    (t * t * loss, if kind == 3 { top(&sigmoids) } else { top(&target) })
}

/// Compares value and gradient, with and without weights and a confidence, at temperatures of 1 and others.
fn check(mask: &Mask, layouts: (Layout, Layout)) {
    let (sub, main) = (layouts.0.random(mask, "sub"), layouts.1.random(mask, "main"));
    let main_logits = layouts.1.logits(&tensor(&main, DType::F64), mask).unwrap();
    let of_samples = [0.5, 2.0, 0.0, 1.25];
    let weights = Tensor::new(&of_samples[..mask.batch()], &CPU).unwrap();
    let mut left_out = 0;
    for (kind, loss) in sub_losses().into_iter().enumerate() {
        for (t, confidence, weighted) in [
            (1.0, None, false),
            (1.0, None, true),
            (2.0, Some(0.6), false),
            (0.5, Some(0.8), true),
        ] {
            let loss = loss.where_kept().with_temperature(t).unwrap();
            let loss = confidence.map_or(loss, |confidence| loss.with_confidence(confidence).unwrap());
            let ours = |x: &Tensor| {
                let weights = weighted.then_some(&weights);
                loss.forward_with(&layouts.0.logits(x, mask)?, &main_logits, Some(mask), weights)
            };
            let not_sure = std::cell::Cell::new(0);
            let formula = |x: &Rows| {
                let (mut sum, mut count) = (0.0, 0);
                for sample in 0..mask.batch() {
                    let row =
                        |layout: Layout, rows: &Rows, place: usize| rows[sample * layout.count(mask) + place].clone();
                    let places = layouts.0.places(mask, sample).into_iter();
                    for (a, b) in places.zip(layouts.1.places(mask, sample)) {
                        let (loss, sure) = of_pair(kind, &row(layouts.0, x, a), &row(layouts.1, &main, b), t);
                        count += 1;
                        if sure < confidence.unwrap_or(0.0) {
                            not_sure.set(not_sure.get() + 1);
                        } else {
                            sum += loss * if weighted { of_samples[sample] } else { 1.0 };
                        }
                    }
                }
                sum / f64::from(count)
            };
            compare(&format!("{loss:?} {layouts:?}"), &sub, ours, formula);
            left_out += not_sure.get();
        }
    }
    assert!(left_out > 0, "some targets are not sure");
}

#[test]
fn of_either_side_all_or_those_that_are_kept() {
    use Layout::{All, Kept, OnGrid, Pixels};
    for mask in [of_images(), of_texts()] {
        for layouts in [
            (Kept, All),
            (All, Kept),
            (All, All),
            (Kept, Kept),
            (OnGrid, Kept),
            (All, OnGrid),
        ] {
            check(&mask, layouts);
        }
    }
    check(&of_images(), (Pixels(2), Pixels(2)));
}

#[test]
fn classes_may_lie_before_the_positions() {
    let mask = of_images();
    let (sub, main) = (randn((2, 3, CLASSES), "sub"), randn((2, 6, CLASSES), "main"));
    for loss in sub_losses() {
        let loss = loss.where_kept();
        let first = loss.with_class_dim(1).unwrap();
        let [turned_sub, turned_main] = [&sub, &main].map(|logits| logits.transpose(1, 2).unwrap());
        let turned = first
            .forward_with(&turned_sub, &turned_main, Some(&mask), None)
            .unwrap();
        let expected = loss.forward_with(&sub, &main, Some(&mask), None).unwrap();
        assert_eq!(numbers(&turned), numbers(&expected));
    }
}

/// A model may divide by nothing where no token is.
#[test]
fn what_fills_up_may_be_undefined() {
    let mask = of_texts();
    let there = mask.attention_mask(DType::U8, &CPU).unwrap().unsqueeze(2).unwrap();
    let there = there.broadcast_as((4, 3, CLASSES)).unwrap();
    let (plain, main) = (randn((4, 3, CLASSES), "sub"), randn((4, 3, CLASSES), "main"));
    let undefined = |logits: &Tensor| {
        let nan = Tensor::full(f32::NAN, (4, 3, CLASSES), &CPU).unwrap();
        there.where_cond(logits, &nan).unwrap()
    };
    let weights = Tensor::new(&[1f32, 2.0, 0.5, 0.0], &CPU).unwrap();
    for loss in sub_losses() {
        let run = |sub: &Tensor, main: &Tensor| {
            let sub = Var::from_tensor(sub).unwrap();
            let loss = loss
                .where_kept()
                .forward_with(&sub, main, Some(&mask), Some(&weights))
                .unwrap();
            let grads = loss.backward().unwrap();
            (numbers(&loss), numbers(grads.get(&sub).unwrap()))
        };
        let ours = run(&undefined(&plain), &undefined(&main));
        assert_eq!(ours, run(&plain, &main), "{loss:?}");
        assert!(ours.0[0].is_finite() && ours.1.iter().all(|slope| slope.is_finite()));
    }
    assert_eq!(mask.rows().map(<[u32]>::len).sum::<usize>(), 8, "of 12 places");
}

/// Nothing but order tells a mask that keeps all: the loss is that of all predictions.
#[test]
fn a_mask_that_hides_nothing_changes_nothing() {
    let (sub, main) = (randn((2, 4, CLASSES), "sub"), randn((2, 4, CLASSES), "main"));
    let mask = Mask::from_keep_indices(Grid::new(2, 2), &[[0, 1, 2, 3], [0, 1, 2, 3]]).unwrap();
    let loss = SubModelLoss::kl();
    let kept = loss.where_kept().forward_with(&sub, &main, Some(&mask), None).unwrap();
    assert_eq!(numbers(&kept), numbers(&loss.forward(&sub, &main).unwrap()));
}
