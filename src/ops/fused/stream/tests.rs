use super::*;
use crate::ops::fused::affine::affines;
use crate::ops::testing::{pool, random};
use crate::ops::{attention_branch, mlp_branch, Activation, AttentionBranch, MlpBranch, Positions, Tokens};
use candle_core::{DType, Var};

const WIDTH: usize = 8;
const HIDDEN: usize = 12;

fn attention(params: &[Tensor], recompute: bool) -> AttentionBranch<'_> {
    let [norm, qkv, proj] = affines(params);
    AttentionBranch {
        norm,
        eps: 1e-6,
        qkv,
        num_heads: 2,
        proj,
        gamma: params.get(6),
        recompute,
    }
}

fn mlp(params: &[Tensor], recompute: bool) -> MlpBranch<'_> {
    let [norm, fc1, fc2] = affines(params);
    MlpBranch {
        norm,
        eps: 1e-6,
        fc1,
        activation: Activation::Gelu,
        fc2,
        gamma: params.get(6),
        recompute,
    }
}

/// Two blocks, the first one with LayerScale, of which the second gives the first tokens alone.
#[derive(Clone, Copy)]
struct Blocks<'a> {
    drop_path: Option<&'a [f32]>,
    recompute: bool,
}

impl Blocks<'_> {
    fn together(self, xs: &Tensor, params: &[Vec<Tensor>]) -> Result<Tensor> {
        let (drop_path, recompute, positions) = (self.drop_path, self.recompute, Positions::default());
        let mut stream = Stream::new(xs);
        stream.attention_branch(&attention(&params[0], recompute), Tokens::All, &positions, drop_path)?;
        stream.mlp_branch(&mlp(&params[1], false), drop_path)?;
        stream.attention_branch(&attention(&params[2], false), Tokens::First, &positions, drop_path)?;
        assert_eq!(stream.length()?, 1);
        stream.mlp_branch(&mlp(&params[3], recompute), None)?;
        stream.tokens()
    }

    fn one_by_one(self, xs: &Tensor, params: &[Vec<Tensor>]) -> Result<Tensor> {
        let (drop_path, recompute, positions) = (self.drop_path, self.recompute, Positions::default());
        let first = attention(&params[0], recompute);
        let xs = attention_branch(xs, &first, Tokens::All, &positions, drop_path)?;
        let xs = mlp_branch(&xs, &mlp(&params[1], false), drop_path)?;
        let second = attention(&params[2], false);
        let xs = attention_branch(&xs, &second, Tokens::First, &positions, drop_path)?;
        mlp_branch(&xs, &mlp(&params[3], recompute), None)
    }
}

/// The input, and the parameters of the four branches.
fn vars(dtype: DType) -> (Var, Vec<Vec<Var>>) {
    let var = |shape: &[usize], seed| Var::from_tensor(&random(shape, seed).to_dtype(dtype).unwrap()).unwrap();
    let shapes = |middle: usize, inputs: usize| {
        let square = [vec![WIDTH, inputs], vec![WIDTH], vec![WIDTH]];
        [vec![WIDTH], vec![WIDTH], vec![middle, WIDTH], vec![middle]]
            .into_iter()
            .chain(square)
    };
    let (attention, mlp) = (shapes(3 * WIDTH, WIDTH), shapes(HIDDEN, HIDDEN));
    let branches = [attention.clone(), mlp.clone(), attention, mlp];
    let params = (0..).zip(branches).map(|(branch, shapes)| {
        let count = if branch < 2 { 7 } else { 6 };
        let numbered = (0..).zip(shapes.take(count));
        numbered
            .map(|(i, shape)| var(&shape, 8 * branch + i))
            .collect::<Vec<_>>()
    });
    (var(&[3, 5, WIDTH], 99), params.collect())
}

type Function<'a> = &'a (dyn Fn(&Tensor, &[Vec<Tensor>]) -> Result<Tensor> + Sync);

/// The bits of the result and of all gradients, of which a branch that is not `trained` has none (the input is trained
/// with the first branch); of a second backward, too.
fn bits(f: Function, dtype: DType, trained: [bool; 4]) -> Vec<Option<Vec<u64>>> {
    let (xs, params) = vars(dtype);
    let tensor = |var: &Var, trained| {
        if trained {
            var.as_tensor().clone()
        } else {
            var.as_detached_tensor()
        }
    };
    let tensors = params.iter().zip(trained);
    let tensors: Vec<Vec<_>> = tensors
        .map(|(params, trained)| params.iter().map(|var| tensor(var, trained)).collect())
        .collect();
    let ys = f(&tensor(&xs, trained[0]), &tensors).unwrap();
    let loss = ys.sqr().unwrap().sum_all().unwrap();
    let of = |tensor: &Tensor| {
        let values = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        values.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
    };
    let mut all = vec![Some(of(&ys))];
    for _ in 0..2 {
        let grads = loss.backward().unwrap();
        let vars = [&xs].into_iter().chain(params.iter().flatten());
        all.extend(vars.map(|var| grads.get(var).map(of)));
    }
    all
}

const ALL: [bool; 4] = [true; 4];

#[test]
fn branches_together_give_the_bits_of_one_after_the_other() {
    for drop_path in [None, Some(&[0.0, 2.0, 0.5][..]), Some(&[0.0; 3])] {
        for recompute in [false, true] {
            let blocks = Blocks { drop_path, recompute };
            for dtype in [DType::F32, DType::F64, DType::BF16] {
                for trained in [
                    ALL,
                    [false, true, true, true],
                    [false, false, false, true],
                    [true, false, false, false],
                    [true, false, true, false],
                    [false, true, false, true],
                ] {
                    let got = bits(&|xs, params| blocks.together(xs, params), dtype, trained);
                    let want = bits(&|xs, params| blocks.one_by_one(xs, params), dtype, trained);
                    assert!(got == want, "{drop_path:?}, {recompute}, {dtype:?}, {trained:?}");
                    assert_eq!(got[1].is_some(), trained[0]);
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let blocks = Blocks {
        drop_path: Some(&[1.5, 0.0, 0.5]),
        recompute: false,
    };
    let run = || bits(&|xs, params| blocks.together(xs, params), DType::F32, ALL);
    let single = pool(1, false).install(run);
    for threads in [2, 3] {
        assert!(pool(threads, false).install(run) == single, "{threads} threads");
    }
}

#[test]
fn what_is_before_all_that_is_trained_is_not_in_the_graph() {
    let (xs, params) = vars(DType::F32);
    let frozen: Vec<_> = params[1].iter().map(Var::as_detached_tensor).collect();
    let trained: Vec<_> = params[3].iter().map(|var| var.as_tensor().clone()).collect();
    let xs = xs.as_detached_tensor();
    let mut stream = Stream::new(&xs);
    for _ in 0..2 {
        stream.mlp_branch(&mlp(&frozen, false), None).unwrap();
    }
    stream.mlp_branch(&mlp(&trained, false), None).unwrap();
    assert_eq!(stream.branches.len(), 1);
    assert!(!stream.start().track_op() && stream.start().id() != xs.id());
    // Frozen ones behind trained ones are in it.
    stream.mlp_branch(&mlp(&frozen, false), None).unwrap();
    assert_eq!(stream.branches.len(), 2);
}
