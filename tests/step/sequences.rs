//! Encoders of sequences of different lengths: padding is never seen, whatever stands there.

use candle_core::{DType, Result, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::{Embedding, Linear, Module, ModuleT, VarBuilder};
use masksub::{
    grad, ops, Error, Mask, MaskSub, Params, Pass, RandomMasking, Seed, SequenceDrop, SequenceModel, Sequences,
    SubModelLoss, Weights,
};

use super::{half, key, soft};
use crate::common::{by_name, gradient_distance, labels, numbers, CPU};

const WIDTH: usize = 8;
const HEADS: usize = 2;
const CLASSES: usize = 3;
const LENGTHS: [usize; 4] = [9, 4, 1, 6];
const LONGEST: usize = 9;
const SEPARATOR: u32 = 1;

/// One block of attention; a class for each sample or, if `tags`, for each token.
struct Encoder {
    words: Embedding,
    positions: Tensor,
    qkv: Linear,
    head: Linear,
    tags: bool,
}

impl Encoder {
    fn new(tags: bool, dtype: DType) -> (Self, Params) {
        let weights = Weights::seeded(Seed::new(2));
        let vb: VarBuilder = weights.var_builder(dtype, &CPU);
        let normal = candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 };
        let encoder = Self {
            words: candle_nn::embedding(112, WIDTH, vb.pp("words")).unwrap(),
            positions: vb.get_with_hints((1, LONGEST, WIDTH), "positions", normal).unwrap(),
            qkv: candle_nn::linear(WIDTH, 3 * WIDTH, vb.pp("qkv")).unwrap(),
            head: candle_nn::linear(WIDTH, CLASSES, vb.pp("head")).unwrap(),
            tags,
        };
        (encoder, Params::from_varmap(weights.varmap()))
    }
}

impl SequenceModel for Encoder {
    fn sequences(&self, ids: &Tensor) -> Result<Sequences> {
        // 100 and above is padding.
        Ok(Sequences::new(&ids.lt(100u32)?)?.keeping(&ids.eq(SEPARATOR)?)?)
    }

    fn forward_kept(&self, ids: &Tensor, keep: &Mask, _: &mut Pass) -> Result<Tensor> {
        // Padding has embeddings, too, which must not be seen.
        let positions = self.positions.narrow(1, 0, ids.dim(1)?)?;
        let tokens = keep.gather(&self.words.forward(ids)?.broadcast_add(&positions)?, 0)?;
        let bias = keep.attention_bias(tokens.dtype(), tokens.device())?;
        let length = tokens.dim(1)?;
        let none = Tensor::zeros((HEADS, length, length), tokens.dtype(), tokens.device())?;
        let tokens = (&tokens + ops::window_attention(&self.qkv.forward(&tokens)?, HEADS, &none, Some(&bias))?)?;
        if self.tags {
            return self.head.forward(&tokens);
        }
        let is_token = keep.attention_mask(tokens.dtype(), tokens.device())?.unsqueeze(2)?;
        let mean = tokens
            .broadcast_mul(&is_token)?
            .sum(1)?
            .broadcast_div(&is_token.sum(1)?)?;
        self.head.forward(&mean)
    }
}

/// Ids [B, L] with separators at positions 3, and padding of some id.
fn ids(padding: u32) -> Tensor {
    let row = |(b, &length): (usize, &usize)| {
        let id = |at: usize| match at {
            at if at >= length => 100 + (padding + at as u32) % 12,
            3 => SEPARATOR,
            at => 2 + (5 * b + 3 * at) as u32 % 10,
        };
        (0..LONGEST).map(id).collect::<Vec<_>>()
    };
    Tensor::new(LENGTHS.iter().enumerate().map(row).collect::<Vec<_>>(), &CPU).unwrap()
}

fn branch() -> SequenceDrop<RandomMasking> {
    SequenceDrop::new(half())
}

/// The logits of a sample by itself, [C] or [K, C], without anything that fills it up.
fn alone(encoder: &Encoder, sample: usize, keep: &[u32]) -> Tensor {
    let length = LENGTHS[sample];
    let ids = ids(0).narrow(0, sample, 1).unwrap().narrow(1, 0, length).unwrap();
    let mask = Mask::from_keep_indices(masksub::Grid::new(1, length), &[keep]).unwrap();
    let logits = encoder.forward_kept(&ids, &mask, &mut Pass::eval()).unwrap();
    logits.squeeze(0).unwrap()
}

fn alone_in_both(encoder: &Encoder, mask: &Mask) -> [Vec<Tensor>; 2] {
    let all = |b: usize| (0..LENGTHS[b] as u32).collect::<Vec<_>>();
    let main = (0..LENGTHS.len()).map(|b| alone(encoder, b, &all(b))).collect();
    let sub = mask
        .rows()
        .enumerate()
        .map(|(b, keep)| alone(encoder, b, keep))
        .collect();
    [main, sub]
}

#[test]
fn predict_as_each_sample_by_itself() {
    for tags in [false, true] {
        let (encoder, _) = Encoder::new(tags, DType::F32);
        let model = MaskSub::unchecked(encoder, branch());
        let pair = model.forward_pair(&ids(0), key()).unwrap();
        let mask = pair.mask.as_ref().unwrap();
        // Half of the free tokens, and the separator.
        let kept: Vec<_> = mask.rows().map(<[u32]>::len).collect();
        assert_eq!(kept, [4 + 1, 1 + 1, 1, 2 + 1]);
        for (batch, samples) in [&pair.main, &pair.sub]
            .into_iter()
            .zip(alone_in_both(model.model(), mask))
        {
            for (b, sample) in samples.iter().enumerate() {
                let mut ours = batch.get(b).unwrap();
                if tags {
                    ours = ours.narrow(0, 0, sample.dim(0).unwrap()).unwrap();
                }
                let far = numbers(&(ours - sample).unwrap())
                    .into_iter()
                    .fold(0.0, |a: f64, b| a.max(b.abs()));
                assert!(far < 1e-5, "sample {b}: {far:e}");
            }
        }
    }
}

#[test]
fn do_not_see_padding() {
    let (encoder, params) = Encoder::new(false, DType::F32);
    let model = MaskSub::new(encoder, branch(), &params);
    let run = |ids: &Tensor| {
        let step = model
            .backward(ids, key(), |logits| cross_entropy(logits, &labels(4, CLASSES)))
            .unwrap();
        let words = numbers(&by_name(&step.grads, &params)["words.weight"]);
        (numbers(&step.main_logits), step.sub_loss.unwrap(), words)
    };
    let (logits, sub_loss, words) = run(&ids(0));
    let other = run(&ids(5));
    assert_eq!((&logits, sub_loss), (&other.0, other.1));
    assert_eq!(words, other.2);
    assert!(
        words[100 * WIDTH..].iter().all(|&g| g == 0.0),
        "nothing flows into padding"
    );
    assert!(words[..100 * WIDTH].iter().any(|&g| g != 0.0));
    // Outside training as well, and behind more padding: only the length of what is not read differs.
    let evaluated = numbers(&model.forward_t(&ids(0), false).unwrap());
    let far = evaluated
        .iter()
        .zip(&logits)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(far < 1e-6);
}

#[test]
fn have_the_gradients_of_samples_by_themselves() {
    for tags in [false, true] {
        let (encoder, params) = Encoder::new(tags, DType::F32);
        let loss = if tags {
            SubModelLoss::default().where_kept()
        } else {
            SubModelLoss::default()
        };
        let model = MaskSub::new(encoder, branch(), &params).with_sub_loss(loss);
        // Of a token the class of its sample.
        let main = |logits: &Tensor| match tags {
            false => cross_entropy(logits, &labels(4, CLASSES)),
            true => {
                let samples = LENGTHS.iter().enumerate();
                let rows = samples.map(|(b, &length)| logits.get(b)?.narrow(0, 0, length));
                let rows = Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?;
                cross_entropy(&rows, &of_tokens())
            }
        };
        let step = model.backward(&ids(0), key(), main).unwrap();

        let (wide, wide_params) = Encoder::new(tags, DType::F64);
        let mask = step.mask.as_ref().unwrap();
        let [mains, subs] = alone_in_both(&wide, mask);
        let (main, sub) = if tags {
            let targets = mask.rows().zip(&mains).map(|(keep, main)| {
                let rows = keep.iter().map(|&at| main.get(at as usize));
                Tensor::stack(&rows.collect::<Result<Vec<_>>>().unwrap(), 0).unwrap()
            });
            let targets = Tensor::cat(&targets.collect::<Vec<_>>(), 0).unwrap();
            let main = cross_entropy(&Tensor::cat(&mains, 0).unwrap(), &of_tokens()).unwrap();
            (main, soft(&Tensor::cat(&subs, 0).unwrap(), &targets).unwrap())
        } else {
            let [mains, subs] = [mains, subs].map(|rows| Tensor::stack(&rows, 0).unwrap());
            (
                cross_entropy(&mains, &labels(4, CLASSES)).unwrap(),
                soft(&subs, &mains).unwrap(),
            )
        };
        for (ours, theirs) in [(step.main_loss, &main), (step.sub_loss.unwrap(), &sub)] {
            assert!(
                (ours - theirs.to_scalar::<f64>().unwrap()).abs() < 1e-5,
                "{ours} {theirs}"
            );
        }
        let joint = grad::backward(&((main + sub).unwrap() * 0.5).unwrap(), &wide_params).unwrap();
        let error = gradient_distance(&by_name(&step.grads, &params), &by_name(&joint, &wide_params));
        assert!(error < 1e-5, "tags {tags}: {error:e}");
    }
}

fn of_tokens() -> Tensor {
    let classes = labels(4, CLASSES).to_vec1::<u32>().unwrap();
    let of_each = LENGTHS
        .iter()
        .zip(classes)
        .flat_map(|(&length, class)| vec![class; length]);
    Tensor::new(of_each.collect::<Vec<_>>(), &CPU).unwrap()
}

/// Masks of different numbers do not fit models that take as many of each sample.
#[test]
fn are_not_for_models_of_images() {
    let (vit, _) = crate::common::vit(&crate::common::tiny(masksub::models::vit::Config::deit3_tiny(5)), 1);
    let sequences =
        Sequences::new(&Tensor::new(vec![vec![1u8; 16], [vec![1u8; 9], vec![0; 7]].concat()], &CPU).unwrap());
    let mask = sequences.unwrap().draw(&half(), key()).unwrap();
    let result = masksub::TokenModel::embed(&vit, &crate::common::images(2, "x"), Some(&mask), &mut Pass::eval());
    let error = Error::from(result.unwrap_err()).to_string();
    assert!(error.starts_with("mask is "), "{error}");
}
