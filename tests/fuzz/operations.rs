//! The operations and layers, of tensors that do not go together.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Module;
use masksub::ops::{
    self, Activation, Affine, AttentionBranch, ConvMlpBranch, ConvNorm, Gated, GatedMlpBranch, MlpBranch, Pairs,
    PatchEmbed, Pooling, ResidualBlock, Rotation, RunningStatistics, Tokens, Windows,
};
use masksub::{nn, Grid, KeyedRng, Pass, Result, Seed, Weights};
use rand::Rng as _;

use crate::draw::{self, count, float, pick, small, tensor};
use crate::memory;
use crate::settings::key;
use crate::Scratch;

/// Sides of a grid and what divides it, most often.
fn windows(rng: &mut KeyedRng) -> (Grid, usize, usize) {
    let window = rng.random_range(1..4);
    let grid = Grid::new(window * rng.random_range(1..4), window * rng.random_range(1..4));
    match rng.random_range(0..4) {
        0 => (Grid::new(count(rng), count(rng)), count(rng), count(rng)),
        1 => (grid, window, count(rng)),
        _ => (grid, window, rng.random_range(0..window)),
    }
}

/// Rows of a table that has some five.
fn index(rng: &mut KeyedRng, shape: [usize; 3]) -> Result<Tensor> {
    const MOST: usize = 1 << 16;
    let most = pick(rng, &[3, 4, 5, u32::MAX]);
    let pairs = shape.iter().try_fold(1usize, |pairs, &side| pairs.checked_mul(side));
    let Some(pairs) = pairs.filter(|&pairs| pairs <= MOST) else {
        // As large as it is asked for, in no memory.
        let one = Tensor::zeros((1, 1, 1), DType::U32, &Device::Cpu)?;
        return Ok(one.broadcast_as(shape.as_slice())?);
    };
    let rows: Vec<u32> = (0..pairs).map(|_| rng.random_range(0..=most)).collect();
    Ok(Tensor::from_vec(rows, &shape, &Device::Cpu)?)
}

/// A count as it is meant, most often.
pub fn near(rng: &mut KeyedRng, meant: usize) -> usize {
    if rng.random_bool(0.8) {
        meant
    } else {
        count(rng)
    }
}

fn factors(rng: &mut KeyedRng, batch: usize) -> Option<Vec<f32>> {
    let len = near(rng, batch).min(32);
    rng.random_bool(0.3)
        .then(|| (0..len).map(|_| float(rng) as f32).collect())
}

/// Goes back from a result to what it came from.
pub fn back(ys: &Tensor) -> Result<()> {
    // For the gradient of a sum candle takes twice the memory of what is summed, and asks nobody whether it is there.
    let affordable = ys.elem_count() < memory::MOST / ys.dtype().size_in_bytes().max(1) / 4;
    if affordable && ys.track_op() && ys.dtype().is_float() {
        ys.sum_all()?.backward()?;
    }
    Ok(())
}

pub fn var(rng: &mut KeyedRng, shape: &[usize]) -> Result<Tensor> {
    let tensor = tensor(rng, shape)?;
    Ok(match tensor.dtype().is_float() {
        // In the layout that was drawn.
        true => (Var::from_tensor(&tensor.zeros_like()?)?.as_tensor() + &tensor)?,
        false => tensor,
    })
}

/// Operations on one tensor or two.
pub fn plain(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let [b, c, d, k] = [0; 4].map(|_| small(rng));
    let rank = rng.random_range(0..5);
    let any: Vec<usize> = (0..rank).map(|_| rng.random_range(0..6)).collect();
    let ys = match rng.random_range(0..16) {
        0 => ops::gelu(&var(rng, &any)?)?,
        1 => ops::quick_gelu(&var(rng, &any)?)?,
        2 => ops::softmax_last_dim(&var(rng, &any)?)?,
        3 => ops::softmax(&var(rng, &any)?, near(rng, 0))?,
        4 => ops::layer_norm(
            &var(rng, &[b, d])?,
            &var(rng, &[d])?,
            &var(rng, &[d])?,
            float(rng) as f32,
        )?,
        5 => ops::rms_norm(&var(rng, &[b, c, d])?, &var(rng, &[d])?, float(rng) as f32)?,
        6 => ops::linear(&var(rng, &[b, c, d])?, &var(rng, &[k, d])?, Some(&var(rng, &[k])?))?,
        7 => ops::add_relu(&var(rng, &any)?, &var(rng, &any)?)?,
        8 => {
            let keep: Vec<u32> = (0..b * k)
                .map(|_| {
                    let at = rng.random_range(0..c);
                    near(rng, at) as u32
                })
                .collect();
            ops::gather_rows(&var(rng, &[b, c, d])?, &keep, near(rng, 0))?
        }
        9 => ops::patchify(&var(rng, &[b, c, k * d, k])?, near(rng, k))?,
        10 => {
            let xs = var(rng, &[b, 2, c, 2 * d])?;
            let [cos, sin] = [var(rng, &[c, d])?, var(rng, &[c, d])?];
            match rng.random_range(0..3) {
                0 => ops::rotary_emb::rope(&xs, &cos, &sin)?,
                1 => ops::rotary_emb::rope_i(&xs, &cos, &sin)?,
                _ => ops::rotary_emb::rope_thd(&xs, &cos, &sin)?,
            }
        }
        12 => {
            let qkv = var(rng, &[b, c, 6 * d * k])?;
            let turned = near(rng, c).min(32);
            let angles = if rng.random() {
                vec![turned, d]
            } else {
                vec![b, turned, d]
            };
            let mut angle = || -> Result<Tensor> {
                let angle = var(rng, &angles)?;
                Ok(if rng.random_bool(0.9) { angle.detach() } else { angle })
            };
            let (cos, sin) = (angle()?, angle()?);
            let rotation = Rotation {
                cos: &cos,
                sin: &sin,
                pairs: pick(rng, &[Pairs::Neighbours, Pairs::Halves]),
            };
            ops::rotary_qkv(&qkv, near(rng, k), &rotation)?
        }
        14 => {
            let shape = [b, c, d, k];
            let factor = shape.map(|size| if rng.random() { size } else { 1 });
            let lacking = near(rng, 0).min(4);
            ops::broadcast_mul(&var(rng, &shape)?, &var(rng, &factor[lacking..])?)?
        }
        13 => {
            let rows = pick(rng, &[5, 5, 5, 0, 4, 9]);
            let (qkv, table) = (var(rng, &[b, c, 3 * d * k])?, var(rng, &[rows, k])?);
            let shape = [pick(rng, &[1, b, 3]), near(rng, c), c];
            let index = index(rng, shape)?;
            let bias = ops::RelativeBias {
                table: &table,
                index: &index,
            };
            ops::biased_attention(&qkv, near(rng, k), &bias)?
        }
        11 => ops::attention(&var(rng, &[b, c, 3 * d * k])?, near(rng, k))?,
        _ => {
            ops::batch_norm(
                &var(rng, &[b, c, d, k])?,
                &var(rng, &[c])?,
                &var(rng, &[c])?,
                float(rng),
            )?
            .0
        }
    };
    back(&ys)
}

/// Convolutions, poolings, windows.
pub fn spatial(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let [b, c, d, k] = [0; 4].map(|_| small(rng));
    let (grid, window, shift) = windows(rng);
    let positions = if grid.height.max(grid.width) < 100 {
        grid.len()
    } else {
        4
    };
    let ys = match rng.random_range(0..9) {
        0 => {
            let config = nn::Conv2dConfig {
                stride: near(rng, 1),
                padding: near(rng, 1),
                ..Default::default()
            };
            ops::conv2d(&var(rng, &[b, c, d, k])?, &var(rng, &[c, c, 3, 3])?, None, config)?
        }
        1 => ops::max_pool2d(&var(rng, &[b, c, d, k])?, near(rng, 3), near(rng, 2), near(rng, 1))?,
        2 => ops::window_partition(&var(rng, &[b, positions, d])?, grid, window, shift)?,
        3 => ops::window_reverse(&var(rng, &[b, positions, d])?, grid, window, shift)?,
        4 => ops::merge_neighbours(&var(rng, &[b, positions, d])?, grid)?,
        5 => {
            let offsets = (2 * window.min(9) - usize::from(window > 0)).pow(2);
            ops::relative_position_bias(&var(rng, &[offsets, k])?, window)?
        }
        6 => ops::shift_mask(grid, window, shift, &Device::Cpu)?,
        7 => {
            let bias = var(rng, &[k, c, c])?;
            let mask = if rng.random() {
                Some(var(rng, &[2, c, c])?)
            } else {
                None
            };
            ops::window_attention(&var(rng, &[2 * b, c, 3 * d * k])?, near(rng, k), &bias, mask.as_ref())?
        }
        _ => {
            let xs = var(rng, &[b, c, d, k])?;
            let [mean, var_, weight, bias] = [(); 4].map(|()| var(rng, &[c]));
            ops::batch_norm_eval(&xs, &mean?, &var_?, &weight?, &bias?, float(rng))?
        }
    };
    back(&ys)
}

/// Convolutions of all kinds, group norm, pooling and interpolation.
pub fn resampled(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let [b, c, d, k] = [0; 4].map(|_| small(rng));
    let [stride, padding, dilation, groups] = [1, 1, 1, c].map(|meant| near(rng, meant));
    let xs = var(rng, &[b, c, d, k])?;
    let bias = if rng.random() { Some(var(rng, &[c])?) } else { None };
    let ys = match rng.random_range(0..8) {
        0 => {
            let config = nn::Conv2dConfig {
                stride,
                padding,
                dilation,
                groups,
                ..Default::default()
            };
            ops::conv2d(&xs, &var(rng, &[c, 1, 3, 2])?, bias.as_ref(), config)?
        }
        1 => {
            let config = nn::Conv1dConfig {
                stride,
                padding,
                dilation,
                groups,
                ..Default::default()
            };
            ops::conv1d(&var(rng, &[b, c, k])?, &var(rng, &[c, 1, 3])?, bias.as_ref(), config)?
        }
        2 => {
            let config = nn::ConvTranspose2dConfig {
                stride,
                padding,
                dilation,
                output_padding: near(rng, 0),
            };
            ops::conv_transpose2d(&xs, &var(rng, &[c, c, 3, 2])?, bias.as_ref(), config)?
        }
        3 => ops::group_norm(&xs, groups, &var(rng, &[c])?, &var(rng, &[c])?, float(rng))?,
        4 => ops::avg_pool2d(&xs, near(rng, 2), stride)?,
        5 => ops::max_pool2d(&xs, near(rng, 2), stride, padding)?,
        6 => ops::upsample_nearest2d(&xs, near(rng, 5), near(rng, 4))?,
        _ => ops::upsample_bilinear2d(&xs, near(rng, 5), near(rng, 4), rng.random())?,
    };
    back(&ys)
}

/// Whole branches in one operation.
pub fn fused(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let (b, heads) = (small(rng), rng.random_range(1..3));
    let d = heads * small(rng);
    let (grid, window, shift) = windows(rng);
    let positions = if grid.height.max(grid.width) < 100 {
        grid.len()
    } else {
        4
    };
    let xs = var(rng, &[b, positions, d])?;
    let shapes: [&[usize]; 8] = [&[d], &[d], &[3 * d, d], &[3 * d], &[d, d], &[d], &[d], &[2 * d, d]];
    let tensors = shapes.iter().map(|shape| var(rng, shape)).collect::<Result<Vec<_>>>()?;
    let affine = |i: usize| Affine {
        weight: &tensors[i],
        bias: &tensors[i + 1],
    };
    let gamma = rng.random_bool(0.5).then(|| &tensors[6]);
    let drop_path = factors(rng, b);
    let branch = AttentionBranch {
        norm: affine(0),
        eps: float(rng),
        qkv: affine(2),
        num_heads: near(rng, heads),
        proj: affine(4),
        gamma,
        recompute: rng.random(),
    };
    let ys = match rng.random_range(0..6) {
        0 => {
            let samples = pick(rng, &[1, b, 3]);
            let half = pick(rng, &[d / heads / 2, d / heads / 2, 0, 1, 5]);
            let turned = pick(
                rng,
                &[positions, positions, positions.saturating_sub(1), 0, positions + 1],
            );
            let mut angles = || var(rng, &[samples, turned, half]).map(|angle| angle.detach());
            let (cos, sin) = (angles()?, angles()?);
            let rotation = Rotation {
                cos: &cos,
                sin: &sin,
                pairs: Pairs::Halves,
            };
            let rows = pick(rng, &[5, 5, 5, 0, 4, 9]);
            let table = var(rng, &[rows, heads])?;
            let shape = [samples, positions, near(rng, positions)];
            let index = index(rng, shape)?;
            let bias = ops::RelativeBias {
                table: &table,
                index: &index,
            };
            let places = ops::Positions {
                rotation: rng.random_bool(0.5).then_some(rotation),
                bias: rng.random_bool(0.5).then_some(bias),
            };
            let tokens = pick(rng, &[Tokens::All, Tokens::First]);
            ops::attention_branch(&xs, &branch, tokens, &places, drop_path.as_deref())?
        }
        1 => {
            let offsets = (2 * window.min(9) - usize::from(window > 0)).pow(2);
            let table = var(rng, &[offsets, heads])?;
            let mask = match shift {
                0 => None,
                _ => ops::shift_mask(grid, window, shift, &Device::Cpu).ok(),
            };
            let windows = Windows {
                grid,
                window,
                shift,
                table: &table,
                mask: mask.as_ref(),
            };
            ops::window_attention_branch(&xs, &branch, &windows, drop_path.as_deref())?
        }
        2 => {
            let (bias1, fc2) = (var(rng, &[2 * d])?, var(rng, &[d, 2 * d])?);
            let branch = MlpBranch {
                norm: affine(0),
                eps: float(rng),
                fc1: Affine {
                    weight: &tensors[7],
                    bias: &bias1,
                },
                activation: pick(rng, &[Activation::Gelu, Activation::QuickGelu, Activation::GeluTanh]),
                fc2: Affine {
                    weight: &fc2,
                    bias: &tensors[5],
                },
                gamma,
                recompute: rng.random(),
            };
            ops::mlp_branch(&xs, &branch, drop_path.as_deref())?
        }
        3 => {
            let side = pick(rng, &[1, 3, 7, 2, 0]);
            let kernels = near(rng, d).min(32);
            let (conv, bias1, fc2) = (
                var(rng, &[kernels, 1, side, side])?,
                var(rng, &[2 * d])?,
                var(rng, &[d, 2 * d])?,
            );
            let response = Affine {
                weight: &bias1,
                bias: &bias1,
            };
            let branch = ConvMlpBranch {
                conv: Affine {
                    weight: &conv,
                    bias: &tensors[0],
                },
                norm: affine(0),
                eps: float(rng),
                fc1: Affine {
                    weight: &tensors[7],
                    bias: &bias1,
                },
                response: rng.random_bool(0.5).then_some(response),
                fc2: Affine {
                    weight: &fc2,
                    bias: &tensors[5],
                },
                gamma,
            };
            ops::conv_mlp_branch(&xs, grid, &branch, drop_path.as_deref())?
        }
        4 => {
            let inner = near(rng, d).min(32);
            let vector = var(rng, &[inner])?;
            let (layer, packed, fc2) = (
                var(rng, &[inner, d])?,
                var(rng, &[2 * inner, d])?,
                var(rng, &[d, inner])?,
            );
            let packed_bias = var(rng, &[2 * inner])?;
            let apart = Affine {
                weight: &layer,
                bias: &vector,
            };
            let packed = Affine {
                weight: &packed,
                bias: &packed_bias,
            };
            let inner_norm = Affine {
                weight: &vector,
                bias: &vector,
            };
            let branch = GatedMlpBranch {
                norm: affine(0),
                eps: float(rng),
                gated: pick(rng, &[Gated::Packed(packed), Gated::Apart([apart; 2])]),
                inner_norm: rng.random_bool(0.5).then_some(inner_norm),
                fc2: Affine {
                    weight: &fc2,
                    bias: &tensors[5],
                },
                gamma,
            };
            ops::gated_mlp_branch(&xs, &branch, drop_path.as_deref())?
        }
        _ => {
            let (p, k) = (small(rng), small(rng));
            let images = var(rng, &[b, 2, p * heads, p * k])?;
            let (weight, prefix) = (var(rng, &[d, 2, p, p])?, small(rng));
            let length = heads * k + pick(rng, &[0, 1, prefix]);
            let prefix = var(rng, &[1, prefix, d])?;
            let positions = var(rng, &[1, length, d])?;
            let keep: Vec<u32> = (0..b).map(|_| near(rng, 0) as u32).collect();
            let embed = PatchEmbed {
                weight: &weight,
                bias: rng.random_bool(0.5).then(|| &tensors[0]),
                prefix: rng.random_bool(0.8).then_some(&prefix),
                positions: &positions,
            };
            ops::patch_embed(&images, &embed, rng.random_bool(0.5).then_some(&keep[..]))?
        }
    };
    back(&ys)
}

/// A ResNet's operations.
pub fn residual(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let [b, c, side] = [0; 3].map(|_| small(rng));
    let xs = var(rng, &[b, c, side, side + 1])?;
    let tensors = (0..4).map(|_| var(rng, &[c])).collect::<Result<Vec<_>>>()?;
    let kernel = pick(rng, &[1, 3, 3, 7]);
    let weight = var(rng, &[c, c, kernel, kernel])?;
    let running = RunningStatistics {
        mean: &tensors[2],
        var: &tensors[3],
    };
    let conv = ConvNorm {
        weight: &weight,
        stride: near(rng, 1),
        padding: near(rng, kernel / 2),
        norm: Affine {
            weight: &tensors[0],
            bias: &tensors[1],
        },
        eps: float(rng),
        running: rng.random_bool(0.4).then_some(running),
    };
    let ys = match rng.random() {
        true => {
            let block = ResidualBlock {
                convs: vec![conv; rng.random_range(0..4)],
                downsample: rng.random_bool(0.2).then_some(conv),
                drop_path: factors(rng, b),
            };
            ops::residual_blocks(&xs, &vec![block; rng.random_range(0..3)])?.0
        }
        false => {
            let pooling = Pooling {
                kernel: near(rng, 3),
                stride: near(rng, 2),
                padding: near(rng, 1),
            };
            ops::stem(&xs, &conv, pooling)?.0
        }
    };
    back(&ys)
}

/// Layers, and what a pass does for a model.
pub fn layers(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let weights = Weights::seeded(Seed::new(1));
    let vb = weights.var_builder(draw::dtype(rng), &Device::Cpu);
    let d = near(rng, 5);
    let batch = small(rng);
    let xs = var(rng, &[batch, 5, 3, 5])?;
    let mut pass = match rng.random_range(0..3) {
        0 => Pass::eval(),
        1 => Pass::train(key(rng)),
        _ => Pass::without_key(true),
    };
    if rng.random_bool(0.2) {
        pass.impose_dropout(float(rng))?;
        pass.impose_drop_path(float(rng))?;
    }
    let ys = match rng.random_range(0..6) {
        0 => nn::layer_norm(d, float(rng), vb)?.forward(&xs)?,
        1 => nn::layer_norm_no_bias(d, float(rng), vb)?.forward(&xs)?,
        2 => nn::rms_norm(d, float(rng), vb)?.forward(&xs)?,
        3 => {
            let config = nn::BatchNormConfig {
                eps: float(rng),
                momentum: float(rng),
                ..Default::default()
            };
            let norm = nn::batch_norm(d, config, vb)?;
            let ys = masksub::Forward::forward_pass(&norm, &xs, &mut pass)?;
            pass.commit()?;
            return back(&ys);
        }
        4 => pass.dropout(&xs, float(rng))?,
        _ => pass.drop_path(&xs, float(rng))?,
    };
    back(&ys)
}
