//! Tests of mixed precision, layers in half precision within branches in f32: against the same in candle's operations in
//! f32, with every factor and every result of a product rounded where it stands, so that its gradient is, too.

use candle_core::{DType, Device, Result, Tensor, Var, D};

use super::affine::{affines, Affine};
use crate::grid::Grid;
use crate::ops::testing::{random, relative};
use crate::ops::{
    attention_branch, conv_mlp_branch, gated_mlp_branch, mlp_branch, patch_embed, residual_blocks, shift_mask, stem,
    window_attention_branch, Activation, AttentionBranch, ConvMlpBranch, ConvNorm, Gated, GatedMlpBranch, MlpBranch,
    Pairs, PatchEmbed, Pooling, Positions, RelativeBias, ResidualBlock, Rotation, Tokens, Windows,
};

/// Half the distance between 1 and the next number.
const HALF_STEPS: [(DType, f64); 2] = [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)];

/// B, N, heads, D and H.
const SIZES: [usize; 5] = [3, 9, 2, 8, 12];
const EPS: f64 = 1e-6;

type Round<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

/// A branch of its input and its parameters, those of its layers in `dtype`; and the same with what `round` rounds.
type Mixed<'a> = &'a dyn Fn(&Tensor, &[Tensor]) -> Result<Tensor>;
type Reference<'a> = &'a dyn Fn(&Tensor, &[Tensor], Round) -> Result<Tensor>;

/// The result and the gradients of the input and all parameters.
fn run(op: impl Fn(&Tensor, &[Tensor]) -> Result<Tensor>, xs: &Tensor, params: &[Tensor]) -> Vec<Tensor> {
    let var = |tensor: &Tensor| Var::from_tensor(&tensor.to_dtype(DType::F32).unwrap()).unwrap();
    let (xs, params) = (var(xs), params.iter().map(var).collect::<Vec<_>>());
    let tensors: Vec<_> = params.iter().map(|var| var.as_tensor().clone()).collect();
    let ys = op(&xs, &tensors).unwrap();
    let upstream = random(ys.dims(), 99).to_dtype(DType::F32).unwrap();
    let grads = (&ys * upstream).unwrap().sum_all().unwrap().backward().unwrap();
    let grad = |var: &Var| grads.get(var).unwrap().clone();
    [ys].into_iter()
        .chain([&xs].into_iter().chain(&params).map(grad))
        .collect()
}

/// Every number is f32, and four times as near to the reference as that is to what nothing is rounded in: sums in another
/// order are rounded another way here and there.
fn check(name: &str, layers: &[usize], shapes: &[&[usize]], mixed: Mixed, reference: Reference) {
    let xs = random(shapes[0], 0);
    let params: Vec<_> = (1..)
        .zip(&shapes[1..])
        .map(|(seed, shape)| random(shape, seed))
        .collect();
    let exact = run(|xs, params| reference(xs, params, &|t| Ok(t.clone())), &xs, &params);
    for (dtype, half_step) in HALF_STEPS {
        let ours = |xs: &Tensor, params: &[Tensor]| {
            let mut params = params.to_vec();
            for &layer in layers {
                params[layer] = params[layer].to_dtype(dtype)?;
            }
            mixed(xs, &params)
        };
        let rounded = |t: &Tensor| t.to_dtype(dtype)?.to_dtype(DType::F32);
        let theirs = run(|xs, params| reference(xs, params, &rounded), &xs, &params);
        for (i, (ours, theirs)) in run(ours, &xs, &params).iter().zip(&theirs).enumerate() {
            assert_eq!(ours.dtype(), DType::F32);
            let (error, rounding) = (relative(ours, theirs), relative(&exact[i], theirs));
            println!("{name}, {dtype:?}, {i}: {error:.1e} of {rounding:.1e}, half step {half_step:.1e}");
            // Behind the result and the input's gradient are those of the parameters; what is added last has its exactly.
            let is_rounded = i < 2 || layers.contains(&(i - 2));
            let rounds = rounding > half_step / 16.0;
            assert!(rounds || !is_rounded, "{name}, {dtype:?}: nothing is rounded in {i}");
            assert!(
                error < (rounding / 4.0).max(1e-6),
                "{name}, {dtype:?}: {i} is off by {error:.1e} of {rounding:.1e}"
            );
        }
    }
}

fn linear(xs: &Tensor, [weight, bias]: [&Tensor; 2], round: Round) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut dims = xs.dims().to_vec();
    *dims.last_mut().unwrap() = outputs;
    let product = round(xs)?.reshape(((), inputs))?.matmul(&round(weight)?.t()?)?;
    round(&product.broadcast_add(&round(bias)?)?)?.reshape(dims)
}

fn norm(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
    centred
        .broadcast_div(&deviation)?
        .broadcast_mul(weight)?
        .broadcast_add(bias)
}

#[test]
fn an_mlp_rounds_what_it_multiplies() {
    let [b, n, _, d, h] = SIZES;
    let shapes: [&[usize]; 8] = [&[b, n, d], &[d], &[d], &[h, d], &[h], &[d, h], &[d], &[d]];
    let mixed = |xs: &Tensor, params: &[Tensor]| {
        let [norm, fc1, fc2] = affines(params);
        let branch = MlpBranch {
            norm,
            eps: EPS,
            fc1,
            activation: Activation::Gelu,
            fc2,
            gamma: params.get(6),
            recompute: false,
        };
        mlp_branch(xs, &branch, Some(&[1.5, 0.0, 0.5]))
    };
    check("mlp", &[2, 3, 4, 5], &shapes, &mixed, &|xs, p, round| {
        let hidden = round(&linear(&norm(xs, &p[0], &p[1])?, [&p[2], &p[3]], round)?.gelu_erf()?)?;
        let ys = linear(&hidden, [&p[4], &p[5]], round)?.broadcast_mul(&p[6])?;
        let factors = Tensor::new(&[1.5f32, 0.0, 0.5], &Device::Cpu)?.reshape(((), 1, 1))?;
        xs + ys.broadcast_mul(&factors)?
    });
}

/// Attention of a packed projection whose numbers are rounded, of the tokens that are computed.
fn attend(qkv: &Tensor, bias: Option<&Tensor>, round: Round) -> Result<Tensor> {
    let [_, _, heads, d, _] = SIZES;
    let (b, n, _) = qkv.dims3()?;
    let part = |i| {
        let part = qkv
            .narrow(2, i * d, d)?
            .contiguous()?
            .reshape((b, n, heads, d / heads))?;
        part.transpose(1, 2)?.contiguous()
    };
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scores = (q.matmul(&k.t()?)? * ((d / heads) as f64).powf(-0.5))?;
    let scores = match bias {
        Some(bias) => scores.broadcast_add(bias)?,
        None => scores,
    };
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let weights = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    round(&weights.matmul(&v)?.transpose(1, 2)?.reshape((b, n, d))?)
}

fn attention_parts(params: &[Tensor]) -> AttentionBranch<'_> {
    let [norm, qkv, proj] = affines(params);
    AttentionBranch {
        norm,
        eps: EPS,
        qkv,
        num_heads: SIZES[2],
        proj,
        gamma: Some(&params[6]),
        recompute: false,
    }
}

/// Of input, norm, qkv, proj and γ.
const ATTENTION: [&[usize]; 8] = [&[3, 9, 8], &[8], &[8], &[24, 8], &[24], &[8, 8], &[8], &[8]];
const LAYERS: [usize; 4] = [2, 3, 4, 5];

#[test]
fn attention_rounds_what_it_multiplies() {
    let mixed = |xs: &Tensor, params: &[Tensor]| {
        attention_branch(xs, &attention_parts(params), Tokens::First, &Positions::default(), None)
    };
    check("attention", &LAYERS, &ATTENTION, &mixed, &|xs, p, round| {
        let qkv = linear(&norm(xs, &p[0], &p[1])?, [&p[2], &p[3]], round)?;
        let heads = attend(&qkv, None, round)?.narrow(1, 0, 1)?.contiguous()?;
        let ys = linear(&heads, [&p[4], &p[5]], round)?.broadcast_mul(&p[6])?;
        xs.narrow(1, 0, 1)? + ys
    });
}

/// Angles and biases stay f32, and a row of the table gets its sum in f32.
#[test]
fn attention_takes_positions_in_f32() {
    let [_, n, heads, d, _] = SIZES;
    let shapes: Vec<_> = ATTENTION.into_iter().chain([&[5, 2][..]]).collect();
    let f32 = |tensor: Tensor| tensor.to_dtype(DType::F32);
    let angles = f32(random(&[n, d / heads / 2], 50)).unwrap();
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let index: Vec<u32> = (0..n * n).map(|i| (i * 7 % 5) as u32).collect();
    let index = Tensor::from_vec(index, (1, n, n), &Device::Cpu).unwrap();
    let mixed = |xs: &Tensor, params: &[Tensor]| {
        let positions = Positions {
            rotation: Some(Rotation {
                cos: &cos,
                sin: &sin,
                pairs: Pairs::Halves,
            }),
            bias: Some(RelativeBias {
                table: &params[7],
                index: &index,
            }),
        };
        attention_branch(xs, &attention_parts(params), Tokens::All, &positions, None)
    };
    check("positions", &LAYERS, &shapes, &mixed, &|xs, p, round| {
        let qkv = linear(&norm(xs, &p[0], &p[1])?, [&p[2], &p[3]], round)?;
        let (b, n, _) = qkv.dims3()?;
        let half = d / heads / 2;
        // (a cos - b sin, a sin + b cos) of both halves of each head.
        let turned = |i| {
            let part = qkv
                .narrow(2, i * d, d)?
                .contiguous()?
                .reshape((b, n, heads, 2 * half))?;
            let (a, b_) = (part.narrow(3, 0, half)?, part.narrow(3, half, half)?);
            let [cos, sin] = [&cos, &sin].map(|t| t.reshape((1, n, 1, half)));
            let (cos, sin) = (cos?, sin?);
            let first = (a.broadcast_mul(&cos)? - b_.broadcast_mul(&sin)?)?;
            let second = (a.broadcast_mul(&sin)? + b_.broadcast_mul(&cos)?)?;
            Tensor::cat(&[first, second], 3)?.reshape((b, n, d))
        };
        let qkv = round(&Tensor::cat(&[turned(0)?, turned(1)?, qkv.narrow(2, 2 * d, d)?], 2)?)?;
        let bias = p[7].index_select(&index.flatten_all()?, 0)?.reshape((n, n, heads))?;
        let heads = attend(&qkv, Some(&bias.permute((2, 0, 1))?.contiguous()?.unsqueeze(0)?), round)?;
        xs + linear(&heads, [&p[4], &p[5]], round)?.broadcast_mul(&p[6])?
    });
}

/// One window is the whole grid, so that its bias is that of all tokens.
#[test]
fn attention_within_windows_takes_its_bias_in_f32() {
    let [_, n, heads, _, _] = SIZES;
    let (grid, window) = (Grid::new(3, 3), 3);
    let shapes: Vec<_> = ATTENTION.into_iter().chain([&[25, 2][..]]).collect();
    let mask = shift_mask(Grid::new(3, 3), window, 1, &Device::Cpu).unwrap();
    let mixed = |xs: &Tensor, params: &[Tensor]| {
        let windows = Windows {
            grid,
            window,
            shift: 0,
            table: &params[7],
            mask: Some(&mask),
        };
        window_attention_branch(xs, &attention_parts(params), &windows, Some(&[0.5, 2.0, 1.0]))
    };
    check("windows", &LAYERS, &shapes, &mixed, &|xs, p, round| {
        let qkv = linear(&norm(xs, &p[0], &p[1])?, [&p[2], &p[3]], round)?;
        let row = |(a, b): (usize, usize)| (a / 3 + 2 - b / 3) * 5 + a % 3 + 2 - b % 3;
        let rows: Vec<u32> = (0..n * n).map(|i| row((i / n, i % n)) as u32).collect();
        let bias = p[7]
            .index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?
            .reshape((n, n, heads))?;
        let bias = bias
            .permute((2, 0, 1))?
            .contiguous()?
            .unsqueeze(0)?
            .broadcast_add(&mask.unsqueeze(1)?)?;
        let ys = linear(&attend(&qkv, Some(&bias), round)?, [&p[4], &p[5]], round)?.broadcast_mul(&p[6])?;
        let factors = Tensor::new(&[0.5f32, 2.0, 1.0], &Device::Cpu)?.reshape(((), 1, 1))?;
        xs + ys.broadcast_mul(&factors)?
    });
}

/// The norm within is f32, of what the gate gave.
#[test]
fn a_gated_mlp_rounds_what_it_multiplies() {
    let shapes: [&[usize]; 12] = [
        &[3, 9, 8],
        &[8],
        &[8],
        &[12, 8],
        &[12],
        &[12, 8],
        &[12],
        &[12],
        &[12],
        &[8, 12],
        &[8],
        &[8],
    ];
    let mixed = |xs: &Tensor, params: &[Tensor]| {
        let of = |i: usize| Affine {
            weight: &params[i],
            bias: &params[i + 1],
        };
        let branch = GatedMlpBranch {
            norm: of(0),
            eps: EPS,
            gated: Gated::Apart([of(2), of(4)]),
            inner_norm: Some(of(6)),
            fc2: of(8),
            gamma: Some(&params[10]),
        };
        gated_mlp_branch(xs, &branch, None)
    };
    check("gated", &[2, 3, 4, 5, 8, 9], &shapes, &mixed, &|xs, p, round| {
        let normed = norm(xs, &p[0], &p[1])?;
        let gate = linear(&normed, [&p[2], &p[3]], round)?;
        let gate = round(&(&gate / ((&gate.neg()?.exp()? + 1.0)?))?)?;
        let hidden = round(&(gate * linear(&normed, [&p[4], &p[5]], round)?)?)?;
        let ys = linear(&norm(&hidden, &p[6], &p[7])?, [&p[8], &p[9]], round)?;
        xs + ys.broadcast_mul(&p[10])?
    });
}

/// candle's convolution, of sizes for which its gradients are right, with what it multiplies rounded and its result.
fn conv(xs: &Tensor, weight: &Tensor, padding: usize, groups: usize, round: Round) -> Result<Tensor> {
    round(&round(xs)?.conv2d(&round(weight)?, padding, 1, 1, groups)?)
}

/// A batch norm by the batch's own statistics.
fn batch_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let mean = |xs: &Tensor| xs.mean_keepdim(0)?.mean_keepdim(2)?.mean_keepdim(3);
    let centred = xs.broadcast_sub(&mean(xs)?)?;
    let deviation = (mean(&centred.sqr()?)? + EPS)?.sqrt()?;
    let [weight, bias] = [weight, bias].map(|t| t.reshape((1, (), 1, 1)));
    centred
        .broadcast_div(&deviation)?
        .broadcast_mul(&weight?)?
        .broadcast_add(&bias?)
}

fn conv_norms(params: &[Tensor]) -> Vec<ConvNorm<'_>> {
    let layers = params.chunks_exact(3);
    layers
        .map(|p| ConvNorm {
            weight: &p[0],
            stride: 1,
            padding: p[0].dims()[2] / 2,
            norm: Affine {
                weight: &p[1],
                bias: &p[2],
            },
            eps: EPS,
            running: None,
        })
        .collect()
}

/// The sum of a block and its norms are f32.
#[test]
fn residual_blocks_round_what_they_multiply() {
    let shapes: [&[usize]; 10] = [
        &[2, 3, 5, 5],
        &[4, 3, 3, 3],
        &[4],
        &[4],
        &[6, 4, 3, 3],
        &[6],
        &[6],
        &[6, 3, 1, 1],
        &[6],
        &[6],
    ];
    let mixed = |xs: &Tensor, params: &[Tensor]| {
        let mut convs = conv_norms(params);
        let downsample = convs.pop();
        let block = ResidualBlock {
            convs,
            downsample,
            drop_path: Some(vec![0.5, 2.0]),
        };
        residual_blocks(xs, &[block]).map(|(ys, _)| ys)
    };
    check("blocks", &[0, 3, 6], &shapes, &mixed, &|xs, p, round| {
        let ys = batch_norm(&conv(xs, &p[0], 1, 1, round)?, &p[1], &p[2])?.relu()?;
        let ys = batch_norm(&conv(&ys, &p[3], 1, 1, round)?, &p[4], &p[5])?;
        let factors = Tensor::new(&[0.5f32, 2.0], &Device::Cpu)?.reshape(((), 1, 1, 1))?;
        let identity = batch_norm(&conv(xs, &p[6], 0, 1, round)?, &p[7], &p[8])?;
        (ys.broadcast_mul(&factors)? + identity)?.relu()
    });
}

#[test]
fn a_stem_rounds_what_it_multiplies() {
    let shapes: [&[usize]; 4] = [&[2, 3, 6, 6], &[4, 3, 3, 3], &[4], &[4]];
    // Windows of one pixel: the maximum of that.
    let pool = Pooling {
        kernel: 1,
        stride: 1,
        padding: 0,
    };
    let mixed = |xs: &Tensor, params: &[Tensor]| stem(xs, &conv_norms(params)[0], pool).map(|(ys, _)| ys);
    check("stem", &[0], &shapes, &mixed, &|xs, p, round| {
        batch_norm(&conv(xs, &p[0], 1, 1, round)?, &p[1], &p[2])?.relu()
    });
}

#[test]
fn a_convnext_block_rounds_what_it_multiplies() {
    let (grid, [c, h]) = (Grid::new(3, 4), [6, 10]);
    let shapes: [&[usize]; 10] = [
        &[2, 12, c],
        &[c, 1, 3, 3],
        &[c],
        &[c],
        &[c],
        &[h, c],
        &[h],
        &[c, h],
        &[c],
        &[c],
    ];
    let mixed = |xs: &Tensor, params: &[Tensor]| {
        let [norm, fc1, fc2] = affines(&params[2..]);
        let branch = ConvMlpBranch {
            conv: Affine {
                weight: &params[0],
                bias: &params[1],
            },
            norm,
            eps: EPS,
            fc1,
            response: None,
            fc2,
            gamma: Some(&params[8]),
        };
        conv_mlp_branch(xs, grid, &branch, None)
    };
    check("convnext", &[0, 1, 4, 5, 6, 7], &shapes, &mixed, &|xs, p, round| {
        let maps = round(xs)?.transpose(1, 2)?.reshape((2, c, 3, 4))?;
        let ys = maps.contiguous()?.conv2d(&round(&p[0])?, 1, 1, 1, c)?;
        let ys = round(&ys.broadcast_add(&round(&p[1])?.reshape((1, c, 1, 1))?)?)?;
        let ys = ys.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let hidden = linear(&norm(&ys, &p[2], &p[3])?, [&p[4], &p[5]], round)?;
        let ys = linear(&round(&hidden.gelu_erf()?)?, [&p[6], &p[7]], round)?;
        xs + ys.broadcast_mul(&p[8])?
    });
}

#[test]
fn a_patch_embedding_adds_positions_in_f32() {
    let shapes: [&[usize]; 5] = [&[2, 3, 4, 6], &[5, 3, 2, 2], &[5], &[1, 1, 5], &[1, 7, 5]];
    let mixed = |xs: &Tensor, params: &[Tensor]| {
        let embed = PatchEmbed {
            weight: &params[0],
            bias: Some(&params[1]),
            prefix: Some(&params[2]),
            positions: &params[3],
        };
        patch_embed(xs, &embed, Some(&[5, 0, 3, 1]))
    };
    check("patches", &[0, 1], &shapes, &mixed, &|xs, p, round| {
        let cut = xs
            .reshape((2, 3, 2, 2, 3, 2))?
            .permute((0, 2, 4, 1, 3, 5))?
            .contiguous()?;
        let ys = linear(&cut.reshape((2, 6, 12))?, [&p[0].flatten_from(1)?, &p[1]], round)?;
        let ys = ys.broadcast_add(&p[3].narrow(1, 1, 6)?)?;
        let kept = |sample: usize, rows: [u32; 2]| ys.get(sample)?.index_select(&Tensor::new(&rows, &Device::Cpu)?, 0);
        let ys = Tensor::stack(&[kept(0, [5, 0])?, kept(1, [3, 1])?], 0)?;
        let first = (&p[2] + p[3].narrow(1, 0, 1)?)?.broadcast_as((2, 1, 5))?;
        Tensor::cat(&[&first, &ys], 1)
    });
}

#[test]
fn errors_name_the_dtype_that_goes_with_the_input() {
    let [_, _, _, d, h] = SIZES;
    let message = |xs: DType, dtypes: [DType; 6]| {
        let shapes: [&[usize]; 6] = [&[d], &[d], &[h, d], &[h], &[d, h], &[d]];
        let params = shapes.into_iter().zip(dtypes);
        let params: Vec<_> = params
            .map(|(shape, dtype)| random(shape, 0).to_dtype(dtype).unwrap())
            .collect();
        let [norm, fc1, fc2] = affines(&params);
        let branch = MlpBranch {
            norm,
            eps: EPS,
            fc1,
            activation: Activation::Gelu,
            fc2,
            gamma: None,
            recompute: false,
        };
        let xs = random(&[1, 2, d], 0).to_dtype(xs).unwrap();
        mlp_branch(&xs, &branch, None).unwrap_err().to_string()
    };
    use DType::{BF16, F16, F32, F64};
    let narrow = [F32, F32, BF16, BF16, BF16, BF16];
    assert_eq!(
        message(F64, [F64, F64, BF16, BF16, F64, F64]),
        "fc1.weight has dtype BF16, but must be F64 like xs"
    );
    assert_eq!(
        message(BF16, [BF16, BF16, F32, F32, BF16, BF16]),
        "fc1.weight has dtype F32, but must be BF16 like xs"
    );
    assert_eq!(
        message(F32, [F32, F32, BF16, F32, BF16, BF16]),
        "fc1.bias has dtype F32, but must be BF16 like fc1.weight"
    );
    assert_eq!(
        message(F32, [F32, F32, BF16, BF16, F16, BF16]),
        "fc2.bias has dtype BF16, but must be F16 like fc2.weight"
    );
    assert_eq!(
        message(F16, narrow),
        "norm.weight has dtype F32, but must be F16 like xs"
    );
}
