use candle_core::{DType, Device, Result, Tensor, Var};

use super::*;
use crate::ops::testing::{random, relative};

type Both = (Tensor, Tensor);
type Append = Box<dyn FnMut(&Tensor, &Tensor) -> Result<Both>>;

/// Each cache as a function that appends keys and values [1, 2, 3, 4] to it.
fn caches() -> Vec<(&'static str, Append)> {
    let (mut all, mut last, mut joined) = (KvCache::new(2, 8), RotatingKvCache::new(2, 8), ConcatKvCache::new(2));
    let mut interleaved = InterleavedKvCache::new(4);
    let apart = |kv: Tensor| Ok((kv.narrow(2, 0, 4)?, kv.narrow(2, 4, 4)?));
    vec![
        ("KvCache", Box::new(move |k, v| all.append(k, v))),
        ("RotatingKvCache", Box::new(move |k, v| last.append(k, v))),
        ("ConcatKvCache", Box::new(move |k, v| joined.append(k, v))),
        (
            "InterleavedKvCache",
            Box::new(move |k, v| apart(interleaved.append(k, v)?)),
        ),
    ]
}

#[test]
fn an_empty_cache_passes_gradients_and_a_filled_one_refuses_them() {
    let vars = [0, 1].map(|seed| Var::from_tensor(&random(&[1, 2, 3, 4], seed)).unwrap());
    for ((name, mut tracked), (_, mut plain)) in caches().into_iter().zip(caches()) {
        let (k, v) = tracked(&vars[0], &vars[1]).unwrap();
        let (k0, v0) = plain(&vars[0].as_detached_tensor(), &vars[1].as_detached_tensor()).unwrap();
        assert_eq!((relative(&k, &k0), relative(&v, &v0)), (0.0, 0.0), "{name}");
        let loss = (k.sum_all().unwrap() + (v.sqr().unwrap().sum_all()).unwrap()).unwrap();
        let grads = loss.backward().unwrap();
        let of_v = (vars[1].as_tensor() * 2.0).unwrap();
        assert_eq!(
            relative(grads.get(&vars[0]).unwrap(), &of_v.ones_like().unwrap()),
            0.0,
            "{name}"
        );
        assert_eq!(relative(grads.get(&vars[1]).unwrap(), &of_v), 0.0, "{name}");

        let error = tracked(&vars[0], &vars[1]).unwrap_err().to_string();
        assert!(
            error.contains("for a cache of 3 positions") && error.contains("Reset it"),
            "{name}: {error}"
        );
        // What was appended is there when generation goes on.
        let next = random(&[1, 2, 1, 4], 2);
        let (k, k0) = (tracked(&next, &next).unwrap().0, plain(&next, &next).unwrap().0);
        assert_eq!(relative(&k, &k0), 0.0, "{name}");
    }
}

#[test]
fn a_cache_by_itself_refuses_gradients() {
    let mut cache = Cache::new(2, 8);
    let xs = random(&[1, 2, 3, 4], 0);
    let error = cache.append(&Var::from_tensor(&xs).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("src is a tensor with a gradient"), "{error}");
    assert_eq!(cache.current_seq_len(), 0);
    // Also one that lies otherwise.
    cache
        .append(
            &xs.transpose(1, 3)
                .unwrap()
                .contiguous()
                .unwrap()
                .transpose(1, 3)
                .unwrap(),
        )
        .unwrap();
    assert_eq!(relative(&cache.current_data().unwrap().unwrap(), &xs), 0.0);
    let nothing = RotatingCache::new(2, 0);
    assert!(nothing.positions(0).is_empty() && nothing.positions(2) == [0, 1]);
    let errors = [
        Cache::new(2, 0).append(&xs).unwrap_err(),
        nothing.clone().append(&xs).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.to_string(), "max_seq_len is 0, but must be at least 1");
    }
}

#[test]
fn keys_are_not_appended_where_values_are_refused() {
    let xs = random(&[1, 2, 3, 4], 0);
    let refused = [
        random(&[1, 2, 3, 5], 1),
        random(&[3, 4], 1),
        random(&[1, 2], 1),
        xs.to_dtype(DType::F32).unwrap(),
        Var::from_tensor(&xs).unwrap().as_tensor().clone(),
    ];
    let (mut all, mut last, mut joined) = (KvCache::new(2, 8), RotatingKvCache::new(2, 4), ConcatKvCache::new(2));
    all.append(&xs, &xs).unwrap();
    last.append(&xs, &xs).unwrap();
    joined.append(&xs, &xs).unwrap();
    let mut scattered = ScatteredCacheBuilder::new(1, 4, DType::F64, &Device::Cpu).unwrap();
    let iam = scattered.indices_and_mask(3, &[true]).unwrap();
    let mut scattered = scattered.make_cache(2, 4).unwrap();
    for (i, v) in refused.iter().enumerate() {
        let k = random(&[1, 2, 3, 4], 2);
        let errors =
            [all.append(&k, v), last.append(&k, v), joined.append(&k, v)].map(|appended| appended.unwrap_err());
        for error in errors {
            let error = error.to_string();
            assert!(error.starts_with("v ") || i == 4, "{error}");
        }
        assert_eq!(all.current_seq_len(), 3);
        assert_eq!((last.current_seq_len(), joined.current_seq_len()), (3, 3));
        assert_eq!(relative(&last.k().unwrap().unwrap(), &xs), 0.0);
        assert_eq!(relative(joined.k().unwrap(), &xs), 0.0);
    }
    let (k, short) = (random(&[1, 2, 3, 4], 2), random(&[1, 2, 2, 4], 3));
    let error = scattered.append(&k, &short, &iam).unwrap_err().to_string();
    assert_eq!(error, "v has shape [1, 2, 2, 4], but must be [1, 2, 3, 4] like k");
    assert_eq!(
        scattered
            .k()
            .abs()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap(),
        0.0
    );
}

#[test]
fn gradients_that_would_be_scattered_are_refused() {
    let mut builder = ScatteredCacheBuilder::new(1, 4, DType::F64, &Device::Cpu).unwrap();
    let mut cache = builder.make_cache(2, 4).unwrap();
    let (short, whole) = (random(&[1, 2, 3, 4], 0), random(&[1, 2, 4, 4], 1));
    let iam = builder.indices_and_mask(3, &[true]).unwrap();
    assert!(cache.append(&short, &short, &iam).is_ok());
    let short = Var::from_tensor(&short).unwrap();
    assert!(cache
        .append(&short, &short, &iam)
        .unwrap_err()
        .to_string()
        .contains("context's 4 positions"));
    let whole = Var::from_tensor(&whole).unwrap();
    let (k, _) = cache.append(&whole, &whole, &iam).unwrap();
    assert!(k.sum_all().unwrap().backward().unwrap().get(&whole).is_some());
}
