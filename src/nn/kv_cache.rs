//! Caches of keys and values, for generation, that do not cut the gradients of training.
//!
//! candle-nn's caches detach what they are given, or copy it where no gradient follows: keys and values of a model that is
//! trained through one never learn. These behave as candle-nn's where no gradient is asked for. Where one is, `append` of
//! a cache that is empty gives back what it was given; one that is not is an [`Error::InvalidArgument`], because the keys
//! in it are of an earlier pass: reset it before each step (`clear_kv_cache` in most of candle-transformers' models). What
//! they hold, and give out by other methods, is detached.
//!
//! All methods that are not here are candle-nn's, through [`Deref`].

use std::ops::{Deref, DerefMut};

use candle_core::{DType, Device, Result, Tensor};

use super::{refuse_gradients, tracked};
use crate::check;
use crate::error::Error;

pub use candle_nn::kv_cache::{rope_i_inplace, IndicesAndMask, RawInterleavedKvCache};

/// An error unless the cache of a pass that is differentiated is empty.
fn check_empty(argument: &'static str, length: usize) -> Result<()> {
    if length == 0 {
        return Ok(());
    }
    let value = format!("a tensor with a gradient, for a cache of {length} positions");
    let allowed =
        "detached, or appended to an empty cache: what is in it is of an earlier pass. Reset it before each step";
    Err(Error::invalid(argument, value, allowed).into())
}

/// An error unless `xs` can follow what a cache has `held` along `dim`: what fails later leaves half of it appended.
fn check_follows(argument: &'static str, xs: &Tensor, dim: usize, held: Option<&Tensor>) -> Result<()> {
    if xs.rank() <= dim {
        return Err(Error::shape(argument, xs.dims(), format!("more than {dim} dimensions")).into());
    }
    let Some(held) = held else { return Ok(()) };
    check::same_dtype(argument, xs, "what the cache holds", held)?;
    let others = |xs: &Tensor| [&xs.dims()[..dim], &xs.dims()[dim + 1..]].concat();
    if xs.rank() != held.rank() || others(xs) != others(held) {
        let expected = format!(
            "that of what the cache holds, {:?}, but for dimension {dim}",
            held.dims()
        );
        return Err(Error::shape(argument, xs.dims(), expected).into());
    }
    Ok(())
}

macro_rules! through_deref {
    ($($cache:ident),*) => {$(
        impl Deref for $cache {
            type Target = candle_nn::kv_cache::$cache;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }

        impl DerefMut for $cache {
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.0
            }
        }
    )*};
}

through_deref!(
    Cache,
    RotatingCache,
    ConcatKvCache,
    InterleavedKvCache,
    ScatteredKvCache,
    ScatteredCacheBuilder
);

/// [`candle_nn::kv_cache::Cache`] that is not asked for gradients of what it holds.
#[derive(Clone, Debug)]
pub struct Cache(candle_nn::kv_cache::Cache);

impl Cache {
    /// Empty, for `max_seq_len` positions along dimension `dim`; it grows by as many.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self(candle_nn::kv_cache::Cache::new(dim, max_seq_len))
    }

    /// Appends `src`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient, which nothing that the cache gives out would bring back
    /// (as [`KvCache::append`] does), and for a cache of no positions; [`Error::Shape`] and [`Error::DType`] for one that
    /// cannot follow what is in it.
    pub fn append(&mut self, src: &Tensor) -> Result<()> {
        refuse_gradients("src", src)?;
        self.check("src", src)?;
        self.0.append(&src.contiguous()?)
    }

    /// An error where [`join`](Self::join) would give one.
    fn check(&self, argument: &'static str, xs: &Tensor) -> Result<()> {
        if tracked(&[xs]) {
            check_empty(argument, self.current_seq_len())?;
        }
        // candle-nn's would grow by nothing for ever.
        check::at_least_one("max_seq_len", self.max_seq_len())?;
        check_follows(argument, xs, self.dim(), self.all_data().as_ref())
    }

    /// Appends `xs`, checked, and returns all that it has: of an empty cache `xs`, where it has a gradient.
    fn join(&mut self, xs: &Tensor) -> Result<Tensor> {
        self.0.append(&xs.detach().contiguous()?)?;
        match self.current_data()? {
            Some(all) if !tracked(&[xs]) => Ok(all),
            _ => Ok(xs.clone()),
        }
    }
}

/// [`candle_nn::kv_cache::KvCache`] through which an empty cache's gradients pass.
#[derive(Clone, Debug)]
pub struct KvCache {
    k: Cache,
    v: Cache,
}

impl KvCache {
    /// Empty, for `max_seq_len` positions along dimension `dim`; it grows by as many.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        let [k, v] = [(); 2].map(|()| Cache::new(dim, max_seq_len));
        Self { k, v }
    }

    /// The cache of keys.
    pub fn k_cache(&self) -> &Cache {
        &self.k
    }

    /// The cache of values.
    pub fn v_cache(&self) -> &Cache {
        &self.v
    }

    /// The cache of keys.
    pub fn k_cache_mut(&mut self) -> &mut Cache {
        &mut self.k
    }

    /// The cache of values.
    pub fn v_cache_mut(&mut self) -> &mut Cache {
        &mut self.v
    }

    /// The keys in it, detached.
    ///
    /// # Errors
    /// candle-nn's.
    pub fn k(&self) -> Result<Option<Tensor>> {
        self.k.current_data()
    }

    /// The values in it, detached.
    ///
    /// # Errors
    /// candle-nn's.
    pub fn v(&self) -> Result<Option<Tensor>> {
        self.v.current_data()
    }

    /// Appends keys and values; returns all that it has. Of an empty cache those are `k` and `v`, gradients and all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient when the cache is not empty; [`Error::Shape`] and
    /// [`Error::DType`] for one that cannot follow what is in it. Nothing is appended then.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        self.k.check("k", k)?;
        self.v.check("v", v)?;
        Ok((self.k.join(k)?, self.v.join(v)?))
    }

    /// The number of positions in it.
    pub fn current_seq_len(&self) -> usize {
        self.k.current_seq_len()
    }

    /// Empties it.
    pub fn reset(&mut self) {
        self.k.reset();
        self.v.reset();
    }
}

/// [`candle_nn::kv_cache::RotatingCache`] through which an empty cache's gradients pass.
#[derive(Clone, Debug)]
pub struct RotatingCache(candle_nn::kv_cache::RotatingCache);

impl RotatingCache {
    /// Empty, for the last `max_seq_len` positions along dimension `dim`.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self(candle_nn::kv_cache::RotatingCache::new(dim, max_seq_len))
    }

    /// Appends `src`; returns all that can be attended to. Of an empty cache that is `src`, gradients and all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient when the cache is not empty; [`Error::Shape`] and
    /// [`Error::DType`] for one that cannot follow what is in it. Nothing is appended then.
    pub fn append(&mut self, src: &Tensor) -> Result<Tensor> {
        self.check("src", src)?;
        self.join(src)
    }

    /// An error where [`join`](Self::join) would give one.
    fn check(&self, argument: &'static str, xs: &Tensor) -> Result<()> {
        if tracked(&[xs]) {
            check_empty(argument, self.current_seq_len())?;
        }
        check_follows(argument, xs, self.dim(), self.all_data().as_ref())
    }

    fn join(&mut self, xs: &Tensor) -> Result<Tensor> {
        let all = self.0.append(&xs.detach())?;
        Ok(if tracked(&[xs]) { xs.clone() } else { all })
    }
}

/// [`candle_nn::kv_cache::RotatingKvCache`] through which an empty cache's gradients pass.
#[derive(Clone, Debug)]
pub struct RotatingKvCache {
    k: RotatingCache,
    v: RotatingCache,
}

impl RotatingKvCache {
    /// Empty, for the last `max_seq_len` positions along dimension `dim`.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        let [k, v] = [(); 2].map(|()| RotatingCache::new(dim, max_seq_len));
        Self { k, v }
    }

    /// The cache of keys.
    pub fn k_cache(&self) -> &RotatingCache {
        &self.k
    }

    /// The cache of values.
    pub fn v_cache(&self) -> &RotatingCache {
        &self.v
    }

    /// The cache of keys.
    pub fn k_cache_mut(&mut self) -> &mut RotatingCache {
        &mut self.k
    }

    /// The cache of values.
    pub fn v_cache_mut(&mut self) -> &mut RotatingCache {
        &mut self.v
    }

    /// The keys in it, detached.
    ///
    /// # Errors
    /// candle-nn's.
    pub fn k(&self) -> Result<Option<Tensor>> {
        self.k.current_data()
    }

    /// The values in it, detached.
    ///
    /// # Errors
    /// candle-nn's.
    pub fn v(&self) -> Result<Option<Tensor>> {
        self.v.current_data()
    }

    /// Appends keys and values; returns all that can be attended to. Of an empty cache those are `k` and `v`, gradients
    /// and all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient when the cache is not empty; [`Error::Shape`] and
    /// [`Error::DType`] for one that cannot follow what is in it. Nothing is appended then.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        self.k.check("k", k)?;
        self.v.check("v", v)?;
        Ok((self.k.join(k)?, self.v.join(v)?))
    }

    /// Where the next position is written.
    pub fn offset(&self) -> usize {
        self.k.offset()
    }

    /// The number of positions that it has seen.
    pub fn current_seq_len(&self) -> usize {
        self.k.current_seq_len()
    }

    /// The mask for `seq_len` more positions, 1 where a key is hidden; none where there is nothing to hide.
    ///
    /// # Errors
    /// candle's.
    pub fn attn_mask(&self, seq_len: usize, device: &Device) -> Result<Option<Tensor>> {
        self.k.attn_mask(seq_len, device)
    }

    /// The positions of what is returned once `seq_len` more are appended.
    pub fn positions(&self, seq_len: usize) -> Vec<usize> {
        self.k.positions(seq_len)
    }

    /// Empties it.
    pub fn reset(&mut self) {
        self.k.reset();
        self.v.reset();
    }
}

/// [`candle_nn::kv_cache::ConcatKvCache`] through which an empty cache's gradients pass.
#[derive(Clone, Debug)]
pub struct ConcatKvCache(candle_nn::kv_cache::ConcatKvCache);

impl ConcatKvCache {
    /// Empty, along dimension `dim`.
    pub fn new(dim: usize) -> Self {
        Self(candle_nn::kv_cache::ConcatKvCache::new(dim))
    }

    /// Appends keys and values; returns all that it has. Of an empty cache those are `k` and `v`, gradients and all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient when the cache is not empty; [`Error::Shape`] and
    /// [`Error::DType`] for one that cannot follow what is in it. Nothing is appended then.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        check_follows("k", k, self.dim(), self.0.k())?;
        check_follows("v", v, self.dim(), self.0.v())?;
        if !tracked(&[k, v]) {
            return self.0.append(k, v);
        }
        check_empty("k", self.current_seq_len())?;
        let (k, v) = (k.contiguous()?, v.contiguous()?);
        self.0.append(&k, &v)?;
        Ok((k, v))
    }

    /// Keys and values, if there are any.
    pub fn into_inner(self) -> Option<(Tensor, Tensor)> {
        self.0.into_inner()
    }
}

/// [`candle_nn::kv_cache::InterleavedKvCache`] through which an empty cache's gradients pass.
#[derive(Clone, Debug)]
pub struct InterleavedKvCache(candle_nn::kv_cache::InterleavedKvCache);

impl InterleavedKvCache {
    /// Empty, for heads of width `head_dim`.
    pub fn new(head_dim: usize) -> Self {
        Self(candle_nn::kv_cache::InterleavedKvCache::new(head_dim))
    }

    /// Appends keys and values [1, H, S, D] of one sequence; returns all that it has, [S, H, 2 D], each key beside its
    /// value.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient when the cache is not empty; candle-nn's.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        if !tracked(&[k, v]) {
            return self.0.append(k, v);
        }
        check_empty("k", self.current_seq_len())?;
        self.0.append(&k.detach(), &v.detach())?;
        let positions_first = |xs: &Tensor| xs.squeeze(0)?.transpose(0, 1)?.contiguous();
        Tensor::cat(&[positions_first(k)?, positions_first(v)?], 2)
    }
}

/// [`candle_nn::kv_cache::ScatteredKvCache`], for the streams of a batch: it refuses gradients that it would cut.
#[derive(Clone, Debug)]
pub struct ScatteredKvCache(candle_nn::kv_cache::ScatteredKvCache);

impl ScatteredKvCache {
    /// Writes keys and values [B, H, S, D] to where `iam` says; returns all that it has. Where S is the whole context or
    /// more those are `k` and `v`, gradients and all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient that is shorter than the context; [`Error::Shape`] for
    /// values of another shape than the keys; candle-nn's.
    pub fn append(&mut self, k: &Tensor, v: &Tensor, iam: &IndicesAndMask) -> Result<(Tensor, Tensor)> {
        let context = self.k().dim(2)?;
        if v.dims() != k.dims() {
            return Err(Error::shape("v", v.dims(), format!("{:?} like k", k.dims())).into());
        }
        if tracked(&[k, v]) && k.dim(2)? < context {
            let value = format!("a tensor of {} positions with a gradient", k.dim(2)?);
            let allowed =
                format!("detached, or of the context's {context} positions: others are copied without a gradient");
            return Err(Error::invalid("k", value, allowed).into());
        }
        self.0.append(k, v, iam)
    }
}

/// [`candle_nn::kv_cache::ScatteredCacheBuilder`], which makes [`ScatteredKvCache`]s.
#[derive(Clone, Debug)]
pub struct ScatteredCacheBuilder(candle_nn::kv_cache::ScatteredCacheBuilder);

impl ScatteredCacheBuilder {
    /// For `batch_size` streams of which the last `context` positions are kept.
    ///
    /// # Errors
    /// candle-nn's.
    pub fn new(batch_size: usize, context: usize, dtype: DType, device: &Device) -> Result<Self> {
        candle_nn::kv_cache::ScatteredCacheBuilder::new(batch_size, context, dtype, device).map(Self)
    }

    /// A cache for `num_heads` heads of width `head_dim`.
    ///
    /// # Errors
    /// candle-nn's.
    pub fn make_cache(&self, num_heads: usize, head_dim: usize) -> Result<ScatteredKvCache> {
        self.0.make_cache(num_heads, head_dim).map(ScatteredKvCache)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{random, relative};
    use candle_core::Var;

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
        let error = Cache::new(2, 0).append(&xs).unwrap_err().to_string();
        assert_eq!(error, "max_seq_len is 0, but must be at least 1");
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
}
