use super::*;
use crate::ops::testing::{check, check_derivative, random, rng};
use crate::ops::{Pairs, Rotation};
use candle_core::Device;
use rand::Rng as _;

fn branch(args: &[Tensor], num_heads: usize) -> AttentionBranch<'_> {
    let [norm, qkv, proj] = affines(&args[1..]);
    AttentionBranch {
        norm,
        eps: 0.1,
        qkv,
        num_heads,
        proj,
        gamma: args.get(7),
        // Of every other size of batch.
        recompute: args[0].dims()[0].is_multiple_of(2),
    }
}

/// What is not a tensor with a gradient.
#[derive(Clone)]
struct Setting<'a> {
    heads: usize,
    tokens: Tokens,
    drop_path: Option<&'a [f32]>,
    /// Angles of the last tokens, of all samples or of each.
    angles: Option<Tensor>,
    /// Rows of the table, which comes behind γ.
    index: Option<Tensor>,
}

impl<'a> Setting<'a> {
    fn new(heads: usize, tokens: Tokens, drop_path: Option<&'a [f32]>) -> Self {
        Self {
            heads,
            tokens,
            drop_path,
            angles: None,
            index: None,
        }
    }

    /// With angles for all tokens but the first, and a table of `rows` rows, either of which each of `samples` has.
    fn with_positions(mut self, [samples, n, half, rows]: [usize; 4], seed: u64) -> Self {
        let angles = random(&[samples, n - 1, half], seed);
        let angles = if samples == 1 {
            angles.squeeze(0).unwrap()
        } else {
            angles
        };
        let mut rng = rng(seed);
        let row = |_| rng.random_range(0..rows as u32);
        let index: Vec<u32> = (0..samples * n * n).map(row).collect();
        self.index = Some(Tensor::from_vec(index, (samples, n, n), &Device::Cpu).unwrap());
        self.angles = Some(angles);
        self
    }

    fn with<T>(&self, args: &[Tensor], f: impl FnOnce(&Positions) -> Result<T>) -> Result<T> {
        let angles = self.angles.as_ref();
        let angles = angles.map(|angles| Ok::<_, candle_core::Error>((angles.cos()?, angles.sin()?)));
        let angles = angles.transpose()?;
        f(&Positions {
            rotation: angles.as_ref().map(|(cos, sin)| Rotation {
                cos,
                sin,
                pairs: Pairs::Halves,
            }),
            bias: self.index.as_ref().map(|index| RelativeBias { table: &args[8], index }),
        })
    }

    fn kernel(&self, args: &[Tensor]) -> Result<Tensor> {
        self.with(args, |positions| {
            attention_branch(
                &args[0],
                &branch(args, self.heads),
                self.tokens,
                positions,
                self.drop_path,
            )
        })
    }

    fn reference(&self, args: &[Tensor]) -> Result<Tensor> {
        self.with(args, |positions| {
            composition(
                &args[0],
                &branch(args, self.heads),
                self.tokens,
                positions,
                self.drop_path,
            )
        })
    }
}

fn shapes(b: usize, n: usize, d: usize) -> Vec<Vec<usize>> {
    let shapes = [
        vec![b, n, d],
        vec![d],
        vec![d],
        vec![3 * d, d],
        vec![3 * d],
        vec![d, d],
        vec![d],
        vec![d],
    ];
    shapes.into()
}

/// Small weights, as models have them: the softmax is not all on a few keys.
fn with_small_weights(args: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut args = args.to_vec();
    args[3] = (&args[3] * 0.125)?;
    Ok(args)
}

fn check_setting(setting: &Setting, shapes: &[Vec<usize>], seed: u64) {
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    check(
        &|args| setting.kernel(&with_small_weights(args)?),
        &|args| setting.reference(&with_small_weights(args)?),
        &shapes,
        seed,
    );
}

fn check_one(b: usize, n: usize, heads: usize, d: usize, seed: u64) {
    let shapes = shapes(b, n, heads * d);
    let factors: Vec<f32> = (0..b).map(|i| [1.25, 0.0, 2.0][i % 3]).collect();
    let none = vec![0.0; b];
    for (tokens, drop_path, given) in [
        (Tokens::First, Some(none.as_slice()), 8),
        (Tokens::All, None, 8),
        (Tokens::All, Some(factors.as_slice()), 7),
        (Tokens::First, Some(factors.as_slice()), 8),
        (Tokens::First, None, 7),
    ] {
        check_setting(&Setting::new(heads, tokens, drop_path), &shapes[..given], seed);
    }
}

#[test]
fn equals_its_composition() {
    let mut rng = rng(9);
    for seed in 0..3 {
        let mut size = |most| rng.random_range(1..=most);
        check_one(size(4), 1 + size(20), size(3), 2 + size(12), seed);
    }
}

#[test]
fn equals_its_composition_at_the_edges() {
    check_one(1, 1, 1, 5, 0);
    // More than one piece of work. (Of longer sequences the gradients' means over tokens nearly vanish: f32 itself,
    // in the composition too, is then further than 2e-6 from f64.)
    check_one(6, 65, 3, 16, 1);
}

#[test]
fn with_positions_equals_its_composition() {
    // So many rows that few pairs share one: the gradients of a softmax's scores add up to nothing.
    let (n, heads, d, rows) = (7, 2, 6, 40);
    for (b, drop_path) in [
        (1, None),
        (3, None),
        (3, Some([1.25, 0.0, 2.0].as_slice())),
        (2, Some([0.0, 0.0].as_slice())),
    ] {
        let mut shapes = shapes(b, n, heads * d);
        shapes.push(vec![rows, heads]);
        for (samples, tokens) in [(1, Tokens::All), (b, Tokens::All), (b, Tokens::First)] {
            let setting = Setting::new(heads, tokens, drop_path).with_positions([samples, n, d / 2, rows], 1);
            check_setting(&setting, &shapes, 2);
            let turned = Setting {
                index: None,
                ..setting.clone()
            };
            check_setting(&turned, &shapes[..8], 3);
            check_setting(
                &Setting {
                    angles: None,
                    ..setting
                },
                &shapes,
                4,
            );
        }
    }
}

#[test]
fn composition_has_the_right_derivative() {
    let mut shapes = shapes(2, 3, 4);
    shapes.push(vec![5, 2]);
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let dropped = Setting::new(2, Tokens::All, Some(&[0.5, 2.0]));
    check_derivative(&|args| dropped.reference(args), &shapes[..8], 0);
    let first = Setting::new(1, Tokens::First, None);
    check_derivative(&|args| first.reference(args), &shapes[..7], 1);
    let placed = Setting::new(2, Tokens::All, None).with_positions([2, 3, 1, 5], 2);
    check_derivative(&|args| placed.reference(args), &shapes, 2);
}

#[test]
fn errors_name_the_argument() {
    let message = |heads: usize, change: &dyn Fn(&mut Vec<Vec<usize>>)| {
        let mut shapes = shapes(2, 3, 4);
        change(&mut shapes);
        let args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
        Setting::new(heads, Tokens::All, None)
            .kernel(&args)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        message(1, &|s| s[0] = vec![2, 4]),
        "xs has shape [2, 4], but must be [B, N, D]"
    );
    assert_eq!(
        message(1, &|s| s[3] = vec![4, 4]),
        "qkv.weight has shape [4, 4], but must be [12, 4]"
    );
    assert_eq!(
        message(1, &|s| s[6] = vec![5]),
        "proj.bias has shape [5], but must be [4]"
    );
    let many = message(3, &|_| {});
    assert_eq!(many, "num_heads is 3, but must be a divisor of D = 4");
    let placed = |sizes| {
        let mut shapes = shapes(2, 3, 4);
        shapes.push(vec![5, 2]);
        let args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
        let setting = Setting::new(2, Tokens::All, None).with_positions(sizes, 0);
        setting.kernel(&args).unwrap_err().to_string()
    };
    assert_eq!(
        placed([1, 3, 2, 5]),
        "cos has shape [2, 2], but must be [K, 1] or [2, K, 1] with K at most 3"
    );
    assert_eq!(
        placed([2, 3, 1, 6]),
        "index is 5, but must be below 5, the table's rows"
    );
}
