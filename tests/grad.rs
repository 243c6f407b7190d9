//! Gradients: the checked backward pass, merging, clipping, and what the audit sees.

mod common;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use common::{bits, numbers, randn, CPU};
use masksub::grad::{audit, backward, clip_grad_norm, merge};
use masksub::{Error, Params};

/// Variables with gradients as given, by name.
fn store(grads: &[(&str, Tensor)]) -> (GradStore, Params) {
    let mut store = GradStore::default();
    let vars: Vec<(String, Var)> = grads
        .iter()
        .map(|(name, grad)| {
            let var = Var::from_tensor(&grad.zeros_like().unwrap()).unwrap();
            store.insert(&var, grad.clone());
            (name.to_string(), var)
        })
        .collect();
    (store, Params::new(vars))
}

fn grad_of(store: &GradStore, params: &Params, name: &str) -> Tensor {
    store.get(params.get(name).unwrap()).unwrap().clone()
}

mod clip {
    use super::*;

    /// Gradients of several ranks.
    fn gradients(scale: f64) -> Vec<(&'static str, Tensor)> {
        let random = |shape: Vec<usize>, name: &'static str| (name, (randn(shape, name) * scale).unwrap());
        vec![
            random(vec![3, 4, 5], "b.conv"),
            random(vec![1000], "a.bias"),
            random(vec![], "c.scale"),
            random(vec![7, 9], "d.weight"),
        ]
    }

    fn norm(grads: &[(&str, Tensor)]) -> f64 {
        let square = |(_, grad): &(&str, Tensor)| numbers(grad).iter().map(|g| g * g).sum::<f64>();
        grads.iter().map(square).sum::<f64>().sqrt()
    }

    #[test]
    fn follows_pytorchs_rule() {
        let gradients = gradients(1.0);
        let norm = norm(&gradients);
        for max_norm in [0.1, 1.0, norm / 2.0] {
            let (mut store, params) = store(&gradients);
            let returned = clip_grad_norm(&mut store, &params, max_norm).unwrap();
            assert!((returned - norm).abs() < 1e-6 * norm, "{returned}, {norm}");
            // torch.nn.utils.clip_grad_norm_: grad * min(1, max_norm / (norm + 1e-6)).
            let factor = max_norm / (norm + 1e-6);
            for (name, grad) in &gradients {
                let clipped = numbers(&grad_of(&store, &params, name));
                for (got, grad) in clipped.iter().zip(numbers(grad)) {
                    assert!((got - factor * grad).abs() <= 1e-6 * grad.abs(), "{name}");
                }
            }
        }
    }

    /// Where the small term in PyTorch's denominator is all there is, it decides.
    #[test]
    fn has_pytorchs_small_term() {
        let (mut store, params) = store(&[("a", Tensor::new(&[3e-6f32, 4e-6], &CPU).unwrap())]);
        let norm = clip_grad_norm(&mut store, &params, 1e-6).unwrap();
        assert!((norm - 5e-6).abs() < 1e-12);
        let clipped = numbers(&grad_of(&store, &params, "a"));
        assert!(
            (clipped[0] - 3e-6 / 6.0).abs() < 1e-12 && (clipped[1] - 4e-6 / 6.0).abs() < 1e-12,
            "{clipped:?}"
        );
    }

    #[test]
    fn leaves_small_gradients_as_they_are() {
        let gradients = gradients(1.0);
        for max_norm in [norm(&gradients) * 1.001, 1e9, f64::INFINITY] {
            let (mut store, params) = store(&gradients);
            clip_grad_norm(&mut store, &params, max_norm).unwrap();
            for (name, grad) in &gradients {
                assert_eq!(bits(&grad_of(&store, &params, name)), bits(grad), "{name}");
            }
        }
    }

    #[test]
    fn holds_for_numbers_whose_squares_f32_does_not_hold() {
        for scale in [1e25, 1e-30] {
            let gradients = gradients(scale);
            let norm = norm(&gradients);
            let (mut store, params) = store(&gradients);
            let returned = clip_grad_norm(&mut store, &params, 1.0).unwrap();
            assert!((returned - norm).abs() < 1e-5 * norm, "{returned:e}, {norm:e}");
            let clipped = numbers(&grad_of(&store, &params, "a.bias"));
            let factor = (1.0 / (norm + 1e-6)).min(1.0);
            for (got, grad) in clipped.iter().zip(numbers(&gradients[1].1)) {
                assert!((got - factor * grad).abs() <= 1e-5 * (factor * grad).abs(), "{got:e}");
            }
        }
    }

    #[test]
    fn names_what_is_not_finite_and_changes_nothing() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut gradients = gradients(100.0);
            // The second by name; the first must not have been clipped by then.
            gradients[0].1 = Tensor::new(&[1f32, broken, 2.0], &CPU).unwrap();
            let (mut store, params) = store(&gradients);
            let error = clip_grad_norm(&mut store, &params, 1.0).unwrap_err();
            assert!(
                matches!(&error, Error::NonFiniteGradient { name } if name == "b.conv"),
                "{error}"
            );
            assert!(error.to_string().contains("b.conv"), "{error}");
            for (name, grad) in &gradients {
                assert_eq!(bits(&grad_of(&store, &params, name)), bits(grad), "{name}");
            }
        }
    }

    #[test]
    fn looks_at_the_parameters_only() {
        let (mut store, params) = store(&gradients(1.0));
        let all = norm(&gradients(1.0));
        let some = params.clone().filter(|name| name != "a.bias");
        let frozen = bits(&grad_of(&store, &params, "a.bias"));
        let without = clip_grad_norm(&mut store, &some, 0.5).unwrap();
        assert!(without < 0.9 * all);
        assert_eq!(bits(&grad_of(&store, &params, "a.bias")), frozen);
        // A parameter without a gradient counts as zero.
        let (mut store, params) = super::store(&gradients(1.0));
        store.remove(params.get("a.bias").unwrap());
        assert_eq!(clip_grad_norm(&mut store, &params, 0.5).unwrap(), without);
        assert_eq!(clip_grad_norm(&mut GradStore::default(), &params, 1.0).unwrap(), 0.0);
    }

    #[test]
    fn keeps_dtypes() {
        for dtype in [DType::BF16, DType::F16, DType::F64] {
            let grad = randn((40, 50), "dtype").to_dtype(dtype).unwrap();
            let expected = norm(&[("a", grad.clone())]);
            let (mut store, params) = store(&[("a", grad.clone())]);
            let returned = clip_grad_norm(&mut store, &params, 1.0).unwrap();
            // In half precision a sum of 2000 squares would be off by per cents.
            assert!(
                (returned - expected).abs() < 1e-5 * expected,
                "{dtype:?}: {returned}, {expected}"
            );
            assert_eq!(grad_of(&store, &params, "a").dtype(), dtype);
        }
    }

    #[test]
    fn refuses_a_limit_that_is_none() {
        for max_norm in [0.0, -1.0, f64::NAN] {
            let (mut store, params) = store(&gradients(1.0));
            let error = clip_grad_norm(&mut store, &params, max_norm).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::InvalidArgument {
                        argument: "max_norm",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}

mod audits {
    use super::*;

    fn row(values: [f32; 3]) -> Tensor {
        Tensor::new(&values, &CPU).unwrap()
    }

    #[test]
    fn tell_missing_non_finite_and_all_zero_apart() {
        let (mut grads, params) = store(&[
            ("z.fine", row([0.0, 1.0, 0.0])),
            ("y.zero", row([0.0, -0.0, 0.0])),
            ("x.nan", row([0.0, f32::NAN, 0.0])),
            ("w.infinite", row([1.0, 2.0, f32::NEG_INFINITY])),
            ("v.missing", row([1.0, 1.0, 1.0])),
            ("u.missing", row([1.0, 1.0, 1.0])),
        ]);
        for name in ["u.missing", "v.missing"] {
            grads.remove(params.get(name).unwrap());
        }
        let found = audit(&grads, &params).unwrap();
        assert_eq!(found.trained, 6);
        assert_eq!(found.missing, ["u.missing", "v.missing"]);
        assert_eq!(found.non_finite, ["w.infinite", "x.nan"]);
        assert_eq!(found.all_zero, ["y.zero"]);
        assert!(!found.is_ok());
        let report = found.to_string();
        for part in [
            "6 parameters",
            "2 without a gradient: u.missing, v.missing",
            "w.infinite, x.nan",
            "all zero: y.zero",
        ] {
            assert!(report.contains(part), "{report}");
        }
        assert!(!report.contains("z.fine"));
    }

    #[test]
    fn pass_with_zeros_and_exempted_ones() {
        let (mut grads, params) = store(&[
            ("a", row([1.0, 2.0, 3.0])),
            ("b.c", row([1.0, 2.0, 3.0])),
            ("d", row([0.0; 3])),
        ]);
        grads.remove(params.get("b.c").unwrap());
        assert_eq!(audit(&grads, &params).unwrap().missing, ["b.c"]);
        let found = audit(&grads, &params.clone().allow_missing("b")).unwrap();
        assert!(found.is_ok() && found.missing.is_empty());
        assert_eq!(found.all_zero, ["d"]);
        // A frozen parameter is not expected to have one.
        assert!(audit(&grads, &params.filter(|name| name != "b.c")).unwrap().is_ok());
    }

    #[test]
    fn find_either_alone() {
        let (grads, params) = store(&[("a", row([f32::NAN; 3]))]);
        assert!(!audit(&grads, &params).unwrap().is_ok());
        assert!(!audit(&GradStore::default(), &params).unwrap().is_ok());
    }
}

mod merging {
    use super::*;

    #[test]
    fn adds_what_both_have_and_keeps_what_one_has() {
        let [a, b, c] = ["a", "b", "c"].map(|name| Var::from_tensor(&randn(4, name)).unwrap());
        let mut left = GradStore::default();
        left.insert(&a, randn(4, "left a"));
        left.insert(&b, randn(4, "left b"));
        let mut right = GradStore::default();
        right.insert(&b, randn(4, "right b"));
        right.insert(&c, randn(4, "right c"));
        merge(&mut left, right).unwrap();
        assert_eq!(bits(left.get(&a).unwrap()), bits(&randn(4, "left a")));
        assert_eq!(
            bits(left.get(&b).unwrap()),
            bits(&(randn(4, "left b") + randn(4, "right b")).unwrap())
        );
        assert_eq!(bits(left.get(&c).unwrap()), bits(&randn(4, "right c")));
    }

    #[test]
    fn refuses_gradients_that_do_not_fit() {
        let var = Var::from_tensor(&randn(4, "a")).unwrap();
        for other in [randn(5, "other"), randn(4, "other").to_dtype(DType::F64).unwrap()] {
            let (mut left, mut right) = (GradStore::default(), GradStore::default());
            left.insert(&var, randn(4, "left"));
            right.insert(&var, other);
            assert!(merge(&mut left, right).is_err());
        }
    }
}

mod checked_backward {
    use super::*;

    fn var(name: &str) -> (String, Var) {
        (name.to_string(), Var::from_tensor(&randn((3, 3), name)).unwrap())
    }

    #[test]
    fn gives_the_gradients_of_the_parameters_alone() {
        let (a, b, input) = (var("a"), var("b"), var("input").1);
        let params = Params::new([a.clone(), b.clone()]);
        let loss = input.matmul(&a.1).unwrap().matmul(&b.1).unwrap().sum_all().unwrap();
        let grads = backward(&loss, &params).unwrap();
        let plain = loss.backward().unwrap();
        assert_eq!(grads.get_ids().count(), 2);
        for (_, var) in params.iter() {
            assert_eq!(bits(grads.get(var).unwrap()), bits(plain.get(var).unwrap()));
        }
        assert!(plain.get(&input).is_some());
        // Frozen ones are left out, too.
        let grads = backward(&loss, &params.filter(|name| name == "a")).unwrap();
        assert_eq!(grads.get_ids().count(), 1);
        // A loss of one element is a scalar in all but rank.
        backward(&loss.reshape(1).unwrap(), &Params::new([a])).unwrap();
    }

    #[test]
    fn refuses_what_candle_lets_pass() {
        let (a, b) = (var("a"), var("b"));
        let params = Params::new([a.clone(), b.clone()]);
        let both = a.1.matmul(&b.1).unwrap();
        let error = backward(&both, &params).unwrap_err();
        assert!(
            matches!(&error, Error::LossNotScalar { branch: "main", got } if *got == [3, 3]),
            "{error}"
        );
        let error = backward(&both.detach().sum_all().unwrap(), &params).unwrap_err();
        assert!(matches!(error, Error::LossDetached { branch: "main" }), "{error}");
        let error = backward(&(both.sum_all().unwrap() * f64::NAN).unwrap(), &params).unwrap_err();
        assert!(
            matches!(error, Error::NonFiniteLoss { branch: "main", value } if value.is_nan()),
            "{error}"
        );
        let error = backward(&a.1.sum_all().unwrap(), &params).unwrap_err();
        assert!(
            matches!(&error, Error::MissingGradients { names, trained: 2 } if names == &["b"]),
            "{error}"
        );
        let error = backward(
            &candle_nn::ops::softmax_last_dim(&both).unwrap().sum_all().unwrap(),
            &params,
        )
        .unwrap_err();
        assert!(
            matches!(error, Error::LossDetached { .. } | Error::MissingGradients { .. }),
            "{error}"
        );
    }
}

#[test]
fn parameters_are_sorted_by_name() {
    let var = || Var::zeros(2, DType::F32, &CPU).unwrap();
    let names = ["blocks.10.weight", "blocks.2.weight", "a", "norm", "B"];
    let params = Params::new(names.map(|name| (name.to_string(), var())));
    assert_eq!(
        params.names().collect::<Vec<_>>(),
        ["B", "a", "blocks.10.weight", "blocks.2.weight", "norm"]
    );
    assert_eq!(params.iter().len(), 5);
    for ((_, var), listed) in params.iter().zip(params.vars()) {
        assert_eq!(var.id(), listed.id());
    }
    assert!(params.get("norm").is_some() && params.get("nor").is_none());
    // No gradient is defined for integers.
    let counter = Var::from_tensor(&Tensor::new(&[0i64], &CPU).unwrap()).unwrap();
    assert!(Params::new([("counter".to_string(), counter)]).is_empty());
}
