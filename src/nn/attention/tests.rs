use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::attention as candles;

use super::cpu_flash::{causal, standard};
use super::*;
use crate::nn::ops::sdpa;
use crate::nn::testing::single;
use crate::ops::testing::{check, check_derivative, random, relative};

/// The same numbers as a tensor whose gradient may be asked for.
fn var(xs: &Tensor) -> Tensor {
    Var::from_tensor(xs).unwrap().as_tensor().clone()
}

/// Queries of 6 heads and keys and values of 3, [B, S, H, D].
fn qkv(batch: usize, queries: usize, keys: usize) -> [Tensor; 3] {
    let few = [batch, keys, 3, 4];
    [single(&[batch, queries, 6, 4], 0), single(&few, 1), single(&few, 2)]
}

/// A mask that hides some keys, and all from the query before the last.
fn mask(queries: usize, keys: usize) -> Tensor {
    let number = |at: usize| match at {
        at if at / keys + 2 == queries || at.is_multiple_of(5) => f32::NEG_INFINITY,
        at => at as f32 / 10.0,
    };
    Tensor::from_vec(
        (0..queries * keys).map(number).collect::<Vec<_>>(),
        (queries, keys),
        &Device::Cpu,
    )
    .unwrap()
}

/// Batch, queries, keys, mask, ALiBi, cap.
type Setting = (usize, usize, usize, AttnMask, Option<f32>, Option<f32>);

/// Every setting that candle-nn's kernels take.
fn settings() -> Vec<Setting> {
    let mut settings = Vec::new();
    for alibi in [None, Some(8.0)] {
        for (batch, queries, keys) in [(1, 4, 4), (1, 3, 7), (1, 1, 5), (3, 4, 4), (3, 2, 5)] {
            settings.push((batch, queries, keys, AttnMask::None, alibi, None));
            settings.push((
                batch,
                queries,
                keys,
                AttnMask::causal_with_offset(keys - queries),
                alibi,
                None,
            ));
        }
        for cap in [None, Some(2.0)] {
            settings.push((1, 4, 6, AttnMask::Mask(mask(4, 6)), alibi, cap));
            settings.push((
                1,
                1,
                6,
                AttnMask::Mask(mask(1, 6).abs().unwrap().affine(-1.0, 0.0).unwrap()),
                alibi,
                cap,
            ));
            settings.push((1, 5, 5, AttnMask::causal(), alibi, cap));
            settings.push((1, 5, 3, AttnMask::causal_with_offset(1), alibi, cap));
        }
    }
    settings
}

#[test]
fn equals_candles_with_and_without_a_gradient() {
    for (batch, queries, keys, mask, alibi, cap) in settings() {
        let [q, k, v] = qkv(batch, queries, keys);
        let want = candles::flash_attn::<f32>(&q, &k, &v, 0.5, mask.clone(), alibi, cap).unwrap();
        for q in [q.clone(), var(&q)] {
            let got = flash_attn::<f32>(&q, &k, &v, 0.5, mask.clone(), alibi, cap).unwrap();
            let error = relative(&got, &want);
            assert!(
                error < 1e-6,
                "{batch} x {queries} x {keys}, {mask:?}, {alibi:?}, {cap:?}: {error:e}"
            );
        }
    }
}

#[test]
fn is_differentiable() {
    for (batch, queries, keys, mask, alibi, cap) in settings() {
        let shape = [batch, keys, 3, 4];
        let shapes: [&[usize]; 3] = [&[batch, queries, 6, 4], &shape, &shape];
        let op = |t: &[Tensor]| flash_attn::<f64>(&t[0], &t[1], &t[2], 0.5, mask.clone(), alibi, cap);
        check_derivative(&op, &shapes, 3);
    }
}

#[test]
fn the_functions_for_one_sequence_equal_candles() {
    let [q, k, v] = qkv(1, 4, 6);
    let numbers = mask(4, 6);
    let (q, tracked) = (&q, &var(&q));
    for q in [q, tracked] {
        let got = standard::run_flash_attn_cpu::<f32>(q, &k, &v, Some(&numbers), 0.5, None, None).unwrap();
        let detached = q.detach();
        let want =
            candles::cpu_flash::standard::run_flash_attn_cpu::<f32>(&detached, &k, &v, Some(&numbers), 0.5, None, None);
        assert!(relative(&got, &want.unwrap()) < 1e-6);
        let got = causal::run_causal_attn_cpu::<f32>(q, &k, &v, 0.5, 2, None, None).unwrap();
        let want = candles::cpu_flash::causal::run_causal_attn_cpu::<f32>(&detached, &k, &v, 0.5, 2, None, None);
        assert!(relative(&got, &want.unwrap()) < 1e-6);
    }
}

#[test]
fn half_precision_has_the_dtype_that_candle_gives_it() {
    for batch in [1, 2] {
        let [q, k, v] = qkv(batch, 3, 3).map(|xs| xs.to_dtype(DType::F16).unwrap());
        let attend = |q: &Tensor| flash_attn::<gemm::f16>(q, &k, &v, 0.5, AttnMask::causal(), None, None).unwrap();
        let (got, want) = (attend(&var(&q)), attend(&q));
        assert_eq!(got.dtype(), want.dtype(), "B = {batch}");
        assert!(relative(&got, &want) < 1e-3);
    }
}

type Varlen = fn(
    &Tensor,
    &Tensor,
    &Tensor,
    Option<&Tensor>,
    &Tensor,
    &Tensor,
    usize,
    usize,
    f32,
    bool,
    Option<usize>,
    Option<usize>,
) -> Result<Tensor>;

#[test]
fn packed_sequences_equal_candles_and_are_differentiable() {
    let lengths = |lengths: &[u32]| Tensor::new(lengths, &Device::Cpu).unwrap();
    let (queries, keys) = (lengths(&[3, 0, 2]), lengths(&[4, 1, 2]));
    let (q, k, v) = (single(&[5, 6, 4], 0), single(&[7, 3, 4], 1), single(&[7, 3, 4], 2));
    let slopes = single(&[6], 3);
    for slopes in [None, Some(&slopes)] {
        for (causal, left, right) in [
            (false, None, None),
            (true, None, None),
            (false, Some(1), Some(1)),
            (false, Some(1), None),
            (true, Some(2), Some(0)),
        ] {
            let attend = |of: Varlen, q: &Tensor, k: &Tensor, v: &Tensor| {
                of(q, k, v, slopes, &queries, &keys, 3, 4, 0.5, causal, left, right)
            };
            let want = attend(candles::flash_attn_varlen_cpu, &q, &k, &v).unwrap();
            for of in [flash_attn_varlen_cpu as Varlen, flash_attn_varlen_unfused] {
                for q in [q.clone(), var(&q)] {
                    let error = relative(&attend(of, &q, &k, &v).unwrap(), &want);
                    assert!(
                        error < 1e-6,
                        "{slopes:?}, causal {causal}, {left:?}, {right:?}: {error:e}"
                    );
                }
                let op = |t: &[Tensor]| attend(flash_attn_varlen_unfused, &t[0], &t[1], &t[2]);
                check_derivative(&op, &[&[5, 6, 4], &[7, 3, 4], &[7, 3, 4]], 4);
            }
        }
    }
}

/// One number at a time.
fn defined(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool, cap: f64) -> Tensor {
    let rows = |xs: &Tensor| xs.flatten_to(2).unwrap().to_vec2::<f64>().unwrap();
    let (batch, heads, queries, _) = q.dims4().unwrap();
    let (_, few, keys, _) = k.dims4().unwrap();
    let (q, k, v) = (rows(q), rows(k), rows(v));
    let mut out = Vec::new();
    for (b, h, i) in (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..queries).map(move |i| (b, h, i)))) {
        let at = |j: usize| (b * few + h * few / heads) * keys + j;
        let query = &q[(b * heads + h) * queries + i];
        let seen = if causal {
            (i + 1 + keys).saturating_sub(queries)
        } else {
            keys
        };
        let weight = |j: usize| {
            let score: f64 = query.iter().zip(&k[at(j)]).map(|(a, b)| a * b).sum::<f64>() * 0.5;
            if cap == 1.0 {
                score.exp()
            } else {
                (cap * (score / cap).tanh()).exp()
            }
        };
        let total: f64 = (0..seen).map(weight).sum();
        let element = |e: usize| match seen {
            0 => 0.0,
            _ => (0..seen).map(|j| weight(j) * v[at(j)][e]).sum::<f64>() / total,
        };
        out.extend((0..v[0].len()).map(element));
    }
    let width = v[0].len();
    Tensor::from_vec(out, (batch, heads, queries, width), &Device::Cpu).unwrap()
}

#[test]
fn sdpa_is_its_definition_and_differentiable() {
    let shapes: [&[usize]; 3] = [&[2, 4, 3, 5], &[2, 2, 6, 5], &[2, 2, 6, 3]];
    // More queries than keys, the first of which see none.
    let few: [&[usize]; 3] = [&[2, 4, 5, 3], &[2, 2, 3, 3], &[2, 2, 3, 2]];
    for (causal, cap) in [(false, 1.0), (true, 1.0), (false, 3.0), (true, 3.0)] {
        let op = |t: &[Tensor]| sdpa(&t[0], &t[1], &t[2], None, causal, 0.5, cap);
        for shapes in [shapes, few] {
            let t = [0, 1, 2].map(|i| random(shapes[i], i as u64));
            let error = relative(&op(&t).unwrap(), &defined(&t[0], &t[1], &t[2], causal, f64::from(cap)));
            assert!(error < 1e-13, "{error:e}");
            check_derivative(&op, &shapes, 5);
        }
    }
    // A mask is added, and gets a gradient.
    let masked = |t: &[Tensor]| sdpa(&t[0], &t[1], &t[2], Some(&t[3]), true, 0.5, 1.0);
    check_derivative(&masked, &[shapes[0], shapes[1], shapes[2], &[2, 1, 3, 6]], 6);
    let t = [0, 1, 2].map(|i| random(shapes[i], i as u64));
    let hiding = Tensor::full(f64::NEG_INFINITY, (3, 6), &Device::Cpu).unwrap();
    let ys = sdpa(&t[0], &t[1], &t[2], Some(&hiding), false, 0.5, 1.0).unwrap();
    assert_eq!(ys.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap(), 0.0);
}

/// sdpa of candle's operations.
fn composed(t: &[Tensor], mask: Option<&Tensor>) -> Result<Tensor> {
    let heads = t[0].dim(1)?;
    let many = |xs: &Tensor| {
        let (batch, few, length, width) = xs.dims4()?;
        let dims = (batch, few, heads / few, length, width);
        xs.unsqueeze(2)?
            .broadcast_as(dims)?
            .reshape((batch, heads, length, width))
    };
    let scores = (t[0].contiguous()?.matmul(&many(&t[1])?.t()?)? * 0.5)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(&mask.to_dtype(scores.dtype())?)?,
        None => scores,
    };
    candle_nn::ops::softmax(&scores, candle_core::D::Minus1)?.matmul(&many(&t[2])?)
}

#[test]
fn the_kernel_equals_its_composition() {
    let masks: [&[usize]; 6] = [&[2, 6, 4, 5], &[2, 1, 1, 5], &[1, 6, 4, 1], &[4, 5], &[5], &[6, 1, 1]];
    let masks = masks.into_iter().map(|shape| Some((random(shape, 9) * 2.0).unwrap()));
    for (seed, mask) in (0..).zip(masks.chain([None])) {
        let kernel = |t: &[Tensor]| sdpa(&t[0], &t[1], &t[2], mask.as_ref(), false, 0.5, 1.0);
        let reference = |t: &[Tensor]| composed(t, mask.as_ref());
        for (few, width) in [(6, 3), (2, 7), (1, 7)] {
            let shapes: [&[usize]; 3] = [&[2, 6, 4, 3], &[2, few, 5, 3], &[2, few, 5, width]];
            check(&kernel, &reference, &shapes, seed);
        }
    }
    // Several blocks of queries.
    let kernel = |t: &[Tensor]| sdpa(&t[0], &t[1], &t[2], None, false, 0.5, 1.0);
    check(
        &kernel,
        &|t| composed(t, None),
        &[&[1, 2, 300, 5], &[1, 1, 70, 5], &[1, 1, 70, 4]],
        20,
    );
}

/// In f32 on the CPU, with a mask that is not trained and as many heads of keys as of values.
#[test]
fn the_kernel_is_for_what_it_says() {
    let attend = |dtype, [few, of_values]: [usize; 2], bias: Option<&Tensor>| {
        let part = |heads: usize, length| random(&[1, heads, length, 2], 0).to_dtype(dtype).unwrap();
        let attended = crate::ops::attend(&part(4, 3), &part(few, 5), &part(of_values, 5), 0.5, bias);
        attended.unwrap().is_some()
    };
    let bias = random(&[3, 5], 1).to_dtype(DType::F32).unwrap();
    let trained = Var::from_tensor(&bias).unwrap();
    assert!(attend(DType::F32, [4, 4], None) && attend(DType::F32, [2, 2], Some(&bias)));
    assert!(!attend(DType::F64, [4, 4], None) && !attend(DType::F32, [4, 2], None));
    assert!(!attend(DType::F32, [4, 4], Some(&trained)));
}

/// One tensor thrice, or parts of one: none is locked twice, and each gets all of its gradient.
#[test]
fn queries_keys_and_values_may_share_memory() {
    let all = random(&[3, 1, 2, 4, 3], 0);
    let run = |dtype, thrice: bool| {
        let var = Var::from_tensor(&all.to_dtype(dtype).unwrap()).unwrap();
        let part = |at| var.get(if thrice { 0 } else { at }).unwrap();
        let ys = sdpa(&part(0), &part(1), &part(2), None, false, 0.5, 1.0).unwrap();
        let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        (ys.detach(), grads.get(&var).unwrap().clone())
    };
    for thrice in [true, false] {
        let ((ys, grad), (ys0, grad0)) = (run(DType::F32, thrice), run(DType::F64, thrice));
        assert!(relative(&ys, &ys0) < 1e-6 && relative(&grad, &grad0) < 1e-6, "{thrice}");
    }
}

#[test]
fn the_kernel_gives_nothing_to_a_query_that_sees_nothing() {
    let inputs = [[2, 4, 5, 3], [2, 2, 6, 3], [2, 2, 6, 3]].map(|shape| random(&shape, 1));
    let run = |dtype| {
        let vars = inputs
            .each_ref()
            .map(|xs| Var::from_tensor(&xs.to_dtype(dtype).unwrap()).unwrap());
        let ys = sdpa(&vars[0], &vars[1], &vars[2], Some(&mask(5, 6)), false, 0.5, 1.0).unwrap();
        let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let mut results = vec![ys.detach()];
        results.extend(vars.iter().map(|var| grads.get(var).unwrap().clone()));
        results
    };
    let hidden = run(DType::F32)[0].narrow(2, 3, 1).unwrap();
    assert_eq!(
        hidden.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(),
        0.0
    );
    for (kernel, composition) in run(DType::F32).iter().zip(run(DType::F64)) {
        assert!(relative(kernel, &composition) < 1e-6);
    }
}

#[test]
fn errors_name_the_argument() {
    let message = |q: &[usize], k: &[usize], v: &[usize], cap| {
        let [q, k, v] = [q, k, v].map(|shape| random(shape, 0));
        sdpa(&q, &k, &v, None, false, 1.0, cap).unwrap_err().to_string()
    };
    let fits: [&[usize]; 3] = [&[1, 4, 3, 2], &[1, 2, 5, 2], &[1, 2, 5, 2]];
    let expected = "k has shape [1, 3, 5, 2], but must be [1, H', T, 2] with H' a divisor of 4";
    assert_eq!(message(fits[0], &[1, 3, 5, 2], fits[2], 1.0), expected);
    let expected = "v has shape [1, 2, 4, 2], but must be [1, H', 5, E] with H' a divisor of 4";
    assert_eq!(message(fits[0], fits[1], &[1, 2, 4, 2], 1.0), expected);
    assert!(message(&[4, 3, 2], fits[1], fits[2], 1.0).starts_with("q has shape [4, 3, 2]"));
    assert!(message(fits[0], fits[1], fits[2], 0.0).starts_with("softcapping is 0"));
    // A mask may not make more queries or sequences of them.
    let [q, k, v] = fits.map(|shape| random(shape, 0));
    for shape in [&[4, 5][..], &[2, 1, 3, 5], &[7], &[]] {
        let refused = sdpa(&q, &k, &v, Some(&random(shape, 1)), false, 1.0, 1.0);
        let expected =
            format!("mask has shape {shape:?}, but must be one that is broadcast to [B, H, S, T] = [1, 4, 3, 5]");
        assert_eq!(refused.unwrap_err().to_string(), expected);
    }
}
