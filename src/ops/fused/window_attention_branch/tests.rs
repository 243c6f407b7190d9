use super::*;
use crate::ops::fused::affine::affines;
use crate::ops::shift_mask;
use crate::ops::testing::{check, check_derivative, random, rng};
use candle_core::Device;
use rand::Rng as _;

/// How a test cuts its grid.
#[derive(Clone, Copy)]
struct Cut {
    grid: Grid,
    window: usize,
    shift: usize,
    heads: usize,
}

impl Cut {
    fn new(rows: usize, columns: usize, window: usize, shift: usize, heads: usize) -> Self {
        let grid = Grid::new(rows * window, columns * window);
        Self {
            grid,
            window,
            shift,
            heads,
        }
    }

    fn mask(self) -> Tensor {
        shift_mask(self.grid, self.window, self.shift, &Device::Cpu).unwrap()
    }

    fn shapes(self, b: usize, head_width: usize) -> Vec<Vec<usize>> {
        let (d, side) = (self.heads * head_width, 2 * self.window - 1);
        let shapes = [
            vec![b, self.grid.len(), d],
            vec![side * side, self.heads],
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
}

type Branch = fn(&Tensor, &AttentionBranch, &Windows, Option<&[f32]>) -> Result<Tensor>;

/// A function of tokens, table, norm, qkv, proj and, if given, γ.
fn of<'a>(
    f: Branch,
    cut: Cut,
    mask: Option<&'a Tensor>,
    drop_path: Option<&'a [f32]>,
) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync + 'a {
    move |args| {
        let [norm, qkv, proj] = affines(&args[2..]);
        let branch = AttentionBranch {
            norm,
            eps: 0.1,
            qkv,
            num_heads: cut.heads,
            proj,
            gamma: args.get(8),
            // Of every other size of batch.
            recompute: args[0].dims()[0].is_multiple_of(2),
        };
        let windows = Windows {
            grid: cut.grid,
            window: cut.window,
            shift: cut.shift,
            table: &args[1],
            mask,
        };
        f(&args[0], &branch, &windows, drop_path)
    }
}

fn check_one(cut: Cut, b: usize, head_width: usize, seed: u64) {
    let shapes = cut.shapes(b, head_width);
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let factors: Vec<f32> = (0..b).map(|i| [1.25, 0.0, 2.0][i % 3]).collect();
    let (mask, none) = (cut.mask(), vec![0.0; b]);
    for (mask, drop_path, given) in [
        (Some(&mask), Some(none.as_slice()), 9),
        (Some(&mask), None, 8),
        (Some(&mask), Some(factors.as_slice()), 9),
        (None, Some(factors.as_slice()), 8),
    ] {
        // Small weights, as models have them: the softmax is not all on a few keys.
        let small = |f: Branch| {
            let op = of(f, cut, mask, drop_path);
            move |args: &[Tensor]| {
                let mut args = args.to_vec();
                args[4] = (&args[4] * 0.125)?;
                op(&args)
            }
        };
        check(
            &small(window_attention_branch),
            &small(composition),
            &shapes[..given],
            seed,
        );
    }
}

#[test]
fn equals_its_composition() {
    let mut rng = rng(21);
    for seed in 0..4 {
        let mut size = |most| rng.random_range(1..=most);
        let (rows, columns, window) = (size(3), size(3), 1 + size(4));
        let shift = seed as usize % 2 * size(window - 1);
        check_one(
            Cut::new(rows, columns, window, shift, size(3)),
            size(3),
            1 + size(9),
            seed,
        );
    }
}

#[test]
fn equals_its_composition_at_the_edges() {
    check_one(Cut::new(1, 1, 2, 0, 1), 1, 5, 0);
    check_one(Cut::new(1, 1, 3, 1, 2), 1, 3, 1);
    check_one(Cut::new(2, 3, 1, 0, 1), 2, 5, 2);
    // More windows than a head's bias is summed up in, and a Swin's own window.
    check_one(Cut::new(4, 3, 2, 1, 2), 6, 7, 3);
    check_one(Cut::new(2, 2, 7, 3, 3), 2, 32, 4);
}

#[test]
fn composition_has_the_right_derivative() {
    let cut = Cut::new(2, 2, 2, 1, 2);
    let (mask, shapes) = (cut.mask(), cut.shapes(2, 2));
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    check_derivative(&of(composition, cut, Some(&mask), Some(&[0.5, 2.0])), &shapes, 0);
    check_derivative(&of(composition, cut, None, None), &shapes[..8], 1);
}

/// A token learns of those in its window, and of no others: with the mask, of those that are its neighbours there in
/// the image.
#[test]
fn windows_do_not_see_each_other() {
    let cut = Cut::new(2, 2, 3, 1, 1);
    let (b, side) = (2, 6);
    let args: Vec<_> = cut.shapes(b, 4).iter().map(|shape| random(shape, 3)).collect();
    let args: Vec<_> = args.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect();
    let mask = cut.mask();
    let values = |tokens: &Tensor, mask| {
        let mut args = args[..8].to_vec();
        args[0] = tokens.clone();
        let ys = of(window_attention_branch, cut, mask, None)(&args).unwrap();
        ys.to_vec3::<f32>().unwrap()
    };
    // The token at row 1, column 5 of the second sample.
    let at = side + 5;
    let mut moved = args[0].to_vec3::<f32>().unwrap();
    moved[1][at][0] += 1.0;
    let moved = Tensor::new(moved, &Device::Cpu).unwrap();
    for mask in [None, Some(&mask)] {
        let (before, after) = (values(&args[0], mask), values(&moved, mask));
        for (sample, token) in (0..b * side * side).map(|i| (i / (side * side), i % (side * side))) {
            let (row, column) = (token / side, token % side);
            // Rolled by one, windows are rows 1 to 3, and 4, 5 and 0; and columns likewise.
            let together = (1..=3).contains(&row) && !(1..=3).contains(&column);
            let seen = sample == 1 && together && (mask.is_none() || column > 3);
            let same = before[sample][token] == after[sample][token];
            assert_eq!(seen, !same, "sample {sample}, row {row}, column {column}");
        }
    }
}

#[test]
fn errors_name_the_argument() {
    let cut = Cut::new(2, 3, 2, 1, 2);
    let message = |cut: Cut, at: usize, shape: &[usize], mask: &[usize], factors: &[f32]| {
        let mut shapes = Cut::new(2, 3, 2, 1, 2).shapes(2, 2);
        shapes[at] = shape.to_vec();
        let args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
        let mask = random(mask, 0);
        let op = of(window_attention_branch, cut, Some(&mask), Some(factors));
        op(&args).unwrap_err().to_string()
    };
    let fits = [6, 4, 4];
    let shape = |at, shape: &[usize]| message(cut, at, shape, &fits, &[1.0, 1.0]);
    assert_eq!(shape(0, &[2, 4]), "xs has shape [2, 4], but must be [B, N, D]");
    assert_eq!(
        shape(0, &[2, 25, 4]),
        "xs has shape [2, 25, 4], but must be [B, 24, D], not empty, for a grid of 4 x 6"
    );
    let empty = message(cut, 0, &[0, 24, 4], &fits, &[]);
    assert_eq!(
        empty,
        "xs has shape [0, 24, 4], but must be [B, 24, D], not empty, for a grid of 4 x 6"
    );
    assert_eq!(shape(2, &[3]), "norm.weight has shape [3], but must be [4]");
    assert_eq!(shape(4, &[4, 4]), "qkv.weight has shape [4, 4], but must be [12, 4]");
    assert_eq!(shape(7, &[5]), "proj.bias has shape [5], but must be [4]");
    assert_eq!(shape(8, &[5]), "gamma has shape [5], but must be [4]");
    assert_eq!(
        shape(1, &[8, 2]),
        "table has shape [8, 2], but must be [9, num_heads] for a window of 2"
    );
    assert_eq!(shape(1, &[9, 3]), "table has shape [9, 3], but must be [9, 2]");
    let with = |cut| message(cut, 8, &[4], &fits, &[1.0, 1.0]);
    assert_eq!(
        with(Cut { heads: 3, ..cut }),
        "num_heads is 3, but must be a divisor of D = 4"
    );
    assert_eq!(
        with(Cut { shift: 2, ..cut }),
        "shift is 2, but must be less than the window, 2"
    );
    assert_eq!(
        with(Cut { window: 4, ..cut }),
        "grid is 4 x 6, but must be of sides that are multiples of the window, 4"
    );
    assert_eq!(with(Cut { window: 0, ..cut }), "window is 0, but must be 1 to 128");
    for mask in [&[3, 4, 4][..], &[6, 4, 5], &[4, 4]] {
        assert_eq!(
            message(cut, 8, &[4], mask, &[1.0, 1.0]),
            format!("mask has shape {mask:?}, but must be [6, 4, 4]")
        );
    }
    assert_eq!(
        message(cut, 8, &[4], &fits, &[1.0]),
        "drop_path is 1 factors, but must be 2, one for each sample"
    );
    let shapes = cut.shapes(2, 2);
    let mut args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
    args[1] = args[1].to_dtype(DType::F32).unwrap();
    let error = of(window_attention_branch, cut, None, None)(&args).unwrap_err();
    assert_eq!(error.to_string(), "table has dtype F32, but must be F64 like xs");
}
